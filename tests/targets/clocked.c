/*
 * Prints in nanoseconds: how long 20 million instructions take at best, and how long at the median and at worst it takes
 * a thread on CPU 1 to wake up when one on CPU 0 calls it, which then stays busy.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { LOOPS = 5, TURNS = 10 * 1000 * 1000, CALLS = 50 };

static int call;
static _Atomic uint64_t woken;

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void run_on(int cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof set, &set))
		abort();
}

static void *wake_up(void *unused)
{
	uint64_t count;
	run_on(1);
	while (read(call, &count, sizeof count) == sizeof count)
		woken = now();
	return unused;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

int main(void)
{
	pthread_t thread;
	uint64_t loop = UINT64_MAX, delays[CALLS], one = 1;
	run_on(0);
	for (int i = 0; i < LOOPS; i++) {
		uint64_t start = now();
		for (long turn = TURNS; turn; turn--)
			__asm__ volatile("");
		uint64_t took = now() - start;
		loop = took < loop ? took : loop;
	}
	call = eventfd(0, 0);
	if (call < 0 || pthread_create(&thread, NULL, wake_up, NULL))
		return 1;
	for (int i = 0; i < CALLS; i++) {
		uint64_t start = now();
		while (now() - start < 1000000 + 7777 * (uint64_t)i) /* it sleeps by then */
			;
		woken = 0;
		start = now();
		if (write(call, &one, sizeof one) != sizeof one)
			return 1;
		while (!woken)
			;
		delays[i] = woken - start;
	}
	qsort(delays, CALLS, sizeof *delays, by_value);
	printf("%lu %lu %lu\n", loop, delays[CALLS / 2], delays[CALLS - 1]);
}
