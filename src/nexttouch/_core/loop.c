/* What a pager's thread does: it arms, serves, sweeps, and ends. What happens to a page is the mechanisms' business. */
#include <errno.h>
#include <poll.h>
#include <sys/prctl.h>

#include "internal.h"

#define RETRY_NS 20000u

/* Arm the next batch, of one run or of several; whether the last one is done. */
static bool arm_batch(struct nt_pager *pager)
{
	uint64_t began = now_ns(), armed = 0;
	int again = 0;
	while (armed < ARM_PAGES && !again && pager->arm_segment < pager->segments_count) {
		const struct segment *segment = &pager->segments[pager->arm_segment];
		uint64_t limit = lesser(pager->arm_page + ARM_PAGES, segment->pages);
		uint64_t claimed = claim(pager, segment, pager->arm_page, limit, NT_PLANNED);
		again = claimed ? pager->mechanism->arm(pager, (struct pages){segment, pager->arm_page, claimed}) : 0;
		if (again)
			break; /* what was not armed is planned again, and claimed again from the same place */
		armed += claimed;
		pager->arm_page += claimed ? claimed : 1;
		if (pager->arm_page >= segment->pages) {
			pager->arm_segment++;
			pager->arm_page = 0;
		}
	}
	count(&pager->counts.arm_ns, now_ns() - began);
	return pager->arm_segment == pager->segments_count;
}

/* The next run of up to `most` armed pages at the sweep's place, claimed; a second round finds what was armed again behind it. */
static struct pages claim_swept(struct nt_pager *pager, uint64_t most)
{
	for (size_t round = 0; round <= pager->segments_count; round++) {
		const struct segment *segment = &pager->segments[pager->sweep_segment];
		uint64_t chunk = greater(most / segment->unit * segment->unit, segment->unit);
		while (pager->sweep_page < segment->pages && state_of(pager, segment, pager->sweep_page) != NT_ARMED)
			pager->sweep_page++;
		uint64_t limit = pager->sweep_page + chunk < segment->pages ? pager->sweep_page + chunk : segment->pages;
		uint64_t claimed = claim(pager, segment, pager->sweep_page, limit, NT_ARMED);
		if (claimed)
			return (struct pages){segment, pager->sweep_page, claimed};
		pager->sweep_segment = (pager->sweep_segment + 1) % pager->segments_count;
		pager->sweep_page = 0;
	}
	return (struct pages){pager->segments, 0, 0};
}

/*
 * Put the next step of the sweep back, which makes it due; what waits for its toucher stays. A step is of several runs where
 * faults have left only short ones: it is one call of the mover, whose price hardly depends on how many pages move.
 */
static void sweep(struct nt_pager *pager)
{
	uint64_t began = now_ns(), swept = 0;
	bool again = false;
	while (swept < SWEEP_PAGES && !again) {
		struct pages run = claim_swept(pager, SWEEP_PAGES - swept);
		if (!run.count)
			break;
		count(&pager->counts.sweeps, 1);
		again = return_run(pager, run, -1, NT_DUE_SWEEP);
		pager->sweep_page += again ? 0 : run.count;
		swept += run.count;
	}
	if (!swept)
		return;
	pager->swept_ns = began;
	pager->swept_pages = swept;
}

/* Nothing is due: the last step of the sweep has been moved, if there was one. */
static void note_swept(struct nt_pager *pager)
{
	uint64_t ended = now_ns(), began = pager->swept_ns;
	if (!began)
		return;
	bool late = ended >= pager->pace.deadline;
	pace_step(&pager->pace, began, ended, late ? 0 : (double)(pager->swept_pages * pager->page_size) / pager->options.rate);
	count(&pager->counts.sweep_ns, ended - began);
	pager->swept_ns = 0;
}

static bool is_any_due(const struct nt_pager *pager)
{
	return atomic_load(&pager->unfinished) != atomic_load(&pager->unreturned);
}

/* Give back every page that is armed, and drop those that are to be, as far as no event has to be read first. */
static void disarm_all(struct nt_pager *pager, uint8_t reason)
{
	const struct segment *last = &pager->segments[pager->segments_count - 1];
	uint64_t at = 0, end = last->start + last->pages * pager->page_size;
	struct pages run;
	while (next_run(pager, &at, end, NT_PLANNED, &run))
		conclude(pager, run, reason);
	at = 0;
	while (next_run(pager, &at, end, NT_ARMED, &run)) {
		uint64_t most = run.segment->unit > ARM_PAGES ? run.segment->unit : ARM_PAGES;
		uint64_t claimed = claim(pager, run.segment, run.first, run.first + lesser(run.count, most), NT_ARMED);
		at = address_of(pager, run.segment, run.first + (claimed ? claimed : 1));
		if (claimed && give_back(pager, part(run, 0, claimed), reason))
			return;
	}
}

