/*
 * The pager under fire, without Python: threads that read, write, discard, move, unmap and fork memory while it migrates.
 *
 * usage: stress SCENARIO WAY ROUNDS [SEED]
 *   SCENARIO  words | huge | discard | remap | unmap | fork | cancel
 *   WAY       a mechanism's name, or with -inline behind it: see ways.h
 * Exit 0 and one line of counts when every word was as the model says, 1 with what was wrong.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ways.h"

#define PAGE 4096u
#define WORDS (PAGE / sizeof(uint64_t))
#define THREADS 4
#define PAGES_EACH 256
#define PAGES (THREADS * PAGES_EACH)
#define HUGE_PAGES 512

/* A thread owns PAGES_EACH pages from `base` (they move with remap) and word 1 + its number of everybody's pages. */
struct worker {
	unsigned number;
	uint64_t random;
	uint64_t *base;
	uint64_t expected[PAGES_EACH]; /* of word 0 of its own pages */
	uint64_t written[PAGES];       /* of its word in all pages */
	const char *scenario;
};

static uint64_t *memory;
static struct worker workers[THREADS];
static _Atomic bool stop;
static _Atomic uint64_t operations;
/* A plan is made and registered while no mapping changes. */
static pthread_rwlock_t planning = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
static struct nt_pager *current; /* what a failure shows the states of */

static void show_states(void)
{
	uint64_t counts[256] = {0};
	size_t pages = 0;
	const uint8_t *states = current ? nt_pager_states(current, &pages) : NULL;
	for (size_t page = 0; page < pages; page++)
		counts[states[page]]++;
	for (unsigned state = 0; state < 256; state++)
		if (counts[state])
			printf(" %u:%lu", state, counts[state]);
	printf("\n");
	fflush(stdout);
}

#define CHECK(condition, ...)                                                                                                  \
	do {                                                                                                                   \
		if (!(condition)) {                                                                                            \
			printf(__VA_ARGS__);                                                                                   \
			printf(" (line %d)", __LINE__);                                                                        \
			show_states();                                                                                         \
			_exit(1);                                                                                              \
		}                                                                                                              \
	} while (0)

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* Readers and writers of everybody's pages: two threads fault on one page, each checks and changes its own word. */
static void touch_word(struct worker *worker)
{
	uint64_t page = next_random(&worker->random) % PAGES;
	volatile uint64_t *word = &memory[page * WORDS + 1 + worker->number];
	CHECK(*word == worker->written[page], "thread %u page %lu: word is %lu, wrote %lu", worker->number, page, *word,
	      worker->written[page]);
	if (next_random(&worker->random) % 2)
		*word = ++worker->written[page];
}

static void touch_own(struct worker *worker)
{
	uint64_t page = next_random(&worker->random) % PAGES_EACH;
	volatile uint64_t *word = &worker->base[page * WORDS];
	CHECK(*word == worker->expected[page], "thread %u own page %lu: word is %lu, expected %lu", worker->number, page, *word,
	      worker->expected[page]);
	*word = ++worker->expected[page];
}

static void discard(struct worker *worker)
{
	uint64_t first = next_random(&worker->random) % PAGES_EACH;
	uint64_t count = 1 + next_random(&worker->random) % (PAGES_EACH - first > 16 ? 16 : PAGES_EACH - first);
	madvise(&worker->base[first * WORDS], count * PAGE, MADV_DONTNEED);
	for (uint64_t page = first; page < first + count; page++)
		worker->expected[page] = 0;
	uint64_t page = first + next_random(&worker->random) % count;
	CHECK(worker->base[page * WORDS] == 0, "thread %u: discarded page %lu is not zero", worker->number, page);
}

static void remap(struct worker *worker)
{
	uint64_t size = PAGES_EACH * PAGE;
	void *room = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	void *moved = mremap(worker->base, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, room);
	CHECK(moved == room, "mremap: %s", strerror(errno));
	worker->base = moved;
}

/* Unmap the own pages and map new ones at the same place: nothing of before may show, nothing new may be hit. */
static void unmap(struct worker *worker)
{
	uint64_t size = PAGES_EACH * PAGE;
	munmap(worker->base, size);
	void *fresh = mmap(worker->base, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (fresh == MAP_FAILED) /* another thread's mapping took the place */
		fresh = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	worker->base = fresh;
	memset(worker->expected, 0, sizeof worker->expected);
}

static void check_own(const struct worker *worker)
{
	for (uint64_t page = 0; page < PAGES_EACH; page++)
		CHECK(worker->base[page * WORDS] == worker->expected[page], "thread %u: own page %lu is %lu, expected %lu",
		      worker->number, page, worker->base[page * WORDS], worker->expected[page]);
}

static void fork_and_check(struct worker *worker)
{
	pid_t child = fork();
	if (child == 0) {
		check_own(worker);
		_exit(0);
	}
	int status;
	waitpid(child, &status, 0);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "thread %u: the child's memory differs (status %x)", worker->number, status);
	check_own(worker);
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	while (!atomic_load(&stop)) {
		pthread_rwlock_rdlock(&planning);
		uint64_t choice = next_random(&worker->random) % 2000;
		if (strcmp(worker->scenario, "words") == 0 || strcmp(worker->scenario, "huge") == 0 ||
		    strcmp(worker->scenario, "cancel") == 0)
			touch_word(worker);
		else if (choice > 0)
			touch_own(worker);
		else if (strcmp(worker->scenario, "discard") == 0)
			discard(worker);
		else if (strcmp(worker->scenario, "remap") == 0)
			remap(worker);
		else if (strcmp(worker->scenario, "unmap") == 0)
			unmap(worker);
		else if (strcmp(worker->scenario, "fork") == 0 && worker->number == 0)
			fork_and_check(worker);
		pthread_rwlock_unlock(&planning);
		atomic_fetch_add_explicit(&operations, 1, memory_order_relaxed);
	}
	return NULL;
}

