/*
 * What the core asks of the kernel can be counted, made to fail, delayed and held, one call of a kind at a time.
 *
 * A failure is one that the kernel could have answered with at that moment, and nothing was done: the call is not made.
 */
#ifndef NT_INJECTION_H
#define NT_INJECTION_H

#include <stddef.h>
#include <stdint.h>

enum call {
	CALL_API,
	CALL_REGISTER,
	CALL_UNREGISTER,
	CALL_WAKE,
	CALL_COPY,
	CALL_ZEROPAGE,
	CALL_MOVE,
	CALL_WRITEPROTECT,
	CALL_RWPROTECT,
	CALL_OTHER_IOCTL,
	CALL_MMAP,
	CALL_MUNMAP,
	CALL_MREMAP,
	CALL_MADVISE,
	CALL_MPROTECT,
	CALL_MUNLOCK,
	CALL_READ,
	CALL_WRITE,
	CALL_PREAD,
	CALL_OPEN,
	CALL_POLL,
	CALL_PPOLL,
	CALL_EPOLL_CREATE,
	CALL_EPOLL_CTL,
	CALL_EPOLL_WAIT,
	CALL_EVENTFD,
	CALL_USERFAULTFD,
	CALL_MOVE_PAGES,
	CALL_SET_MEMPOLICY,
	CALL_GET_MEMPOLICY,
	CALL_MBIND,
	CALL_FUTEX,
	CALL_PTHREAD_CREATE,
	CALL_PTHREAD_ATFORK,
	CALL_SIGACTION,
	CALLS,
};

/* What happens to a call, other than an errno: a pause before or after it, or move_pages attempts nothing. */
enum { PAUSE_BEFORE = -1, PAUSE_AFTER = -2, NOT_ATTEMPTED = -3 };

#define MOST_FAULTS 8

struct call_kind {
	const char *name;
	int faults[MOST_FAULTS]; /* what can happen to one; 0 ends them */
};
extern const struct call_kind call_kinds[CALLS];

/* From now on count calls, and let `fault` happen to the `nth` one (from 1; 0: to none) of a kind. */
void inject(enum call call, uint64_t nth, int fault);

/* The memory of the program, [start, start + size): what is moved from there is on its way to where it waits. */
void inject_memory(uint64_t start, uint64_t size);

/* Calls of a kind since then. */
uint64_t injected_calls(enum call call);

/* The `nth` call of a kind from now on (from 1) waits before it is made: `await_held` until it does, `let_on` ends that. */
void hold(enum call call, uint64_t nth);
void await_held(enum call call);
void let_on(enum call call);

#endif
