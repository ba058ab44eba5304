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
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"

/* Bits of a page map entry: present, and mapped only here (Documentation/admin-guide/mm/pagemap.rst). */
#define PAGE_OURS ((uint64_t)1 << 63 | (uint64_t)1 << 56)
/* The same file's bits for a page that is in memory, or swapped out. */
#define PAGE_THERE ((uint64_t)3 << 62)

/*
 * Why the kernel refused. It looks for the mapping before it looks (again) whether an unmapping waits for us, so that an
 * ENOENT or EINVAL can be an EAGAIN. That the mapping is gone without one can only be once we have read of it.
 */
static int refusal(const struct nt_pager *pager)
{
	int number = errno;
	return number != EAGAIN && is_changing(pager) ? EAGAIN : number;
}

/* Whether there is a page at `address`; `unknown` if the kernel does not say. */
static bool is_there(const struct nt_pager *pager, uint64_t address, bool unknown)
{
	uint64_t entry;
	int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	bool known = map >= 0 && pread(map, &entry, sizeof entry, (off_t)(address / pager->page_size * sizeof entry)) == sizeof entry;
	if (map >= 0)
		close(map);
	return known ? entry & PAGE_THERE : unknown;
}

/*
 * Whether the page that UFFDIO_MOVE says is at its destination already (EEXIST) is the very one that was to be moved. Linux
 * 6.18 ("userfaultfd: opportunistic TLB-flush batching for present pages in MOVE") keeps the EAGAIN of an entry that
 * changed under it: the pages that it moves next it does not count, and then it finds them at their destination. Nothing
 * else comes to be in the shadow.
 */
static bool has_moved(const struct nt_pager *pager, uint64_t to, uint64_t from)
{
	bool parked = to - pager->shadow < pager->shadow_size;
	int number = errno;
	bool moved = !is_there(pager, from, !parked);
	errno = number;
	return moved;
}

/* Move page table entries from `from` to `to`, which is watched. Bytes moved; *number is the errno that stopped it, 0 if nothing did. */
static uint64_t move_entries(const struct nt_pager *pager, uint64_t to, uint64_t from, uint64_t size, int *number)
{
	struct uffdio_move move = {.dst = to, .src = from, .len = size};
	uint64_t done = 0;
	*number = 0;
	while (done < size && !*number) {
		move = (struct uffdio_move){.dst = to + done, .src = from + done, .len = size - done};
		if (ioctl(pager->uffd, UFFDIO_MOVE, &move) == 0)
			return size;
		if (move.move > 0)
			done += (uint64_t)move.move; /* try the rest: that tells what stopped it */
		else if (errno == EEXIST && has_moved(pager, to + done, from + done))
			done += pager->page_size;
		else
			*number = refusal(pager);
	}
	return done;
}

static uint64_t copy_contents(const struct nt_pager *pager, uint64_t to, uint64_t from, uint64_t size, int *number)
{
	uint64_t done = 0;
	*number = 0;
	while (done < size && !*number) {
		struct uffdio_copy copy = {.dst = to + done, .src = from + done, .len = size - done};
		if (ioctl(pager->uffd, UFFDIO_COPY, &copy) == 0)
			return size;
		if (copy.copy > 0)
			done += (uint64_t)copy.copy;
		else
			*number = refusal(pager);
	}
	return done;
}

