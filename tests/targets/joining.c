/*
 * A program that makes and joins threads all the time, and watches over itself.
 *
 * usage: joining STATUS [SIZE]
 *   SIZE  of the stacks in KiB; without it they are of 16 KiB, 64 KiB and so on up to 64 MiB in turn
 * Each of two threads that make others counts those it has joined. The program ends with status 3 when none was joined for
 * 10 s.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include "status.h"

#define SIZES 7u
#define SMALLEST (16ul << 10)
#define AT_ONCE 2
#define MAKERS 2
#define BALLAST (16ul << 20) /* so that a migration takes a while */
#define TICK 500             /* milliseconds */
#define TICKS 20

static size_t only; /* size of all stacks, if it is not 0 */
static _Atomic uint64_t joined;

/* Leaves its mark on the stack, far enough up not to end a small one. */
static void *live(void *argument)
{
	volatile uint64_t mark[256];
	for (unsigned word = 0; word < 256; word++)
		mark[word] = (uintptr_t)argument + word;
	for (unsigned word = 0; word < 256; word++)
		if (mark[word] != (uintptr_t)argument + word)
			fail((uintptr_t)mark, word, (uintptr_t)argument + word, mark[word]);
	return argument;
}

static void make_and_join(size_t size, _Atomic uint64_t *counter)
{
	pthread_t threads[AT_ONCE];
	pthread_attr_t attributes;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, size);
	for (uintptr_t number = 0; number < AT_ONCE; number++)
		if (pthread_create(&threads[number], &attributes, live, (void *)number))
			_exit(4);
	for (uintptr_t number = 0; number < AT_ONCE; number++) {
		void *result;
		pthread_join(threads[number], &result);
		if (result != (void *)number)
			fail(0, 0, number, (uintptr_t)result);
		atomic_fetch_add(&joined, 1);
		atomic_fetch_add(counter, 1);
	}
	pthread_attr_destroy(&attributes);
}

static void *make(void *number)
{
	uintptr_t maker = (uintptr_t)number;
	for (uintptr_t turn = maker * SIZES / MAKERS; !atomic_load(&status->stop); turn++)
		make_and_join(only ? only : SMALLEST << (2 * (turn % SIZES)), &status->counters[maker]);
	return NULL;
}

static void *watch(void *nothing)
{
	uint64_t last = 0;
	for (unsigned still = 0; still < TICKS; still++) {
		poll(NULL, 0, TICK);
		if (atomic_load(&joined) != last)
			still = 0;
		last = atomic_load(&joined);
	}
	printf("no thread was joined for 10 s, after %lu\n", last);
	fflush(stdout);
	_exit(3);
	return nothing;
}

int main(int count, char **arguments)
{
	pthread_t makers[MAKERS], watcher;
	if (count < 2)
		return 2;
	map_status(arguments[1]);
	only = count > 2 ? strtoul(arguments[2], NULL, 10) << 10 : 0;
	uint8_t *ballast = malloc(BALLAST);
	memset(ballast, 1, BALLAST);
	pthread_create(&watcher, NULL, watch, NULL);
	for (uintptr_t maker = 0; maker < MAKERS; maker++)
		pthread_create(&makers[maker], NULL, make, (void *)maker);
	for (unsigned maker = 0; maker < MAKERS; maker++)
		pthread_join(makers[maker], NULL);
	for (size_t byte = 0; byte < BALLAST; byte++)
		if (ballast[byte] != 1)
			fail((uintptr_t)ballast, byte, 1, ballast[byte]);
	return 0;
}
