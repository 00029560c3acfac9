package qemu

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hyper-run/hyper/internal/vmm"
)

// identity is a text that changes with all that a saved VM depends on: the
// builds of QEMU, its devices, the accelerator, and the host's CPU, which the guest saw.
func (h *host) identity() (string, error) {
	sum := sha256.New()
	binaries := []program{h.full}
	if h.light != nil {
		binaries = append(binaries, *h.light)
	}
	for _, b := range binaries {
		info, err := os.Stat(b.path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %s %d %d\n", filepath.Base(b.path), b.version, info.Size(), info.ModTime().UnixNano())
	}
	// What a VM of ours consists of.
	for _, m := range []vmm.Machine{vmm.MachineMicroVM, vmm.MachineQ35} {
		s := spec{Accel: h.caps.Accel, Machine: m, Disks: make([]diskSpec, 1), NICs: make([]nicSpec, 1)}
		fmt.Fprintf(sum, "%q\n", s.argv())
	}
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	fmt.Fprintf(sum, "%s\n%s\n%q\n", h.caps.Accel, cpuModel(cpu), cpuFlags(cpu))
	return fmt.Sprintf("qemu %s %s %x", h.full.version, h.caps.Accel, sum.Sum(nil)[:8]), nil
}

// cpuModel is the model name of the first CPU in a /proc/cpuinfo.
func cpuModel(info []byte) []byte {
	_, rest, _ := bytes.Cut(info, []byte("\nmodel name"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return bytes.Trim(line, "\t :")
}
