/*
 * Where registered memory is: the changes that the kernel tells of, and putting back what they displaced.
 *
 * A change is made first and told of then, by the thread that made it, which waits until its event is read. As long as one
 * has not been told of in full the kernel refuses to move pages in (EAGAIN: mmap_changing). Each registered stretch is a
 * *region* with the place where it is believed to be. All of it is followed until the end, also where nothing is armed any
 * more: else a later event of its place would be taken for another region's.
 *
 * What is told to be unmapped is *doubtful*: the event also comes when the unmapping fails (a sealed neighbour, a limit), and
 * after each mremap(2), for the old place. Putting its pages back tells. Discards are told of before they happen, and the
 * thread goes on to do it when its event has been read: pages of the range are given up at once, since putting them back
 * could come after it.
 *
 * Events of several threads are read in the order in which they queue them, which need not be that of the changes. Where a
 * mapping has a descriptor of its own that does not matter: a thread knows where it is only from a call that has returned,
 * and so has been told of. Where mappings share one, as there are too many, or the program has cut one, a mapping can be
 * told to have come to a place before another one is told to have left it. What another region comes to is *uprooted*: the
 * next change that moves away what was there is about the one that was uprooted first; if there is none by the time that
 * nothing is changing any more, it was unmapped. That is right unless an event is on its way for as long as another thread
 * moves the same memory twice without touching what is parked in it: `nexttouch check relocate-one` has the shortest ways
 * in which it is not, and no rule on addresses is right in all.
 *
 * Nothing here uses the allocator: the thread that waits for us may hold its lock.
 */
#include <sched.h>
#include <sys/mman.h>

#include "internal.h"

/* ---- the table ---- */

/* A region more, at the end. It cannot be done without: rather wait for memory than forget where pages belong. */
static struct region *new_region(struct nt_pager *pager)
{
	struct region *region = &pager->regions[pager->regions_count++];
	uintptr_t mask = pager->page_size - 1, start = (uintptr_t)region & ~mask, end = ((uintptr_t)(region + 1) + mask) & ~mask;
	while (madvise((void *)start, end - start, MADV_POPULATE_WRITE))
		sched_yield();
	return region;
}

static void drop_region(struct nt_pager *pager, size_t number)
{
	pager->regions[number] = pager->regions[--pager->regions_count];
}

/* Cut regions in two whose place goes on on both sides of `address`. */
static void cut_at(struct nt_pager *pager, size_t descriptor, uint64_t address)
{
	for (size_t number = 0, known = pager->regions_count; number < known; number++) {
		struct region *low = &pager->regions[number];
		if (low->descriptor != descriptor || address <= low->place || address - low->place >= low->size)
			continue;
		struct region *high = new_region(pager);
		uint64_t skip = address - low->place;
		*high = *low;
		high->home += skip;
		high->place += skip;
		high->size -= skip;
		low->size = skip;
	}
}

static bool lies_in(const struct region *region, size_t descriptor, uint64_t start, uint64_t end)
{
	return region->descriptor == descriptor && region->place >= start && region->place < end;
}

/* ---- changes ---- */

/* A region's pages that are parked have to be put back; those that are to be armed are not armed, for `reason`. */
static void displace(struct nt_pager *pager, struct region *region, uint8_t reason)
{
	uint64_t end = region->home + region->size;
	struct pages run;
	for (uint64_t at = region->home; next_run(pager, &at, end, NT_PLANNED, &run);)
		conclude(pager, run, reason);
	for (uint64_t at = region->home; next_run(pager, &at, end, NT_ARMED, &run);)
		claim(pager, run.segment, run.first, run.first + run.count, NT_ARMED);
	uint64_t at = region->home;
	region->pending = next_run(pager, &at, end, NT_RETURNING, &run);
	pager->descriptors[region->descriptor].unsettled = true;
}

/* A region was unmapped. */
static void bury(struct nt_pager *pager, size_t number)
{
	struct region *region = &pager->regions[number];
	struct pages run;
	for (uint64_t at = region->home; next_run(pager, &at, region->home + region->size, NT_RETURNING, &run);)
		conclude(pager, run, NT_UNMAPPED);
	drop_region(pager, number);
}

/* An unmapping succeeded, and so all of it. */
static void bury_doubted(struct nt_pager *pager, uint32_t doubt)
{
	for (size_t number = pager->regions_count; number-- > 0;)
		if (pager->regions[number].doubt == doubt)
			bury(pager, number);
}

/* The unmapping that has been told of something at [start, end), and may have failed; 0 if there is none. */
static uint32_t doubt_at(const struct nt_pager *pager, size_t descriptor, uint64_t start, uint64_t end)
{
	uint32_t doubt = 0;
	for (size_t number = 0; number < pager->regions_count && !doubt; number++) {
		const struct region *region = &pager->regions[number];
		if (lies_in(region, descriptor, start, end) && !region->uprooted)
			doubt = region->doubt;
	}
	return doubt;
}

/*
 * What is believed to be at [start, end) is there no more, as another mapping is. What was told to be unmapped there was:
 * that another mapping has come proves it.
 */
