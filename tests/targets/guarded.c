/*
 * A program that counts, in a state in which it must not be attached to.
 *
 * usage: guarded STATUS MODE
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "status.h"

static void *wait_for_ever(void *nothing)
{
	pause();
	return nothing;
}

static int guard(const char *mode)
{
	struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog filter = {1, &allow};
	struct uffdio_api api = {.api = UFFD_API};
	pthread_t thread;
	if (!strcmp(mode, "seccomp"))
		return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
	if (!strcmp(mode, "strict"))
		return prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
	if (!strcmp(mode, "undumpable"))
		return prctl(PR_SET_DUMPABLE, 0);
	if (!strcmp(mode, "userfaultfd"))
		return ioctl((int)syscall(SYS_userfaultfd, O_CLOEXEC), UFFDIO_API, &api);
	if (!strcmp(mode, "threads"))
		return pthread_create(&thread, NULL, wait_for_ever, NULL);
	return strcmp(mode, "plain");
}

int main(int count, char **words)
{
	if (count != 3)
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	map_status(words[1]);
	if (guard(words[2]))
		return 3;
	while (!status->stop)
		atomic_fetch_add(&status->counters[0], 1);
	return 0;
}
