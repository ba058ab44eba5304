/*
 * What the kernel tells through the descriptor: faults, and that the program unmaps, discards or moves memory.
 *
 * A thread that unmaps waits until its event is read, and from the moment it began until it goes on the kernel refuses
 * to install pages (EAGAIN: mmap_changing). So nothing can be installed on the ground of outdated knowledge, if only
 * every event that was read is handled before any fault, and pages whose mapping moved are put back before as well.
 * Nothing here allocates: the thread that waits for us may hold the allocator's lock.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "internal.h"

/* Whether a thread is between the begin of an unmapping or discard and its going on after its event was read. */
bool is_changing(const struct nt_pager *pager)
{
	struct uffdio_zeropage nothing = {.range = {.start = 0, .len = 0}};
	return ioctl(pager->uffd, UFFDIO_ZEROPAGE, &nothing) && errno == EAGAIN; /* else EINVAL */
}

#define GRACE_NS 20000000u

/* Append what is waiting to the messages, of which there is room for some; whether there was any. */
static bool read_messages(struct nt_pager *pager)
{
	size_t room = MESSAGES - pager->messages_count;
	ssize_t size = read(pager->uffd, pager->messages + pager->messages_count, room * sizeof *pager->messages);
	if (size <= 0)
		return false;
	pager->messages_count += (size_t)size / sizeof *pager->messages;
	return true;
}

/* The next run of MOVING pages in [*at, end), which is moved on behind it; false when there is none. */
static bool next_moving(const struct nt_pager *pager, uint64_t *at, uint64_t end, struct pages *run)
{
	for (size_t number = 0; number < pager->segments_count; number++) {
		const struct segment *segment = &pager->segments[number];
		uint64_t low = greater(*at, segment->start);
		uint64_t high = lesser(end, segment->start + segment->pages * pager->page_size);
		if (low >= high)
			continue;
		uint64_t page = (low - segment->start) / pager->page_size, stop = (high - segment->start) / pager->page_size;
		while (page < stop && state_of(pager, segment, page) != NT_MOVING)
			page++;
		uint64_t after = page;
		while (after < stop && state_of(pager, segment, after) == NT_MOVING)
			after++;
		*run = (struct pages){segment, page, after - page};
		*at = address_of(pager, segment, after);
		if (run->count)
			return true;
	}
	return false;
}

/* Finish as `state` the MOVING pages of [from, from + size), which are displaced ones: nobody else moves anything now. */
static void end_displaced(struct nt_pager *pager, uint64_t from, uint64_t size, uint8_t state)
{
	struct pages run = {.segment = NULL};
	for (uint64_t at = from; next_moving(pager, &at, from + size, &run);)
		finish(pager, run, state);
}

/* Remember that the MOVING pages of a range belong at `to`. Without room their contents stay in the shadow. */
static void displace(struct nt_pager *pager, uint64_t from, uint64_t size, uint64_t to)
{
	if (size && pager->displaced_count < DISPLACED)
		pager->displaced[pager->displaced_count++] = (struct displaced){from, size, to};
	else
		end_displaced(pager, from, size, NT_STRANDED);
}

/* The displaced pages that are due at [start, end) are now due `to` further on; or, if `to` is 0, end as `state`. */
static void cut_displaced(struct nt_pager *pager, uint64_t start, uint64_t end, uint64_t to, uint8_t state)
{
	size_t known = pager->displaced_count;
	for (size_t number = 0; number < known; number++) {
		struct displaced whole = pager->displaced[number];
		uint64_t low = greater(start, whole.to), high = lesser(end, whole.to + whole.size);
		if (low >= high)
			continue;
		uint64_t first = low - whole.to, after = high - whole.to;
		pager->displaced[number].size = first;
		if (to)
			displace(pager, whole.from + first, high - low, to + (low - start));
		else
			end_displaced(pager, whole.from + first, high - low, state);
		displace(pager, whole.from + after, whole.size - after, high);
	}
}

/* End the pages of [start, end) that are not armed yet as `state`. */
static void end_planned(struct nt_pager *pager, uint64_t start, uint64_t end, uint8_t state)
{
	for (size_t number = 0; number < pager->segments_count; number++) {
		const struct segment *segment = &pager->segments[number];
		uint64_t low = greater(start, segment->start);
		uint64_t high = lesser(end, segment->start + segment->pages * pager->page_size);
		uint64_t page = low < high ? (low - segment->start) / pager->page_size : 0;
		uint64_t stop = low < high ? (high - segment->start) / pager->page_size : 0;
		while (page < stop) {
			uint64_t planned = claim(pager, segment, page, stop, NT_PLANNED);
			finish(pager, (struct pages){segment, page, planned}, state);
			page += planned ? planned : 1;
		}
	}
}

