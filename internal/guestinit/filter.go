package guestinit

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// A filter is a seccomp filter as the kernel takes it, which also checks it.
type filter struct {
	program []byte
	flags   uint32
}

// newFilter is that of a container's processes; nil: none.
func newFilter(r *wire.CreateContainerRequest) (*filter, error) {
	n := len(r.SeccompFilter)
	if n == 0 {
		return nil, nil
	}
	const size = 8 // of an instruction
	if n%size != 0 || n/size > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("seccomp filter of %d bytes: not up to %d instructions", n, unix.BPF_MAXINSNS)
	}
	return &filter{r.SeccompFilter, r.SeccompFlags}, nil
}
