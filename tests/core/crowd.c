/*
 * More threads wait in faults than the pager reads messages at a time, while the program discards memory. And the sweep
 * hears of the faults.
 *
 * usage: crowd THREADS WAY. Exit 0 when every word was as it has to be, 1 with what was wrong; killed when it hangs.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../src/nexttouch/_core/internal.h"
#include "ways.h"

#define PAGE 4096u
#define PAGES_EACH 32
#define DISCARDS 16
#define STACK_SIZE (1 << 15)
#define HANG 120
#define LONG_STEP (1ull << 50)
#ifdef __SANITIZE_THREAD__
#define PACED 0 /* the pace is the pager's thread's, and this one meddles with it */
#else
#define PACED 1
#endif

static uint8_t *memory;
static pthread_barrier_t begin;

static void *touch(void *argument)
{
	uint8_t *pages = memory + (uintptr_t)argument * PAGES_EACH * PAGE;
	pthread_barrier_wait(&begin);
	for (unsigned page = 0; page < PAGES_EACH; page++)
		pages[page * PAGE]++;
	return NULL;
}

static struct nt_pager *migrate(const char *way, uint64_t pages, struct nt_error *error)
{
	int16_t *origins = malloc(pages * sizeof *origins);
	struct nt_run run = {(uint64_t)(uintptr_t)memory, pages, 1};
	struct nt_range range = {run.start, pages * PAGE};
	struct nt_options options = options_of(way);
	options.window = 1;
	options.rate = 0;
	memset(origins, 0xff, pages * sizeof *origins);
	struct nt_pager *pager = nt_pager_new(&options, &run, 1, &range, 1, origins, error);
	free(origins);
	return pager && !nt_pager_start(pager, error) && nt_pager_wait(pager, NT_SERVING, HANG) ? pager : NULL;
}

int main(int count, char **arguments)
{
	size_t crowd = count > 2 ? strtoul(arguments[1], NULL, 10) : 0;
	uint64_t touched = crowd * PAGES_EACH, pages = touched + DISCARDS;
	pthread_t *threads = calloc(crowd, sizeof *threads);
	pthread_attr_t small;
	struct nt_error error = {0};
	if (!crowd)
		return 2;
	need(arguments[2]);
	alarm(HANG);
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
	memset(memory, 1, pages * PAGE);
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, STACK_SIZE);
	pthread_barrier_init(&begin, NULL, (unsigned)crowd + 1);
	for (size_t number = 0; number < crowd; number++)
		if (pthread_create(&threads[number], &small, touch, (void *)number))
			return printf("thread %zu did not start\n", number), 1;
	struct nt_pager *pager = migrate(arguments[2], pages, &error);
	if (!pager)
		return printf("%s: %s\n", error.call, strerror(error.number)), 1;
	if (PACED)
		pager->pace.took = LONG_STEP; /* as if a sweep had gone before: from now on it waits for the faults */
	pthread_barrier_wait(&begin);
	for (uint64_t page = touched; page < pages; page++)
		madvise(memory + page * PAGE, PAGE, MADV_DONTNEED);
	for (size_t number = 0; number < crowd; number++)
		pthread_join(threads[number], NULL);
	nt_pager_cancel(pager);
	nt_pager_wait(pager, NT_DONE, HANG);
	if (PACED && pager->pace.quiet < LONG_STEP)
		return printf("the sweep knows of no fault\n"), 1;
	nt_pager_free(pager);
	for (uint64_t page = 0; page < pages; page++)
		if (memory[page * PAGE] != (page < touched ? 2 : 0) || memory[page * PAGE + 1] != (page < touched))
			return printf("page %lu holds %u\n", page, memory[page * PAGE]), 1;
	free(threads);
	return 0;
}
