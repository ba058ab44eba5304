/*
 * The registers of a thread that is made to run system calls: pure functions on the words of NT_PRSTATUS.
 *
 * One table describes a processor. All are compiled everywhere, so that each is tested everywhere.
 */
#ifndef NT_REGISTERS_H
#define NT_REGISTERS_H

#include <stddef.h>
#include <stdint.h>

#define MOST_REGISTERS 34

struct registers {
	uint64_t words[MOST_REGISTERS];
};

/* A system call; arguments that are not named are 0. */
struct call {
	long number;
	uint64_t arguments[6];
};

struct architecture {
	size_t size;                                  /* bytes of the registers of a 64-bit thread; a 32-bit one has fewer */
	uint64_t instruction, instruction_mask;       /* the instruction that makes a system call, as a word in memory */
	unsigned arguments[6], number, result, counter; /* places of registers */
	void (*make_clean)(struct registers *registers);  /* take out what belongs to the moment of the stop */
	void (*make_resumed)(struct registers *registers); /* as if the thread had not been interrupted */
};

extern const struct architecture architecture_x86_64, architecture_arm64;

#if defined(__x86_64__)
#define ARCHITECTURE architecture_x86_64
#elif defined(__aarch64__)
#define ARCHITECTURE architecture_arm64
#endif

/* Make `call` by the instruction at `address`. */
void registers_prepare(const struct architecture *architecture, struct registers *registers, uint64_t address,
		       const struct call *call);

/* What a finished system call returned; negative is an errno. */
long registers_result(const struct architecture *architecture, const struct registers *registers);

#endif
