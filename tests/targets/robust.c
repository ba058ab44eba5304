/*
 * A program whose thread ends with a robust mutex taken, after a line on standard input; says what taking it then comes to.
 *
 * usage: robust here|apart|shared: the mutex is this process's, and a thread ends; or is its parent's, too, and the process
 * ends. That of `apart` is on two pages: the word that the kernel marks on one, the entry of the list on the next.
 *
 * The parent of a shared one is the program that prints; its first line names the process to attach to.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WAIT 60

static pthread_mutex_t *mutex;
static int told[2];

static void *take_and_end(void *nothing)
{
	char line;
	pthread_mutex_lock(mutex);
	if (write(told[1], "", 1) != 1 || read(STDIN_FILENO, &line, 1) != 1)
		_exit(3);
	return nothing;
}

int main(int count, char **words)
{
	bool shared = count == 2 && !strcmp(words[1], "shared");
	char taken;
	pthread_t thread;
	pthread_mutexattr_t robust;
	char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
	mutex = (pthread_mutex_t *)(pages + (count == 2 && !strcmp(words[1], "apart") ? 4096 - offsetof(pthread_mutex_t, __data.__list) : 0));
	pthread_mutexattr_init(&robust);
	pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setpshared(&robust, shared ? PTHREAD_PROCESS_SHARED : PTHREAD_PROCESS_PRIVATE);
	pthread_mutex_init(mutex, &robust);
	if (pipe(told))
		return 2;
	pid_t holder = shared ? fork() : getpid();
	if (!holder) {
		take_and_end(NULL);
		_exit(0);
	}
	if (!shared)
		pthread_create(&thread, NULL, take_and_end, NULL);
	if (read(told[0], &taken, 1) != 1)
		return 2;
	printf("%d\n", (int)holder);
	fflush(stdout);
	if (shared)
		waitpid(holder, NULL, 0);
	else
		pthread_join(thread, NULL);
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += WAIT;
	int result = pthread_mutex_timedlock(mutex, &until);
	printf("%s\n", result == EOWNERDEAD ? "the owner died" : result ? strerror(result) : "taken");
	return 0;
}
