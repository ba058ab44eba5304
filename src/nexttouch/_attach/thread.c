/*
 * ptrace(2), as far as a thread of another process has to be stopped, made to run system calls, and let go.
 *
 * What makes that invisible to the thread:
 *
 * - The stop is PTRACE_INTERRUPT's: the kernel takes it inside its signal handling, on the way back to user mode. A thread
 *   that was blocked in a system call has left it with -ERESTARTSYS or a relative in its result register, and the kernel
 *   decides about the restart only after the stop, from the registers as they are then. So the injected registers say
 *   "in no system call" (orig_rax = -1), and the registers restored at the end say what the first stop said: the kernel
 *   then restarts the call, with its remaining time if it has one (restart_syscall(2)). Calls in between do not disturb
 *   this: what is left of a sleep is kept until a call of the same kind is interrupted.
 * - PTRACE_DETACH of a stopped thread sends it through signal handling once more (ptrace_signal_wake_up in
 *   __ptrace_unlink, kernel/ptrace.c); therefore the restored registers meet the restart logic though the last stop was
 *   not taken there.
 * - Signals stay blocked while injected registers are loaded, or a handler would start from them. They stay pending and
 *   are delivered afterwards. SIGSTOP cannot be blocked: it is passed on and leads to a group stop, from which a seized
 *   thread may be resumed. The kernel remembers the group stop and puts the thread back into it at the detach.
 * - What must not be in the program's table of descriptors even for a moment, because a fork in another thread would copy
 *   it, can be opened by a clone of the thread that shares its memory only. Such a clone sends no signal at its end, and
 *   is no child that wait(2) without __WALL or __WCLONE would find.
 * - A thread inside a restartable sequence (rseq(2)) continues at the sequence's abort address, as after any other
 *   preemption: the kernel itself would not notice, because it looks at the injected instruction pointer.
 * - epoll_wait(2), sigwaitinfo(2), semop(2), io_getevents(2), io_uring_enter(2) and waits for a socket that has a time
 *   limit (SO_RCVTIMEO) fail with EINTR after any stop (signal(7)); poll(2), select(2), nanosleep(2), futex(2), read(2)
 *   and the others do not, but a write(2) to a pipe or a socket that has written a part says so, as after any stop. On
 *   x86-64 a call of the first kind that waits without a time limit is restarted nevertheless (registers.c); with a limit
 *   it fails with EINTR, as after SIGSTOP and SIGCONT, because the kernel does not tell how much of the time is left.
 *
 * Tested on x86-64. The arm64 functions on registers are tested, but nothing of this has run on arm64 hardware; one thing
 * is known to differ there: the kernel rewinds the registers before the stop and keeps what kind of restart it is to
 * itself, so an interrupted nanosleep(2) or futex(2) with a relative time starts anew.
 *
 * If the tracer dies, the kernel lets the thread go on with the registers it has at that moment.
 */
#include "thread.h"

#include <elf.h>
#include <errno.h>
#include <linux/ptrace.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"

#ifndef PTRACE_GET_RSEQ_CONFIGURATION /* Linux 5.13 */
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
struct ptrace_rseq_configuration {
	uint64_t rseq_abi_pointer;
	uint32_t rseq_abi_size, signature, flags, pad;
};
#endif
#define GET_SYSCALL_USER_DISPATCH_CONFIG 0x4211 /* Linux 6.4 */
#ifndef NT_ARM_SYSTEM_CALL
#define NT_ARM_SYSTEM_CALL 0x404
#endif

#define SYSTEM_CALL_STOP (SIGTRAP | 0x80)
#define RESTART 513 /* ERESTARTNOINTR of the kernel: restart in any case */
#define STOP_NS (2 * SECOND) /* a thread stops within microseconds unless it is frozen or waits for a device */
#define FOR_EVER 0

struct dispatch_configuration {
	uint64_t mode, selector, offset, length;
};

/* ---- requests ---- */

static struct failure request(struct thread *thread, const char *name, long number, uint64_t address, void *data)
{
	if (syscall(SYS_ptrace, number, (long)thread->id, address, data) >= 0)
		return failure(NOTHING);
	switch (errno) {
	case ESRCH:
		return failure(ENDED);
	case EPERM:
		return failure(FORBIDDEN);
	default:
		return failed_call(name, errno);
	}
}

#define REQUEST(thread, name, address, data) request(thread, #name, name, address, (void *)(uintptr_t)(data))

static struct failure set_signals(struct thread *thread, uint64_t blocked)
{
	return REQUEST(thread, PTRACE_SETSIGMASK, sizeof blocked, &blocked);
}

static struct failure get_registers(struct thread *thread, struct registers *registers, size_t *size)
{
	struct iovec vector = {registers, sizeof *registers};
	TRY(REQUEST(thread, PTRACE_GETREGSET, NT_PRSTATUS, &vector));
	*size = vector.iov_len;
	return failure(NOTHING);
}

