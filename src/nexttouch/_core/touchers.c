/*
 * Which node a faulting thread runs on.
 *
 * /proc/PID/task/TID/stat tells the CPU that a thread last ran on, which for a thread that waits in a fault is the one it
 * faulted on. Reading it costs some microseconds, so the answer is kept for NODE_TTL_NS: a scheduler that moves threads
 * between nodes does so far less often.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define NODE_TTL_NS 10000000u
/* Field of /proc/PID/task/TID/stat, counted from 1 as proc_pid_stat(5) does, and the first one after the name. */
#define STAT_PROCESSOR 39
#define STAT_AFTER_NAME 3

int node_of_cpu(const struct nt_pager *pager, int cpu)
{
	return cpu >= 0 && (size_t)cpu < pager->options.cpus ? pager->cpu_nodes[cpu] : -1;
}

/* The CPU in `text`, the content of a stat file; -1 if it is not there. */
int cpu_in_stat(const char *text)
{
	const char *field = strrchr(text, ')'); /* a name may hold spaces and parentheses */
	for (int number = STAT_AFTER_NAME - 1; field && number < STAT_PROCESSOR; number++)
		field = strchr(field + 1, ' ');
	return field ? (int)strtol(field + 1, NULL, 10) : -1;
}

static int cpu_of_thread(pid_t process, pid_t thread)
{
	char path[64], text[1024];
	snprintf(path, sizeof path, "/proc/%d/task/%d/stat", process ? process : (int)getpid(), thread);
	int file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return -1;
	ssize_t size = read(file, text, sizeof text - 1);
	close(file);
	if (size <= 0)
		return -1;
	text[size] = '\0';
	return cpu_in_stat(text);
}

/* The entry of `thread`; its node is up to date. Threads that share a slot take it from each other: only time is lost. */
struct toucher *toucher_of(struct nt_pager *pager, pid_t thread)
{
	struct toucher *toucher = &pager->touchers[(unsigned)thread % TOUCHERS];
	uint64_t now = now_ns();
	if (toucher->thread != thread)
		*toucher = (struct toucher){.thread = thread, .node = -1};
	if (pager->options.toucher && now >= toucher->expires_ns) {
		toucher->node = node_of_cpu(pager, cpu_of_thread(pager->options.pid, thread));
		toucher->expires_ns = now + NODE_TTL_NS;
	}
	return toucher;
}
