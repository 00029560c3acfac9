package vmm

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

var (
	vmID   = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
	diskID = regexp.MustCompile(`^[a-z0-9-]{1,20}$`)
)

// maxCmdline is what the guest's kernel accepts (COMMAND_LINE_SIZE on x86),
// less some room for what drivers add.
const maxCmdline = 2048 - 256

// Validate says what of the contract c breaks, without looking at the host.
// The error is an errdefs.ErrInvalidArgument. Drivers call it first, so that
// they can rely on every rule in Config's comments.
func (c Config) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("configuration of virtual machine: %s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	switch {
	case !vmID.MatchString(c.ID):
		return bad("id %q", c.ID)
	case !filepath.IsAbs(c.Dir) || len(c.Dir) > 80:
		return bad("directory %q is not absolute or longer than 80 bytes", c.Dir)
	case c.Kernel == "" && c.Restore == nil:
		return bad("no kernel")
	case c.Restore != nil && (c.Restore.Memory == nil || c.Restore.State == nil || c.Memory != nil):
		return bad("a clone needs saved memory and state, and has no other memory")
	case c.CPUs < 1 || c.CPUs > MaxCPUs:
		return bad("%d CPUs, not 1 to %d", c.CPUs, MaxCPUs)
	case c.MemMiB < MinMemMiB || c.MemMiB > MaxMemMiB:
		return bad("%d MiB of memory, not %d to %d", c.MemMiB, MinMemMiB, MaxMemMiB)
	case len(c.Disks) > MaxDisks:
		return bad("%d disks, more than %d", len(c.Disks), MaxDisks)
	case len(c.NICs) > MaxNICs:
		return bad("%d network interfaces, more than %d", len(c.NICs), MaxNICs)
	case len(c.Cmdline) > maxCmdline || strings.ContainsFunc(c.Cmdline, func(r rune) bool { return r < ' ' || r > '~' }):
		return bad("kernel command line is longer than %d bytes or not printable ASCII", maxCmdline)
	case !slices.Contains([]Accel{"", AccelAuto, AccelKVM, AccelTCG}, c.Accel):
		return bad("accelerator %q", c.Accel)
	case !slices.Contains([]Machine{"", MachineAuto, MachineQ35, MachineMicroVM}, c.Machine):
		return bad("machine %q", c.Machine)
	}
	if slices.Contains(c.Procs, nil) {
		return bad("a cgroup.procs file is missing")
	}
	seen := make(map[string]bool)
	for _, d := range c.Disks {
		if !diskID.MatchString(d.ID) || seen[d.ID] {
			return bad("disk id %q is malformed or used twice", d.ID)
		}
		seen[d.ID] = true
	}
	for i, n := range c.NICs {
		if n.Tap == nil || len(n.MAC) != 6 || n.MAC[0]&1 != 0 || n.MTU < 0 || n.MTU > 65535 || (n.MTU > 0 && n.MTU < 68) {
			return bad("network interface %d: tap missing, address %s not unicast or MTU %d out of range", i, n.MAC, n.MTU)
		}
	}
	return nil
}

// Validate says what of the contract d breaks as a disk that is plugged in,
// as Config's does.
func (d Disk) Validate() error {
	if !diskID.MatchString(d.ID) || d.Path == "" {
		return fmt.Errorf("disk %q is malformed or has no file: %w", d.ID, errdefs.ErrInvalidArgument)
	}
	return nil
}

// LastLines returns the last n lines of a console for people to read: a
// guest's control characters, which a terminal would obey, are taken out.
func LastLines(console []byte, n int) string {
	clean := strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || (r != utf8.RuneError && unicode.IsPrint(r)) {
			return r
		}
		return -1
	}, string(console))
	lines := strings.Split(strings.TrimRight(clean, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