static struct failure set_registers(struct thread *thread, const struct registers *registers)
{
	struct iovec vector = {(void *)registers, ARCHITECTURE.size};
	return REQUEST(thread, PTRACE_SETREGSET, NT_PRSTATUS, &vector);
}

/* arm64 looks for a restart whenever this says that a system call is being left, as the injected one is. */
static struct failure forget_system_call(struct thread *thread)
{
#ifdef __aarch64__
	int none = -1;
	struct iovec vector = {&none, sizeof none};
	return REQUEST(thread, PTRACE_SETREGSET, NT_ARM_SYSTEM_CALL, &vector);
#else
	(void)thread;
	return failure(NOTHING);
#endif
}

bool thread_peek(const struct thread *thread, uint64_t address, uint64_t *word)
{
	return !syscall(SYS_ptrace, (long)PTRACE_PEEKDATA, (long)thread->id, address, word);
}

struct failure thread_poke(struct thread *thread, uint64_t address, const uint64_t *words, size_t count)
{
	for (size_t place = 0; place < count; place++)
		TRY(REQUEST(thread, PTRACE_POKEDATA, address + place * sizeof *words, words[place]));
	return failure(NOTHING);
}

/* ---- stops ---- */

static struct failure ended(struct thread *thread)
{
	thread->ended = true;
	return failure(ENDED);
}

static struct failure wait_for_stop(struct thread *thread, int64_t deadline, int *stop)
{
	sigset_t of_child;
	sigemptyset(&of_child);
	sigaddset(&of_child, SIGCHLD);
	for (;;) {
		pid_t found = waitpid(thread->id, stop, __WALL | (deadline == FOR_EVER ? 0 : WNOHANG));
		if (found < 0 || (found && !WIFSTOPPED(*stop))) /* it has ended, or another thread's exec has taken it away */
			return ended(thread);
		if (found)
			return failure(NOTHING);
		int64_t left = deadline - clock_now();
		if (left <= 0)
			return failure(UNSTOPPED);
		sigtimedwait(&of_child, NULL, &(struct timespec){left / SECOND, left % SECOND});
	}
}

static int event_of(int stop)
{
	return stop >> 16;
}

/* A stop without an event is the delivery of a signal, which is passed on; a group stop or a trap has none to pass. */
static int signal_of(int stop)
{
	return event_of(stop) ? 0 : WSTOPSIG(stop) & 0x7f;
}

static bool is_system_call(int stop)
{
	return stop >> 8 == SYSTEM_CALL_STOP;
}

static struct failure run_to_system_call_stop(struct thread *thread, int64_t deadline)
{
	int stop = 0, number = 0;
	for (;;) {
		unsigned long clone = 0;
		TRY(REQUEST(thread, PTRACE_SYSCALL, 0, number));
		TRY(wait_for_stop(thread, deadline, &stop));
		if (is_system_call(stop))
			return failure(NOTHING);
		if (event_of(stop) == PTRACE_EVENT_CLONE) {
			TRY(REQUEST(thread, PTRACE_GETEVENTMSG, 0, &clone));
			thread->clone = (pid_t)clone;
		}
		number = signal_of(stop);
	}
}

/* A thread of a frozen control group (version 2) stops, but does not run until it is thawed. */
static struct failure go_in_unless_frozen(struct thread *thread)
{
	struct failure failed = run_to_system_call_stop(thread, clock_now() + STOP_NS);
	if (failed.what != UNSTOPPED)
		return failed;
	int stop;
	TRY(REQUEST(thread, PTRACE_INTERRUPT, 0, 0));
	TRY(wait_for_stop(thread, FOR_EVER, &stop));
	return is_system_call(stop) ? failure(NOTHING) : failed; /* it was thawed just now */
}

/* ---- the beginning ---- */

static struct failure interrupt(struct thread *thread)
{
	int64_t deadline = clock_now() + STOP_NS;
	TRY(REQUEST(thread, PTRACE_INTERRUPT, 0, 0));
	for (;;) {
		int stop;
		TRY(wait_for_stop(thread, deadline, &stop));
		if (event_of(stop) == PTRACE_EVENT_STOP)
			return failure(NOTHING);
		TRY(REQUEST(thread, PTRACE_CONT, 0, signal_of(stop)));
	}
}

/* A kernel before 6.4 cannot tell; such a thread would get SIGSYS for the injected call. */
static bool dispatches_system_calls(const struct thread *thread)
{
	struct dispatch_configuration answer = {0};
	long result =
		syscall(SYS_ptrace, (long)GET_SYSCALL_USER_DISPATCH_CONFIG, (long)thread->id, sizeof answer, &answer);
	return !result && answer.mode;
}

static uint64_t word_at(const struct thread *thread, uint64_t address)
{
	uint64_t word;
	return thread_peek(thread, address, &word) ? word : 0;
}

