package qemu

import (
	"bytes"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// rdtsc reads the CPU's time stamp counter.
func rdtsc() uint64

// tscBaseline is how long the counter is watched. A reading is off by some
// 0.1 µs, which over 20 ms makes 5 parts in a million.
const tscBaseline = 20 * time.Millisecond

// tscKHz measures the frequency of the time stamp counter, 0 when that is not
// constant. It takes tscBaseline.
func tscKHz() uint64 {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return 0
	}
	flags := cpuFlags(info)
	if !slices.Contains(flags, "constant_tsc") || !slices.Contains(flags, "nonstop_tsc") {
		return 0
	}
	t0, ns0 := tscSample()
	time.Sleep(tscBaseline)
	t1, ns1 := tscSample()
	if t1 <= t0 || ns1 <= ns0 {
		return 0
	}
	return ((t1-t0)*1_000_000 + uint64(ns1-ns0)/2) / uint64(ns1-ns0)
}

// tscSample reads counter and clock at the same moment: of several tries, the
// one that took the shortest.
func tscSample() (tsc uint64, ns int64) {
	best := ^uint64(0)
	for range 16 {
		var ts unix.Timespec
		before := rdtsc()
		if unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts) != nil {
			return 0, 0
		}
		after := rdtsc()
		if d := after - before; d < best {
			best, tsc, ns = d, before+d/2, ts.Nano()
		}
	}
	return tsc, ns
}

// cpuFlags are the features of the first CPU in a /proc/cpuinfo.
func cpuFlags(info []byte) []string {
	_, rest, _ := bytes.Cut(info, []byte("\nflags"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	var flags []string
	for _, f := range bytes.Fields(line) {
		flags = append(flags, string(f))
	}
	return flags
}
