/*
 * A pager that has let go of everything holds up no thread that serves itself, however long its mover takes: neither one
 * that came before, and sleeps until the pager has worked off what it had to, nor one that comes then.
 *
 * usage: let_go. Exit 0, 1 with what was wrong, 3 for a hang. Its calls have to go through inject.c.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "injection.h"
#include "migration.h"

#define PAGES 4u
#define HANG 20

static const char *doing = "begins";

static void say_where(void)
{
	dprintf(STDOUT_FILENO, "it %s\n", doing);
}

static uint64_t *make_memory(void)
{
	uint64_t *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED, "mmap: %s", strerror(errno));
	for (unsigned page = 0; page < PAGES; page++)
		memory[page * WORDS] = page + 1;
	return memory;
}

/* Of which a touch moves one page, and nothing else any. */
static struct nt_pager *migrate(const uint64_t *memory)
{
	struct plan plan = {0};
	struct nt_error error;
	struct nt_options options = options_of("relocate-inline");
	options.rate = 0;
	options.window = 1;
	plan_range(&plan, memory, PAGES);
	plan_run(&plan, memory, PAGES);
	struct nt_pager *pager = begin(&options, &plan, &error);
	CHECK(pager, "%s: %s", error.call, strerror(error.number));
	CHECK(nt_pager_wait(pager, NT_SERVING, HANG), "it does not arm");
	return pager;
}

static void touch(volatile uint64_t *memory, unsigned page)
{
	uint64_t word = memory[page * WORDS];
	CHECK(word == page + 1, "page %u holds %lu", page, word);
}

static _Atomic pid_t toucher;

static void *touch_first(void *memory)
{
	atomic_store(&toucher, gettid());
	touch(memory, 0);
	return NULL;
}

/* Whether a thread sleeps in futex(2). */
static bool sleeps(pid_t thread)
{
	char path[64];
	long number = -1;
	snprintf(path, sizeof path, "/proc/self/task/%d/syscall", thread);
	FILE *file = fopen(path, "r");
	bool sleeping = file && fscanf(file, "%ld", &number) == 1 && number == SYS_futex; /* else it says "running" */
	if (file)
		fclose(file);
	return sleeping;
}

int main(void)
{
	pthread_t thread;
	hang_after(HANG);
	uint64_t *memory = make_memory(), *other_memory = make_memory();
	struct nt_pager *pager = migrate(memory), *other = migrate(other_memory);

	doing = "keeps the mover at work";
	hold(CALL_MOVE_PAGES, 1);
	touch(memory, 0);
	await_held(CALL_MOVE_PAGES);

	doing = "keeps the pager from letting go of its memory";
	hold(CALL_UNREGISTER, 1);
	nt_pager_cancel(pager);
	await_held(CALL_UNREGISTER);

	doing = "touches memory of the other pager before the first one has let go";
	CHECK(!pthread_create(&thread, NULL, touch_first, other_memory), "pthread_create");
	while (!sleeps(atomic_load(&toucher)))
		sched_yield();
	let_on(CALL_UNREGISTER);
	pthread_join(thread, NULL);

	doing = "touches memory of the other pager after that";
	touch(other_memory, 1);
	CHECK(nt_pager_phase(pager) != NT_DONE, "it ended with its mover at work");

	doing = "ends";
	let_on(CALL_MOVE_PAGES);
	nt_pager_cancel(other);
	CHECK(nt_pager_wait(pager, NT_DONE, HANG) && nt_pager_wait(other, NT_DONE, HANG), "it does not end");
	for (unsigned page = 0; page < PAGES; page++) {
		touch(memory, page);
		touch(other_memory, page);
	}
	nt_pager_free(pager);
	nt_pager_free(other);
	return 0;
}
