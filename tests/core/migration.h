/* A migration of some runs of pages of this program, and what may come of a page. */
#ifndef NT_MIGRATION_H
#define NT_MIGRATION_H

#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "ways.h"

#define MOST_RUNS 1024
#define MOST_PAGES (1u << 16)

struct plan {
	struct nt_run runs[MOST_RUNS];
	struct nt_range ranges[MOST_RUNS];
	size_t runs_count, ranges_count;
};

static inline int by_address(const void *one, const void *other)
{
	uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
	return a < b ? -1 : a > b;
}

static inline void plan_range(struct plan *plan, const void *start, uint64_t pages)
{
	plan->ranges[plan->ranges_count++] = (struct nt_range){(uint64_t)(uintptr_t)start, pages * PAGE};
}

static inline void plan_run(struct plan *plan, const void *start, uint64_t pages)
{
	plan->runs[plan->runs_count++] = (struct nt_run){(uint64_t)(uintptr_t)start, pages, 1};
}

/* NULL, with `error`, when it does not start. */
static inline struct nt_pager *begin(const struct nt_options *options, struct plan *plan, struct nt_error *error)
{
	static int16_t anywhere[MOST_PAGES];
	memset(anywhere, 0xff, sizeof anywhere);
	qsort(plan->runs, plan->runs_count, sizeof *plan->runs, by_address);
	qsort(plan->ranges, plan->ranges_count, sizeof *plan->ranges, by_address);
	struct nt_pager *pager =
		nt_pager_new(options, plan->runs, plan->runs_count, plan->ranges, plan->ranges_count, anywhere, error);
	if (pager && nt_pager_start(pager, error)) {
		nt_pager_free(pager);
		pager = NULL;
	}
	return pager;
}

/* Moved, or here for a reason. */
static inline bool is_final(uint8_t state)
{
	return state == NT_MOVED_FAULT || state == NT_MOVED_SWEEP || state >= NT_REASON;
}

/* Add to `counts`, one a state, the pages of a migration. */
static inline void count_states(const struct nt_pager *pager, uint64_t counts[256])
{
	size_t pages;
	const uint8_t *states = nt_pager_states(pager, &pages);
	for (size_t page = 0; page < pages; page++)
		counts[__atomic_load_n(&states[page], __ATOMIC_ACQUIRE)]++;
}

static inline void print_states(const uint64_t counts[256])
{
	for (unsigned state = 0; state < 256; state++)
		if (counts[state])
			dprintf(STDOUT_FILENO, " %u:%lu", state, counts[state]);
	dprintf(STDOUT_FILENO, "\n");
}

#endif
