/*
 * NT_RELOCATE: park pages in the shadow with UFFDIO_MOVE, copy them into frames of the target node when they are
 * touched.
 *
 * UFFDIO_COPY allocates the frame by the calling thread's memory policy (unless the mapping has one), copies without
 * clearing the frame first, installs it and wakes the waiters, in one call: it is the whole of the email's second step.
 * The policy is MPOL_PREFERRED, never MPOL_BIND: a full node must send the page elsewhere, not the program to the OOM killer.
 *
 * Two cases go through a staging area instead (populate, copy, UFFDIO_MOVE): a mapping with a policy of its own, which
 * UFFDIO_COPY would follow, and huge pages, which stay huge that way.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"

/* Move page table entries from `from` to `to`, which `uffd` watches. Bytes moved; *number is the errno that stopped it, 0 if nothing did. */
static uint64_t move_entries(int uffd, uint64_t to, uint64_t from, uint64_t size, int *number)
{
	struct uffdio_move move = {.dst = to, .src = from, .len = size};
	uint64_t done = 0;
	*number = 0;
	while (done < size && !*number) {
		move = (struct uffdio_move){.dst = to + done, .src = from + done, .len = size - done};
		if (ioctl(uffd, UFFDIO_MOVE, &move) == 0)
			return size;
		if (move.move > 0)
			done += (uint64_t)move.move; /* try the rest: that tells what stopped it */
		else
			*number = errno;
	}
	return done;
}

static uint64_t copy_contents(int uffd, uint64_t to, uint64_t from, uint64_t size, int *number)
{
	uint64_t done = 0;
	*number = 0;
	while (done < size && !*number) {
		struct uffdio_copy copy = {.dst = to + done, .src = from + done, .len = size - done};
		if (ioctl(uffd, UFFDIO_COPY, &copy) == 0)
			return size;
		if (copy.copy > 0)
			done += (uint64_t)copy.copy;
		else
			*number = errno;
	}
	return done;
}

static uint64_t copy_staged(struct nt_pager *pager, uint64_t to, uint64_t from, uint64_t size, int *number)
{
	uint64_t done = 0;
	while (atomic_exchange_explicit(&pager->stage_taken, true, memory_order_acquire))
		sched_yield();
	if (madvise(pager->stage, size, MADV_POPULATE_WRITE)) {
		*number = ENOMEM;
	} else {
		memcpy(pager->stage, (const void *)(uintptr_t)from, size);
		done = move_entries(pager->uffd, to, (uint64_t)(uintptr_t)pager->stage, size, number);
	}
	if (done < size)
		madvise(pager->stage, size, MADV_DONTNEED);
	atomic_store_explicit(&pager->stage_taken, false, memory_order_release);
	return done;
}

static void release_frames(struct nt_pager *pager, struct pages run)
{
	if (run.count)
		madvise((void *)(uintptr_t)shadow_of(pager, run.segment, run.first), run.count * pager->page_size, MADV_DONTNEED);
}

static uint8_t reason_of(int number)
{
	switch (number) {
	case ENOENT:
		return NT_ABSENT;
	case EBUSY:
		return NT_BUSY;
	case ENOMEM:
		return NT_TARGET_FULL;
	default:
		return NT_UNSUITABLE;
	}
}

static int arm(struct nt_pager *pager, struct pages run)
{
	while (run.count) {
		int number;
		uint64_t done = move_entries(pager->shadow_fd, shadow_of(pager, run.segment, run.first),
					     address_of(pager, run.segment, run.first), run.count * pager->page_size, &number) /
				pager->page_size;
		set_states(pager, part(run, 0, done), NT_ARMED);
		run = part(run, done, run.count - done);
		if (number == EAGAIN) {
			set_states(pager, run, NT_PLANNED);
			return EAGAIN;
		}
		if (run.count) {
			finish(pager, part(run, 0, 1), reason_of(number));
			run = part(run, 1, run.count - 1);
		}
	}
	return 0;
}

/* What became of a page that could not be put back by moving its entry: its contents are copied if that is possible. */
static int put_back_copy(struct nt_pager *pager, struct pages one, uint64_t to, uint8_t *state)
{
	int number;
	copy_contents(pager->uffd, to, shadow_of(pager, one.segment, one.first), pager->page_size, &number);
	if (number == EAGAIN)
		return EAGAIN;
	if (number)
		*state = NT_STRANDED;
	else
		release_frames(pager, one);
	return 0;
}

/* Put pages back as they were. If the mapping has changed so that their frames do not fit, their contents are copied. */
static int give_back_at(struct nt_pager *pager, struct pages run, uint64_t to, uint8_t reason)
{
	bool displaced = to != address_of(pager, run.segment, run.first);
	while (run.count) {
		int number;
		uint64_t done = move_entries(pager->uffd, to, shadow_of(pager, run.segment, run.first),
					     run.count * pager->page_size, &number) /
				pager->page_size;
		finish(pager, part(run, 0, done), reason);
		run = part(run, done, run.count - done);
		to += done * pager->page_size;
		if (!run.count)
			break;
		uint8_t state = reason;
		if (number == ENOENT || number == ESRCH)
			state = NT_UNMAPPED;
		else if (number != EAGAIN)
			number = put_back_copy(pager, part(run, 0, 1), to, &state);
		if (number == EAGAIN) {
			if (!displaced)
				set_states(pager, run, NT_ARMED);
			return EAGAIN;
		}
		finish(pager, part(run, 0, 1), state);
		run = part(run, 1, run.count - 1);
		to += pager->page_size;
	}
	return 0;
}

static bool landed(struct nt_pager *pager, uint64_t address, int node)
{
	int there = nt_node_of((const void *)(uintptr_t)address);
	if (there < 0 || node == there)
		return true; /* unmapped meanwhile: nothing to say about the node */
	return node < 0 && (pager->target.words[there / 64] >> (there % 64) & 1);
}

static int move(struct nt_pager *pager, struct pages run, int node, uint8_t moved)
{
	uint64_t to = address_of(pager, run.segment, run.first), from = shadow_of(pager, run.segment, run.first);
	uint64_t size = run.count * pager->page_size;
	bool staged = pager->stage && (pager->options.staged || run.count == run.segment->unit);
	int number;
	use_node(pager, node);
	uint64_t done = (staged ? copy_staged(pager, to, from, size, &number) :
				  copy_contents(pager->uffd, to, from, size, &number)) /
			pager->page_size;
	struct pages copied = part(run, 0, done), rest = part(run, done, run.count - done);
	release_frames(pager, copied);
	if (done)
		finish(pager, copied, landed(pager, to, node) ? moved : NT_TARGET_FULL);
	if (!rest.count)
		return 0;
	if (number == EAGAIN) {
		set_states(pager, rest, NT_ARMED);
		return EAGAIN;
	}
	return give_back(pager, rest, reason_of(number));
}

/* A page that is no trap faulted: it was never there, or somebody put it there in between. */
static int let_go(struct nt_pager *pager, uint64_t page)
{
	struct uffdio_zeropage zero = {.range = {.start = page, .len = pager->page_size}};
	if (!ioctl(pager->uffd, UFFDIO_ZEROPAGE, &zero))
		return 0;
	int number = errno;
	wake_range(pager, page, pager->page_size);
	return number;
}

const struct mechanism relocate = {.arm = arm, .move = move, .give_back = give_back_at, .let_go = let_go};
