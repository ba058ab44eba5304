#include "registers.h"

#include <errno.h>
#include <stdbool.h>

/* ERESTARTNOHAND of the kernel: restart the call, but EINTR if a signal handler runs. */
#define RESTART_UNLESS_HANDLED 514

void registers_prepare(const struct architecture *architecture, struct registers *registers, uint64_t address,
		       const struct call *call)
{
	for (unsigned argument = 0; argument < 6; argument++)
		registers->words[architecture->arguments[argument]] = call->arguments[argument];
	registers->words[architecture->number] = (uint64_t)call->number;
	registers->words[architecture->counter] = address;
	architecture->make_clean(registers);
}

long registers_result(const struct architecture *architecture, const struct registers *registers)
{
	return (long)registers->words[architecture->result];
}

/* ---- x86-64: struct user_regs_struct, arch/x86/include/asm/user_64.h ---- */

enum { R10 = 7, R9 = 8, R8 = 9, RAX = 10, RDX = 12, RSI = 13, RDI = 14, ORIG_RAX = 15, RIP = 16, X86_64_REGISTERS = 27 };

/*
 * Whether a call that fails with EINTR after any stop waits without a time limit. epoll_wait and epoll_pwait take an int,
 * negative for no limit; io_uring_enter flags, one of which says that there may be a limit, and fails so only where it
 * has submitted nothing; the others a pointer, NULL for no limit, or nothing.
 */
static bool waits_without_limit(const struct registers *registers)
{
	const uint64_t *words = registers->words;
	switch (words[ORIG_RAX]) {
	case 232: /* epoll_wait */
	case 281: /* epoll_pwait */
		return words[R10] >> 31 & 1;
	case 441: /* epoll_pwait2 */
	case 220: /* semtimedop */
		return !words[R10];
	case 128: /* rt_sigtimedwait */
		return !words[RDX];
	case 208: /* io_getevents */
		return !words[R8];
	case 65: /* semop */
		return true;
	case 426: /* io_uring_enter: IORING_ENTER_EXT_ARG */
		return !(words[R10] >> 3 & 1);
	default:
		return false;
	}
}

static void make_clean_x86_64(struct registers *registers)
{
	registers->words[ORIG_RAX] = -UINT64_C(1); /* in no system call, so none is restarted */
}

static void make_resumed_x86_64(struct registers *registers)
{
	if (registers->words[RAX] == -(uint64_t)EINTR && waits_without_limit(registers))
		registers->words[RAX] = -(uint64_t)RESTART_UNLESS_HANDLED;
}

const struct architecture architecture_x86_64 = {
	.size = X86_64_REGISTERS * sizeof(uint64_t),
	.instruction = 0x050f, /* syscall */
	.instruction_mask = 0xffff,
	.arguments = {RDI, RSI, RDX, R10, R8, R9},
	.number = RAX,
	.result = RAX,
	.counter = RIP,
	.make_clean = make_clean_x86_64,
	.make_resumed = make_resumed_x86_64,
};

/* ---- arm64: struct user_pt_regs, arch/arm64/include/uapi/asm/ptrace.h: x0 to x30, sp, pc, pstate ---- */

enum { X8 = 8, PC = 32, PSTATE = 33, ARM64_REGISTERS = 34 };

static void make_clean_arm64(struct registers *registers)
{
	/* The type of a branch says that a landing pad has to follow, which the injected address is not. */
	registers->words[PSTATE] &= ~(UINT64_C(3) << 10);
}

static void make_resumed_arm64(struct registers *registers)
{
	(void)registers;
}

const struct architecture architecture_arm64 = {
	.size = ARM64_REGISTERS * sizeof(uint64_t),
	.instruction = 0xd4000001, /* svc #0 */
	.instruction_mask = 0xffffffff,
	.arguments = {0, 1, 2, 3, 4, 5},
	.number = X8,
	.result = 0,
	.counter = PC,
	.make_clean = make_clean_arm64,
	.make_resumed = make_resumed_arm64,
};
