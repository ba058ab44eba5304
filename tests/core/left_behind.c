/*
 * While a migration ends the program moves, or makes larger, what migrates: of no mapping is anything left behind, neither
 * that it is watched nor that children do not get it.
 *
 * usage: left_behind WAY ROUNDS SEED. Exit 0 and a line of counts; 1 with what is left, 3 for a hang.
 */
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>

#include "migration.h"
#include "watched.h"

#define MAPPINGS 4u
#define PAGES 32u
#define ROOM (4 * PAGES) /* pages from one to the next */
#define SIZE (PAGES * (size_t)PAGE)
#define HANG 120

static uint8_t *area; /* two rooms for each mapping */
static size_t area_size;
static uint8_t *mappings[MAPPINGS];
static struct nt_pager *pager;
static long round_number;
static uint64_t random_state;
static pthread_barrier_t turn;

static void say_where(void)
{
	uint64_t counts[256] = {0};
	dprintf(STDOUT_FILENO, "round %ld, states", round_number);
	if (pager)
		count_states(pager, counts);
	print_states(counts);
}

static uint8_t *room(unsigned mapping, unsigned number)
{
	return area + (2 * mapping + number) * ROOM * (size_t)PAGE;
}

static void map_all(struct plan *plan)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
	memset(plan, 0, sizeof *plan);
	CHECK(mmap(area, area_size, PROT_NONE, flags | MAP_NORESERVE, -1, 0) == area, "mmap: %s", strerror(errno));
	for (unsigned number = 0; number < MAPPINGS; number++) {
		mappings[number] = mmap(room(number, 0), SIZE, PROT_READ | PROT_WRITE, flags, -1, 0);
		memset(mappings[number], (int)number + 1, SIZE);
		munmap(mappings[number] + SIZE, SIZE); /* to grow into */
		plan_range(plan, mappings[number], PAGES);
		plan_run(plan, mappings[number], PAGES);
	}
}

/* Move a mapping, make it larger where it is, both at once, or move half of it. */
static void change(unsigned number, unsigned way)
{
	uint8_t *at = mappings[number], *to = room(number, 1);
	void *result = at;
	if (way == 0)
		result = mremap(at, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	else if (way == 1)
		result = mremap(at, SIZE, 2 * SIZE, 0);
	else if (way == 2)
		result = mremap(at, SIZE, 2 * SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	else
		result = mremap(at + SIZE / 2, SIZE / 2, SIZE / 2, MREMAP_MAYMOVE | MREMAP_FIXED, to + SIZE / 2);
	if (way == 1 && result == MAP_FAILED && errno == ENOMEM) /* the pager's own memory came to be there */
		return;
	CHECK(result != MAP_FAILED, "mapping %u, way %u: %s", number, way, strerror(errno));
	mappings[number] = way == 3 ? at : result;
	uint8_t *half = way == 3 ? to + SIZE / 2 : mappings[number] + SIZE / 2;
	for (size_t byte = 0; byte < SIZE / 2; byte += PAGE / 2)
		CHECK(mappings[number][byte] == number + 1 && half[byte] == number + 1, "mapping %u, way %u: byte %zu", number, way,
		      byte);
}

static void *end(void *argument)
{
	pthread_barrier_wait(&turn);
	nt_pager_cancel(argument);
	return NULL;
}

int main(int count, char **arguments)
{
	static struct plan plan;
	static uint64_t states[256];
	struct nt_error error;
	pthread_t thread;
	if (count < 4)
		return 2;
	random_state = strtoull(arguments[3], NULL, 10) * 0x9e3779b97f4a7c15u + 1;
	area_size = 2 * MAPPINGS * ROOM * (size_t)PAGE;
	area = mmap(NULL, area_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(area != MAP_FAILED, "mmap: %s", strerror(errno));
	need(arguments[1]);
	pthread_barrier_init(&turn, NULL, 2);
	for (; round_number < strtol(arguments[2], NULL, 10); round_number++) {
		struct nt_options options = options_of(arguments[1]);
		options.rate = 0;
		hang_after(HANG);
		map_all(&plan);
		pager = begin(&options, &plan, &error);
		CHECK(pager, "%s: %s", error.call, strerror(error.number));
		CHECK(nt_pager_wait(pager, NT_SERVING, HANG), "it does not arm");
		CHECK(!pthread_create(&thread, NULL, end, pager), "pthread_create");
		pthread_barrier_wait(&turn);
		for (unsigned number = 0; number < MAPPINGS; number++)
			change(number, below(&random_state, 4));
		pthread_join(thread, NULL);
		CHECK(nt_pager_wait(pager, NT_DONE, HANG), "it does not end");
		count_states(pager, states);
		CHECK(!watched_mappings(area, area + area_size), "that is left behind");
		nt_pager_free(pager);
		pager = NULL;
	}
	printf("left_behind:");
	fflush(stdout);
	print_states(states);
	return 0;
}
