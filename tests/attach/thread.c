/* System calls in the thread of a real process, which goes on as if nothing had been. */
#include "../../src/nexttouch/_attach/thread.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                                                                       \
	do {                                                                                                                   \
		if (!(condition)) {                                                                                            \
			fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, strerror(errno));                           \
			exit(1);                                                                                               \
		}                                                                                                              \
	} while (0)
#define DO(...) CHECK(!__VA_ARGS__.what)

static uint64_t instruction; /* in the vdso, which a forked child has at the same address */

static void find_instruction(void)
{
	uint64_t start = 0, end = 0;
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	CHECK(maps);
	while (fgets(line, sizeof line, maps))
		if (strstr(line, "[vdso]"))
			CHECK(sscanf(line, "%lx-%lx", &start, &end) == 2);
	fclose(maps);
	for (uint64_t at = start; at + 8 <= end && !instruction; at++) {
		uint64_t code;
		memcpy(&code, (const void *)at, sizeof code);
		if ((code & ARCHITECTURE.instruction_mask) == ARCHITECTURE.instruction)
			instruction = at;
	}
	CHECK(instruction);
}

/* A child that says again what it is told. */
struct child {
	pid_t id;
	int to, from;
};

static void say_again(int from, int to)
{
	char byte;
	while (read(from, &byte, 1) == 1)
		if (write(to, &byte, 1) != 1)
			break;
	_exit(0);
}

static void exchange(const struct child *child)
{
	char byte = 0;
	CHECK(write(child->to, "x", 1) == 1 && read(child->from, &byte, 1) == 1 && byte == 'x');
}

static struct child begin(void)
{
	int in[2], out[2];
	CHECK(!pipe(in) && !pipe(out));
	struct child child = {fork(), in[1], out[0]};
	CHECK(child.id >= 0);
	if (!child.id) {
		close(in[1]);
		close(out[0]);
		say_again(in[0], out[1]);
	}
	close(in[0]);
	close(out[1]);
	exchange(&child);
	return child;
}

static void end(const struct child *child)
{
	int status;
	exchange(child);
	close(child->to);
	close(child->from);
	CHECK(waitpid(child->id, &status, 0) == child->id && WIFEXITED(status) && !WEXITSTATUS(status));
}

static struct thread stopped(const struct child *child)
{
	struct thread thread = {.id = child->id, .instruction = instruction};
	DO(thread_seize(&thread));
	DO(thread_stop(&thread));
	return thread;
}

static long result_of(struct thread *thread, struct call call)
{
	long result;
	DO(thread_call(thread, call, &result));
	return result;
}

static void check_calls(void)
{
	struct child child = begin();
	struct thread thread = stopped(&child);
	CHECK(result_of(&thread, (struct call){SYS_getpid, {0}}) == child.id);
	CHECK(result_of(&thread, (struct call){SYS_gettid, {0}}) == child.id);
	CHECK(result_of(&thread, (struct call){SYS_close, {1000}}) == -EBADF);
	CHECK(result_of(&thread, (struct call){SYS_munmap, {1, 4096}}) == -EINVAL);
	DO(thread_release(&thread));
	end(&child);
}

static void check_memory(void)
{
	static volatile uint64_t words[3] = {1, 2, 3};
	const uint64_t others[2] = {4, 5};
	uint64_t at = (uint64_t)(uintptr_t)words, word = 0;
	struct child child = begin();
	struct thread thread = stopped(&child);
	DO(thread_poke(&thread, at, others, 2));
	for (uint64_t number = 0; number < 3; number++)
		CHECK(thread_peek(&thread, at + 8 * number, &word) && word == (number < 2 ? others[number] : 3));
	CHECK(!thread_peek(&thread, 0, &word));
	CHECK(thread_poke(&thread, 0, others, 1).what == CALL);
	CHECK(words[0] == 1);
	DO(thread_release(&thread));
	end(&child);
}

/* A clone is a process of its own and leaves nothing. SIGSTOP cannot be blocked, and is in the way of it. */
static void check_clone(void)
{
	struct child child = begin();
	struct thread thread = stopped(&child), clone;
	long number;
	kill(child.id, SIGSTOP);
	DO(thread_clone(&thread, 0, &clone, &number));
	DO(thread_await(&clone));
	CHECK(number == clone.id && clone.id != child.id);
	CHECK(result_of(&clone, (struct call){SYS_getpid, {0}}) == number);
	CHECK(result_of(&thread, (struct call){SYS_getpid, {0}}) == child.id);
	/* It is not for a wait that does not ask for clones. */
	CHECK(result_of(&thread, (struct call){SYS_wait4, {(uint64_t)number, 0, WNOHANG, 0}}) == -ECHILD);
	CHECK(result_of(&thread, (struct call){SYS_wait4, {(uint64_t)number, 0, WNOHANG | __WALL, 0}}) == 0);
	thread_kill(&clone);
	CHECK(result_of(&thread, (struct call){SYS_wait4, {(uint64_t)number, 0, __WALL, 0}}) == number);
	DO(thread_release(&thread));
	kill(child.id, SIGCONT);
	end(&child);
}

