/*
 * A program that changes its own memory under whoever migrates it, at random, and knows what has to be in it.
 *
 * usage: unruly STATUS SEED THREADS
 *
 * Each thread has REGIONS mappings to itself. Commands are read from standard input: "x" runs this program anew in this
 * process (execve), "q" exits at once, "m" moves a mapping of its own that is populated in its middle, the end of the
 * input verifies everything and exits.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "status.h"

#define REGIONS 12
#define MOST 48 /* pages a region */
#define MOST_THREADS 8

struct region {
	uint64_t *base;
	uint64_t pages;
	_Bool shared;
	void *places[2]; /* two reservations of MOST pages between which mremap(2) moves it; or none, then it never moves */
	uint64_t sequences[MOST]; /* how often each page was written; 0: it is zeros */
};

static struct region regions[MOST_THREADS][REGIONS];
static pthread_mutex_t placing = PTHREAD_MUTEX_INITIALIZER; /* nobody else maps into a hole that is to be reserved again */
static pthread_barrier_t placed; /* stacks and reservations are there: none is put into a hole that somebody has just made */
static uint64_t seed;
static unsigned threads;
static char **arguments;

static uint64_t *page_of(const struct region *region, uint64_t page)
{
	return region->base + page * WORDS;
}

static void check(int result, const char *call)
{
	if (result) {
		fprintf(stderr, "%s: %s\n", call, strerror(errno));
		fail(0, 0, 0, (uint64_t)errno);
	}
}

static void *mapped(void *at, uint64_t pages, int flags)
{
	void *base = mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
	check(base == MAP_FAILED, "mmap");
	return base;
}

static void *reserve(void *at)
{
	void *place = mmap(at, MOST * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0), -1, 0);
	check(place == MAP_FAILED, "mmap");
	return place;
}

/* Fill the empty region with a new mapping. */
static void make(struct region *region, uint64_t *state)
{
	region->shared = random_word(state) % 4 == 0;
	region->pages = 1 + random_word(state) % MOST;
	int flags = (region->shared ? MAP_SHARED : MAP_PRIVATE) | (region->places[0] ? MAP_FIXED : 0);
	pthread_mutex_lock(&placing);
	region->base = mapped(region->places[0], region->pages, flags);
	pthread_mutex_unlock(&placing);
	memset(region->sequences, 0, sizeof region->sequences);
}

static void give_up(struct region *region)
{
	if (!region->places[0])
		check(munmap(region->base, region->pages * PAGE), "munmap");
	pthread_mutex_lock(&placing);
	for (int place = 0; place < 2 && region->places[0]; place++)
		reserve(region->places[place]);
	pthread_mutex_unlock(&placing);
}

static void write_page(struct region *region, uint64_t page)
{
	fill(page_of(region, page), page, ++region->sequences[page], 0, WORDS);
}

static void verify_page(const struct region *region, uint64_t page)
{
	verify(page_of(region, page), page, region->sequences[page], 0, WORDS);
}

static void verify_region(const struct region *region)
{
	for (uint64_t page = 0; page < region->pages; page++)
		verify_page(region, page);
}

/*
 * To another address, and sometimes to another size. If the kernel will not have it, a part can have moved (6.17 and
 * later), so that nobody knows what is where.
 */
