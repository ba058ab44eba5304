/*
 * NT_RELOCATE: pages are parked in the shadow with UFFDIO_MOVE, which keeps their frames, and put back with it.
 *
 * The shadow of a mapping is registered with the same descriptor as that, because that makes the kernel refuse to park
 * (EAGAIN) while a change of the mapping has not been told of: else a new mapping at an old address could be parked.
 * Nothing of the shadow is ever discarded or unmapped while it is registered: that would be an event that waits for us.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"

#define HUGE_SIZE (2UL << 20)

/* ---- the shadow ---- */

static uint64_t aligned(uint64_t address, uint64_t alignment, uint64_t remainder)
{
	uint64_t base = address / alignment * alignment + remainder;
	return base < address ? base + alignment : base;
}

/* Lay the shadow out: each run at an offset that is as aligned as its own address, so that huge pages are parked whole. Its size. */
static uint64_t lay_out_shadow(struct nt_pager *pager)
{
	uint64_t size = 0;
	for (size_t number = 0; number < pager->segments_count; number++) {
		struct segment *segment = &pager->segments[number];
		uint64_t alignment = segment->unit * pager->page_size;
		segment->shadow = aligned(size, alignment, segment->start % alignment);
		size = segment->shadow + segment->pages * pager->page_size;
	}
	return size;
}

/* Register the shadow, each stretch of it with the descriptor that its pages come from. */
static bool watch_shadow(struct nt_pager *pager)
{
	for (size_t first = 0, after; first < pager->segments_count; first = after) {
		size_t descriptor = pager->segments[first].descriptor;
		for (after = first + 1; after < pager->segments_count && pager->segments[after].descriptor == descriptor; after++)
			;
		uint64_t start = pager->segments[first].shadow;
		uint64_t end = after < pager->segments_count ? pager->segments[after].shadow : pager->spare;
		if (!watch(pager, pager->descriptors[descriptor].uffd, start, end - start))
			return false;
	}
	return true;
}

/*
 * Reserve the shadow, with the spare page and the unreadable one behind it, and register it. It is a mapping of its own,
 * whose entries no child gets.
 */
static bool acquire(struct nt_pager *pager, struct nt_error *error)
{
	static const char purpose[] = "reserving addresses for parked pages";
	uint64_t parked = lay_out_shadow(pager), size = parked + HUGE_SIZE + 2 * pager->page_size;
	void *area = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		return fail(error, "mmap", purpose);
	pager->reserved = (struct nt_range){(uint64_t)(uintptr_t)area, size};
	pager->shadow = aligned(pager->reserved.start, HUGE_SIZE, 0);
	pager->spare = pager->shadow + parked;
	pager->unreadable = pager->spare + pager->page_size;
	pager->shadow_size = parked;
	for (size_t number = 0; number < pager->segments_count; number++)
		pager->segments[number].shadow += pager->shadow;
	void *shadow = (void *)(uintptr_t)pager->shadow;
	uint64_t used = pager->unreadable - pager->shadow;
	/* mlockall(MCL_FUTURE) locks it too, and would fill it; pages do not move between locked and other memory. */
	munlock(shadow, used);
	if (mprotect(shadow, used, PROT_READ | PROT_WRITE))
		return fail(error, "mprotect", purpose);
	if (madvise(shadow, used, MADV_DONTFORK))
		return fail(error, "madvise", purpose);
	return watch_shadow(pager) || fail(error, "UFFDIO_REGISTER", purpose);
}

static bool has_stranded(const struct nt_pager *pager)
{
	for (size_t page = 0; page < pager->pages; page++)
		if (atomic_load_explicit(&pager->states[page], memory_order_relaxed) == NT_STRANDED)
			return true;
	return false;
}

static void unwatch_shadow(struct nt_pager *pager)
{
	for (size_t number = 0; pager->reserved.size && number < pager->segments_count; number++) {
		const struct segment *segment = &pager->segments[number];
		unwatch(pager, uffd_of(pager, segment), segment->shadow, segment->pages * pager->page_size);
	}
}

