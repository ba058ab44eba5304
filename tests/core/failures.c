/*
 * Every call of the core to the kernel fails once, in turn, in every way that it can, and is delayed once.
 *
 * usage: failures SCENARIO WAY [MOST]
 *   SCENARIO  sweep | cancel | faults | remap | grow | unmap | discard | fork | huge
 *   WAY       a mechanism's name, or with -inline behind it: see ways.h
 *   MOST      calls of one kind that something happens to, spread evenly over all; 0: all of them
 * Each run is a process: whatever failed, each page has to come to an end, each word to be right, and nothing of the
 * migration to be left, nor to hang. Exit 0 and a line of counts; 1 with each run that was not as it has to be.
 */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "injection.h"
#include "migration.h"
#include "watched.h"

#define PAGES 24u
#define HUGE_UNITS 2u
#define HUGE_PAGES 512u
#define ROOMS 3u
#define THREADS 2u
#define HANG (2 * DONE_SECONDS)

/* What a page holds, and where. */
enum content { ORIGINAL, ZEROS, FRESH };
struct page {
	uint64_t *at; /* NULL: unmapped */
	enum content content;
	uint64_t touched[THREADS];
};

struct run {
	const char *scenario, *way;
	enum call call;
	uint64_t nth;
	int fault;
	uint64_t calls[CALLS]; /* told by the run */
};

static struct run *now; /* shared between a run and who waits for it */
static struct page *pages;
static size_t pages_count;
static uint8_t *area; /* all addresses of the scenario */
static size_t whole;
static uint64_t *memory;
static struct nt_pager *pager;

static const char *name_of(int fault)
{
	switch (fault) {
	case PAUSE_BEFORE:
		return "is late";
	case PAUSE_AFTER:
		return "returns late";
	case NOT_ATTEMPTED:
		return "attempts nothing";
	default:
		return strerrorname_np(fault);
	}
}

static void say_where(void)
{
	uint64_t counts[256] = {0};
	dprintf(STDOUT_FILENO, "  %s %s: %s number %lu", now->scenario, now->way, call_kinds[now->call].name, now->nth);
	dprintf(STDOUT_FILENO, " %s; states", now->nth ? name_of(now->fault) : "is left alone");
	if (pager)
		count_states(pager, counts);
	print_states(counts);
}

/* ---- the memory ---- */

static uint64_t value_of(const struct page *page, unsigned word)
{
	if (word && word <= THREADS && page->touched[word - 1])
		return page->touched[word - 1];
	return page->content == ZEROS ? 0 : (uint64_t)(page - pages) * WORDS + word + (page->content == FRESH ? 1ul << 40 : 1);
}

static void fill(struct page *page, enum content content)
{
	page->content = content;
	for (unsigned word = 0; word < WORDS && content != ZEROS; word++)
		page->at[word] = value_of(page, word);
}