static struct nt_pager *migrate(bool huge, const char *way, double rate, struct nt_range *ranges)
{
	static int16_t origins[PAGES];
	struct nt_error error;
	struct nt_run runs[THREADS];
	memset(origins, 0xff, sizeof origins);
	for (unsigned number = 0; number < THREADS; number++) {
		ranges[number] = (struct nt_range){(uint64_t)(uintptr_t)workers[number].base, PAGES_EACH * PAGE};
		runs[number] = (struct nt_run){ranges[number].start, PAGES_EACH, 1};
	}
	for (unsigned low = 0; low < THREADS; low++) /* runs are sorted by address */
		for (unsigned high = low + 1; high < THREADS; high++)
			if (runs[high].start < runs[low].start) {
				struct nt_run swap = runs[low];
				runs[low] = runs[high];
				runs[high] = swap;
			}
	size_t parts = huge ? 1 : THREADS;
	if (huge) {
		ranges[0] = (struct nt_range){(uint64_t)(uintptr_t)memory, PAGES * PAGE};
		runs[0] = (struct nt_run){ranges[0].start, PAGES, HUGE_PAGES};
	}
	struct nt_options options = options_of(way);
	options.rate = rate;
	struct nt_pager *pager = nt_pager_new(&options, runs, parts, ranges, parts, origins, &error);
	CHECK(pager, "%s: %s", error.call, strerror(error.number));
	CHECK(nt_pager_start(pager, &error) == 0, "%s: %s", error.call, strerror(error.number));
	return pager;
}

int main(int count, char **arguments)
{
	if (count < 4)
		return 2;
	const char *scenario = arguments[1], *way = arguments[2];
	uint64_t seed = count > 4 ? strtoull(arguments[4], NULL, 10) : 1, reasons[256] = {0};
	pthread_t threads[THREADS];
	need(way);
	memory = mmap(NULL, (PAGES + HUGE_PAGES) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memory += (HUGE_PAGES * PAGE - (uintptr_t)memory % (HUGE_PAGES * PAGE)) % (HUGE_PAGES * PAGE) / sizeof *memory;
	madvise(memory, PAGES * PAGE, strcmp(scenario, "huge") == 0 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (uint64_t page = 0; page < PAGES; page++)
		memory[page * WORDS] = 0, memory[page * WORDS + WORDS - 1] = page;
	for (unsigned number = 0; number < THREADS; number++) {
		workers[number] = (struct worker){.number = number,
						  .random = seed * 0x9e3779b97f4a7c15u + number + 1,
						  .base = memory + number * PAGES_EACH * WORDS,
						  .scenario = scenario};
		pthread_create(&threads[number], NULL, work, &workers[number]);
	}
	uint64_t random = seed + 99;
	for (long round = 0; round < strtol(arguments[3], NULL, 10); round++) {
		struct nt_range ranges[THREADS];
		pthread_rwlock_wrlock(&planning);
		struct nt_pager *pager = migrate(strcmp(scenario, "huge") == 0, way, 1e8 * (double)(1 + next_random(&random) % 20), ranges);
		pthread_rwlock_unlock(&planning);
		current = pager;
		bool ended = strcmp(scenario, "cancel") != 0 && nt_pager_wait(pager, NT_DONE, DONE_SECONDS);
		if (strcmp(scenario, "cancel") == 0) {
			nt_pager_wait(pager, NT_DONE, (double)(next_random(&random) % 1000) * 1e-6);
			nt_pager_cancel(pager);
			ended = nt_pager_wait(pager, NT_DONE, DONE_SECONDS);
		}
		CHECK(ended, "round %ld: not done after %d s", round, DONE_SECONDS);
		size_t pages;
		const uint8_t *states = nt_pager_states(pager, &pages);
		for (size_t page = 0; page < pages; page++)
			reasons[states[page]]++;
		current = NULL;
		nt_pager_free(pager);
	}
	atomic_store(&stop, true);
	for (unsigned number = 0; number < THREADS; number++)
		pthread_join(threads[number], NULL);
	for (unsigned number = 0; number < THREADS; number++)
		check_own(&workers[number]);
	printf("%s %s: %lu operations;", scenario, way, atomic_load(&operations));
	for (unsigned state = 0; state < 256; state++)
		if (reasons[state])
			printf(" %u:%lu", state, reasons[state]);
	printf("\n");
	return 0;
}
