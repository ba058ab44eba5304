/*
 * Which node a faulting thread runs on.
 *
 * /proc/PID/task/TID/stat tells the CPU that a thread last ran on, which for a thread that waits in a fault is the one it
 * faulted on. Reading it costs some microseconds, so the answer is kept for NODE_TTL_NS: a scheduler that moves threads
 * between nodes does so far less often.
 *
 * The kernel names a thread by the number that it has in its own pid namespace. Where that is not ours, as in a container,
 * the thread is looked for by the last number of NSpid in /proc/PID/task/TID/status; what it is here, is remembered.
 */
#include <dirent.h>
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

/* The start of a file of a thread's folder; false if there is none. */
static bool read_of_thread(pid_t process, pid_t task, const char *name, char *text, size_t room)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/task/%d/%s", process ? process : (int)getpid(), task, name);
	int file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return false;
	ssize_t size = read(file, text, room - 1);
	close(file);
	text[size > 0 ? size : 0] = '\0';
	return size > 0;
}

static int cpu_of_task(pid_t process, pid_t task)
{
	char text[1024];
	return read_of_thread(process, task, "stat", text, sizeof text) ? cpu_in_stat(text) : -1;
}

/* The number in the innermost pid namespace that the text of a status file tells; 0 if none. */
pid_t innermost_in_status(const char *text)
{
	const char *line = strstr(text, "\nNSpid:"), *end = line ? strchr(line + 1, '\n') : NULL;
	pid_t number = 0;
	for (const char *at = line ? strchr(line, '\t') : NULL; at && end && at < end; at = strchr(at + 1, '\t'))
		number = (pid_t)strtol(at + 1, NULL, 10);
	return number;
}

/* What the thread of another process is here that calls itself `thread`; 0 if there is none. */
static pid_t task_called(pid_t process, pid_t thread)
{
	char path[32], text[2048];
	pid_t found = 0;
	snprintf(path, sizeof path, "/proc/%d/task", process);
	DIR *folder = opendir(path);
	for (struct dirent *entry; folder && !found && (entry = readdir(folder));) {
		pid_t task = (pid_t)strtol(entry->d_name, NULL, 10);
		if (task > 0 && read_of_thread(process, task, "status", text, sizeof text) && innermost_in_status(text) == thread)
			found = task;
	}
	if (folder)
		closedir(folder);
	return found;
}

/* The CPU that a thread of the program was last on; -1 if it has none of that number (any more), and it is another's. */
static int cpu_of(const struct nt_pager *pager, struct toucher *toucher)
{
	pid_t process = pager->options.pid;
	int cpu = toucher->task ? cpu_of_task(process, toucher->task) : -1;
	if (cpu < 0 && pager->elsewhere && (toucher->task = task_called(process, toucher->thread)))
		cpu = cpu_of_task(process, toucher->task);
	return cpu;
}

/* The entry of `thread`; its node is up to date. Threads that share a slot take it from each other: only time is lost. */
struct toucher *toucher_of(struct nt_pager *pager, pid_t thread)
{
	struct toucher *toucher = &pager->touchers[(unsigned)thread % TOUCHERS];
	uint64_t now = now_ns();
	if (toucher->thread != thread)
		*toucher = (struct toucher){.thread = thread, .task = pager->elsewhere ? 0 : thread, .node = -1};
	if (pager->options.toucher && now >= toucher->expires_ns) {
		toucher->node = node_of_cpu(pager, cpu_of(pager, toucher));
		toucher->expires_ns = now + NODE_TTL_NS;
	}
	return toucher;
}
