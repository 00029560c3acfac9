#!/bin/bash
# lint.sh quick                        gofmt and vet
# lint.sh STATICCHECK GOLANGCI_LINT    also these two, each PACKAGE@VERSION, built once into the cache
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${HYPER_CACHE:-$HOME/.cache/hyper}/bin

bad=$(git ls-files --cached --others --exclude-standard '*.go' | xargs gofmt -l)
[[ -z $bad ]] || { echo "gofmt -w these:"; echo "$bad"; exit 1; }
go vet ./...
[[ $1 != quick ]] || exit 0

# tool PACKAGE@VERSION: prints the path of its executable, kept under its version.
tool() {
	local dir=$bin/${1##*@} name
	name=${1%@*}
	name=${name##*/}
	if [[ ! -x $dir/$name ]]; then
		echo "lint: builds $1" >&2
		GOBIN=$dir GOFLAGS= nice go install "$1" || return
	fi
	echo "$dir/$name"
}

staticcheck=$(tool "$1")
"$staticcheck" ./...
golangci=$(tool "$2")
"$golangci" run
