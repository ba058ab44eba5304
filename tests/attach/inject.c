/*
 * What the program asks of the kernel, and has its target ask, is counted; one of these calls fails. The test that started
 * it is asked which (ADDRESS, an abstract socket): "NTH ERRNO", from 1; with ERRNO 0 the clone is killed instead. It is told
 * when the clone has all that it ever has ("clone ID"), which then waits for its answer, and how many calls there were
 * ("calls COUNT"). The calls that undo something are not among them: they do not fail.
 */
#include "inject.h"

#undef open
#undef syscall
#undef message_send
#undef thread_call
#undef thread_clone
#undef thread_poke
#undef thread_kill

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

static int test = -1, number_of_fault;
static unsigned nth, calls;
static pid_t clone_id;

static void tell(const char *word, long number)
{
	char text[64];
	int size = snprintf(text, sizeof text, "%s %ld", word, number);
	if (test >= 0 && send(test, text, (size_t)size, 0) < 0)
		abort();
}

static void hear(char text[64])
{
	ssize_t size = test >= 0 ? recv(test, text, 63, 0) : 0;
	text[size > 0 ? size : 0] = 0;
}

__attribute__((constructor)) static void begin(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char text[64];
	memcpy(address.sun_path + 1, ADDRESS, sizeof ADDRESS - 1);
	test = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	socklen_t size = offsetof(struct sockaddr_un, sun_path) + sizeof ADDRESS;
	if (test < 0 || connect(test, (struct sockaddr *)&address, size))
		abort();
	hear(text);
	sscanf(text, "%u %d", &nth, &number_of_fault);
}

__attribute__((destructor)) static void end(void)
{
	tell("calls", calls);
}

static bool fails(void)
{
	if (++calls != nth)
		return false;
	errno = number_of_fault;
	if (!number_of_fault && clone_id)
		kill(clone_id, SIGKILL);
	return number_of_fault;
}

int inject_open(const char *path, int flags)
{
	return fails() ? -1 : open(path, flags);
}

long inject_syscall(long number, ...)
{
	long a[3];
	va_list arguments;
	va_start(arguments, number);
	for (unsigned place = 0; place < 3; place++)
		a[place] = va_arg(arguments, int);
	va_end(arguments);
	return fails() ? -1 : syscall(number, a[0], a[1], a[2]);
}

struct failure inject_message_send(int socket, const char *text, int descriptor)
{
	return fails() ? failed_call("sendmsg", errno) : message_send(socket, text, descriptor);
}

struct failure inject_thread_call(struct thread *thread, struct call call, long *result)
{
	if (call.number == SYS_munmap || call.number == SYS_wait4 || !fails())
		return thread_call(thread, call, result);
	*result = -errno;
	return failure(NOTHING);
}

struct failure inject_thread_clone(struct thread *thread, uint64_t flags, struct thread *clone, long *number)
{
	if (fails())
		return failed_call("clone", errno);
	struct failure failed = thread_clone(thread, flags, clone, number);
	clone_id = failed.what ? 0 : clone->id;
	return failed;
}

struct failure inject_thread_poke(struct thread *thread, uint64_t address, const uint64_t *words, size_t count)
{
	return fails() ? failed_call("PTRACE_POKEDATA", errno) : thread_poke(thread, address, words, count);
}

void inject_thread_kill(struct thread *thread)
{
	char text[64];
	if (!thread->ended)
		tell("clone", thread->id);
	if (!thread->ended)
		hear(text);
	clone_id = 0;
	thread_kill(thread);
}