static void leave_restartable_sequence(struct thread *thread)
{
	struct ptrace_rseq_configuration answer = {0};
	long result = syscall(SYS_ptrace, (long)PTRACE_GET_RSEQ_CONFIGURATION, (long)thread->id, sizeof answer, &answer);
	if (result < 0 || !answer.rseq_abi_pointer)
		return;
	uint64_t sequence = word_at(thread, answer.rseq_abi_pointer + 8); /* struct rseq: rseq_cs */
	if (!sequence)
		return;
	uint64_t start = word_at(thread, sequence + 8), length = word_at(thread, sequence + 16); /* struct rseq_cs */
	uint64_t *counter = &thread->registers.words[ARCHITECTURE.counter];
	if (*counter - start < length)
		*counter = word_at(thread, sequence + 24);
}

static struct failure examine(struct thread *thread)
{
	size_t size;
	uint64_t code;
	TRY(get_registers(thread, &thread->registers, &size));
	if (size != ARCHITECTURE.size)
		return failure(NOT_64_BIT);
	/* An exec since the address was looked up has replaced the address space. */
	if (!thread_peek(thread, thread->instruction, &code) || (code & ARCHITECTURE.instruction_mask) != ARCHITECTURE.instruction)
		return failure(REPLACED);
	if (dispatches_system_calls(thread))
		return failure(DISPATCHES);
	leave_restartable_sequence(thread);
	return REQUEST(thread, PTRACE_GETSIGMASK, sizeof thread->signals, &thread->signals);
}

struct failure thread_seize(struct thread *thread)
{
	return REQUEST(thread, PTRACE_SEIZE, 0, PTRACE_O_TRACESYSGOOD);
}

struct failure thread_stop(struct thread *thread)
{
	TRY(interrupt(thread));
	struct failure failed = examine(thread);
	if (!failed.what)
		return set_signals(thread, ~UINT64_C(0));
	REQUEST(thread, PTRACE_DETACH, 0, 0);
	return failed;
}

struct failure thread_nudge(struct thread *thread)
{
	TRY(interrupt(thread));
	return REQUEST(thread, PTRACE_DETACH, 0, 0);
}

/* ---- system calls ---- */

static struct failure prepare(struct thread *thread, const struct call *call)
{
	struct registers registers = thread->registers;
	registers_prepare(&ARCHITECTURE, &registers, thread->instruction, call);
	return set_registers(thread, &registers);
}

static struct failure finish(struct thread *thread, long *result)
{
	struct registers registers;
	size_t size;
	TRY(run_to_system_call_stop(thread, FOR_EVER)); /* coming out */
	TRY(get_registers(thread, &registers, &size));
	*result = registers_result(&ARCHITECTURE, &registers);
	return failure(NOTHING);
}

struct failure thread_call(struct thread *thread, struct call call, long *result)
{
	TRY(prepare(thread, &call));
	TRY(run_to_system_call_stop(thread, FOR_EVER)); /* going in */
	return finish(thread, result);
}

struct failure thread_clone(struct thread *thread, uint64_t flags, struct thread *clone, long *number)
{
	const struct call call = {SYS_clone, {flags}};
	TRY(REQUEST(thread, PTRACE_SETOPTIONS, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL));
	do { /* again if SIGSTOP came, which cannot be blocked */
		TRY(prepare(thread, &call));
		TRY(go_in_unless_frozen(thread));
		TRY(finish(thread, number));
	} while (*number == -RESTART);
	TRY(REQUEST(thread, PTRACE_SETOPTIONS, 0, PTRACE_O_TRACESYSGOOD));
	if (*number == -EAGAIN)
		return failure(PROCESSES);
	if (*number < 0)
		return failed_call("clone", -*number);
	*clone = (struct thread){.id = thread->clone, .instruction = thread->instruction, .registers = thread->registers};
	return failure(NOTHING);
}

struct failure thread_await(struct thread *clone)
{
	for (;;) {
		int stop;
		TRY(wait_for_stop(clone, FOR_EVER, &stop));
		if (event_of(stop) == PTRACE_EVENT_STOP)
			return failure(NOTHING);
		TRY(REQUEST(clone, PTRACE_CONT, 0, 0));
	}
}

/* ---- the end ---- */

void thread_kill(struct thread *thread)
{
	int stop;
	if (thread->ended)
		return;
	kill(thread->id, SIGKILL);
	while (!wait_for_stop(thread, FOR_EVER, &stop).what)
		;
}

struct failure thread_release(struct thread *thread)
{
	ARCHITECTURE.make_resumed(&thread->registers);
	TRY(set_registers(thread, &thread->registers));
	TRY(forget_system_call(thread));
	TRY(set_signals(thread, thread->signals));
	return REQUEST(thread, PTRACE_DETACH, 0, 0);
}
