/*
 * What has to run at C speed for a fair measurement: touches, copies, protection, and a thread that is disturbed.
 * Compiled when the benchmark starts, and loaded by bench/native.py. Durations are in seconds.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static uint64_t now_ns(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static double since(uint64_t began)
{
	return (double)(now_ns() - began) / 1e9;
}

/* Write one byte of each page, in order of address. */
double touch(uint8_t *memory, uint64_t pages, uint64_t page_size)
{
	uint64_t began = now_ns();
	for (uint64_t page = 0; page < pages; page++)
		((volatile uint8_t *)memory)[page * page_size] = 1;
	return since(began);
}

double copy(void *to, const void *from, uint64_t size)
{
	uint64_t began = now_ns();
	memcpy(to, from, size);
	return since(began);
}

/* One mprotect(2) call that takes every access away; negative when it fails. */
double protect(void *memory, uint64_t size)
{
	uint64_t began = now_ns();
	int result = mprotect(memory, size, PROT_NONE);
	return result ? -1 : since(began);
}

/* A thread that writes to random pages without a pause, and knows the longest that one write took. */
struct toucher {
	pthread_t thread;
	volatile uint8_t *memory;
	uint64_t pages, page_size;
	_Atomic uint64_t touches, longest_ns;
	_Atomic int stop;
};

static void *run_toucher(void *argument)
{
	struct toucher *toucher = argument;
	uint64_t random = 88172645463325252u, before = now_ns();
	while (!atomic_load_explicit(&toucher->stop, memory_order_relaxed)) {
		random ^= random << 13; /* xorshift64: G. Marsaglia, Xorshift RNGs, 2003 */
		random ^= random >> 7;
		random ^= random << 17;
		toucher->memory[random % toucher->pages * toucher->page_size] = 1;
		uint64_t after = now_ns();
		if (after - before > atomic_load_explicit(&toucher->longest_ns, memory_order_relaxed))
			atomic_store(&toucher->longest_ns, after - before);
		before = after;
		atomic_fetch_add_explicit(&toucher->touches, 1, memory_order_relaxed);
	}
	return NULL;
}

/* NULL when there is no memory or no thread for it. */
struct toucher *toucher_start(uint8_t *memory, uint64_t pages, uint64_t page_size)
{
	struct toucher *toucher = calloc(1, sizeof *toucher);
	if (!toucher)
		return NULL;
	toucher->memory = memory;
	toucher->pages = pages;
	toucher->page_size = page_size;
	if (pthread_create(&toucher->thread, NULL, run_toucher, toucher)) {
		free(toucher);
		return NULL;
	}
	return toucher;
}

uint64_t toucher_touches(struct toucher *toucher)
{
	return atomic_load(&toucher->touches);
}

/* The longest touch since the last call. */
double toucher_longest(struct toucher *toucher)
{
	return (double)atomic_exchange(&toucher->longest_ns, 0) / 1e9;
}

void toucher_stop(struct toucher *toucher)
{
	atomic_store(&toucher->stop, 1);
	pthread_join(toucher->thread, NULL);
	free(toucher);
}
