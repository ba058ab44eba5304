/*
 * A thread of another process that stands still and can be made to run system calls.
 *
 * All requests have to come from the thread that seized it, with SIGCHLD blocked. Each of these functions but
 * `thread_kill` fails with ENDED if the thread has ended meanwhile.
 */
#ifndef NT_THREAD_H
#define NT_THREAD_H

#include <stdbool.h>
#include <sys/types.h>

#include "failure.h"
#include "registers.h"

struct thread {
	pid_t id;             /* here; in a pid namespace it has another one for itself */
	uint64_t instruction; /* address, in its process, of an instruction that makes a system call */
	struct registers registers; /* with which it goes on */
	uint64_t signals;     /* that it blocked at the stop */
	pid_t clone;          /* made by it last */
	bool ended;           /* and its end was noticed: the id may be another thread's by now */
};

/* Become its tracer, without stopping it. */
struct failure thread_seize(struct thread *thread);

/* Stop it, and make it ready for `thread_call`. If that fails, it goes on as it was, at the latest when this process ends. */
struct failure thread_stop(struct thread *thread);

/* Interrupt what it waits for, and let it go: a wait that is restarted looks again first. */
struct failure thread_nudge(struct thread *thread);

/* Make it run a system call, and say what that returned, a negative errno if it failed. */
struct failure thread_call(struct thread *thread, struct call call, long *result);

/*
 * Make it clone itself, by clone(2) with `flags`; `number` is the clone's id for the thread.
 *
 * The clone is traced, has no signal unblocked, sends none when it ends, and ends with this process at the
 * latest. The caller ends it (`thread_kill`), and has the thread wait for it (wait4(2) with __WALL).
 */
struct failure thread_clone(struct thread *thread, uint64_t flags, struct thread *clone, long *number);

/* Wait until a clone that was just made can be made to run system calls. */
struct failure thread_await(struct thread *clone);

/* Words of its memory; `thread_peek` is false where there is none. */
bool thread_peek(const struct thread *thread, uint64_t address, uint64_t *word);
struct failure thread_poke(struct thread *thread, uint64_t address, const uint64_t *words, size_t count);

/* End the process that it is the only thread of, and wait for that. */
void thread_kill(struct thread *thread);

/* Restore registers and signals as they were at the stop, and let it go on. */
struct failure thread_release(struct thread *thread);

#endif
