#include "textflag.h"

// Offsets in type op; TestOpLayout keeps them true.
#define op_nr     0
#define op_arg    8
#define op_skip   56
#define op_store  64
#define op_errno0 72
#define op_skip0  80
#define op_errno1 88
#define op_skip1  96
#define op_errno2 104
#define op_skip2  112
#define op_size   120

#define SYS_write      1
#define SYS_exit_group 231
#define SYS_clone3     435

// func clone(args *cloneArgs, size uintptr, first *op, report uintptr) (pid uintptr)
//
// The child never returns and never runs Go: it has a stack of its own (of
// which it uses 16 bytes), handles no signal, and makes one system call after
// the other as the ops say. A system call preserves all registers but AX, CX
// and R11.
TEXT ·clone(SB), NOSPLIT, $0-40
	MOVQ args+0(FP), DI
	MOVQ size+8(FP), SI
	MOVQ first+16(FP), R12
	MOVQ report+24(FP), R13
	MOVQ $SYS_clone3, AX
	SYSCALL
	TESTQ AX, AX
	JZ   loop
	MOVQ AX, pid+32(FP)
	RET

loop:
	MOVQ op_nr(R12), AX
	CMPQ AX, $-1
	JEQ  giveup
	MOVQ (op_arg+0)(R12), DI
	MOVQ (op_arg+8)(R12), SI
	MOVQ (op_arg+16)(R12), DX
	MOVQ (op_arg+24)(R12), R10
	MOVQ (op_arg+32)(R12), R8
	MOVQ (op_arg+40)(R12), R9
	SYSCALL
	CMPQ AX, $-4095
	JCC  failed
	MOVQ op_store(R12), BX
	TESTQ BX, BX
	JZ   stored
	MOVQ AX, (BX)

stored:
	MOVQ op_skip(R12), BX

next:
	INCQ BX
	IMULQ $op_size, BX
	ADDQ BX, R12
	JMP  loop

failed:
	NEGQ AX
	MOVQ op_skip0(R12), BX
	CMPQ AX, op_errno0(R12)
	JEQ  next
	MOVQ op_skip1(R12), BX
	CMPQ AX, op_errno1(R12)
	JEQ  next
	MOVQ op_skip2(R12), BX
	CMPQ AX, op_errno2(R12)
	JEQ  next
	JMP  tell

giveup:
	MOVQ op_arg(R12), AX

tell:
	SUBQ $16, SP
	MOVQ R12, 0(SP)
	MOVQ AX, 8(SP)
	MOVQ R13, DI
	MOVQ SP, SI
	MOVQ $16, DX
	MOVQ $SYS_write, AX
	SYSCALL
	MOVQ $127, DI
	MOVQ $SYS_exit_group, AX
	SYSCALL
	INT  $3
