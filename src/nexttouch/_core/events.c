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

static uint64_t greater(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static uint64_t lesser(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Append what is waiting to the messages; whether there was any. */
bool read_messages(struct nt_pager *pager)
{
	size_t room = MESSAGES - pager->messages_count;
	ssize_t size = room ? read(pager->uffd, pager->messages + pager->messages_count, room * sizeof *pager->messages) : 0;
	if (size <= 0)
		return false;
	pager->messages_count += (size_t)size / sizeof *pager->messages;
	return true;
}

static void displace(struct nt_pager *pager, struct pages run, uint64_t at)
{
	if (pager->displaced_count == DISPLACED)
		finish(pager, run, NT_STRANDED);
	else if (run.count)
		pager->displaced[pager->displaced_count++] = (struct displaced){at, run};
}

/* Cut [start, end) out of the displaced pages; the part is passed on: to `to` if that is an address, else it ends as `state`. */
static void cut_displaced(struct nt_pager *pager, uint64_t start, uint64_t end, uint64_t to, uint8_t state)
{
	size_t known = pager->displaced_count;
	for (size_t number = 0; number < known; number++) {
		struct displaced whole = pager->displaced[number];
		uint64_t size = whole.run.count * pager->page_size;
		uint64_t low = greater(start, whole.at), high = lesser(end, whole.at + size);
		if (low >= high)
			continue;
		uint64_t before = (low - whole.at) / pager->page_size, pages = (high - low) / pager->page_size;
		pager->displaced[number].run.count = before;
		if (to)
			displace(pager, part(whole.run, before, pages), to + (low - start));
		else
			finish(pager, part(whole.run, before, pages), state);
		displace(pager, part(whole.run, before + pages, whole.run.count - before - pages), high);
	}
}

/* Call `act` on each run of armed pages in [start, end), which is theirs from then on; pages still to be armed end as `state`. */
static void take(struct nt_pager *pager, uint64_t start, uint64_t end, uint64_t to, uint8_t state)
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
			page += planned;
			uint64_t armed = claim(pager, segment, page, stop, NT_ARMED);
			if (to && armed)
				displace(pager, (struct pages){segment, page, armed}, to + (address_of(pager, segment, page) - start));
			else
				finish(pager, (struct pages){segment, page, armed}, state);
			page += armed;
			if (!planned && !armed)
				page++;
		}
	}
}

static void handle_event(struct nt_pager *pager, const struct uffd_msg *message)
{
	uint64_t start, end, to = 0;
	uint8_t state;
	count(&pager->counts.events, 1);
	if (message->event == UFFD_EVENT_REMAP) {
		start = message->arg.remap.from;
		end = start + message->arg.remap.len;
		to = message->arg.remap.to;
		state = NT_REMAPPED;
		if (pager->moved_count < MOVED_RANGES)
			pager->moved[pager->moved_count++] = (struct nt_range){to, message->arg.remap.len};
	} else {
		start = message->arg.remove.start;
		end = message->arg.remove.end;
		state = message->event == UFFD_EVENT_REMOVE ? NT_DISCARDED : NT_UNMAPPED;
	}
	cut_displaced(pager, start, end, to, state);
	take(pager, start, end, to, state);
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

/* Put the displaced pages where they belong now, and stop watching there; false when an event has to be read first. */
static bool restore_displaced(struct nt_pager *pager)
{
	while (pager->displaced_count) {
		struct displaced *last = &pager->displaced[pager->displaced_count - 1];
		while (last->run.count) {
			struct pages one = part(last->run, 0, 1);
			if (pager->mechanism->give_back(pager, one, last->at, NT_REMAPPED))
				return false;
			last->at += pager->page_size;
			last->run = part(last->run, 1, last->run.count - 1);
		}
		pager->displaced_count--;
	}
	for (; pager->moved_count; pager->moved_count--) {
		struct nt_range moved = pager->moved[pager->moved_count - 1];
		struct uffdio_range range = {.start = moved.start, .len = moved.size};
		ioctl(pager->uffd, UFFDIO_UNREGISTER, &range);
	}
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

/* Read everything that waits, handle the events, then serve the faults. */
void handle_messages(struct nt_pager *pager)
{
	atomic_store(&pager->gate_shut, true);
	while (atomic_load(&pager->inside))
		sched_yield();
	do {
		while (read_messages(pager))
			;
		handle_events(pager);
	} while (!restore_displaced(pager) && (sched_yield(), true));
	atomic_store(&pager->gate_shut, false);
	for (size_t number = 0; number < pager->messages_count; number++)
		serve_message(pager, &pager->messages[number]);
	pager->messages_count = 0;
}
