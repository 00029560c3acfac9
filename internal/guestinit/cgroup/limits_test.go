package cgroup

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func ptr[T any](v T) *T { return &v }

func TestSettings(t *testing.T) {
	tests := []struct {
		name string
		r    specs.LinuxResources
		want string
		err  string
	}{
		{name: "nothing"},
		{name: "memory", r: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(150)), Reservation: ptr(int64(50))}},
			want: "memory.swap.max=50 memory.max=100 memory.low=50"},
		{name: "no swap limit", r: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1)), Swap: ptr(int64(-1))}},
			want: "memory.swap.max=max memory.max=max"},
		{name: "swap below memory", r: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(50))}},
			err: "less than the memory limit"},
		{name: "cpu", r: specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(1024)), Quota: ptr(int64(50000)), Cpus: "0-1"}},
			want: "cpu.weight=39 cpu.max=50000 100000 cpuset.cpus=0-1"},
		{name: "shares at the ends", r: specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(1 << 40))}},
			want: "cpu.weight=10000"},
		{name: "no quota", r: specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(-1)), Period: ptr(uint64(20000))}},
			want: "cpu.max=max 20000"},
		{name: "pids", r: specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(7))}}, want: "pids.max=7"},
		{name: "no pids limit", r: specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(-1))}}, want: "pids.max=max"},
		{name: "io", r: specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(1000)),
			ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{throttle(254, 0, 5)}}},
			want: "io.weight=default 10000 io.max=254:0 rbps=5"},
		{name: "unified", r: specs.LinuxResources{Unified: map[string]string{"memory.high": "9", "cpu.idle": "1"}},
			want: "cpu.idle=1 memory.high=9"},
		{name: "version 1", r: specs.LinuxResources{Memory: &specs.LinuxMemory{DisableOOMKiller: ptr(true)}}, err: "no OOM killer"},
		{name: "unified that escapes", r: specs.LinuxResources{Unified: map[string]string{"../memory.max": "1"}}, err: "not a limit"},
		{name: "unified that is no limit", r: specs.LinuxResources{Unified: map[string]string{"cgroup.kill": "1"}}, err: "not a limit"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := settings(&tt.r)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got %v", err)
				}
				return
			}
			var got []string
			for _, s := range l {
				got = append(got, s.file+"="+s.value)
			}
			if d := cmp.Diff(tt.want, strings.Join(got, " ")); err != nil || d != "" {
				t.Errorf("%v\n%s", err, d)
			}
		})
	}
}

func TestIOMax(t *testing.T) {
	for want, l := range map[string]IO{
		"254:16 rbps=max wbps=max riops=max wiops=max": {},
		"254:16 rbps=1 wbps=2 riops=3 wiops=max":       {ReadBytes: 1, WriteBytes: 2, Reads: 3},
	} {
		if got := ioMax(unix.Mkdev(254, 16), l); got != want {
			t.Errorf("%+v: %q", l, got)
		}
	}
}

func throttle(major, minor int64, rate uint64) specs.LinuxThrottleDevice {
	d := specs.LinuxThrottleDevice{Rate: rate}
	d.Major, d.Minor = major, minor
	return d
}
