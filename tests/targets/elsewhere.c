/*
 * A program in which one word tells of the end of every thread, and lies in no control block, as in musl: there a thread
 * that ends takes a lock, and it is the kernel that opens it (CLONE_CHILD_CLEARTID).
 *
 * Says its process id when a thread of it is about to end, and has the lock; a line on standard input lets the thread end.
 * When it is gone the program says whether the lock is open. It does not wait for the lock (futex(2)): the kernel would
 * get hold of the page for a store, too.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SIZE (1ul << 16)

static int told[2];

/* Without thread-local memory of its own, so by system calls alone. */
static int end_when_told(void *nothing)
{
	(void)nothing;
	char byte;
	syscall(SYS_read, told[0], &byte, 1);
	return syscall(SYS_exit, 0);
}

int main(void)
{
	char line[16];
	int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_CHILD_CLEARTID;
	uint8_t *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED || pipe(told))
		return 2;
	memset(memory, 1, SIZE);
	_Atomic int *lock = (_Atomic int *)(memory + SIZE / 2);
	syscall(SYS_set_robust_list, NULL, 3 * sizeof(long)); /* musl has none before there is a robust mutex */
	syscall(SYS_set_tid_address, lock);
	atomic_store(lock, 1);
	int thread = clone(end_when_told, memory + SIZE / 4, flags, NULL, NULL, NULL, lock);
	if (thread < 0)
		return 2;
	printf("%d\n", (int)getpid());
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin) || write(told[1], "", 1) != 1)
		return 2;
	while (!syscall(SYS_tgkill, getpid(), thread, 0))
		sched_yield();
	printf(atomic_load(lock) ? "shut\n" : "open\n");
	return 0;
}
