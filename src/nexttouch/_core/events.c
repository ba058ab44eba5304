/*
 * What the kernel tells through the descriptor: faults, and that the program unmaps, discards or moves memory.
 *
 * A thread that unmaps waits until its event is read, and from the moment it began until it goes on the kernel refuses
 * to install pages (EAGAIN: mmap_changing). So nothing can be installed on the ground of outdated knowledge, if only
 * every event that was read is handled before any fault, and pages whose mapping moved are put back before as well.
 */
#include <errno.h>
#include <sched.h>
#include <sys/epoll.h>

#include "internal.h"

/* Descriptors that are looked at in one go. */
#define READY 64

/* Keep the handlers of inline service out until the gate opens again. */
void shut_gate(struct nt_pager *pager)
{
	atomic_store(&pager->gate_shut, true);
	while (atomic_load(&pager->inside))
		sched_yield();
}

static void handle_event(struct nt_pager *pager, size_t descriptor, const struct uffd_msg *message)
{
	uint64_t start = message->arg.remove.start, end = message->arg.remove.end;
	count(&pager->counts.events, 1);
	if (message->event == UFFD_EVENT_REMAP)
		change_moved(pager, descriptor, message->arg.remap.from, message->arg.remap.to, message->arg.remap.len);
	else if (message->event == UFFD_EVENT_UNMAP)
		change_unmapped(pager, descriptor, start, end);
	else
		change_discarded(pager, descriptor, start, end);
}

/* Forget the faults behind the first `most`, but for the addresses between which they are. */
static void put_off_faults(struct nt_pager *pager, struct descriptor *own, size_t most)
{
	while (pager->messages_count > most) {
		uint64_t page = pager->messages[--pager->messages_count].arg.pagefault.address & ~(pager->page_size - 1);
		own->put_off_low = own->put_off_high ? lesser(own->put_off_low, page) : page;
		own->put_off_high = greater(own->put_off_high, page + pager->page_size);
	}
}

/* Let the faults that were put off happen again. */
static void recall_faults(struct descriptor *own)
{
	if (own->put_off_high)
		wake_range(own->uffd, own->put_off_low, own->put_off_high - own->put_off_low);
	own->put_off_high = 0;
}

/*
 * Read everything that waits, one by one where there can be events; handle these, and keep the faults. The kernel hands out faults first: more
 * threads that fault than there is room for would keep the events from us, and so, as nothing can be installed before these
 * are read, themselves waiting.
 */
static void read_events(struct nt_pager *pager, size_t descriptor)
{
	struct descriptor *own = &pager->descriptors[descriptor];
	bool told = pager->mechanism->out_of_place; /* of changes; else there are only faults */
	while (is_readable(own->uffd)) {
		if (told)
			note_mapped(pager, descriptor);
		struct uffd_msg *message = &pager->messages[pager->messages_count];
		size_t room = told ? 1 : MESSAGES - pager->messages_count;
		ssize_t size = read(own->uffd, message, room * sizeof *message);
		if (size < (ssize_t)sizeof *message)
			break;
		if (message->event == UFFD_EVENT_PAGEFAULT)
			pager->messages_count += (size_t)size / sizeof *message;
		else
			handle_event(pager, descriptor, message);
		if (pager->messages_count == MESSAGES)
			put_off_faults(pager, own, MESSAGES / 2);
	}
}

static void serve_message(struct nt_pager *pager, size_t descriptor, const struct uffd_msg *message)
{
	uint64_t began = now_ns(), address = message->arg.pagefault.address & ~(pager->page_size - 1);
	serve(pager, descriptor, address, toucher_of(pager, (pid_t)message->arg.pagefault.feat.ptid));
	record_service(pager, now_ns() - began);
}

/*
 * Read what waits at one descriptor, put back what its events displaced, and serve its faults. While its memory is changing
 * the kernel refuses that: its faults are put off, and there will be another try. Others' are not held up by it: who waits
 * for a page waits for changes of the very mapping that it is in, and for no thread that changes another one.
 */
static void handle_descriptor(struct nt_pager *pager, size_t descriptor)
{
	struct descriptor *own = &pager->descriptors[descriptor];
	read_events(pager, descriptor);
	if (!restore_regions(pager, descriptor)) {
		put_off_faults(pager, own, 0);
		return;
	}
	uint64_t began = now_ns();
	for (size_t number = 0; number < pager->messages_count; number++)
		serve_message(pager, descriptor, &pager->messages[number]);
	if (pager->messages_count)
		pace_fault(&pager->pace, began, now_ns());
	pager->messages_count = 0;
	recall_faults(own);
}

/*
 * Handle everything that waits, and what could not be put back before. Whether all is settled; handlers of inline service
 * stay out until it is.
 */
bool handle_messages(struct nt_pager *pager)
{
	struct epoll_event ready[READY];
	bool settled = true;
	shut_gate(pager);
	int count = epoll_wait(pager->ready_fd, ready, READY, 0);
	for (int number = 0; number < count; number++)
		handle_descriptor(pager, ready[number].data.u32);
	for (size_t descriptor = 0; descriptor < pager->descriptors_count; descriptor++) {
		if (pager->descriptors[descriptor].unsettled)
			handle_descriptor(pager, descriptor);
		settled &= !pager->descriptors[descriptor].unsettled;
	}
	atomic_store(&pager->gate_shut, !settled);
	if (settled)
		process_settled();
	return settled;
}
