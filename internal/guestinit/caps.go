package guestinit

import (
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// capabilityNames in the order of their numbers (capabilities(7)).
var capabilityNames = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
	LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
	SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE
	AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

// A capSet is a process's capabilities as bit masks.
type capSet struct{ effective, permitted, inheritable, bounding, ambient uint64 }

// parseCapabilities translates names; what this kernel does not know, beyond
// last, is left out. Without any there are none.
func parseCapabilities(c *specs.LinuxCapabilities, last int) (capSet, error) {
	var s capSet
	if c == nil {
		return s, nil
	}
	for _, set := range []struct {
		names []string
		mask  *uint64
	}{
		{c.Effective, &s.effective}, {c.Permitted, &s.permitted}, {c.Inheritable, &s.inheritable},
		{c.Bounding, &s.bounding}, {c.Ambient, &s.ambient},
	} {
		for _, name := range set.names {
			n, err := capability(name)
			if err != nil {
				return s, err
			}
			if n <= last {
				*set.mask |= 1 << n
			}
		}
	}
	return s, nil
}

func capability(name string) (int, error) {
	for n, known := range capabilityNames {
		if strings.TrimPrefix(name, "CAP_") == known {
			return n, nil
		}
	}
	return 0, fmt.Errorf("unknown capability %q", name)
}
