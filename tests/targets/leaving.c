/*
 * A program with a thread that ends by the system call alone, when it is told to, and that waits for it then.
 *
 * usage: leaving KIBIBYTES guard|own: the size of the thread's stack, and whether it is the C library's or malloc's.
 *
 * Each line on standard input is one step: begin the thread on a stack that one before it has used; let it end, and join
 * it. What was done is said on standard output; before the first step the process id.
 *
 * The thread's frames lie far below its control block, and it is joined when it is gone. So from its begin to its end the
 * program does not write to the page with the control block: the kernel does, last of all. (Where restartable sequences
 * are off: GLIBC_TUNABLES=glibc.pthread.rseq=0. Each switch to the thread notes its CPU there else.)
 */
#define _GNU_SOURCE
#include <alloca.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEPTH (8 << 10)

static int begun[2], told[2];

static void *return_at_once(void *nothing)
{
	return nothing;
}

static __attribute__((noinline)) void wait_below(void)
{
	char byte;
	pid_t self = gettid();
	if (write(begun[1], &self, sizeof self) == sizeof self && syscall(SYS_read, told[0], &byte, 1) == 1)
		syscall(SYS_exit, 0); /* read(3) can be cancelled, and notes in the control block when it is done */
	_exit(3);
}

static void *end_when_told(void *nothing)
{
	volatile char *frames = alloca(DEPTH);
	frames[0] = 0;
	wait_below();
	return nothing;
}

static void say(const char *word)
{
	printf("%s\n", word);
	fflush(stdout);
}

static void next_step(void)
{
	char line[16];
	if (!fgets(line, sizeof line, stdin))
		exit(0);
}

int main(int count, char **words)
{
	pthread_t thread;
	pthread_attr_t attributes;
	pid_t number;
	if (count != 3 || pipe(begun) || pipe(told) || pthread_attr_init(&attributes))
		return 2;
	size_t size = (size_t)atol(words[1]) << 10;
	void *own = strcmp(words[2], "own") ? NULL : aligned_alloc(4096, size);
	if (own ? pthread_attr_setstack(&attributes, own, size) : pthread_attr_setstacksize(&attributes, size))
		return 2;
	if (pthread_create(&thread, &attributes, return_at_once, NULL) || pthread_join(thread, NULL))
		return 2;
	printf("%d\n", (int)getpid());
	fflush(stdout);
	next_step();
	if (pthread_create(&thread, &attributes, end_when_told, NULL) || read(begun[0], &number, sizeof number) != sizeof number)
		return 2;
	say("begun");
	next_step();
	if (write(told[1], "", 1) != 1)
		return 2;
	while (!tgkill(getpid(), number, 0))
		sched_yield();
	if (pthread_join(thread, NULL))
		return 2;
	say("joined");
	return 0;
}
