/* What a fault makes of the pages around it: a window of them goes back into its place, and is due to be moved. */
#include <errno.h>
#include <sched.h>

#include "internal.h"

/* A window starts small and doubles while faults come next to the last one: read-ahead's rule. */
#define FIRST_WINDOW 8

int give_back(struct nt_pager *pager, struct pages run, uint8_t reason)
{
	int result = pager->mechanism->give_back(pager, run, address_of(pager, run.segment, run.first), reason);
	if (result)
		rearm(pager, run);
	return result;
}

/* What becomes of a page that is put back: it is due, or stays for a reason. `node`: of the thread that touched it, or negative. */
static uint8_t fate_of(struct nt_pager *pager, size_t index, int node, uint8_t due)
{
	if (pager->wanted[index] == NT_TOUCHER && node >= 0)
		pager->wanted[index] = (int16_t)node;
	if (pager->wanted[index] == NT_TOUCHER)
		return due == NT_DUE_SWEEP ? NT_UNTOUCHED : NT_OUTSIDE;
	if (pager->options.observe)
		return NT_TOUCHED;
	return pager->origins[index] == pager->wanted[index] ? NT_AT_HOME : due;
}

/* Put a claimed run back, for a touch by a thread on `node`, or (negative) for another reason; what is to be moved is due. */
int return_run(struct nt_pager *pager, struct pages run, int node, uint8_t due)
{
	int result = 0;
	while (run.count && !result) {
		size_t index = run.segment->first + run.first;
		uint8_t fate = fate_of(pager, index, node, due);
		uint64_t same = 1;
		while (same < run.count && fate_of(pager, index + same, node, due) == fate)
			same++;
		result = give_back(pager, part(run, 0, same), fate);
		run = part(run, same, run.count - same);
	}
	rearm(pager, run);
	return result;
}

/* How many pages to put back for a fault at `address`: see FIRST_WINDOW. */
static uint64_t window_of(const struct nt_pager *pager, struct toucher *toucher, uint64_t address)
{
	uint64_t reach = toucher->window * pager->page_size;
	bool next = toucher->window && address + reach >= toucher->low && address < toucher->high + reach;
	uint64_t window = !toucher->window ? FIRST_WINDOW : next ? toucher->window * 2 : toucher->window / 2;
	if (window < 1)
		window = 1;
	return window < pager->options.window ? window : pager->options.window;
}

/* The armed pages around `page` in the aligned block of the window, claimed. Empty when another thread was faster. */
static struct pages claim_window(struct nt_pager *pager, const struct segment *segment, uint64_t page, uint64_t window)
{
	uint64_t unit = segment->unit;
	if (unit > 1)
		window = (window + unit - 1) / unit * unit;
	uint64_t number = (segment->start / pager->page_size) + page; /* blocks are aligned by address */
	uint64_t before = number % window < page ? number % window : page;
	uint64_t low = page - before, high = low + window < segment->pages ? low + window : segment->pages;
	if (high <= page)
		high = page + 1;
	uint64_t first = page;
	while (first > low && state_of(pager, segment, first - 1) == NT_ARMED)
		first--;
	uint64_t claimed = claim(pager, segment, first, high, NT_ARMED);
	return (struct pages){segment, first, claimed};
}

/* Put back the window of a page that is armed, and let the waiting threads go. */
static void serve_armed(struct nt_pager *pager, const struct segment *segment, uint64_t page, struct toucher *toucher)
{
	uint64_t address = address_of(pager, segment, page), window = window_of(pager, toucher, address);
	struct pages run = claim_window(pager, segment, page, window);
	if (run.count) {
		toucher->window = window;
		toucher->low = address_of(pager, segment, run.first);
		toucher->high = toucher->low + run.count * pager->page_size;
		count(&pager->counts.windows, 1);
		return_run(pager, run, toucher->node, NT_DUE_FAULT);
	}
	/* Putting back wakes, but not where it failed; and with inline service no thread waits. */
	if (pager->options.service == NT_THREAD)
		wake_range(uffd_of(pager, segment), address, pager->page_size);
}

/*
 * Resolve a fault at page address `address`, of memory that descriptor number `descriptor` watches. 0, EEXIST or EAGAIN if
 * it is (the access is redone in any case), another errno if the kernel knows nothing of it.
 */
int serve(struct nt_pager *pager, size_t descriptor, uint64_t address, struct toucher *toucher)
{
	const struct segment *segment = segment_at(pager, address);
	uint64_t page = segment ? (address - segment->start) / pager->page_size : 0;
	uint8_t state = segment && segment->descriptor == descriptor ? state_of(pager, segment, page) : NT_REASON;
	int uffd = pager->descriptors[descriptor].uffd;
	count(&pager->counts.faults, 1);
	/* Planned, too: the fault may be another pager's that is gone, and a zero page would come to be where we are about to arm. */
	if (state == NT_PLANNED || state == NT_ARMING || state == NT_RETURNING) {
		sched_yield();
		wake_range(uffd, address, pager->page_size);
		return EAGAIN;
	}
	if (state == NT_ARMED) {
		serve_armed(pager, segment, page, toucher);
		return 0;
	}
	count(&pager->counts.hole_faults, 1);
	return pager->mechanism->resolve_stray(pager, uffd, address);
}

void record_service(struct nt_pager *pager, uint64_t took)
{
	unsigned bucket = 0;
	while (bucket < NT_BUCKETS - 1 && nt_bucket_limit(bucket) < took)
		bucket++;
	count(&pager->counts.latency[bucket], 1);
	count(&pager->counts.service_ns, took);
	if (took > atomic_load_explicit(&pager->counts.longest_ns, memory_order_relaxed))
		atomic_store_explicit(&pager->counts.longest_ns, took, memory_order_relaxed);
}
