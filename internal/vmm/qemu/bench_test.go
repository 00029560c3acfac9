package qemu

import (
	"errors"
	"fmt"
	"math"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest"
)

// BenchmarkClone is a clone of a large template with many slots, some filled:
// the least time until Start returns, until the state is loaded and until the
// guest answers, and the least that QEMU then has of private memory.
func BenchmarkClone(b *testing.B) {
	kernel, initrd := vmmtest.Kernel(b), guestInitrd(b)
	d := New(Options{})
	b.Cleanup(d.Close)
	for _, m := range []vmm.Machine{vmm.MachineMicroVM, vmm.MachineQ35} {
		for _, c := range []struct {
			cpus int
			plug bool
		}{{1, true}, {2, true}, {2, false}, {4, true}} {
			b.Run(fmt.Sprintf("%s/%d/plug=%t", m, c.cpus, c.plug), func(b *testing.B) {
				cfg := saved(b, d, usual(b, vmm.Config{Machine: m, Kernel: kernel, Initrd: initrd, CPUs: c.cpus, Plug: c.plug}))
				files := []vmm.Disk{fileOf(b, "l0", make([]byte, 1<<20), true), fileOf(b, "l1", make([]byte, 1<<20), true)}
				started, loaded, answered := math.Inf(1), math.Inf(1), math.Inf(1)
				least := make(map[string]int)
				for i := range b.N + 1 {
					start := time.Now()
					v, ask := clone(b, d, cfg, files...)
					s := time.Since(start)
					for !v.resumed.Load() {
						runtime.Gosched()
					}
					l := time.Since(start)
					ask("echo x")
					a := time.Since(start)
					if i > 0 { // the first learns the descriptor's number
						started, loaded, answered = min(started, ms(s)), min(loaded, ms(l)), min(answered, ms(a))
					}
					kib := smaps(b, v.handle.PID)
					if u, err := v.HostUsage(b.Context()); err == nil {
						kib["pss"] = int(u.PSSBytes >> 10)
					}
					for kind, n := range kib {
						if was, ok := least[kind]; !ok || n < was {
							least[kind] = n
						}
					}
					v.Kill(b.Context())
				}
				b.ReportMetric(started, "started-ms")
				b.ReportMetric(loaded, "loaded-ms")
				b.ReportMetric(answered, "answered-ms")
				for kind, n := range least {
					b.ReportMetric(float64(n), kind+"-KiB")
				}
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// usual gives cfg the disks, memory and NIC of a template for pods.
func usual(b *testing.B, cfg vmm.Config) vmm.Config {
	b.Helper()
	cfg.MemMiB = 4096
	for i := range 11 {
		cfg.Disks = append(cfg.Disks, vmm.Disk{ID: fmt.Sprintf("l%d", i), ReadOnly: true})
	}
	for i := range 4 {
		cfg.Disks = append(cfg.Disks, vmm.Disk{ID: fmt.Sprintf("w%d", i)})
	}
	cfg.NICs = []vmm.NIC{{Tap: newTap(b), MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}}}
	return cfg
}

// BenchmarkDisks is what it takes to give a running clone a disk and to take
// it away, in a slot and by plugging: the least time until the call returns
// and until the guest has found it, the first time in a clone and later.
func BenchmarkDisks(b *testing.B) {
	kernel, initrd := vmmtest.Kernel(b), guestInitrd(b)
	d := New(Options{})
	b.Cleanup(d.Close)
	for _, m := range []vmm.Machine{vmm.MachineMicroVM, vmm.MachineQ35} {
		b.Run(string(m), func(b *testing.B) {
			cfg := saved(b, d, usual(b, vmm.Config{Machine: m, Kernel: kernel, Initrd: initrd, CPUs: 2, Plug: true}))
			slot, plug := fileOf(b, "w1", make([]byte, 1<<20), false), fileOf(b, "plugged", make([]byte, 1<<20), false)
			best := make(map[string]float64)
			for range b.N {
				v, ask := clone(b, d, cfg)
				ask("echo x")
				for _, when := range []string{"first", "later", "later"} {
					measure := func(what string, steps ...func() error) {
						start := time.Now()
						for i, step := range steps {
							if err := step(); err != nil {
								b.Fatal(err)
							}
							name := fmt.Sprintf("%s-%s%s-ms", when, what, []string{"", "-found"}[i])
							if t := ms(time.Since(start)); best[name] == 0 || t < best[name] {
								best[name] = t
							}
						}
					}
					await := func(id string) func() error {
						return func() error {
							if got := ask("fact await " + id); got != "ok" {
								return errors.New(got)
							}
							return nil
						}
					}
					measure("fill", func() error { return v.Fill(b.Context(), []vmm.Disk{slot}) }, await("w1"))
					measure("empty", func() error { return v.Empty(b.Context(), []string{"w1"}) })
					measure("plug", func() error { return v.Plug(b.Context(), plug) }, await("plugged"))
					measure("unplug", func() error { return v.Unplug(b.Context(), "plugged") })
				}
				v.Kill(b.Context())
			}
			for name, t := range best {
				b.ReportMetric(t, name)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
