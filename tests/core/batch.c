/*
 * Faults that wait together are read together, where no event can be among them: with write_protect.
 *
 * usage: batch THREADS, at most 512. Exit 0, 1 with what was wrong, 3 for a hang. Its calls have to go through inject.c.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include "../../src/nexttouch/_core/internal.h"
#include "injection.h"
#include "migration.h"

#define STACK_SIZE (1 << 15)
#define HANG 60

static uint64_t *memory;
static struct nt_pager *pager;

/* Faults that wait to be read, and all that wait. */
static void count_waiting(unsigned *pending, unsigned *total)
{
	char path[64];
	*pending = *total = 0;
	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pager->descriptors[0].uffd);
	FILE *file = fopen(path, "r");
	char line[64];
	while (file && fgets(line, sizeof line, file))
		if (!sscanf(line, "pending: %u", pending))
			sscanf(line, "total: %u", total);
	if (file)
		fclose(file);
}

static void say_where(void)
{
	unsigned pending, total;
	count_waiting(&pending, &total);
	dprintf(STDOUT_FILENO, "%u faults wait, %u of them to be read\n", total, pending);
}

static void *touch(void *page)
{
	memory[(uintptr_t)page * WORDS] += 1;
	return NULL;
}

/* Of which each fault moves one page, and nothing else any. */
static void migrate(unsigned pages)
{
	static struct plan plan;
	struct nt_error error;
	struct nt_options options = options_of("write_protect");
	options.rate = 0;
	options.window = 1;
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED, "mmap: %s", strerror(errno));
	madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
	for (unsigned page = 0; page < pages; page++)
		memory[page * WORDS] = page;
	plan_range(&plan, memory, pages);
	plan_run(&plan, memory, pages);
	pager = begin(&options, &plan, &error);
	CHECK(pager, "%s: %s", error.call, strerror(error.number));
	CHECK(nt_pager_wait(pager, NT_SERVING, HANG), "it does not arm");
}

/* Have a thread fault on each page while the pager is about to read of the first one. */
static void gather(pthread_t *threads, unsigned crowd)
{
	pthread_attr_t small;
	unsigned pending = 0, total = 0;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, STACK_SIZE);
	hold(CALL_READ, 1);
	for (uintptr_t page = 0; page < crowd; page++)
		CHECK(!pthread_create(&threads[page], &small, touch, (void *)page), "thread %lu does not start", page);
	await_held(CALL_READ);
	while (total < crowd) {
		sched_yield();
		count_waiting(&pending, &total);
	}
	CHECK(pending == crowd, "%u of %u faults have been read already", crowd - pending, crowd);
}

int main(int count, char **arguments)
{
	static pthread_t threads[MESSAGES];
	unsigned crowd = count > 1 ? (unsigned)strtoul(arguments[1], NULL, 10) : 0;
	if (crowd == 0 || crowd > MESSAGES)
		return 2;
	hang_after(HANG);
	migrate(crowd);
	hold(CALL_MOVE_PAGES, 1); /* a mover that is done wakes the pager, which reads that, too */
	gather(threads, crowd);

	/* The read that is held is one of those before; what follows it finds that there is nothing more. */
	const enum call kinds[] = {CALL_READ, CALL_POLL, CALL_WRITEPROTECT};
	const uint64_t expected[] = {0, 1, crowd};
	uint64_t before[] = {injected_calls(CALL_READ), injected_calls(CALL_POLL), injected_calls(CALL_WRITEPROTECT)};
	let_on(CALL_READ);
	for (unsigned thread = 0; thread < crowd; thread++)
		pthread_join(threads[thread], NULL);
	for (unsigned kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
		uint64_t calls = injected_calls(kinds[kind]) - before[kind];
		CHECK(calls == expected[kind], "%lu more calls of %s for %u faults, not %lu", calls, call_kinds[kinds[kind]].name,
		      crowd, expected[kind]);
	}

	await_held(CALL_MOVE_PAGES);
	let_on(CALL_MOVE_PAGES);
	nt_pager_cancel(pager);
	CHECK(nt_pager_wait(pager, NT_DONE, HANG), "it does not end");
	nt_pager_free(pager);
	for (unsigned page = 0; page < crowd; page++)
		CHECK(memory[page * WORDS] == page + 1, "page %u holds %lu", page, memory[page * WORDS]);
	return 0;
}