static void uproot(struct nt_pager *pager, size_t descriptor, uint64_t start, uint64_t end)
{
	for (uint32_t doubt; (doubt = doubt_at(pager, descriptor, start, end));)
		bury_doubted(pager, doubt);
	pager->uprootings++;
	for (size_t number = 0; number < pager->regions_count; number++) {
		struct region *region = &pager->regions[number];
		if (!lies_in(region, descriptor, start, end) || region->uprooted)
			continue;
		region->uprooted = pager->uprootings;
		displace(pager, region, NT_UNMAPPED);
	}
}

/* Which of the uprootings of [start, end) was the first; 0 if nothing was uprooted there. */
static uint32_t first_uprooted(const struct nt_pager *pager, size_t descriptor, uint64_t start, uint64_t end)
{
	uint32_t first = 0;
	for (size_t number = 0; number < pager->regions_count; number++) {
		const struct region *region = &pager->regions[number];
		if (lies_in(region, descriptor, start, end) && region->uprooted && (!first || region->uprooted < first))
			first = region->uprooted;
	}
	return first;
}

static void move_region(struct nt_pager *pager, struct region *region, uint64_t by)
{
	region->place += by;
	region->uprooted = 0;
	region->doubt = 0;
	displace(pager, region, NT_REMAPPED);
}

void change_moved(struct nt_pager *pager, size_t descriptor, uint64_t from, uint64_t to, uint64_t size)
{
	cut_at(pager, descriptor, from);
	cut_at(pager, descriptor, from + size);
	cut_at(pager, descriptor, to);
	cut_at(pager, descriptor, to + size);
	uint32_t uprooted = first_uprooted(pager, descriptor, from, from + size);
	uproot(pager, descriptor, to, to + size);
	for (size_t number = 0, known = pager->regions_count; number < known; number++) {
		struct region *region = &pager->regions[number];
		if (lies_in(region, descriptor, from, from + size) && region->uprooted == uprooted)
			move_region(pager, region, to - from);
	}
}

/*
 * An event waits to be read: look at what is mapped before it is, and its thread goes on. Afterwards a mapping can have grown
 * to where the thread had unmapped a part of it, which no event tells of.
 */
void note_mapped(struct nt_pager *pager, size_t descriptor)
{
	for (size_t number = 0; number < pager->regions_count; number++) {
		struct region *region = &pager->regions[number];
		if (region->descriptor == descriptor)
			region->mapped = !msync((void *)(uintptr_t)region->place, region->size, MS_ASYNC);
	}
}

/* What was not mapped any more when the event waited is gone. Else it failed, or another mapping has taken the place. */
void change_unmapped(struct nt_pager *pager, size_t descriptor, uint64_t start, uint64_t end)
{
	cut_at(pager, descriptor, start);
	cut_at(pager, descriptor, end);
	pager->unmappings++;
	for (size_t number = pager->regions_count; number-- > 0;) {
		struct region *region = &pager->regions[number];
		if (!lies_in(region, descriptor, start, end) || region->uprooted)
			continue;
		region->doubt = pager->unmappings;
		displace(pager, region, NT_UNMAPPED);
		if (!region->mapped)
			bury(pager, number);
	}
}

static void discard(struct nt_pager *pager, uint64_t start, uint64_t end)
{
	static const uint8_t states[] = {NT_PLANNED, NT_ARMED, NT_RETURNING};
	struct pages run;
	for (size_t number = 0; number < sizeof states; number++)
		for (uint64_t at = start; next_run(pager, &at, end, states[number], &run);)
			conclude(pager, run, NT_DISCARDED);
}

void change_discarded(struct nt_pager *pager, size_t descriptor, uint64_t start, uint64_t end)
{
	for (size_t number = 0; number < pager->regions_count; number++) {
		const struct region *region = &pager->regions[number];
		uint64_t low = greater(start, region->place), high = lesser(end, region->place + region->size);
		if (region->descriptor == descriptor && low < high && !region->uprooted)
			discard(pager, region->home + (low - region->place), region->home + (high - region->place));
	}
	pager->discarded_ns = now_ns();
}

/* ---- putting back ---- */

/* Put a region's pages where it is; false when an event has to be read first. */
static bool restore(struct nt_pager *pager, struct region *region)
{
	struct pages run;
	for (uint64_t at = region->home; next_run(pager, &at, region->home + region->size, NT_RETURNING, &run);) {
		uint64_t to = region->place + (address_of(pager, run.segment, run.first) - region->home);
		if (pager->mechanism->give_back(pager, run, to, NT_REMAPPED))
			return false;
	}
	region->pending = false;
	return true;
}

/* Put back what changes of a descriptor's memory have displaced; false when an event has to be read first. */
bool restore_regions(struct nt_pager *pager, size_t descriptor)
{
	struct descriptor *own = &pager->descriptors[descriptor];
	if (!own->unsettled)
		return true;
	for (size_t number = 0; number < pager->regions_count; number++) {
		struct region *region = &pager->regions[number];
		if (region->descriptor == descriptor && region->pending && !region->uprooted && !restore(pager, region))
			return false;
	}
	if (is_changing(own->uffd))
		return false;
	for (size_t number = pager->regions_count; number-- > 0;) {
		struct region *region = &pager->regions[number];
		if (region->descriptor != descriptor)
			continue;
		if (region->uprooted) /* everything has been told of */
			bury(pager, number);
		else if (region->doubt && !pager->mechanism->is_registered(pager, own->uffd, region->place))
			drop_region(pager, number);
		else
			region->doubt = 0;
	}
	own->unsettled = false;
	return true;
}
