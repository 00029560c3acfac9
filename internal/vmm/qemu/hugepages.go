package qemu

import (
	"sync"

	"golang.org/x/sys/unix"
)

// hugePages is held while they are off.
var hugePages sync.Mutex

// withoutHugePages calls start, and the process that start makes gets no
// transparent huge pages: QEMU asks for them where it has translated code and
// the like, of which a short-lived clone uses little. Of 4 vCPUs each would
// begin with 2 MiB; without, a clone has 6 to 8 MiB less, and starts as soon. The
// guest's memory, a private copy of a file, has no huge pages anyway.
//
// The setting is of the whole process and survives fork and execve
// (PR_SET_THP_DISABLE in prctl(2)).
func withoutHugePages(start func() error) error {
	hugePages.Lock()
	defer hugePages.Unlock()
	off, err := unix.PrctlRetInt(unix.PR_GET_THP_DISABLE, 0, 0, 0, 0)
	if err == nil && off == 0 && unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0) == nil {
		defer unix.Prctl(unix.PR_SET_THP_DISABLE, 0, 0, 0, 0)
	}
	return start()
}
