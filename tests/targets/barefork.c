/*
 * A fork that no handler hears of, loaded into the process that forks. The child makes nothing but system calls: it has
 * copies of the locks of threads that it does not have.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Writes to `pipe` what it can read of `first` and `last`, then "!", and lives on. */
static void live(int pipe, const long *first, const long *last)
{
	syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	syscall(SYS_write, pipe, first, sizeof *first);
	syscall(SYS_write, pipe, last, sizeof *last);
	syscall(SYS_write, pipe, "!", 1);
	for (;;)
		syscall(SYS_ppoll, NULL, 0, NULL, NULL, 0);
}

pid_t bare_fork(int pipe, const long *first, const long *last)
{
	pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!child)
		live(pipe, first, last);
	return child;
}
