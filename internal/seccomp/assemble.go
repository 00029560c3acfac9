package seccomp

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// An assembler makes a BPF program with jumps to labels. Conditional jumps
// reach 255 instructions; those that go further go by way of a plain jump.
type assembler struct {
	code   []instruction
	labels []int // where each label is
}

type label int

// next is the label of the instruction that follows.
const next label = -1

type instruction struct {
	code   uint16
	k      uint32
	jt, jf label
	target label // of a plain jump
}

func (a *assembler) emit(i instruction) { a.code = append(a.code, i) }

func (a *assembler) label() label {
	a.labels = append(a.labels, -1)
	return label(len(a.labels) - 1)
}

func (a *assembler) place(l label) { a.labels[l] = len(a.code) }

func (a *assembler) load(offset uint32) {
	a.emit(instruction{code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, k: offset})
}

func (a *assembler) and(mask uint32) {
	a.emit(instruction{code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, k: mask})
}

func (a *assembler) ret(action uint32) {
	a.emit(instruction{code: unix.BPF_RET | unix.BPF_K, k: action})
}

func (a *assembler) goTo(l label) {
	a.emit(instruction{code: unix.BPF_JMP | unix.BPF_JA, target: l})
}

// jump goes to yes or no, each a label or next. Labels may be far away.
func (a *assembler) jump(cond uint16, k uint32, yes, no label) {
	at := len(a.code)
	a.emit(instruction{code: unix.BPF_JMP | unix.BPF_K | cond, k: k})
	after := a.label()
	a.code[at].jt = a.stub(yes, after)
	a.code[at].jf = a.stub(no, after)
	a.place(after)
}

// stub makes a plain jump to l and returns its label, or after for next.
func (a *assembler) stub(l, after label) label {
	if l == next {
		return after
	}
	near := a.label()
	a.place(near)
	a.goTo(l)
	return near
}

func (a *assembler) assemble() ([]unix.SockFilter, error) {
	if len(a.code) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("seccomp profile makes a program of %d instructions, at most %d", len(a.code), unix.BPF_MAXINSNS)
	}
	prog := make([]unix.SockFilter, len(a.code))
	for n, i := range a.code {
		f := unix.SockFilter{Code: i.code, K: i.k}
		switch {
		case i.code == unix.BPF_JMP|unix.BPF_JA:
			f.K = uint32(a.labels[i.target] - n - 1)
		case i.code&7 == unix.BPF_JMP:
			f.Jt, f.Jf = a.offset(i.jt, n), a.offset(i.jf, n)
		}
		prog[n] = f
	}
	return prog, nil
}

func (a *assembler) offset(l label, from int) uint8 {
	return uint8(a.labels[l] - from - 1)
}

// search decides by the number, which is loaded.
func (a *assembler) search(list []span) {
	if len(list) == 1 {
		a.decide(list[0].rules)
		return
	}
	mid := len(list) / 2
	right := a.label()
	a.jump(unix.BPF_JGE, list[mid].lo, right, next)
	a.search(list[:mid])
	a.place(right)
	a.search(list[mid:])
}

// decide tries rules in turn; the last has no conditions.
func (a *assembler) decide(rules []rule) {
	for _, r := range rules {
		fail := a.label()
		for _, arg := range r.args {
			pass := a.label()
			compare[arg.Op](a, arg, pass, fail)
			a.place(pass)
		}
		a.ret(r.action)
		a.place(fail)
	}
}

// compare makes the comparison of a 64-bit argument, in words of 32 bits.
var compare = map[specs.LinuxSeccompOperator]func(a *assembler, arg specs.LinuxSeccompArg, pass, fail label){
	specs.OpEqualTo: func(a *assembler, arg specs.LinuxSeccompArg, pass, fail label) {
		a.equal(arg, ^uint64(0), arg.Value, pass, fail)
	},
	specs.OpNotEqual: func(a *assembler, arg specs.LinuxSeccompArg, pass, fail label) {
		a.equal(arg, ^uint64(0), arg.Value, fail, pass)
	},
	specs.OpMaskedEqual: func(a *assembler, arg specs.LinuxSeccompArg, pass, fail label) {
		a.equal(arg, arg.Value, arg.ValueTwo&arg.Value, pass, fail)
	},
	specs.OpGreaterThan: func(a *assembler, arg specs.LinuxSeccompArg, pass, fail label) {
		a.order(arg, unix.BPF_JGT, pass, fail)
	},
	specs.OpGreaterEqual: func(a *assembler, arg specs.LinuxSeccompArg, pass, fail label) {
		a.order(arg, unix.BPF_JGE, pass, fail)
	},
	specs.OpLessEqual: func(a *assembler, arg specs.LinuxSeccompArg, pass, fail label) {
		a.order(arg, unix.BPF_JGT, fail, pass)
	},
	specs.OpLessThan: func(a *assembler, arg specs.LinuxSeccompArg, pass, fail label) {
		a.order(arg, unix.BPF_JGE, fail, pass)
	},
}

func (a *assembler) word(arg specs.LinuxSeccompArg, high uint32) {
	a.load(offArgs + 8*uint32(arg.Index) + 4*high)
}

func (a *assembler) equal(arg specs.LinuxSeccompArg, mask, value uint64, pass, fail label) {
	a.word(arg, 1)
	if uint32(mask>>32) != ^uint32(0) {
		a.and(uint32(mask >> 32))
	}
	a.jump(unix.BPF_JEQ, uint32(value>>32), next, fail)
	a.word(arg, 0)
	if uint32(mask) != ^uint32(0) {
		a.and(uint32(mask))
	}
	a.jump(unix.BPF_JEQ, uint32(value), pass, fail)
}

// order compares with cond, which is > or >=, on the low words when the high
// ones are equal.
func (a *assembler) order(arg specs.LinuxSeccompArg, cond uint16, pass, fail label) {
	a.word(arg, 1)
	a.jump(unix.BPF_JGT, uint32(arg.Value>>32), pass, next)
	a.jump(unix.BPF_JEQ, uint32(arg.Value>>32), next, fail)
	a.word(arg, 0)
	a.jump(cond, uint32(arg.Value), pass, fail)
}
