/*
 * A mapping that moves twice in a row frees an address which another thread's mapping takes, before the pager comes to stop
 * watching there: it must not stop watching the other one, whose pages would be zeros.
 *
 * usage: moved_twice WAY ROUNDS. Exit 0, 1 with the first page that was wrong, 3 for a hang.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "migration.h"

#define THREADS 3
#define EACH 120
#define PAGES 4u
#define SIZE (PAGES * (size_t)PAGE)
#define HANG 120

static uint64_t *mappings[THREADS][EACH];
static uint8_t *guards[THREADS * EACH]; /* pages without access that keep the mappings apart */
static pthread_barrier_t turn;
static _Atomic bool over;
static _Atomic uint64_t moves, refused;
static long round_number;

static void say_where(void)
{
	dprintf(STDOUT_FILENO, "round %ld, %lu moves\n", round_number, moves);
}

static uint64_t value_of(unsigned thread, unsigned mapping, unsigned page)
{
	return (thread * EACH + mapping) * 100ul + page + 1;
}

/* To where the kernel likes: that is where a mapping has just gone from, if it fits. */
static void move(uint64_t **mapping)
{
	void *room = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	void *moved = mremap(*mapping, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, room);
	atomic_fetch_add(&moves, 1);
	if (moved == MAP_FAILED) {
		CHECK(!munmap(room, SIZE), "munmap: %s", strerror(errno));
		atomic_fetch_add(&refused, 1);
	} else {
		*mapping = moved;
	}
}

static void *work(void *argument)
{
	unsigned thread = (unsigned)(uintptr_t)argument;
	for (pthread_barrier_wait(&turn); !atomic_load(&over); pthread_barrier_wait(&turn)) {
		for (unsigned mapping = 0; mapping < EACH; mapping++) {
			uint64_t **at = &mappings[thread][mapping];
			move(at);
			if (thread % 2 == 0)
				move(at);
			for (unsigned page = 0; page < PAGES; page++)
				CHECK((*at)[page * WORDS] == value_of(thread, mapping, page), "page %u of mapping %u of thread %u is %lu",
				      page, mapping, thread, (*at)[page * WORDS]);
		}
		pthread_barrier_wait(&turn);
	}
	return NULL;
}

static void map_all(struct plan *plan)
{
	memset(plan, 0, sizeof *plan);
	for (unsigned number = 0; number < THREADS * EACH; number++) {
		unsigned thread = number % THREADS, mapping = number / THREADS;
		uint8_t *area = mmap(NULL, SIZE + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(area != MAP_FAILED && !mprotect(area, SIZE, PROT_READ | PROT_WRITE), "mmap: %s", strerror(errno));
		guards[number] = area + SIZE;
		mappings[thread][mapping] = (uint64_t *)area;
		for (unsigned page = 0; page < PAGES; page++)
			mappings[thread][mapping][page * WORDS] = value_of(thread, mapping, page);
		plan_range(plan, area, PAGES);
		plan_run(plan, area, PAGES);
	}
}

int main(int count, char **arguments)
{
	static struct plan plan;
	static uint64_t states[256];
	struct nt_error error;
	pthread_t threads[THREADS];
	if (count < 3)
		return 2;
	need(arguments[1]);
	pthread_barrier_init(&turn, NULL, THREADS + 1);
	for (uintptr_t thread = 0; thread < THREADS; thread++)
		pthread_create(&threads[thread], NULL, work, (void *)thread);
	for (; round_number < strtol(arguments[2], NULL, 10); round_number++) {
		struct nt_options options = options_of(arguments[1]);
		options.rate = 0;
		hang_after(HANG);
		map_all(&plan);
		struct nt_pager *pager = begin(&options, &plan, &error);
		CHECK(pager, "%s: %s", error.call, strerror(error.number));
		CHECK(nt_pager_wait(pager, NT_SERVING, HANG), "it does not arm");
		pthread_barrier_wait(&turn);
		pthread_barrier_wait(&turn);
		nt_pager_cancel(pager);
		CHECK(nt_pager_wait(pager, NT_DONE, HANG), "it does not end");
		count_states(pager, states);
		nt_pager_free(pager);
		for (unsigned number = 0; number < THREADS * EACH; number++) {
			munmap(mappings[number % THREADS][number / THREADS], SIZE);
			munmap(guards[number], PAGE);
		}
	}
	atomic_store(&over, true);
	pthread_barrier_wait(&turn);
	for (unsigned thread = 0; thread < THREADS; thread++)
		pthread_join(threads[thread], NULL);
	printf("moved_twice: %lu moves, %lu refused;", moves, refused);
	fflush(stdout);
	print_states(states);
	return 0;
}