static void move_region(struct region *region, uint64_t *state)
{
	uint64_t pages = region->shared ? region->pages : 1 + random_word(state) % MOST;
	void *from = region->base, *to = region->places[region->base == region->places[0]];
	pthread_mutex_lock(&placing);
	void *base = mremap(from, region->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	int error = errno;
	if (base != MAP_FAILED)
		reserve(from);
	pthread_mutex_unlock(&placing);
	if (base == MAP_FAILED) {
		check(error != EFAULT, "mremap");
		status->refused++;
		give_up(region);
		make(region, state);
		return;
	}
	region->base = base;
	region->pages = pages;
	for (uint64_t page = pages; page < MOST; page++)
		region->sequences[page] = 0;
}

/* The pages are zeros afterwards. */
static void discard(struct region *region, uint64_t *state)
{
	uint64_t first = random_word(state) % region->pages, count = 1 + random_word(state) % (region->pages - first);
	if (random_word(state) % 3 == 0) { /* all of it: a region stays one mapping */
		first = 0;
		count = region->pages;
		mapped(region->base, count, MAP_FIXED | (region->shared ? MAP_SHARED : MAP_PRIVATE));
	} else {
		check(madvise(page_of(region, first), count * PAGE, region->shared ? MADV_REMOVE : MADV_DONTNEED), "madvise");
	}
	memset(region->sequences + first, 0, count * sizeof *region->sequences);
}

static void protect(struct region *region)
{
	check(mprotect(region->base, region->pages * PAGE, PROT_READ), "mprotect");
	verify_region(region);
	check(mprotect(region->base, region->pages * PAGE, PROT_READ | PROT_WRITE), "mprotect");
}

/* The child finds what was there at the fork, and what it stores is its own. */
static void look_and_leave(struct region *mine)
{
	uint64_t before = status->failures;
	for (unsigned number = 0; number < REGIONS; number++) {
		verify_region(&mine[number]);
		for (uint64_t page = 0; page < mine[number].pages && !mine[number].shared; page++)
			write_page(&mine[number], page);
	}
	for (unsigned number = 0; number < REGIONS; number++)
		verify_region(&mine[number]);
	_exit(status->failures != before);
}

static void fork_child(struct region *mine)
{
	int state = -1;
	pid_t child = fork();
	check(child < 0, "fork");
	if (child == 0)
		look_and_leave(mine);
	waitpid(child, &state, 0);
	if (state)
		fail(0, 1, 0, (uint64_t)state);
	status->children++;
}

/* A child by vfork(2), which borrows the memory until it runs another program. */
static void spawn_child(void)
{
	char *words[] = {"true", NULL};
	pid_t child;
	int state = -1;
	pthread_mutex_lock(&placing);
	check(posix_spawnp(&child, "true", NULL, NULL, words, NULL), "posix_spawn");
	pthread_mutex_unlock(&placing);
	waitpid(child, &state, 0);
	if (state)
		fail(0, 2, 0, (uint64_t)state);
	status->children++;
}

static void act(struct region *mine, unsigned thread, uint64_t *state)
{
	struct region *region = &mine[random_word(state) % REGIONS];
	uint64_t page = random_word(state) % region->pages, chance = random_word(state) % 256;
	if (chance < 150) {
		write_page(region, page);
	} else if (chance < 215) {
		verify_page(region, page);
	} else if (chance < 223) {
		verify_region(region);
		give_up(region);
		make(region, state);
	} else if (chance < 233 && region->places[0]) {
		move_region(region, state);
	} else if (chance < 243) {
		discard(region, state);
	} else if (chance < 253) {
		protect(region);
	} else if (thread == 0 && chance == 255) {
		fork_child(mine);
	} else if (thread == 0 && random_word(state) % 4 == 0) {
		spawn_child();
	}
}

static void *work(void *argument)
{
	uint64_t thread = (uint64_t)(uintptr_t)argument, state = (seed + 1) * 2654435761u + thread * 7919 + status->generation;
	struct region *mine = regions[thread];
	for (unsigned number = 0; number < REGIONS; number++) {
		for (unsigned place = 0; place < 2 && number % 2; place++)
			mine[number].places[place] = reserve(NULL);
		make(&mine[number], &state);
	}
	status->ready++;
	pthread_barrier_wait(&placed);
	while (!status->stop) {
		act(mine, (unsigned)thread, &state);
		atomic_fetch_add(&status->counters[thread], 1);
	}
	for (unsigned number = 0; number < REGIONS; number++)
		verify_region(&mine[number]);
	return NULL;
}

/* A mapping of 16 pages of which four are there. */
static void make_sparse(struct region *region)
{
	*region = (struct region){.base = mapped(NULL, 16, MAP_PRIVATE), .pages = 16};
	for (uint64_t page = 6; page < 10; page++)
		write_page(region, page);
}

static void move_sparse(struct region *region)
{
	uint64_t *base = mremap(region->base, 16 * PAGE, 512 * PAGE, MREMAP_MAYMOVE);
	check(base == MAP_FAILED, "mremap");
	region->base = base;
	verify_region(region);
	munmap(base, 512 * PAGE);
	make_sparse(region);
	status->children++;
}

static void obey(struct region *sparse)
{
	char command;
	while (read(0, &command, 1) == 1) {
		if (command == 'm')
			move_sparse(sparse);
		if (command == 'q')
			exit(0);
		if (command == 'x') {
			execv("/proc/self/exe", arguments);
			abort();
		}
	}
	status->stop = 1;
}

int main(int count, char **words)
{
	pthread_t others[MOST_THREADS];
	struct region sparse;
	if (count != 4)
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	arguments = words;
	map_status(words[1]);
	seed = strtoull(words[2], NULL, 10);
	threads = (unsigned)atoi(words[3]);
	status->ready = 0;
	status->generation++;
	make_sparse(&sparse);
	pthread_barrier_init(&placed, NULL, threads + 1);
	for (uint64_t thread = 0; thread < threads; thread++)
		pthread_create(&others[thread], NULL, work, (void *)(uintptr_t)thread);
	pthread_barrier_wait(&placed);
	obey(&sparse);
	for (unsigned thread = 0; thread < threads; thread++)
		pthread_join(others[thread], NULL);
	return status->failures != 0;
}
