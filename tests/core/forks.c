/*
 * Threads fork while others begin and end pagers: who forks must not look at a pager that is gone, and the child has every
 * page.
 *
 * usage: forks WAY ROUNDS. Exit 0 and a line of counts; 1 with what was wrong, 3 for a hang.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "migration.h"

#define PAIRS 3 /* of a thread that migrates and one that forks */
#define PAGES 16u
#define HANG 240

static const char *way;
static long rounds;
static uint64_t *memories[PAIRS];
static _Atomic uint64_t migrations, forks;
static _Atomic unsigned migrating = PAIRS;

static void say_where(void)
{
	dprintf(STDOUT_FILENO, "%lu migrations, %lu forks\n", migrations, forks);
}

static void check(void)
{
	for (unsigned pair = 0; pair < PAIRS; pair++)
		for (unsigned page = 0; page < PAGES; page++)
			CHECK(memories[pair][page * WORDS] == page + 1, "page %u of %u is %lx", page, pair,
			      memories[pair][page * WORDS]);
}

static void *migrate(void *argument)
{
	struct plan *plan = calloc(1, sizeof *plan);
	for (long round = 0; round < rounds; round++) {
		struct nt_options options = options_of(way);
		struct nt_error error = {0};
		int16_t anywhere[PAGES];
		memset(anywhere, 0xff, sizeof anywhere);
		plan->runs_count = plan->ranges_count = 0;
		plan_range(plan, argument, PAGES);
		plan_run(plan, argument, PAGES);
		options.rate = round % 2 ? INFINITY : 0;
		struct nt_pager *pager = nt_pager_new(&options, plan->runs, 1, plan->ranges, 1, anywhere, &error);
		CHECK(pager && !nt_pager_start(pager, &error), "%s: %s", error.call, strerror(error.number));
		nt_pager_free(pager);
		atomic_fetch_add(&migrations, 1);
	}
	free(plan);
	atomic_fetch_sub(&migrating, 1);
	return NULL;
}

static void *fork_on(void *argument)
{
	while (atomic_load(&migrating)) {
		int status = -1;
		pid_t child = fork();
		if (child == 0) {
			check();
			_exit(0);
		}
		CHECK(child > 0 && waitpid(child, &status, 0) == child && !status, "a child ended with status %x", status);
		atomic_fetch_add(&forks, 1);
	}
	return argument;
}

int main(int count, char **arguments)
{
	pthread_t threads[PAIRS][2];
	if (count < 3)
		return 2;
	way = arguments[1];
	need(way);
	rounds = strtol(arguments[2], NULL, 10);
	hang_after(HANG);
	for (unsigned pair = 0; pair < PAIRS; pair++) {
		memories[pair] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(memories[pair] != MAP_FAILED, "mmap: %s", strerror(errno));
		for (unsigned page = 0; page < PAGES; page++)
			memories[pair][page * WORDS] = page + 1;
	}
	for (unsigned pair = 0; pair < PAIRS; pair++) {
		pthread_create(&threads[pair][0], NULL, migrate, memories[pair]);
		pthread_create(&threads[pair][1], NULL, fork_on, NULL);
	}
	for (unsigned pair = 0; pair < PAIRS; pair++)
		for (unsigned kind = 0; kind < 2; kind++)
			pthread_join(threads[pair][kind], NULL);
	check();
	printf("forks: %lu migrations, %lu forks\n", migrations, forks);
	return 0;
}
