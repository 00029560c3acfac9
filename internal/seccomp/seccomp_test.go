package seccomp

import (
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"
	"unsafe"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A call is a system call as the filter sees it.
type call struct {
	arch, nr uint32
	args     [6]uint64
}

const (
	x64 = uint32(unix.AUDIT_ARCH_X86_64)
	x86 = uint32(unix.AUDIT_ARCH_I386)
)

// eval runs a filter. The VM loads words big-endian, the kernel native ones.
func eval(t testing.TB, prog []unix.SockFilter, c call) uint32 {
	t.Helper()
	raw := make([]bpf.RawInstruction, len(prog))
	for i, f := range prog {
		raw[i] = bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	list, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("program can't be disassembled")
	}
	vm, err := bpf.NewVM(list)
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	b = binary.BigEndian.AppendUint32(b, c.nr)
	b = binary.BigEndian.AppendUint32(b, c.arch)
	b = binary.BigEndian.AppendUint64(b, 0)
	for _, a := range c.args {
		b = binary.BigEndian.AppendUint32(b, uint32(a))
		b = binary.BigEndian.AppendUint32(b, uint32(a>>32))
	}
	n, err := vm.Run(b)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

const (
	allow  = uint32(unix.SECCOMP_RET_ALLOW)
	eperm  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

func TestDefaultProfile(t *testing.T) {
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN"}}}}
	p, err := seccomp.GetDefaultProfile(spec)
	if err != nil {
		t.Fatal(err)
	}
	prog, _, err := compile(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(prog))
	tests := []struct {
		name string
		c    call
		want uint32
	}{
		{"read", call{x64, unix.SYS_READ, [6]uint64{}}, allow},
		{"read of i386", call{x86, 3, [6]uint64{}}, allow},
		{"execve", call{x64, unix.SYS_EXECVE, [6]uint64{}}, allow},
		{"reboot", call{x64, unix.SYS_REBOOT, [6]uint64{}}, eperm},
		{"reboot of i386", call{x86, 88, [6]uint64{}}, eperm},
		{"mount", call{x64, unix.SYS_MOUNT, [6]uint64{}}, eperm},
		{"clone", call{x64, unix.SYS_CLONE, [6]uint64{unix.CLONE_VM | unix.CLONE_THREAD}}, allow},
		{"clone with namespaces", call{x64, unix.SYS_CLONE, [6]uint64{unix.CLONE_NEWUSER}}, eperm},
		{"clone3", call{x64, unix.SYS_CLONE3, [6]uint64{}}, enosys},
		{"personality", call{x64, unix.SYS_PERSONALITY, [6]uint64{8}}, allow},
		{"another personality", call{x64, unix.SYS_PERSONALITY, [6]uint64{7}}, eperm},
		{"personality, high word", call{x64, unix.SYS_PERSONALITY, [6]uint64{1<<32 | 8}}, eperm},
		{"socket", call{x64, unix.SYS_SOCKET, [6]uint64{unix.AF_INET}}, allow},
		{"vsock", call{x64, unix.SYS_SOCKET, [6]uint64{unix.AF_VSOCK}}, eperm},
		{"x32 read", call{x64, x32Bit, [6]uint64{}}, eperm},
		{"a call of the future", call{x64, 5000, [6]uint64{}}, enosys},
		{"a hole in the table", call{x64, 400, [6]uint64{}}, eperm},
		{"another architecture", call{0x40000003 + 0x1000, 0, [6]uint64{}}, unix.SECCOMP_RET_KILL_PROCESS},
	}
	for _, tt := range tests {
		if got := eval(t, prog, tt.c); got != tt.want {
			t.Errorf("%s: got %#x, want %#x", tt.name, got, tt.want)
		}
	}
	// Every name of the profile that has no conditions is allowed.
	nrs := numbers()[x64]
	for _, sc := range p.Syscalls {
		for _, name := range sc.Names {
			nr, known := nrs[name]
			if known && len(sc.Args) == 0 && sc.Action == specs.ActAllow {
				if got := eval(t, prog, call{arch: x64, nr: nr}); got != allow {
					t.Errorf("%s: got %#x", name, got)
				}
			}
		}
	}
}

func TestConditions(t *testing.T) {
	big := uint64(5)<<32 | 7
	values := []uint64{0, 6, 7, 8, 5 << 32, big - 1, big, big + 1, 6 << 32, ^uint64(0)}
	for op, holds := range map[specs.LinuxSeccompOperator]func(v, value, two uint64) bool{
		specs.OpEqualTo:      func(v, value, _ uint64) bool { return v == value },
		specs.OpNotEqual:     func(v, value, _ uint64) bool { return v != value },
		specs.OpLessThan:     func(v, value, _ uint64) bool { return v < value },
		specs.OpLessEqual:    func(v, value, _ uint64) bool { return v <= value },
		specs.OpGreaterThan:  func(v, value, _ uint64) bool { return v > value },
		specs.OpGreaterEqual: func(v, value, _ uint64) bool { return v >= value },
		specs.OpMaskedEqual:  func(v, value, two uint64) bool { return v&value == two&value },
	} {
		for _, value := range values {
			for _, two := range []uint64{0, 5 << 32, big} {
				p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{
					Names: []string{"ioctl"}, Action: specs.ActAllow,
					Args: []specs.LinuxSeccompArg{{Index: 3, Op: op, Value: value, ValueTwo: two}},
				}}}
				prog, _, err := compile(p)
				if err != nil {
					t.Fatal(err)
				}
				for _, v := range values {
					want := eperm
					if holds(v, value, two) {
						want = allow
					}
					if got := eval(t, prog, call{x64, unix.SYS_IOCTL, [6]uint64{3: v}}); got != want {
						t.Errorf("%#x %s %#x %#x: got %#x, want %#x", v, op, value, two, got, want)
					}
				}
			}
		}
	}
}

func TestSeveralConditionsAndRules(t *testing.T) {
	arg := func(i uint, v uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: i, Op: specs.OpEqualTo, Value: v}
	}
	ret := uint(5)
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64}, Syscalls: []specs.LinuxSyscall{
		{Names: []string{"read"}, Action: specs.ActErrno, ErrnoRet: &ret, Args: []specs.LinuxSeccompArg{arg(0, 1), arg(1, 2)}},
		{Names: []string{"read"}, Action: specs.ActKillProcess, Args: []specs.LinuxSeccompArg{arg(0, 8), arg(0, 9)}},
		{Names: []string{"write", "no_such_call"}, Action: specs.ActLog},
	}}
	prog, flags, err := compile(p)
	if err != nil || flags != unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW {
		t.Fatal(flags, err)
	}
	for _, tt := range []struct {
		c    call
		want uint32
	}{
		{call{x64, unix.SYS_READ, [6]uint64{1, 2}}, unix.SECCOMP_RET_ERRNO | 5},
		{call{x64, unix.SYS_READ, [6]uint64{1, 3}}, allow},
		{call{x64, unix.SYS_READ, [6]uint64{8}}, unix.SECCOMP_RET_KILL_PROCESS},
		{call{x64, unix.SYS_READ, [6]uint64{9}}, unix.SECCOMP_RET_KILL_PROCESS},
		{call{x64, unix.SYS_WRITE, [6]uint64{}}, unix.SECCOMP_RET_LOG},
		{call{x64, 5000, [6]uint64{}}, allow},
		{call{x86, 3, [6]uint64{}}, unix.SECCOMP_RET_KILL_PROCESS},
	} {
		if got := eval(t, prog, tt.c); got != tt.want {
			t.Errorf("%+v: got %#x, want %#x", tt.c, got, tt.want)
		}
	}
}