/* It stays if it holds pages that could not be put back. */
static void release_shadow(struct nt_pager *pager)
{
	if (!pager->reserved.size || has_stranded(pager))
		return;
	munmap((void *)(uintptr_t)pager->reserved.start, pager->reserved.size);
	pager->reserved.size = pager->shadow_size = 0;
}

/* ---- looking ---- */

/* What an address holds: nothing, a page (in memory or in swap); or the kernel does not say. */
enum content { CONTENT_NONE, CONTENT_PAGE, CONTENT_UNKNOWN };

static enum content content_at(const struct nt_pager *pager, uint64_t address)
{
	uint64_t entry;
	off_t offset = (off_t)(address / pager->page_size * sizeof entry);
	if (pager->pagemap_fd < 0 || pread(pager->pagemap_fd, &entry, sizeof entry, offset) != sizeof entry)
		return CONTENT_UNKNOWN;
	return entry & (NT_ENTRY_PRESENT | NT_ENTRY_SWAPPED) ? CONTENT_PAGE : CONTENT_NONE;
}

/*
 * Why the kernel refused; EAGAIN if it need not the next time. It looks for the mapping before it looks (again) whether an
 * unmapping waits for us, so that an ENOENT or EINVAL can be an EAGAIN. That the mapping is gone without one can only be once we have read of it.
 */
static int refusal(int uffd)
{
	int number = errno;
	if (number == ENOMEM) /* for page tables, or a page of zeros */
		return EAGAIN;
	return number != EAGAIN && is_changing(uffd) ? EAGAIN : number;
}

/*
 * What lies at `address`: 0, a hole that is registered with this descriptor; EEXIST, the same with a page in it; EAGAIN,
 * something is changing; ENOENT, anything else. UFFDIO_MOVE looks at the descriptor of the destination (UFFDIO_COPY and
 * UFFDIO_ZEROPAGE do not), and what is moved here is a hole. A mapping without write permission it refuses in any case:
 * there registering tells, which is refused for what another descriptor watches.
 */
static int probe(const struct nt_pager *pager, int uffd, uint64_t address)
{
	struct uffdio_move nothing = {.dst = address, .src = pager->spare, .len = pager->page_size,
				      .mode = UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES | UFFDIO_MOVE_MODE_DONTWAKE};
	if (!ioctl(uffd, UFFDIO_MOVE, &nothing))
		return 0;
	int number = refusal(uffd);
	if (number == EEXIST || number == EAGAIN)
		return number;
	/* Registered at all? If so the kernel gets as far as reading what may not be read. */
	struct uffdio_copy unreadable = {.dst = address, .src = pager->unreadable, .len = pager->page_size, .mode = UFFDIO_COPY_MODE_DONTWAKE};
	if (number != EINVAL || !ioctl(uffd, UFFDIO_COPY, &unreadable))
		return ENOENT;
	number = refusal(uffd);
	if (number == EAGAIN)
		return EAGAIN;
	if (number == ENOENT)
		return ENOENT;
	if (!watch(pager, uffd, address, pager->page_size))
		return refusal(uffd) == EAGAIN ? EAGAIN : ENOENT;
	return number == EEXIST ? EEXIST : 0;
}

/* Whether memory at `address` is registered with this descriptor, or may be, as something is changing. */
static bool is_registered(const struct nt_pager *pager, int uffd, uint64_t address)
{
	return probe(pager, uffd, address) != ENOENT;
}

/*
 * What is to be done about a page that was not moved for `number`: 0, it has moved; ERESTART, try again; else the reason.
 *
 * Linux 6.18 ("userfaultfd: opportunistic TLB-flush batching for present pages in MOVE") keeps the EAGAIN of an entry that
 * changed under it: the pages that it moves next it does not count, and then it finds them at their destination (EEXIST).
 * And an ENOENT has to be certain, as it means that the page is given up.
 */
