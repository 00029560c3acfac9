package cgroup

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// interpret runs a device program; it knows the instructions that it uses.
func interpret(t *testing.T, prog []insn, access, kind, major, minor uint32) bool {
	t.Helper()
	ctx := []uint32{access<<16 | kind, major, minor}
	var r [11]uint64
	for pc := 0; pc < len(prog); pc++ {
		i := prog[pc]
		dst, src := i.regs&15, i.regs>>4
		jump := false
		switch i.code {
		case load32:
			r[dst] = uint64(ctx[i.off/4])
		case movImm:
			r[dst] = uint64(i.imm)
		case movReg:
			r[dst] = r[src]
		case andImm:
			r[dst] &= uint64(i.imm)
		case rshImm:
			r[dst] >>= uint64(i.imm)
		case jneImm:
			jump = r[dst] != uint64(i.imm)
		case jeqImm:
			jump = r[dst] == uint64(i.imm)
		case jneReg:
			jump = r[dst] != r[src]
		case exit:
			return r[0] == 1
		default:
			t.Fatalf("instruction %#x", i.code)
		}
		if jump {
			pc += int(i.off)
		}
	}
	t.Fatal("ran off the end")
	return false
}

func TestDeviceProgram(t *testing.T) {
	prog, err := deviceProgram([]specs.LinuxDeviceCgroup{
		{Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "rwm"},
		{Allow: true, Type: "b", Major: ptr(int64(8)), Minor: ptr(int64(-1)), Access: "r"},
		{Type: "b", Major: ptr(int64(8)), Minor: ptr(int64(1)), Access: "rw"},
	})
	if err != nil {
		t.Fatal(err)
	}
	const m, r, w, c, b = unix.BPF_DEVCG_ACC_MKNOD, unix.BPF_DEVCG_ACC_READ, unix.BPF_DEVCG_ACC_WRITE, unix.BPF_DEVCG_DEV_CHAR, unix.BPF_DEVCG_DEV_BLOCK
	for _, tt := range []struct {
		access, kind, major, minor uint32
		want                       bool
	}{
		{r | w, c, 1, 3, true}, {m, c, 200, 7, true}, {r, c, 200, 7, false}, {r, c, 1, 4, false},
		{r, b, 8, 0, true}, {r | w, b, 8, 0, false}, {r, b, 8, 1, false}, {m, b, 8, 0, false}, {m | r, c, 1, 9, false},
	} {
		if got := interpret(t, prog, tt.access, tt.kind, tt.major, tt.minor); got != tt.want {
			t.Errorf("%+v: got %v", tt, got)
		}
	}
	for _, bad := range []specs.LinuxDeviceCgroup{{Type: "x"}, {Access: "rz"}} {
		if _, err := deviceProgram([]specs.LinuxDeviceCgroup{bad}); err == nil {
			t.Errorf("%+v: no error", bad)
		}
	}
}