/*
 * End the armed pages of [start, end) as `state`; or, if the mapping went `to` another place, displace them, in stretches
 * that no page displaced before lies in.
 */
static void take_armed(struct nt_pager *pager, uint64_t start, uint64_t end, uint64_t to, uint8_t state)
{
	uint64_t open = 0, last = 0; /* the stretch so far, if `last` is not 0 */
	for (size_t number = 0; number < pager->segments_count; number++) {
		const struct segment *segment = &pager->segments[number];
		uint64_t low = greater(start, segment->start);
		uint64_t high = lesser(end, segment->start + segment->pages * pager->page_size);
		for (uint64_t at = low; at < high; at += pager->page_size) {
			uint64_t page = (at - segment->start) / pager->page_size;
			if (claim(pager, segment, page, page + 1, NT_ARMED)) {
				if (!to)
					finish(pager, (struct pages){segment, page, 1}, state);
				else if (!last)
					open = at;
				last = to ? at + pager->page_size : 0;
			} else if (last && state_of(pager, segment, page) == NT_MOVING) {
				displace(pager, open, last - open, to + (open - start));
				last = 0;
			}
		}
	}
	if (last)
		displace(pager, open, last - open, to + (open - start));
}

/* End what is not moved yet of [start, end), whose contents the program has given up. */
static void end_pages(struct nt_pager *pager, uint64_t start, uint64_t end, uint8_t state)
{
	end_planned(pager, start, end, state);
	take_armed(pager, start, end, 0, state);
}

/* What was unmapped or moved is no longer watched: a later mapping there is somebody else's. */
static void cut_ranges(struct nt_pager *pager, uint64_t start, uint64_t end)
{
	size_t known = pager->ranges_count;
	for (size_t number = 0; number < known; number++) {
		struct nt_range *range = &pager->ranges[number];
		uint64_t stop = range->start + range->size;
		if (greater(start, range->start) >= lesser(end, stop))
			continue;
		/* Without room what is behind the cut is forgotten: closing the descriptor lets it go. */
		if (end < stop && start > range->start && pager->ranges_count < pager->ranges_room)
			pager->ranges[pager->ranges_count++] = (struct nt_range){end, stop - end};
		if (start > range->start)
			range->size = start - range->start;
		else
			*range = end < stop ? (struct nt_range){end, stop - end} : (struct nt_range){stop, 0};
	}
}

/*
 * What lies at the new place is not watched any more as soon as its pages are put back; so nothing may be armed there,
 * whatever the plan knew of these addresses. (Pages that are armed there are another mapping's whose event is on its way.)
 */
static void handle_remap(struct nt_pager *pager, uint64_t from, uint64_t to, uint64_t size)
{
	if (pager->moved_count < MOVED_RANGES)
		pager->moved[pager->moved_count++] = (struct nt_range){to, size};
	cut_displaced(pager, to, to + size, 0, NT_UNMAPPED); /* what was due there has been unmapped to make room */
	end_planned(pager, to, to + size, NT_UNMAPPED);
	cut_ranges(pager, to, to + size);
	cut_displaced(pager, from, from + size, to, NT_REMAPPED);
	end_planned(pager, from, from + size, NT_REMAPPED);
	take_armed(pager, from, from + size, to, NT_REMAPPED);
	cut_ranges(pager, from, from + size);
}

/*
 * Events come in the order in which the threads queue them, which is not that of the changes: an unmapping may be told
 * of after another thread's mapping has moved to the same place. So it ends no displaced page; restoring finds out.
 * A discard is told of before it happens: the thread goes on to do it some time after its event was read.
 */
static void handle_event(struct nt_pager *pager, const struct uffd_msg *message)
{
	uint64_t start = message->arg.remove.start, end = message->arg.remove.end;
	count(&pager->counts.events, 1);
	if (message->event == UFFD_EVENT_REMAP) {
		handle_remap(pager, message->arg.remap.from, message->arg.remap.to, message->arg.remap.len);
	} else if (message->event == UFFD_EVENT_UNMAP) {
		end_pages(pager, start, end, NT_UNMAPPED);
		cut_ranges(pager, start, end);
	} else {
		cut_displaced(pager, start, end, 0, NT_DISCARDED);
		end_pages(pager, start, end, NT_DISCARDED);
		pager->discarded_ns = now_ns();
	}
}

