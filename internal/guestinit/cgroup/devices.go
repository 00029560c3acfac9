package cgroup

import (
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// An insn is one eBPF instruction (Documentation/bpf/standardization).
type insn struct {
	code uint8
	regs uint8 // dst in the low half, src in the high
	off  int16
	imm  int32
}

const (
	movImm = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	movReg = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X
	andImm = unix.BPF_ALU64 | unix.BPF_AND | unix.BPF_K
	rshImm = unix.BPF_ALU64 | unix.BPF_RSH | unix.BPF_K
	jneImm = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	jneReg = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_X
	jeqImm = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	load32 = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	exit   = unix.BPF_JMP | unix.BPF_EXIT
)

// allowDevices attaches a program that decides which devices the group's
// processes may make and open: the last rule that fits decides, none means no.
func (g *Group) allowDevices(rules []specs.LinuxDeviceCgroup) error {
	prog, err := deviceProgram(rules)
	if err != nil {
		return err
	}
	license := []byte("Apache-2.0\x00")
	load := struct {
		progType, count uint32
		insns, license  uint64
		_               [96]byte // log, kernel version, flags, …
	}{unix.BPF_PROG_TYPE_CGROUP_DEVICE, uint32(len(prog)), address(&prog[0]), address(&license[0]), [96]byte{}}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	for n := 0; n < 10 && err == unix.EAGAIN; n++ { // a signal came, such as the Go runtime's own: bpf_check in kernel/bpf/verifier.c
		fd, err = bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	}
	runtime.KeepAlive(prog)
	runtime.KeepAlive(license)
	if err != nil {
		return fmt.Errorf("load device rules: %w", err)
	}
	defer unix.Close(fd)
	if err := g.devicesBPF(unix.BPF_PROG_ATTACH, fd); err != nil {
		return fmt.Errorf("attach device rules: %w", err)
	}
	return nil
}

// AllowAllDevices takes away the rules on devices, which there must be.
func (g *Group) AllowAllDevices() error {
	if err := g.devicesBPF(unix.BPF_PROG_DETACH, 0); err != nil {
		return fmt.Errorf("detach device rules: %w", err)
	}
	return nil
}

// devicesBPF attaches or detaches what decides on devices; one replaces another.
func (g *Group) devicesBPF(cmd, prog int) error {
	dir, err := unix.Open(g.dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	attr := struct{ target, prog, kind, flags, replace uint32 }{uint32(dir), uint32(prog), unix.BPF_CGROUP_DEVICE, 0, 0}
	_, err = bpf(cmd, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func address[T any](p *T) uint64 { return uint64(uintptr(unsafe.Pointer(p))) }

// deviceProgram translates rules. The context is struct bpf_cgroup_dev_ctx:
// access << 16 | type, major, minor.
func deviceProgram(rules []specs.LinuxDeviceCgroup) ([]insn, error) {
	const kind, access, major, minor = 3, 2, 4, 5 // registers
	p := []insn{
		{load32, access | 1<<4, 0, 0}, {movReg, kind | access<<4, 0, 0}, {andImm, kind, 0, 0xffff}, {rshImm, access, 0, 16},
		{load32, major | 1<<4, 4, 0}, {load32, minor | 1<<4, 8, 0},
	}
	for i := len(rules) - 1; i >= 0; i-- {
		r := rules[i]
		var tests []insn // each jumps over the rule when it does not fit
		switch r.Type {
		case "a", "":
		case "b":
			tests = append(tests, insn{jneImm, kind, 0, unix.BPF_DEVCG_DEV_BLOCK})
		case "c":
			tests = append(tests, insn{jneImm, kind, 0, unix.BPF_DEVCG_DEV_CHAR})
		default:
			return nil, fmt.Errorf("device rule of type %q", r.Type)
		}
		mask, err := accessMask(r.Access)
		if err != nil {
			return nil, err
		}
		tests = append(tests, insn{movReg, 1 | access<<4, 0, 0}, insn{andImm, 1, 0, mask})
		if r.Allow { // all that is asked for
			tests = append(tests, insn{jneReg, 1 | access<<4, 0, 0})
		} else { // any
			tests = append(tests, insn{jeqImm, 1, 0, 0})
		}
		if r.Major != nil && *r.Major >= 0 {
			tests = append(tests, insn{jneImm, major, 0, int32(*r.Major)})
		}
		if r.Minor != nil && *r.Minor >= 0 {
			tests = append(tests, insn{jneImm, minor, 0, int32(*r.Minor)})
		}
		for n := range tests {
			if tests[n].code&7 == unix.BPF_JMP {
				tests[n].off = int16(len(tests) - n + 1)
			}
		}
		verdict := int32(0)
		if r.Allow {
			verdict = 1
		}
		p = append(append(p, tests...), insn{movImm, 0, 0, verdict}, insn{exit, 0, 0, 0})
	}
	return append(p, insn{movImm, 0, 0, 0}, insn{exit, 0, 0, 0}), nil
}

func accessMask(s string) (int32, error) {
	if s == "" {
		s = "rwm"
	}
	var mask int32
	for _, c := range s {
		i := strings.IndexRune("mrw", c)
		if i < 0 {
			return 0, fmt.Errorf("device rule with access %q", s)
		}
		mask |= 1 << i // BPF_DEVCG_ACC_MKNOD, _READ, _WRITE
	}
	return mask, nil
}
