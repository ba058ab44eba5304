/*
 * NT_PROTECT: pages stay where they are, write-protected; a store is the signal to move them with move_pages(2).
 *
 * The protection is a bit of the page table entry that survives the migration, so the order is: move, then unprotect.
 * A page is never without its contents, whatever fails: the worst outcome is a page that stays.
 */
#include <errno.h>
#include <limits.h>

#include "internal.h"

/* move_pages leaves the status of what it did not attempt as it found it. */
#define UNWRITTEN INT_MIN
#define ATTEMPTS 3

static int protect_range(struct nt_pager *pager, uint64_t address, uint64_t size, bool on)
{
	struct uffdio_writeprotect request = {.range = {.start = address, .len = size},
					      .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
	return ioctl(pager->uffd, UFFDIO_WRITEPROTECT, &request) ? errno : 0;
}

/* Stop trapping a run and wake who waits; a run that is half unmapped is done page by page. EAGAIN only if nothing was done. */
static void unprotect(struct nt_pager *pager, struct pages run)
{
	uint64_t address = address_of(pager, run.segment, run.first), size = run.count * pager->page_size;
	uint64_t step = run.segment->unit * pager->page_size;
	if (!protect_range(pager, address, size, false))
		return;
	for (uint64_t done = 0; done < size; done += step)
		if (protect_range(pager, address + done, step, false))
			wake_range(pager, address + done, step);
}

static int arm(struct nt_pager *pager, struct pages run)
{
	uint64_t unit = run.segment->unit;
	if (!protect_range(pager, address_of(pager, run.segment, run.first), run.count * pager->page_size, true)) {
		set_states(pager, run, NT_ARMED);
		return 0;
	}
	for (uint64_t page = 0; page < run.count; page += unit) {
		struct pages one = part(run, page, unit);
		int number = protect_range(pager, address_of(pager, one.segment, one.first), unit * pager->page_size, true);
		if (!number)
			set_states(pager, one, NT_ARMED);
		else
			finish(pager, one, number == ENOENT ? NT_UNMAPPED : NT_UNSUITABLE);
	}
	return 0;
}

static int give_back_at(struct nt_pager *pager, struct pages run, uint64_t to, uint8_t reason)
{
	(void)to; /* nothing is ever out of place */
	unprotect(pager, run);
	finish(pager, run, reason);
	return 0;
}

static uint8_t outcome_of(int status, int wanted, uint8_t moved)
{
	if (status >= 0)
		return status == wanted ? moved : NT_TARGET_FULL;
	switch (-status) {
	case EACCES:
		return NT_SHARED;
	case ENOENT:
	case EFAULT:
		return NT_ABSENT;
	case ENOMEM:
		return NT_TARGET_FULL;
	case EBUSY:
	case EAGAIN:
		return NT_BUSY;
	default:
		return NT_UNSUITABLE;
	}
}

/*
 * Move `count` pages whose addresses and wanted nodes are filled in, and leave in `statuses` where each is or why it is not:
 * a call that stops early (one failure stops it) is repeated for what is not there yet, ATTEMPTS times.
 */
static void move_batch(struct nt_pager *pager, uint64_t count)
{
	for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
		for (uint64_t page = 0; page < count; page++)
			pager->statuses[page] = UNWRITTEN;
		long result = nt_move_pages(pager->options.pid, count, pager->addresses, pager->wanted, pager->statuses);
		if (result == 0 || (result < 0 && errno != ENOMEM))
			return;
	}
}

static void query_batch(struct nt_pager *pager, uint64_t count)
{
	bool complete = true;
	for (uint64_t page = 0; page < count; page++)
		complete &= pager->statuses[page] != UNWRITTEN;
	if (!complete && nt_move_pages(pager->options.pid, count, pager->addresses, NULL, pager->statuses))
		for (uint64_t page = 0; page < count; page++)
			pager->statuses[page] = -ENOENT; /* the process is gone */
}

static int move(struct nt_pager *pager, struct pages run, int node, uint8_t moved)
{
	uint64_t unit = run.segment->unit, count = run.count / unit;
	for (uint64_t page = 0; page < count; page++) {
		uint64_t address = address_of(pager, run.segment, run.first + page * unit);
		uint64_t turn = address / (unit * pager->page_size) % (pager->options.nodes_count ? pager->options.nodes_count : 1);
		pager->addresses[page] = (void *)(uintptr_t)address;
		pager->wanted[page] = node >= 0 ? node : pager->nodes[turn];
	}
	move_batch(pager, count);
	query_batch(pager, count);
	unprotect(pager, run);
	for (uint64_t page = 0; page < count; page++)
		finish(pager, part(run, page * unit, unit), outcome_of(pager->statuses[page], pager->wanted[page], moved));
	return 0;
}

static int let_go(struct nt_pager *pager, uint64_t page)
{
	int number = protect_range(pager, page, pager->page_size, false);
	if (number)
		wake_range(pager, page, pager->page_size);
	return number;
}

const struct mechanism protect = {.arm = arm, .move = move, .give_back = give_back_at, .let_go = let_go};