/* Handle and drop the events among the messages; the faults stay. */
static void handle_events(struct nt_pager *pager)
{
	size_t kept = 0;
	for (size_t number = 0; number < pager->messages_count; number++) {
		if (pager->messages[number].event == UFFD_EVENT_PAGEFAULT)
			pager->messages[kept++] = pager->messages[number];
		else
			handle_event(pager, &pager->messages[number]);
	}
	pager->messages_count = kept;
}

/* Forget the later half of the messages, which are faults, but for the addresses between which they are. */
static void put_off_faults(struct nt_pager *pager)
{
	while (pager->messages_count > MESSAGES / 2) {
		uint64_t page = pager->messages[--pager->messages_count].arg.pagefault.address & ~(pager->page_size - 1);
		pager->put_off_low = pager->put_off_high ? lesser(pager->put_off_low, page) : page;
		pager->put_off_high = greater(pager->put_off_high, page + pager->page_size);
	}
}

/* Let the faults that were put off happen again. */
static void recall_faults(struct nt_pager *pager)
{
	if (pager->put_off_high)
		wake_range(pager, pager->put_off_low, pager->put_off_high - pager->put_off_low);
	pager->put_off_high = 0;
}

/*
 * Read everything that waits, and handle the events. The kernel hands out faults first: more threads that fault than there
 * is room for would keep the events from us, and so, as nothing can be installed before these are read, themselves waiting.
 */
static void read_events(struct nt_pager *pager)
{
	while (read_messages(pager)) {
		if (pager->messages_count < MESSAGES)
			continue;
		handle_events(pager);
		if (pager->messages_count == MESSAGES)
			put_off_faults(pager);
	}
	handle_events(pager);
}

/* Put the displaced pages where they belong now, and stop watching there; false when an event has to be read first. */
static bool restore_displaced(struct nt_pager *pager)
{
	for (; pager->displaced_count; pager->displaced_count--) {
		struct displaced last = pager->displaced[pager->displaced_count - 1];
		struct pages run = {.segment = NULL};
		for (uint64_t at = last.from; next_moving(pager, &at, last.from + last.size, &run);) {
			uint64_t offset = address_of(pager, run.segment, run.first) - last.from;
			if (pager->mechanism->give_back(pager, run, last.to + offset, NT_REMAPPED))
				return false;
		}
	}
	bool moved = pager->moved_count;
	for (; pager->moved_count; pager->moved_count--)
		stop_watching(pager, pager->moved[pager->moved_count - 1]);
	if (moved)
		process_let_go();
	return true;
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

static void serve_message(struct nt_pager *pager, const struct uffd_msg *message)
{
	uint64_t began = now_ns(), address = message->arg.pagefault.address & ~(pager->page_size - 1);
	serve(pager, address, toucher_of(pager, (pid_t)message->arg.pagefault.feat.ptid));
	record_service(pager, now_ns() - began);
}

/* Keep the handlers of inline service out until the gate opens again. */
void shut_gate(struct nt_pager *pager)
{
	atomic_store(&pager->gate_shut, true);
	while (atomic_load(&pager->inside))
		sched_yield();
}

/* Read everything that waits, handle the events, then serve the faults. */
void handle_messages(struct nt_pager *pager)
{
	shut_gate(pager);
	do {
		read_events(pager);
	} while (!restore_displaced(pager) && (sched_yield(), true));
	atomic_store(&pager->gate_shut, false);
	uint64_t began = now_ns();
	for (size_t number = 0; number < pager->messages_count; number++)
		serve_message(pager, &pager->messages[number]);
	if (pager->messages_count)
		pace_fault(&pager->pace, began, now_ns());
	pager->messages_count = 0;
	recall_faults(pager);
}

/*
 * Handle events until nobody waits for us and nobody we let go is about to discard. Nothing is registered any more, so no
 * new event comes. A discard that happened after our end would be unknown to the next pager of that memory, which would
 * bring the discarded contents back. The kernel does not tell when a discard is done; GRACE_NS is longer than a thread
 * takes from its wake-up to the mmap lock.
 */
void settle(struct nt_pager *pager)
{
	while (is_changing(pager) || now_ns() - pager->discarded_ns < GRACE_NS) {
		read_events(pager);
		pager->messages_count = 0;
		sched_yield();
	}
}
