# Hyper. As root on Debian 12, with git, make and Go:
#
#   make demo      what is needed, a build, then hello and nginx in VMs of their own; leaves nothing running
#   make test      everything that CI runs; also the lab's short run where its kernel was built
#
#   make build     bin/hyper bin/hyperd bin/hyperstart
#   make check     format, vet, guard tests, linters
#   make kernel    HyperKernel, the guest kernel, once: about 5 minutes
#   make bench     the numbers of SPEC.md, into bench/results.md
#   make bench-start  starts beside Docker, podman and gVisor, into bench/start; gets these once: 10 minutes
#   make lab       what needs KVM, in an emulated machine that has it
#   make fuzz      every fuzz target for FUZZTIME (10s)
#   make install   into PREFIX (/usr/local)
#   make deps      Debian packages, Debian's cloud kernel, a docker client for the tests
#   make clean     what make build made; the cache ($HYPER_CACHE, ~/.cache/hyper) stays

export HYPER_CACHE ?= $(HOME)/.cache/hyper
PREFIX   ?= /usr/local
FUZZTIME ?= 10s
# Linters and the docker client that make deps puts beside a system without them.
export PATH := $(PATH):$(HYPER_CACHE)/bin:$(HYPER_CACHE)/docker/usr/bin

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  := $(shell git rev-parse --short HEAD 2>/dev/null)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
# The race detector needs a C compiler; the binaries do not.
RACE    := $(shell command -v gcc >/dev/null && echo -race)

STATICCHECK   := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: build demo test check kernel bench bench-start lab fuzz install clean deps

build:
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/hyper ./cmd/hyperd ./cmd/hyperstart

demo: deps build
	test/demo.sh

test: deps kernel build
	test/lint.sh --if-available '$(STATICCHECK)' '$(GOLANGCI_LINT)'
	HYPER_TEST_KERNEL=$(HYPER_CACHE)/kernel/hyperkernel/kernel go test $(RACE) -timeout 30m ./...
	@[ ! -f '$(HYPER_CACHE)/lab/kernel/hyperkernel/kernel' ] || HYPER_LAB=short go test -count=1 -timeout 15m ./test/lab

check:
	test/lint.sh '$(STATICCHECK)' '$(GOLANGCI_LINT)'
	go test .

kernel:
	test/deps.sh kernel
	boot/build-kernel hyperkernel

bench: deps kernel build
	go run ./bench -bin bin -o bench/results.md

bench-start: deps kernel build
	go run ./bench/start -bin bin -o bench/start $(BENCHFLAGS)

fuzz:
	test/fuzz.sh $(FUZZTIME)

install: build
	install -D -t $(DESTDIR)$(PREFIX)/bin bin/hyper bin/hyperd
	install -D -t $(DESTDIR)$(PREFIX)/lib/hyper bin/hyperstart
	test/install-kernels.sh '$(HYPER_CACHE)/kernel' '$(DESTDIR)$(PREFIX)/lib/hyper/kernel'

clean:
	rm -rf bin

deps:
	test/deps.sh run

# lab: KVM proven without KVM (test/lab/README.md); its kernel is built once, about 5 minutes
lab: deps kernel
	test/lab/build-kernel
	HYPER_LAB=1 go test -v -count=1 -timeout 20m ./test/lab
