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

/* Stop trapping a run and wake who waits; a run that is half unmapped is done page by page. */
static void unprotect(struct nt_pager *pager, struct pages run)
{
	uint64_t address = address_of(pager, run.segment, run.first), size = run.count * pager->page_size;
	uint64_t step = run.segment->unit * pager->page_size;
	int number = protect_range(pager, address, size, false);
	pager->gone |= number == ESRCH;
	if (!number || pager->gone)
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
		if (number == EAGAIN) {
			set_states(pager, part(run, page, run.count - page), NT_PLANNED);
			return EAGAIN;
		}
		if (!number)
			set_states(pager, one, NT_ARMED);
		else
			finish(pager, one, number == ENOENT || number == ESRCH ? NT_UNMAPPED : NT_UNSUITABLE);
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

static uint8_t outcome_of(int status, uint8_t moved)
{
	if (status >= 0)
		return moved;
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

/* Pages that go to one node: `count` entries of the arguments of move_pages from `first` on. */
struct batch {
	uint64_t first, count;
	int node;
};

static void query(struct nt_pager *pager, struct batch batch)
{
	if (nt_move_pages(pager->options.pid, batch.count, pager->addresses + batch.first, NULL, pager->statuses + batch.first))
		for (uint64_t page = 0; page < batch.count; page++)
			pager->statuses[batch.first + page] = -ENOENT; /* the process is gone */
}

/*
 * Move a batch, and leave in `statuses` its node for each page that is there, and for each that is not the reason: the call
 * leaves most of them unwritten when one page fails, so it is repeated, ATTEMPTS times, and then it is asked where they are.
 */
static void move_batch(struct nt_pager *pager, struct batch batch)
{
	int *statuses = pager->statuses + batch.first;
	bool full = false, complete = true;
	long result = 1;
	for (int attempt = 0; attempt < ATTEMPTS && (result > 0 || full); attempt++) {
		for (uint64_t page = 0; page < batch.count; page++)
			statuses[page] = UNWRITTEN;
		result = nt_move_pages(pager->options.pid, batch.count, pager->addresses + batch.first,
				       pager->wanted + batch.first, statuses);
		full = result < 0 && errno == ENOMEM;
	}
	for (uint64_t page = 0; page < batch.count; page++)
		complete &= statuses[page] != UNWRITTEN;
	if (!complete)
		query(pager, batch);
	for (uint64_t page = 0; page < batch.count; page++)
		if (statuses[page] >= 0 && statuses[page] != batch.node)
			statuses[page] = full ? -ENOMEM : -EBUSY;
}

/*
 * One call a target node: a call goes through its pages in stretches with the same target, and stops behind the first
 * stretch with a page that fails.
 */
static int move(struct nt_pager *pager, struct pages run, int node, uint8_t moved)
{
	uint64_t unit = run.segment->unit, size = unit * pager->page_size, next = 0;
	size_t targets = node >= 0 ? 1 : pager->options.nodes_count;
	uint64_t start = address_of(pager, run.segment, run.first), end = start + run.count * pager->page_size;
	for (size_t number = 0; number < targets; number++) {
		struct batch batch = {.first = next, .node = node >= 0 ? node : pager->nodes[number]};
		for (uint64_t address = start; address < end; address += size) {
			if (address / size % targets != number) /* interleaved by address, as the kernel's policy does */
				continue;
			pager->addresses[next] = (void *)(uintptr_t)address;
			pager->wanted[next++] = batch.node;
		}
		batch.count = next - batch.first;
		if (batch.count)
			move_batch(pager, batch);
	}
	unprotect(pager, run);
	for (uint64_t page = 0; page < next; page++) {
		uint64_t first = run.first + ((uint64_t)(uintptr_t)pager->addresses[page] - start) / pager->page_size;
		finish(pager, (struct pages){run.segment, first, unit}, outcome_of(pager->statuses[page], moved));
	}
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
