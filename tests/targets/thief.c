/*
 * A program that takes what it can of another process's descriptors, and says what that is.
 *
 * usage: thief PID
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int count, char **words)
{
	int process = count == 2 ? (int)syscall(SYS_pidfd_open, atoi(words[1]), 0) : -1;
	if (process < 0)
		return 2;
	for (int number = 0; number < 16; number++) {
		char link[64], what[256];
		int copy = (int)syscall(SYS_pidfd_getfd, process, number, 0);
		if (copy < 0)
			continue;
		snprintf(link, sizeof link, "/proc/self/fd/%d", copy);
		ssize_t size = readlink(link, what, sizeof what - 1);
		printf("%.*s\n", size > 0 ? (int)size : 0, what);
	}
	return 0;
}
