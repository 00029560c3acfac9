// Package seccomp compiles the seccomp profile of an OCI runtime spec to the
// classic BPF program that seccomp(2) takes, for x86-64 and i386 programs.
//
// A system call that the profile names without conditions, and every one it
// does not name, is decided by a binary search over the numbers. x32, which
// kernels do not have any more, gets the default action. Calls newer than the
// newest that the profile names fail with ENOSYS rather than with the
// profile's error, so that programs fall back to what came before.
package seccomp

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// syscalls.txt has a line for each system call: its name and its numbers on
// x86-64 and i386, "-" where there is none. It comes from the kernel's
// arch/x86/entry/syscalls/syscall_{64,32}.tbl.
//
//go:embed syscalls.txt
var syscallTable string

// numbers returns those of the system calls of each architecture by name. It
// is not kept: profiles are compiled rarely.
func numbers() map[uint32]map[string]uint32 {
	m := map[uint32]map[string]uint32{unix.AUDIT_ARCH_X86_64: {}, unix.AUDIT_ARCH_I386: {}}
	for line := range strings.Lines(syscallTable) {
		f := strings.Fields(line)
		for i, arch := range []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386} {
			if n, err := strconv.ParseUint(f[i+1], 10, 32); err == nil {
				m[arch][f[0]] = uint32(n)
			}
		}
	}
	return m
}

// x32Bit marks the numbers of x32 calls, which have x86-64's architecture.
const x32Bit = 0x40000000

// Offsets in struct seccomp_data.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16 // 8 bytes each, low word first
)

// A rule is one action with the conditions that must all hold for it.
type rule struct {
	action uint32
	args   []specs.LinuxSeccompArg
}

// A Filter is what seccomp(2) installs.
type Filter struct {
	Program []byte // struct sock_filter, 8 bytes each
	Flags   uint32
}

// Compile returns the filter for a profile.
func Compile(p *specs.LinuxSeccomp) (*Filter, error) {
	prog, flags, err := compile(p)
	if err != nil {
		return nil, err
	}
	f := &Filter{Program: make([]byte, 0, 8*len(prog)), Flags: flags}
	for _, i := range prog {
		f.Program = binary.LittleEndian.AppendUint16(f.Program, i.Code)
		f.Program = append(f.Program, i.Jt, i.Jf)
		f.Program = binary.LittleEndian.AppendUint32(f.Program, i.K)
	}
	return f, nil
}

func compile(p *specs.LinuxSeccomp) ([]unix.SockFilter, uint32, error) {
	fallback, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, 0, err
	}
	flags, err := filterFlags(p)
	if err != nil {
		return nil, 0, err
	}
	nrs := numbers()
	a := new(assembler)
	a.load(offArch)
	for _, arch := range architectures(p.Architectures) {
		rules, err := rulesFor(p, nrs[arch])
		if err != nil {
			return nil, 0, err
		}
		other := a.label()
		a.jump(unix.BPF_JEQ, arch, next, other)
		a.load(offNumber)
		if arch == unix.AUDIT_ARCH_X86_64 {
			cont := a.label()
			a.jump(unix.BPF_JGE, x32Bit, next, cont)
			a.ret(fallback)
			a.place(cont)
		}
		a.search(ranges(rules, fallback))
		a.place(other)
	}
	a.ret(unix.SECCOMP_RET_KILL_PROCESS)
	prog, err := a.assemble()
	return prog, flags, err
}

func architectures(list []specs.Arch) []uint32 {
	archs := []uint32{unix.AUDIT_ARCH_X86_64}
	if slices.Contains(list, specs.ArchX86) {
		archs = append(archs, unix.AUDIT_ARCH_I386)
	}
	return archs
}

func filterFlags(p *specs.LinuxSeccomp) (uint32, error) {
	if p.Flags == nil {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil // as runc
	}
	var flags uint32
	for _, f := range p.Flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		default:
			return 0, fmt.Errorf("seccomp flag %s is not supported", f)
		}
	}
	return flags, nil
}

func action(a specs.LinuxSeccompAction, data *uint) (uint32, error) {
	ret := uint32(unix.EPERM)
	if data != nil {
		ret = uint32(*data) & unix.SECCOMP_RET_DATA
	}
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | ret, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | ret, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	}
	return 0, fmt.Errorf("seccomp action %q is not supported", a)
}

// rulesFor sorts a profile's rules by number. Names that the architecture
// does not have are left out, as libseccomp does.
func rulesFor(p *specs.LinuxSeccomp, nrs map[string]uint32) (map[uint32][]rule, error) {
	rules := map[uint32][]rule{}
	for _, sc := range p.Syscalls {
		act, err := action(sc.Action, sc.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, arg := range sc.Args {
			if arg.Index > 5 || compare[arg.Op] == nil {
				return nil, fmt.Errorf("seccomp condition on %v: argument %d, operator %q", sc.Names, arg.Index, arg.Op)
			}
		}
		for _, name := range sc.Names {
			if nr, ok := nrs[name]; ok {
				rules[nr] = append(rules[nr], alternatives(act, sc.Args)...)
			}
		}
	}
	return rules, nil
}

// alternatives is one rule, or as many as there are conditions when several
// are on one argument: then, as in runc, any of them is enough.
func alternatives(act uint32, args []specs.LinuxSeccompArg) []rule {
	seen := map[uint]bool{}
	for _, a := range args {
		if seen[a.Index] {
			var list []rule
			for _, a := range args {
				list = append(list, rule{act, []specs.LinuxSeccompArg{a}})
			}
			return list
		}
		seen[a.Index] = true
	}
	return []rule{{act, args}}
}

// A span is the numbers from lo to the next span's lo, and what they get: the
// first of the rules whose conditions hold, else the last's action.
type span struct {
	lo    uint32
	rules []rule
}

// ranges covers all numbers with spans; neighbours with equal rules are one.
func ranges(rules map[uint32][]rule, fallback uint32) []span {
	nrs := make([]uint32, 0, len(rules))
	for nr := range rules {
		nrs = append(nrs, nr)
	}
	slices.Sort(nrs)
	other := []rule{{action: fallback}}
	list := []span{{0, other}}
	add := func(lo uint32, r []rule) {
		last := &list[len(list)-1]
		simple := len(r) == 1 && len(last.rules) == 1 && len(r[0].args)+len(last.rules[0].args) == 0
		switch {
		case last.lo == lo:
			last.rules = r
		case simple && r[0].action == last.rules[0].action:
		default:
			list = append(list, span{lo, r})
		}
	}
	next := uint32(0)
	for _, nr := range nrs {
		if nr > next {
			add(next, other)
		}
		add(nr, decide(rules[nr], fallback))
		next = nr + 1
	}
	if fallback&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO {
		other = []rule{{action: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}}
	}
	add(next, other)
	return list
}

// decide puts the rules with conditions first, and ends with one without.
func decide(rules []rule, fallback uint32) []rule {
	last := rule{action: fallback}
	var list []rule
	for _, r := range rules {
		if len(r.args) == 0 {
			last = r
		} else {
			list = append(list, r)
		}
	}
	return append(list, last)
}