func TestErrors(t *testing.T) {
	bad := []specs.LinuxSeccomp{
		{DefaultAction: "SCMP_ACT_NOTIFY"},
		{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"}},
		{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}}},
		{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Op: "?"}}}}},
	}
	for _, p := range bad {
		if _, _, err := compile(&p); err == nil || !strings.Contains(err.Error(), "seccomp") {
			t.Errorf("%+v: %v", p, err)
		}
	}
}

// Random profiles: the program decides every number as a plain look-up would.
func TestSearch(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	names := make([]string, 0, 500)
	nrs := numbers()[x64]
	for n := range nrs {
		names = append(names, n)
	}
	for range 20 {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
		want := map[uint32]uint32{}
		newest := uint32(0)
		for range r.IntN(300) {
			name := names[r.IntN(len(names))]
			nr := nrs[name]
			if _, dup := want[nr]; dup {
				continue
			}
			act := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActLog, specs.ActErrno}[r.IntN(3)]
			want[nr], _ = action(act, nil)
			newest = max(newest, nr)
			p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{name}, Action: act})
		}
		prog, _, err := compile(p)
		if err != nil {
			t.Fatal(err)
		}
		for nr := range uint32(600) {
			w, ok := want[nr]
			if !ok {
				if w = eperm; nr > newest || len(want) == 0 {
					w = enosys
				}
			}
			if got := eval(t, prog, call{arch: x64, nr: nr}); got != w {
				t.Fatalf("%d: got %#x, want %#x", nr, got, w)
			}
		}
	}
}

func TestLayout(t *testing.T) {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}}}
	prog, flags, err := compile(p)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Compile(p)
	if err != nil || f.Flags != flags || len(f.Program) != 8*len(prog) {
		t.Fatal(f, err)
	}
	for n, i := range prog {
		if *(*unix.SockFilter)(unsafe.Pointer(&f.Program[8*n])) != i {
			t.Errorf("instruction %d: %x, want %+v", n, f.Program[8*n:8*n+8], i)
		}
	}
}
