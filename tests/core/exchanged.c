/*
 * Two pagers in one process, whose mappings move to each other's places while both are at work.
 *
 * usage: exchanged WAY ROUNDS. Exit 0 and a line of counts; 1 with the first word that was wrong, 3 for a hang.
 */
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>

#include "migration.h"

#define PAIRS 16u
#define PAGES 8u
#define SIZE (PAGES * (size_t)PAGE)
#define HANG 120

static uint64_t *places[PAIRS][3]; /* of the first pager's mapping, the second's, and a third one that is free */
static const char *way;
static struct nt_pager *pagers[2];
static long round_number;

static void say_where(void)
{
	uint64_t counts[256] = {0};
	for (unsigned number = 0; number < 2; number++)
		if (pagers[number])
			count_states(pagers[number], counts);
	dprintf(STDOUT_FILENO, "%s, round %ld, states", way, round_number);
	print_states(counts);
}

static uint64_t value_of(unsigned pair, unsigned pager, size_t word)
{
	return (pair * 2 + pager + 1) * 1000000ul + word;
}

static void move(uint64_t *from, uint64_t *to)
{
	CHECK(mremap(from, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap: %s", strerror(errno));
}

static void check(const uint64_t *at, unsigned pair, unsigned pager, size_t step)
{
	for (size_t word = 0; word < PAGES * WORDS; word += step)
		CHECK(at[word] == value_of(pair, pager, word), "pair %u: word %zu of the %s is %lu", pair, word,
		      pager ? "second" : "first", at[word]);
}

/* The second half of the pairs by another thread; every other one is not touched before both have ended. */
static void *exchange(void *argument)
{
	unsigned first = (unsigned)(uintptr_t)argument;
	for (unsigned pair = first; pair < first + PAIRS / 2; pair++) {
		uint64_t **place = places[pair];
		move(place[0], place[2]);
		move(place[1], place[0]);
		move(place[2], place[1]);
		if (pair % 2) {
			check(place[1], pair, 0, WORDS);
			check(place[0], pair, 1, WORDS);
		}
	}
	return NULL;
}

static void map_all(struct plan plans[2])
{
	memset(plans, 0, 2 * sizeof *plans);
	for (unsigned pair = 0; pair < PAIRS; pair++) {
		int flags = MAP_PRIVATE | MAP_ANONYMOUS;
		uint8_t *area = mmap(NULL, 6 * SIZE, PROT_NONE, flags | MAP_NORESERVE, -1, 0);
		CHECK(area != MAP_FAILED, "mmap: %s", strerror(errno));
		for (unsigned number = 0; number < 3; number++)
			places[pair][number] = (uint64_t *)(area + 2 * number * SIZE);
		for (unsigned pager = 0; pager < 2; pager++) {
			uint64_t *place = places[pair][pager];
			CHECK(!mprotect(place, SIZE, PROT_READ | PROT_WRITE), "mprotect");
			madvise(place, SIZE, MADV_NOHUGEPAGE);
			for (size_t word = 0; word < PAGES * WORDS; word++)
				place[word] = value_of(pair, pager, word);
			plan_range(&plans[pager], place, PAGES);
			plan_run(&plans[pager], place, PAGES);
		}
	}
}

int main(int count, char **arguments)
{
	static struct plan plans[2];
	static uint64_t states[256];
	struct nt_error error;
	pthread_t thread;
	if (count < 3)
		return 2;
	way = arguments[1];
	need(way);
	for (; round_number < strtol(arguments[2], NULL, 10); round_number++) {
		hang_after(HANG);
		map_all(plans);
		for (unsigned number = 0; number < 2; number++) {
			struct nt_options options = options_of(way);
			options.rate = round_number % 2 ? 1e7 : 0;
			pagers[number] = begin(&options, &plans[number], &error);
			CHECK(pagers[number], "%s: %s", error.call, strerror(error.number));
			CHECK(nt_pager_wait(pagers[number], NT_SERVING, HANG), "it does not arm");
		}
		pthread_create(&thread, NULL, exchange, (void *)(uintptr_t)(PAIRS / 2));
		exchange(NULL);
		pthread_join(thread, NULL);
		for (unsigned number = 0; number < 2; number++) {
			nt_pager_cancel(pagers[number]);
			CHECK(nt_pager_wait(pagers[number], NT_DONE, HANG), "it does not end");
			count_states(pagers[number], states);
			nt_pager_free(pagers[number]);
			pagers[number] = NULL;
		}
		for (unsigned pair = 0; pair < PAIRS; pair++) {
			check(places[pair][1], pair, 0, 1);
			check(places[pair][0], pair, 1, 1);
			munmap(places[pair][0], 6 * SIZE);
		}
	}
	printf("exchanged:");
	fflush(stdout);
	print_states(states);
	return 0;
}