/*
 * Wait for a message, a request, the end of the process, or `until`, and handle the messages. While something could not be
 * put back, as it is changing, that is tried again every RETRY_NS: what it waits for is that threads run. False when the
 * process has ended.
 */
static bool wait_for_work(struct nt_pager *pager, uint64_t until)
{
	struct pollfd files[] = {{.fd = pager->ready_fd, .events = POLLIN},
				 {.fd = pager->wake_fd, .events = POLLIN},
				 {.fd = pager->options.alive_fd, .events = POLLIN}};
	uint64_t now = now_ns();
	if (pager->unsettled)
		until = lesser(until, now + RETRY_NS);
	uint64_t pause = until > now ? until - now : 0;
	struct timespec timeout = {.tv_sec = (time_t)(pause / 1000000000u), .tv_nsec = (long)(pause % 1000000000u)};
	int ready = ppoll(files, 3, until == UINT64_MAX ? NULL : &timeout, NULL);
	if (pager->unsettled || (ready > 0 && files[0].revents))
		pager->unsettled = !handle_messages(pager);
	uint64_t ignored;
	if (ready > 0 && files[1].revents && read(pager->wake_fd, &ignored, sizeof ignored) < 0)
		return true;
	return !(ready > 0 && files[2].revents);
}

/* Why everything is to be given back; 0 if it is not. */
static uint8_t end_reason(const struct nt_pager *pager)
{
	switch (atomic_load(&pager->request)) {
	case NT_CANCEL:
		return NT_CANCELLED;
	case NT_FORK:
		return NT_FORKED;
	default:
		return pager->all_full ? NT_TARGET_FULL : 0;
	}
}

static void begin_serving(struct nt_pager *pager)
{
	double rate = pager->options.nodes_count ? pager->options.rate : 0;
	pace_begin(&pager->pace, now_ns(), rate, pager->options.deadline);
	futex_set(&pager->phase, NT_SERVING);
}

/* When the sweep has its next turn: never while something is due, as the mover tells when nothing is. */
static uint64_t next_turn(const struct nt_pager *pager)
{
	return is_any_due(pager) ? UINT64_MAX : pace_next(&pager->pace);
}

/* One round: messages first, then arming, the end, or the sweep. Whether to go on: until no page is a trap, or will be. */
static bool take_round(struct nt_pager *pager, bool *armed)
{
	uint8_t reason = end_reason(pager);
	if (!wait_for_work(pager, *armed && !reason ? next_turn(pager) : 0) || atomic_load(&pager->gone))
		return false;
	if (!is_any_due(pager))
		note_swept(pager);
	if (reason)
		disarm_all(pager, reason);
	else if (!*armed && (*armed = arm_batch(pager)))
		begin_serving(pager);
	else if (*armed && now_ns() >= next_turn(pager))
		sweep(pager);
	return atomic_load(&pager->unreturned);
}

/*
 * Nothing is a trap when the rounds are over, or the process is gone. What is due is moved after all has been let go: a fork
 * waits for the one, and not for the other.
 */
void *run_pager(void *argument)
{
	struct nt_pager *pager = argument;
	bool armed = false;
	futex_wait_at_least(&pager->start_signal, NT_START_BEGIN, NULL);
	if (atomic_load(&pager->start_signal) == NT_START_END)
		return NULL;
	prctl(PR_SET_NAME, "nexttouch");
	while (take_round(pager, &armed))
		;
	if (atomic_load(&pager->unreturned))
		disarm_all(pager, NT_UNMAPPED);
	shut_gate(pager);
	stop_watching(pager);
	close_descriptors(pager); /* before a fork goes on, whose child closes what it finds of ours */
	process_let_go();
	atomic_store(&pager->let_go, true);
	process_settled(); /* handlers that waited for us pass us over: the mover may take its time */
	end_mover(pager);
	note_swept(pager);
	close_files(pager);
	futex_set(&pager->phase, NT_DONE); /* before a fork that waits for us goes on: a thread that asks after it is to hear that */
	process_leave(pager);
	return NULL;
}