/* Room for the pages, with as much without access before, between and behind. */
static void make_memory(bool huge)
{
	size_t unit = huge ? HUGE_PAGES * (size_t)PAGE : PAGE;
	pages_count = huge ? (size_t)HUGE_UNITS * HUGE_PAGES : PAGES;
	size_t size = pages_count * PAGE;
	whole = 2 * ROOMS * size + unit;
	area = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(area != MAP_FAILED, "mmap: %s", strerror(errno));
	memory = (uint64_t *)((uintptr_t)(area + size + unit - 1) / unit * unit);
	CHECK(mmap(memory, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory, "mmap");
	madvise(memory, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	inject_memory((uint64_t)(uintptr_t)area, whole);
	pages = calloc(pages_count, sizeof *pages);
	for (size_t page = 0; page < pages_count; page++) {
		pages[page].at = memory + page * WORDS;
		fill(&pages[page], ORIGINAL);
	}
}

static uint64_t *room(unsigned number)
{
	return memory + 2 * number * pages_count * WORDS;
}

static void check_pages(void)
{
	for (size_t page = 0; page < pages_count; page++)
		for (unsigned word = 0; pages[page].at && word < WORDS; word++)
			CHECK(pages[page].at[word] == value_of(&pages[page], word), "word %u of page %zu is %lx, not %lx", word, page,
			      pages[page].at[word], value_of(&pages[page], word));
}

/* ---- scenarios ---- */

static void *touch_all(void *argument)
{
	size_t thread = (size_t)argument;
	for (size_t step = 0; step < pages_count; step++) {
		struct page *page = &pages[thread ? pages_count - 1 - step : step];
		volatile uint64_t *word = page->at + 1 + thread;
		CHECK(*word == value_of(page, (unsigned)thread + 1), "thread %zu: page %zu holds %lx", thread, page - pages, *word);
		*word = page->touched[thread] = 1ul << 50 | step;
	}
	return NULL;
}

static void faults(void)
{
	pthread_t threads[THREADS];
	for (size_t thread = 0; thread < THREADS; thread++)
		CHECK(!pthread_create(&threads[thread], NULL, touch_all, (void *)thread), "pthread_create");
	for (size_t thread = 0; thread < THREADS; thread++)
		pthread_join(threads[thread], NULL);
}

static void move_to(size_t first, size_t count, uint64_t *to)
{
	size_t size = count * PAGE;
	CHECK(mremap(pages[first].at, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap: %s", strerror(errno));
	for (size_t page = 0; page < count; page++)
		pages[first + page].at = to + page * WORDS;
}

/* A part moves, its end moves on to where the rest of it was before; of another part nothing is moved twice. */
static void remap(void)
{
	move_to(4, 12, room(1));
	move_to(10, 6, room(2));
	move_to(4, 6, memory + 10 * WORDS);
	CHECK(pages[5].at[7] == value_of(&pages[5], 7), "what has moved is not right");
	move_to(20, 4, room(2) + 8 * WORDS);
}

/* What is watched is more than was registered; unless memory of the pager's own has come to be there. */
static void grow(void)
{
	size_t size = pages_count * PAGE, more = size / 2;
	CHECK(!munmap((uint8_t *)memory + size, more), "munmap");
	void *grown = mremap(memory, size, size + more, 0);
	CHECK(grown == memory || errno == ENOMEM, "mremap: %s", strerror(errno));
}

static void unmap(void)
{
	size_t first = 6, count = 8;
	CHECK(!munmap(pages[first].at, count * PAGE), "munmap");
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
	CHECK(mmap(pages[first].at, count * PAGE / 2, PROT_READ | PROT_WRITE, flags, -1, 0) == pages[first].at, "mmap");
	for (size_t page = first; page < first + count; page++)
		if (page < first + count / 2)
			fill(&pages[page], FRESH);
		else
			pages[page].at = NULL;
}

static void discard(void)
{
	CHECK(!madvise(pages[3].at, 9 * PAGE, MADV_DONTNEED), "madvise");
	for (size_t page = 3; page < 12; page++)
		fill(&pages[page], ZEROS);
	CHECK(pages[4].at[9] == 0, "what was discarded is there again");
	fill(&pages[5], FRESH);
}

static void fork_and_check(void)
{
	int status;
	pid_t child = fork();
	if (child == 0) {
		check_pages();
		_exit(0);
	}
	CHECK(child > 0 && waitpid(child, &status, 0) == child && !status, "the child ended with status %x", status);
}

static void nothing(void)
{
}

static const struct scenario {
	const char *name;
	void (*run)(void);
	double rate;
	bool toucher;
} scenarios[] = {
	{"sweep", nothing, INFINITY, false}, {"cancel", nothing, 0, false},    {"faults", faults, 0, true},
	{"remap", remap, 0, false},          {"grow", grow, 0, false},         {"unmap", unmap, 0, false},
	{"discard", discard, 0, false},      {"fork", fork_and_check, 0, false}, {"huge", nothing, INFINITY, false},
};

/* ---- a run ---- */

static size_t descriptors(void)
{
	size_t count = 0;
	DIR *folder = opendir("/proc/self/fd");
	while (readdir(folder))
		count++;
	closedir(folder);
	return count;
}

static void see_through(const struct scenario *scenario, bool huge)
{
	static struct plan plan;
	struct nt_error error = {0};
	struct nt_options options = options_of(now->way);
	options.window = 4;
	options.rate = scenario->rate;
	options.toucher = scenario->toucher;
	plan_range(&plan, memory, pages_count);
	plan_run(&plan, memory, pages_count);
	plan.runs[0].unit = huge ? HUGE_PAGES : 1;
	pager = begin(&options, &plan, &error);
	CHECK(pager || now->nth, "%s: %s", error.call, strerror(error.number));
	CHECK(!pager || nt_pager_wait(pager, NT_SERVING, DONE_SECONDS), "it does not arm");
	scenario->run();
	if (pager && scenario->rate == 0)
		nt_pager_cancel(pager);
	CHECK(!pager || nt_pager_wait(pager, NT_DONE, DONE_SECONDS), "it does not end");
	uint64_t counts[256] = {0};
	if (pager)
		count_states(pager, counts);
	for (unsigned state = 0; state < 256; state++)
		CHECK(!counts[state] || is_final((uint8_t)state), "%lu pages are left in state %u", counts[state], state);
	if (pager)
		nt_pager_free(pager);
	pager = NULL;
}

static void run(const struct scenario *scenario)
{
	bool huge = strcmp(scenario->name, "huge") == 0;
	hang_after(HANG);
	make_memory(huge);
	size_t before = descriptors();
	inject(now->call, now->nth, now->fault);
	see_through(scenario, huge);
	for (unsigned call = 0; call < CALLS; call++)
		now->calls[call] = injected_calls((enum call)call);
	check_pages();
	CHECK(descriptors() == before, "%zu descriptors are open, %zu were", descriptors(), before);
	CHECK(!watched_mappings(area, area + whole), "a mapping is watched, or kept from children");
}

/* Do it in a process of its own; whether all was right. */
static bool run_apart(const struct scenario *scenario)
{
	int status;
	pid_t child = fork();
	if (child == 0) {
		run(scenario);
		_exit(0);
	}
	waitpid(child, &status, 0);
	if (WIFSIGNALED(status)) {
		dprintf(STDOUT_FILENO, "signal %d\n", WTERMSIG(status));
		say_where();
	}
	return status == 0;
}

/* What happens to one kind of call, in as many runs as it takes; how many were right. */
static uint64_t run_kind(const struct scenario *scenario, uint64_t calls, uint64_t most, uint64_t *runs)
{
	const int *faults = call_kinds[now->call].faults, pauses[] = {PAUSE_BEFORE, PAUSE_AFTER};
	uint64_t chosen = most && most < calls ? most : calls, right = 0;
	for (uint64_t choice = 0; choice < chosen; choice++) {
		now->nth = 1 + (chosen > 1 ? choice * (calls - 1) / (chosen - 1) : 0);
		for (unsigned number = 0; number < MOST_FAULTS + 2; number++) {
			now->fault = number < MOST_FAULTS ? faults[number] : pauses[number - MOST_FAULTS];
			if (!now->fault)
				continue;
			right += run_apart(scenario);
			++*runs;
		}
	}
	return right;
}

int main(int count, char **arguments)
{
	const struct scenario *scenario = scenarios, *end = scenarios + sizeof scenarios / sizeof *scenarios;
	while (count > 2 && scenario < end && strcmp(scenario->name, arguments[1]))
		scenario++;
	if (count < 3 || scenario == end)
		return 2;
	uint64_t most = count > 3 ? strtoull(arguments[3], NULL, 10) : 0, runs = 0, right = 0, calls[CALLS];
	need(arguments[2]);
	now = mmap(NULL, sizeof *now, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	*now = (struct run){.scenario = arguments[1], .way = arguments[2]};
	if (!run_apart(scenario))
		return 1;
	memcpy(calls, now->calls, sizeof calls);
	for (unsigned call = 0; call < CALLS; call++) {
		now->call = (enum call)call;
		right += run_kind(scenario, calls[call], most, &runs);
	}
	printf("failures %s %s: %lu of %lu runs are right;", arguments[1], arguments[2], right, runs);
	for (unsigned call = 0; call < CALLS; call++)
		if (calls[call])
			printf(" %s:%lu", call_kinds[call].name, calls[call]);
	printf("\n");
	return right != runs;
}