/* A huge page is made in a part of the stage that never holds small ones: their page table would be in its way. */
static uint64_t copy_staged(struct nt_pager *pager, bool huge, uint64_t to, uint64_t from, uint64_t size, int *number)
{
	uint64_t done = 0;
	uint8_t *stage = pager->stage + (huge ? 0 : STAGE_SIZE);
	while (atomic_exchange_explicit(&pager->stage_taken, true, memory_order_acquire))
		sched_yield();
	if (madvise(stage, size, MADV_POPULATE_WRITE)) {
		*number = ENOMEM;
	} else {
		memcpy(stage, (const void *)(uintptr_t)from, size);
		done = move_entries(pager, to, (uint64_t)(uintptr_t)stage, size, number);
	}
	if (done < size)
		madvise(stage, size, MADV_DONTNEED);
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

/* Write faults, that write nothing, for the pages of a run that `entries` of the page map say only we map. */
static void own_run(const struct nt_pager *pager, uint64_t address, const uint64_t *entries, uint64_t pages)
{
	for (uint64_t page = 0; page < pages;) {
		uint64_t after = page;
		while (after < pages && (entries[after] & PAGE_OURS) == PAGE_OURS)
			after++;
		if (after > page)
			madvise((void *)(uintptr_t)(address + page * pager->page_size), (after - page) * pager->page_size,
				MADV_POPULATE_WRITE);
		page = after + 1;
	}
}

/*
 * Since a fork the kernel holds every page that nobody wrote to for shared, and UFFDIO_MOVE refuses it (EBUSY), even when
 * the child is long gone: only a write fault finds out. Pages that are still shared are not touched, as that would copy
 * them. Before anything is registered: afterwards a page that is unmapped in between would be a fault for ourselves.
 */
void own_pages(const struct nt_pager *pager)
{
	uint64_t entries[ARM_PAGES];
	int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	for (size_t number = 0; map >= 0 && number < pager->segments_count; number++) {
		const struct segment *segment = &pager->segments[number];
		for (uint64_t page = 0; page < segment->pages; page += ARM_PAGES) {
			uint64_t rest = segment->pages - page, address = address_of(pager, segment, page);
			size_t size = (rest < ARM_PAGES ? rest : ARM_PAGES) * sizeof *entries;
			ssize_t got = pread(map, entries, size, (off_t)(address / pager->page_size * sizeof *entries));
			if (got > 0)
				own_run(pager, address, entries, (uint64_t)got / sizeof *entries);
		}
	}
	if (map >= 0)
		close(map);
}

/* Move a run into the shadow; what is there then is still ARMING. */
static int park(struct nt_pager *pager, struct pages run)
{
	while (run.count) {
		int number;
		uint64_t done = move_entries(pager, shadow_of(pager, run.segment, run.first),
					     address_of(pager, run.segment, run.first), run.count * pager->page_size, &number) /
				pager->page_size;
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

/*
 * Park a run. Its part of the shadow is watched by the same descriptor as the program's memory, because that makes the
 * kernel refuse (EAGAIN) while an unmapping is not handled: else somebody's new mapping at an old address could be
 * parked. It is watched no longer than that, because the release of frames would be reported as an event, and wait for us.
 */
static int arm(struct nt_pager *pager, struct pages run)
{
	struct uffdio_range range = {.start = shadow_of(pager, run.segment, run.first), .len = run.count * pager->page_size};
	struct uffdio_register request = {.range = range, .mode = UFFDIO_REGISTER_MODE_MISSING};
	if (ioctl(pager->uffd, UFFDIO_REGISTER, &request)) { /* too many mappings */
		finish(pager, run, NT_UNSUITABLE);
		return 0;
	}
	int result = park(pager, run);
	ioctl(pager->uffd, UFFDIO_UNREGISTER, &range);
	_Atomic uint8_t *states = &pager->states[run.segment->first + run.first];
	for (uint64_t page = 0; page < run.count; page++)
		if (atomic_load_explicit(&states[page], memory_order_relaxed) == NT_ARMING)
			atomic_store_explicit(&states[page], NT_ARMED, memory_order_release);
	return result;
}

/* What became of a page that could not be put back by moving its entry: its contents are copied if that is possible. */
static int put_back_copy(struct nt_pager *pager, struct pages one, uint64_t to, uint8_t *state)
{
	int number;
	copy_contents(pager, to, shadow_of(pager, one.segment, one.first), pager->page_size, &number);
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
	while (run.count) {
		int number;
		uint64_t done = move_entries(pager, to, shadow_of(pager, run.segment, run.first),
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
			if (reason != NT_REMAPPED)
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
	int there = nt_node_of(address);
	if (there < 0 || node == there)
		return true; /* unmapped meanwhile: nothing to say about the node */
	return node < 0 && (pager->target.words[there / 64] >> (there % 64) & 1);
}

/*
 * Finish what was copied by where it landed. A node gets full in the middle of a run: so each page is looked at, unless the
 * first and the last are where they should be.
 */
static void finish_copied(struct nt_pager *pager, struct pages run, int node, uint8_t moved)
{
	uint64_t first = address_of(pager, run.segment, run.first);
	if (landed(pager, first, node) && landed(pager, first + (run.count - 1) * pager->page_size, node)) {
		finish(pager, run, moved);
		return;
	}
	for (uint64_t page = 0; page < run.count; page++) {
		bool there = landed(pager, first + page * pager->page_size, node);
		finish(pager, part(run, page, 1), there ? moved : NT_TARGET_FULL);
	}
}

/* Move a run that is one unit, or all of unit 1. */
static int move_together(struct nt_pager *pager, struct pages run, int node, uint8_t moved)
{
	uint64_t to = address_of(pager, run.segment, run.first), from = shadow_of(pager, run.segment, run.first);
	uint64_t size = run.count * pager->page_size;
	bool huge = run.segment->unit > 1;
	int number;
	uint64_t done = (huge || pager->options.staged ? copy_staged(pager, huge, to, from, size, &number) :
							 copy_contents(pager, to, from, size, &number)) /
			pager->page_size;
	struct pages copied = part(run, 0, done), rest = part(run, done, run.count - done);
	release_frames(pager, copied);
	if (done)
		finish_copied(pager, copied, node, moved);
	if (!rest.count)
		return 0;
	if (number == EAGAIN) {
		set_states(pager, rest, NT_ARMED);
		return EAGAIN;
	}
	return give_back(pager, rest, reason_of(number));
}

static int move(struct nt_pager *pager, struct pages run, int node, uint8_t moved)
{
	uint64_t most = run.segment->unit > 1 ? run.segment->unit : UNIT_PAGES;
	int result = 0;
	use_node(pager, node);
	while (run.count && !result) {
		uint64_t pages = run.count < most ? run.count : most;
		result = move_together(pager, part(run, 0, pages), node, moved);
		run = part(run, pages, run.count - pages);
	}
	set_states(pager, run, NT_ARMED);
	return result;
}

/* A page that is no trap faulted: it was never there, or somebody put it there in between. */
static int let_go(struct nt_pager *pager, uint64_t page)
{
	struct uffdio_zeropage zero = {.range = {.start = page, .len = pager->page_size}};
	if (!ioctl(pager->uffd, UFFDIO_ZEROPAGE, &zero))
		return 0;
	int number = refusal(pager);
	wake_range(pager, page, pager->page_size);
	return number;
}

const struct mechanism relocate = {.arm = arm, .move = move, .give_back = give_back_at, .let_go = let_go};
