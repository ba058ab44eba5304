/*
 * Threads of the program and the pager's own. `cancelled`: one that touches armed memory of the inline service while
 * it is being cancelled goes on to its next cancellation point, and the migration ends. `heap`: the pager is started on
 * memory with holes that making a thread takes from.
 */
#include <malloc.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../src/nexttouch/_core/pager.h"

#define PAGE 4096ul
#define PAGES 4096ul
#define HANG 60
#define BLOCKS 40
#define BLOCK 60000

static const int nodes[] = {0}, cpu_nodes[] = {0, 0};
static int16_t anywhere[PAGES];
static volatile uint64_t *memory;
static atomic_int stage;
static uint64_t sum;

static struct nt_pager *begin(enum nt_service service, double rate, const struct nt_run *runs, size_t count, struct nt_range range)
{
	struct nt_error error;
	struct nt_options options = {.mechanism = NT_RELOCATE, .service = service, .uffd = -1, .alive_fd = -1, .nodes = nodes,
				     .nodes_count = 1, .cpu_nodes = cpu_nodes, .cpus = 2, .window = 4, .rate = rate,
				     .deadline = INFINITY};
	memset(anywhere, 0xff, sizeof anywhere);
	struct nt_pager *pager = nt_pager_new(&options, runs, count, &range, 1, anywhere, &error);
	if (!pager || nt_pager_start(pager, &error)) {
		fprintf(stderr, "%s: %s\n", error.call, strerror(error.number));
		exit(2);
	}
	return pager;
}

static void *touch_all(void *nothing)
{
	stage = 1;
	while (stage != 2)
		;
	for (uint64_t page = 0; page < PAGES; page++)
		sum += memory[page * PAGE / sizeof *memory];
	stage = 3;
	return nothing;
}

static int cancelled(void)
{
	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (uint64_t page = 0; page < PAGES; page++)
		memory[page * PAGE / sizeof *memory] = page;
	struct nt_run run = {(uint64_t)(uintptr_t)memory, PAGES, 1};
	struct nt_pager *pager = begin(NT_INLINE, 0, &run, 1, (struct nt_range){run.start, PAGES * PAGE});
	pthread_t thread;
	nt_pager_wait(pager, NT_SERVING, HANG);
	pthread_create(&thread, NULL, touch_all, NULL);
	while (stage != 1)
		;
	pthread_cancel(thread);
	stage = 2;
	pthread_join(thread, NULL);
	if (stage != 3 || sum != PAGES * (PAGES - 1) / 2)
		return fprintf(stderr, "the thread was cut short\n"), 1;
	nt_pager_cancel(pager);
	if (!nt_pager_wait(pager, NT_DONE, HANG))
		return fprintf(stderr, "the migration does not end\n"), 1;
	nt_pager_free(pager);
	return 0;
}

/* Blocks of the heap with holes between them, the last hole within reach of what is allocated next. */
static int heap(int taken)
{
	static struct nt_run runs[PAGES];
	static unsigned char present[PAGES];
	char *blocks[BLOCKS];
	size_t count = 0;
	mallopt(M_MMAP_THRESHOLD, 1 << 28);
	for (int block = 0; block < BLOCKS; block++)
		blocks[block] = memset(malloc(BLOCK), 1, BLOCK);
	for (int block = 1; block < BLOCKS - 1; block += 2)
		free(blocks[block]);
	malloc_trim(0);
	for (int piece = 0; piece < taken; piece++)
		if (!malloc(250))
			return 1;
	uint64_t start = (uint64_t)(uintptr_t)blocks[0] & ~(PAGE - 1);
	uint64_t end = ((uint64_t)(uintptr_t)blocks[BLOCKS - 1] + BLOCK) & ~(PAGE - 1);
	mincore((void *)(uintptr_t)start, end - start, present);
	for (uint64_t page = 0; page < (end - start) / PAGE; page++) {
		uint64_t address = start + page * PAGE;
		if (!(present[page] & 1))
			continue;
		if (count && runs[count - 1].start + runs[count - 1].pages * PAGE == address)
			runs[count - 1].pages++;
		else
			runs[count++] = (struct nt_run){address, 1, 1};
	}
	struct nt_pager *pager = begin(NT_THREAD, INFINITY, runs, count, (struct nt_range){start, end - start});
	return !nt_pager_wait(pager, NT_DONE, HANG);
}

int main(int count, char **words)
{
	if (count == 2 && !strcmp(words[1], "cancelled"))
		return cancelled();
	for (int taken = 0; taken < 40; taken++) {
		pid_t child = fork();
		if (!child) {
			alarm(HANG);
			_exit(heap(taken));
		}
		int status;
		if (waitpid(child, &status, 0) != child || status)
			return fprintf(stderr, "%d pieces taken: status %x\n", taken, status), 1;
	}
	return 0;
}