static int look_again(const struct nt_pager *pager, int uffd, uint64_t to, uint64_t from, int number)
{
	bool parking = to - pager->shadow < pager->shadow_size;
	enum content source = content_at(pager, from), destination = content_at(pager, to);
	if (source == CONTENT_NONE)
		return destination == CONTENT_NONE ? number : 0;
	if (source == CONTENT_UNKNOWN)
		return parking && number == EEXIST ? 0 : number; /* nothing else comes to be in the shadow */
	if (number == EEXIST)
		return destination == CONTENT_PAGE ? EEXIST : ERESTART;
	return parking || is_registered(pager, uffd, to) ? ERESTART : ENOENT;
}

/* Move page table entries from `from` to `to`, which is watched. Bytes moved; *number is the errno that stopped it, 0 if nothing did. */
static uint64_t move_entries(const struct nt_pager *pager, int uffd, uint64_t to, uint64_t from, uint64_t size, int *number)
{
	uint64_t done = 0;
	*number = 0;
	while (done < size && !*number) {
		struct uffdio_move move = {.dst = to + done, .src = from + done, .len = size - done};
		if (ioctl(uffd, UFFDIO_MOVE, &move) == 0)
			return size;
		if (move.move > 0) {
			done += (uint64_t)move.move; /* try the rest: that tells what stopped it */
			continue;
		}
		*number = refusal(uffd);
		if (*number == EEXIST || *number == ENOENT) {
			*number = look_again(pager, uffd, to + done, from + done, *number);
			if (!*number)
				done += pager->page_size;
			else if (*number == ERESTART)
				*number = 0;
		} else if (*number == EINVAL && size - done > pager->page_size) {
			/* The mapping ends in between, or begins to be another one: page by page as far as that goes. */
			uint64_t one = move_entries(pager, uffd, to + done, from + done, pager->page_size, number);
			done += one;
		}
	}
	return done;
}

static uint8_t reason_of(int number)
{
	switch (number) {
	case ENOENT:
		return NT_ABSENT;
	case EBUSY:
		return NT_BUSY;
	default:
		return NT_UNSUITABLE;
	}
}

/* Write faults, that write nothing, for the pages of a run that `entries` of the page map say only we map. */
static void own_run(const struct nt_pager *pager, uint64_t address, const uint64_t *entries, uint64_t pages)
{
	const uint64_t ours = NT_ENTRY_PRESENT | NT_ENTRY_EXCLUSIVE;
	for (uint64_t page = 0; page < pages;) {
		uint64_t after = page;
		while (after < pages && (entries[after] & ours) == ours)
			after++;
		if (after > page)
			madvise((void *)(uintptr_t)(address + page * pager->page_size), (after - page) * pager->page_size,
				MADV_POPULATE_WRITE);
		page = after + 1;
	}
}

/*
 * Since a fork the kernel holds every page that was not written to for shared, and UFFDIO_MOVE refuses it (EBUSY), even when
 * the child is long gone: only a write fault finds out. Pages that are still shared are not touched, as that would copy
 * them. Before anything is registered: afterwards a page that is unmapped in between would be a fault for ourselves.
 */
static void own_pages(const struct nt_pager *pager)
{
	uint64_t entries[ARM_PAGES];
	for (size_t number = 0; pager->pagemap_fd >= 0 && number < pager->segments_count; number++) {
		const struct segment *segment = &pager->segments[number];
		for (uint64_t page = 0; page < segment->pages; page += ARM_PAGES) {
			uint64_t rest = segment->pages - page, address = address_of(pager, segment, page);
			size_t size = (rest < ARM_PAGES ? rest : ARM_PAGES) * sizeof *entries;
			ssize_t got = pread(pager->pagemap_fd, entries, size, (off_t)(address / pager->page_size * sizeof *entries));
			if (got > 0)
				own_run(pager, address, entries, (uint64_t)got / sizeof *entries);
		}
	}
}

