package qemu

import (
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
// guest answers, and what QEMU then has of private memory.
func BenchmarkClone(b *testing.B) {
	kernel, initrd := vmmtest.Kernel(b), guestInitrd(b)
	d := New(Options{})
	b.Cleanup(d.Close)
	for _, m := range []vmm.Machine{vmm.MachineMicroVM, vmm.MachineQ35} {
		for _, cpus := range []int{1, 2, 4} {
			b.Run(fmt.Sprintf("%s/%d", m, cpus), func(b *testing.B) {
				cfg := vmm.Config{Machine: m, Kernel: kernel, Initrd: initrd, CPUs: cpus, MemMiB: 4096}
				for i := range 16 {
					cfg.Disks = append(cfg.Disks, vmm.Disk{ID: fmt.Sprintf("l%d", i), ReadOnly: true})
				}
				cfg.NICs = []vmm.NIC{{Tap: newTap(b), MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}}}
				cfg = saved(b, d, cfg)
				files := []vmm.Disk{fileOf(b, "l0", make([]byte, 1<<20), true), fileOf(b, "l1", make([]byte, 1<<20), true)}
				started, loaded, answered := math.Inf(1), math.Inf(1), math.Inf(1)
				var kib map[string]int
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
					kib = smaps(b, v.handle.PID)
					v.Kill(b.Context())
				}
				b.ReportMetric(started, "started-ms")
				b.ReportMetric(loaded, "loaded-ms")
				b.ReportMetric(answered, "answered-ms")
				for kind, n := range kib {
					b.ReportMetric(float64(n), kind+"-KiB")
				}
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