/* One that was killed by another process is missed at the next call, and is not killed again by its number. */
static void check_killed_clone(void)
{
	struct child child = begin();
	struct thread thread = stopped(&child), clone;
	long number, result;
	DO(thread_clone(&thread, 0, &clone, &number));
	kill(clone.id, SIGKILL);
	CHECK(thread_await(&clone).what == ENDED || thread_call(&clone, (struct call){SYS_getpid, {0}}, &result).what == ENDED);
	thread_kill(&clone);
	CHECK(clone.ended);
	CHECK(result_of(&thread, (struct call){SYS_wait4, {(uint64_t)number, 0, __WALL, 0}}) == number);
	DO(thread_release(&thread));
	end(&child);
}

static void check_signals_wait(void)
{
	struct child child = begin();
	struct thread thread = stopped(&child);
	int status;
	kill(child.id, SIGTERM);
	kill(child.id, SIGSTOP);
	for (unsigned time = 0; time < 3; time++)
		CHECK(result_of(&thread, (struct call){SYS_getpid, {0}}) == child.id);
	kill(child.id, SIGCONT);
	CHECK(result_of(&thread, (struct call){SYS_getpid, {0}}) == child.id);
	DO(thread_release(&thread));
	CHECK(waitpid(child.id, &status, 0) == child.id && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
	close(child.to);
	close(child.from);
}

static void check_stop_signal(void)
{
	struct child child = begin();
	struct thread thread = stopped(&child);
	int status;
	kill(child.id, SIGSTOP);
	CHECK(result_of(&thread, (struct call){SYS_getpid, {0}}) == child.id);
	DO(thread_release(&thread));
	CHECK(waitpid(child.id, &status, WUNTRACED) == child.id && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
	kill(child.id, SIGCONT);
	end(&child);
}

static void check_target_that_dies(void)
{
	struct child child = begin();
	struct thread thread = stopped(&child);
	long result;
	kill(child.id, SIGKILL);
	siginfo_t information;
	CHECK(!waitid(P_PID, (id_t)child.id, &information, WEXITED | WNOWAIT));
	CHECK(thread_call(&thread, (struct call){SYS_getpid, {0}}, &result).what == ENDED);
	CHECK(waitpid(child.id, NULL, 0) == child.id);
	close(child.to);
	close(child.from);
}

/* A tracer that ends, because it cannot let a running thread go. */
static int status_of_tracer(pid_t id, enum failed expected)
{
	int status;
	pid_t tracer = fork();
	CHECK(tracer >= 0);
	if (!tracer) {
		struct thread thread = {.id = id, .instruction = instruction};
		if (expected == FORBIDDEN && (setgid(65534) || setuid(65534)))
			_exit(2);
		struct failure failed = thread_seize(&thread);
		_exit((failed.what ? failed : thread_stop(&thread)).what != expected);
	}
	CHECK(waitpid(tracer, &status, 0) == tracer);
	return status;
}

/* A process waits uninterruptibly until what it has started runs; that first waits for its input. */
static void check_stop_that_does_not_come(void)
{
	int go[2], done[2];
	char byte = 0;
	CHECK(!pipe(go) && !pipe(done));
	pid_t parent = fork();
	CHECK(parent >= 0);
	if (!parent) {
		if (!vfork()) {
			syscall(SYS_write, done[1], "b", 1L);
			syscall(SYS_read, go[0], &byte, 1L);
			syscall(SYS_exit, 0L);
		}
		_exit(write(done[1], "e", 1) != 1);
	}
	CHECK(read(done[0], &byte, 1) == 1 && byte == 'b');
	CHECK(!status_of_tracer(parent, UNSTOPPED));
	CHECK(write(go[1], "g", 1) == 1);
	CHECK(read(done[0], &byte, 1) == 1 && byte == 'e');
	int status;
	CHECK(waitpid(parent, &status, 0) == parent && !status);
	for (unsigned number = 0; number < 2; number++) {
		close(go[number]);
		close(done[number]);
	}
}

static void check_what_cannot_be_seized(void)
{
	struct thread none = {.id = (1 << 22) + 1};
	CHECK(thread_seize(&none).what == ENDED);
	if (geteuid())
		return;
	struct child child = begin();
	CHECK(!status_of_tracer(child.id, FORBIDDEN));
	end(&child);
}

int main(void)
{
	sigset_t of_child;
	sigemptyset(&of_child);
	sigaddset(&of_child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &of_child, NULL);
	alarm(60); /* what hangs is broken */
	find_instruction();
	check_calls();
	check_memory();
	check_clone();
	check_killed_clone();
	check_signals_wait();
	check_stop_signal();
	check_target_that_dies();
	check_stop_that_does_not_come();
	check_what_cannot_be_seized();
	return 0;
}