/* Move a run into the shadow. */
static int arm(struct nt_pager *pager, struct pages run)
{
	while (run.count) {
		int number;
		uint64_t done = move_entries(pager, uffd_of(pager, run.segment), shadow_of(pager, run.segment, run.first),
					     address_of(pager, run.segment, run.first), run.count * pager->page_size, &number) /
				pager->page_size;
		set_states(pager, part(run, 0, done), NT_ARMED);
		run = part(run, done, run.count - done);
		if (number == EAGAIN) {
			set_states(pager, run, NT_PLANNED);
			return EAGAIN;
		}
		if (run.count) {
			conclude(pager, part(run, 0, 1), reason_of(number));
			run = part(run, 1, run.count - 1);
		}
	}
	return 0;
}

/*
 * A page whose entry cannot be moved back though its mapping is there: UFFDIO_MOVE wants the same permissions and locks on
 * both sides, and to write on both. Its contents are copied, which is the one case of I1 in internal.h: a device that was
 * about to write to the page writes to the frame that is left behind. 0, EAGAIN, or what became of it.
 */
static int put_back_copy(struct nt_pager *pager, struct pages one, uint64_t to)
{
	struct uffdio_copy copy = {.dst = to, .src = shadow_of(pager, one.segment, one.first), .len = pager->page_size};
	int uffd = uffd_of(pager, one.segment), number = probe(pager, uffd, to);
	if (number)
		return number;
	if (!ioctl(uffd, UFFDIO_COPY, &copy))
		return 0;
	return refusal(uffd);
}

/* What became of a page that was not put back for `number`. */
static uint8_t lost_to(int number)
{
	switch (number) {
	case ENOENT:
	case ESRCH:
		return NT_UNMAPPED;
	case EEXIST: /* put there after the program had given up what was there: a guard, for example */
		return NT_DISCARDED;
	default:
		return NT_STRANDED;
	}
}

static int give_back_at(struct nt_pager *pager, struct pages run, uint64_t to, uint8_t state)
{
	while (run.count) {
		int number;
		uint64_t from = shadow_of(pager, run.segment, run.first);
		uint64_t done = move_entries(pager, uffd_of(pager, run.segment), to, from, run.count * pager->page_size, &number) /
				pager->page_size;
		conclude(pager, part(run, 0, done), state);
		run = part(run, done, run.count - done);
		to += done * pager->page_size;
		if (!run.count)
			break;
		if (number == EBUSY) { /* merged with another page's (ksm): a write fault makes it ours again */
			madvise((void *)(uintptr_t)(from + done * pager->page_size), pager->page_size, MADV_POPULATE_WRITE);
			number = EAGAIN;
		} else if (number == EINVAL) {
			number = put_back_copy(pager, part(run, 0, 1), to);
		}
		if (number == EAGAIN)
			return EAGAIN;
		conclude(pager, part(run, 0, 1), number ? lost_to(number) : state);
		run = part(run, 1, run.count - 1);
		to += pager->page_size;
	}
	return 0;
}

/*
 * A page that is no trap faulted: it was never there, or it came there in between. Only in memory of this descriptor: what
 * is a hole in another's may be a page that waits to be put back.
 */
static int resolve_stray(struct nt_pager *pager, int uffd, uint64_t page)
{
	struct uffdio_zeropage zero = {.range = {.start = page, .len = pager->page_size}};
	int number = probe(pager, uffd, page);
	if (!number && ioctl(uffd, UFFDIO_ZEROPAGE, &zero))
		number = refusal(uffd);
	if (number)
		wake_range(uffd, page, pager->page_size);
	return number;
}

const struct mechanism relocate = {
	.name = "relocate",
	.features = UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_MOVE | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE |
		    UFFD_FEATURE_EVENT_UNMAP,
	.register_mode = UFFDIO_REGISTER_MODE_MISSING,
	.out_of_place = true,
	.acquire = acquire,
	.unwatch_own = unwatch_shadow,
	.release = release_shadow,
	.prepare = own_pages,
	.arm = arm,
	.give_back = give_back_at,
	.resolve_stray = resolve_stray,
	.is_registered = is_registered,
};
