package main

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestArgv(t *testing.T) {
	base := shape{cpus: 2, memMiB: 1024, slots: 2, slotMiB: 64, tscKHz: 2300000}
	tests := []struct {
		name string
		spec spec
		want []string // in this order, not all there is
		not  string
	}{{
		name: "template microvm-blk",
		spec: spec{road: road{"microvm", blk}, shape: base, kernelFD: 3, initrdFD: 4, memoryFD: 5, emptyFD: 6, qmpFD: 7, guestFD: 8},
		want: []string{
			"microvm,acpi=on,isa-serial=on,graphics=off,mem-merge=off,dump-guest-core=off,memory-backend=mem",
			"1024M",
			"memory-backend-file,id=mem,size=1024M,mem-path=/proc/self/fd/5,share=on,reserve=off",
			"/proc/self/fd/3", "/proc/self/fd/4",
			"driver=null-co,node-name=s0,size=1099511627776,read-zeroes=on,read-only=on",
			"virtio-blk-device,drive=s1,serial=slot01,num-queues=1,queue-size=64",
		},
		not: "pmem",
	}, {
		name: "clone q35-blk",
		spec: spec{road: road{"q35", blk}, shape: base, clone: true, memoryFD: 3, emptyFD: 4, imageFD: 5, qmpFD: 6, guestFD: 7},
		want: []string{
			"memory-backend-file,id=mem,size=1024M,mem-path=/proc/self/fd/3,share=off,reserve=off",
			"-incoming",
			"fd=5,set=1",
			"driver=file,node-name=s0,filename=/dev/fdset/1,read-only=on,aio=threads",
			"virtio-blk-pci,disable-legacy=on,drive=s0,serial=slot00,num-queues=1,queue-size=64",
			"driver=null-co,node-name=s1,size=1099511627776,read-zeroes=on,read-only=on",
		},
		not: "-kernel",
	}, {
		name: "clone q35-pmem",
		spec: spec{road: road{"q35", pmem}, shape: base, clone: true, memoryFD: 3, emptyFD: 4, imageFD: 5, qmpFD: 6, guestFD: 7},
		want: []string{
			"1024M,slots=2,maxmem=1152M",
			"memory-backend-file,id=p0,size=64M,mem-path=/proc/self/fd/5,share=on,readonly=on",
			"virtio-pmem-pci,disable-legacy=on,memdev=p0",
			"memory-backend-file,id=p1,size=64M,mem-path=/proc/self/fd/4,share=on,readonly=on",
		},
		not: "-blockdev",
	}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := test.spec.argv()
			rest := got
			for _, word := range test.want {
				i := slices.Index(rest, word)
				if i < 0 {
					t.Fatalf("%q is missing, or not in its place, in\n%s", word, strings.Join(got, "\n"))
				}
				rest = rest[i+1:]
			}
			if strings.Contains(strings.Join(got, " "), test.not) {
				t.Errorf("%q is in\n%s", test.not, strings.Join(got, "\n"))
			}
		})
	}
}

func TestParseRoads(t *testing.T) {
	got, err := parseRoads("q35-pmem,microvm-blk")
	if err != nil || !slices.Equal(got, []road{{"q35", pmem}, {"microvm", blk}}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "microvm-pmem", "q35-blk,"} {
		if got, err := parseRoads(bad); err == nil {
			t.Errorf("%q: got %v, want an error", bad, got)
		}
	}
}

func TestParseSizes(t *testing.T) {
	got, err := parseSizes("2.5,60")
	if err != nil || !slices.Equal(got, []float64{2.5, 60}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "0", "-1", "NaN", "1e9", "3,x"} {
		if got, err := parseSizes(bad); err == nil {
			t.Errorf("%q: got %v, want an error", bad, got)
		}
	}
}

func TestParseAnswer(t *testing.T) {
	if n, err := parseAnswer("ok 42\n"); n != 42 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := parseAnswer("error mount /dev/vda: no such device\n"); err == nil || err.Error() != "mount /dev/vda: no such device" {
		t.Errorf("got %v", err)
	}
	if n, err := parseAnswer("\x00\n"); err == nil {
		t.Errorf("got %d, want an error", n)
	}
}

func TestFileSizes(t *testing.T) {
	for _, total := range []int64{100_000, 2_500_000, 300_000_000} {
		sizes := fileSizes(total)
		var sum int64
		for _, size := range sizes {
			sum += size
		}
		if sum != total || sizes[0] != smallSize || slices.Min(sizes) <= 0 {
			t.Errorf("%d bytes: %d files, %d bytes, first %d, least %d", total, len(sizes), sum, sizes[0], slices.Min(sizes))
		}
	}
}

func TestMakeImage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	img, err := makeImage(path, 1, 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer img.file.Close()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() != 4<<20 || img.bytes != 1_000_000 {
		t.Errorf("image of %d bytes holds %d", info.Size(), img.bytes)
	}
	if _, err := makeImage(path, 3, 2<<20); err == nil {
		t.Error("an image larger than its slot was made")
	}
}

func TestParseSmaps(t *testing.T) {
	const smaps = `7f00-7f01 rw-p 00000000 00:01 5 /memfd:slots-memory (deleted)
Size:               1024 kB
Pss:                 300 kB
Private_Dirty:       200 kB
VmFlags: rd wr
7f02-7f03 rw-p 00000000 00:00 0
Pss:                  50 kB
Pss_Dirty:            50 kB
Private_Dirty:        40 kB
`
	got, err := parseSmaps(strings.NewReader(smaps))
	want := memory{private: 240 << 10, guest: 200 << 10, pss: 350 << 10}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if _, err := memoryOf(os.Getpid()); err != nil {
		t.Errorf("own memory: %v", err)
	}
}

func TestMarkdown(t *testing.T) {
	rep := &report{
		host: []string{"a host"}, crowd: 10, perGiB: 16.04,
		rows: []*row{{
			road: road{"q35", pmem}, mb: 2.5, files: 40,
			qmp: []float64{18, 17, 20}, loaded: []float64{30, 29, 35}, answer: []float64{80, 75, 95},
			first: []float64{200, 250, 220}, again: []float64{400, 410, 390},
			private: []float64{20}, guest: []float64{1.5}, pss: []float64{22}, pageTables: []float64{0.4},
		}},
		templates: []templateRow{{road: road{"q35", pmem}, slots: 8, slotMiB: 512, boot: 1200, used: 160, state: 0.2}},
	}
	got := rep.markdown()
	for _, line := range []string{
		"- a host\n",
		"| 2.5 MB | 40 | q35-pmem | 18 (17) | 30 (29) | 80 (75) | 220 (250) | 400 (410) |\n",
		"Memory of each of 10 idle VMs",
		"| 2.5 MB | q35-pmem | 20 | 1.50 | 22 | 0.40 |\n",
		"| q35-pmem: 8 of 512 MiB | 1200 ms | 160.0 MiB | 0.20 MiB |\n",
		"takes 16.0 MiB of the guest's memory",
	} {
		if !strings.Contains(got, line) {
			t.Errorf("%q is missing in\n%s", line, got)
		}
	}
}

func TestRunRefuses(t *testing.T) {
	for _, args := range [][]string{{"-n", "0"}, {"-roads", "x"}, {"-images", "x"}, {"-slot", "3"}, {"-slots", "17"}, {"more"}} {
		var out, errs strings.Builder
		if err := run(context.Background(), args, &out, &errs); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
	if kHz := hostTSCKHz(); kHz < 0 || kHz > math.MaxInt32 {
		t.Errorf("time stamp counter at %d kHz", kHz)
	}
}
