/* What a pager does: it arms, serves, sweeps, and ends. What happens to a page is the mechanisms' business. */
#include "pager.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>

#include "internal.h"

#define NS 1e9
/* A window starts small and doubles while faults come next to the last one: read-ahead's rule. */
#define FIRST_WINDOW 8

/* ---- states ---- */

void set_states(struct nt_pager *pager, struct pages run, uint8_t state)
{
	_Atomic uint8_t *states = &pager->states[run.segment->first + run.first];
	for (uint64_t page = 0; page < run.count; page++)
		atomic_store_explicit(&states[page], state, memory_order_release);
}

void finish(struct nt_pager *pager, struct pages run, uint8_t state)
{
	set_states(pager, run, state);
	atomic_fetch_sub(&pager->unfinished, run.count);
}

/* Take the pages from `first` on that are in state `from`, up to `limit`: ARMED ones become MOVING, PLANNED ones ARMING. */
uint64_t claim(struct nt_pager *pager, const struct segment *segment, uint64_t first, uint64_t limit, uint8_t from)
{
	uint64_t page = first;
	for (; page < limit; page++) {
		_Atomic uint8_t *state = &pager->states[segment->first + page];
		uint8_t expected = from;
		if (from == NT_PLANNED) { /* which nobody but the pager's thread changes */
			if (atomic_load_explicit(state, memory_order_relaxed) != from)
				break;
			atomic_store_explicit(state, (uint8_t)(from + 1), memory_order_release);
		} else if (!atomic_compare_exchange_strong(state, &expected, (uint8_t)(from + 1))) {
			break;
		}
	}
	_Static_assert(NT_ARMING == NT_PLANNED + 1 && NT_MOVING == NT_ARMED + 1, "claim counts on the order of the states");
	return page - first;
}

const struct segment *segment_at(const struct nt_pager *pager, uint64_t address)
{
	size_t low = 0, high = pager->segments_count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (pager->segments[middle].start <= address)
			low = middle + 1;
		else
			high = middle;
	}
	const struct segment *segment = low ? &pager->segments[low - 1] : NULL;
	return segment && address < segment->start + segment->pages * pager->page_size ? segment : NULL;
}

void wake_range(struct nt_pager *pager, uint64_t address, uint64_t size)
{
	struct uffdio_range range = {.start = address, .len = size};
	ioctl(pager->uffd, UFFDIO_WAKE, &range);
}

/* Make the thread look at what has changed. Safe in a signal handler. */
void wake_thread(struct nt_pager *pager)
{
	uint64_t one = 1;
	while (write(pager->wake_fd, &one, sizeof one) < 0 && errno == EINTR)
		;
}

int give_back(struct nt_pager *pager, struct pages run, uint8_t reason)
{
	return pager->mechanism->give_back(pager, run, address_of(pager, run.segment, run.first), reason);
}

/* ---- moving ---- */

/* Move a claimed run to `node` (negative: the target set), but give back what is there already. */
static int move_run(struct nt_pager *pager, struct pages run, int node, uint8_t moved)
{
	int result = 0;
	while (run.count && !result) {
		const int16_t *origins = &pager->origins[run.segment->first + run.first];
		bool home = node >= 0 && origins[0] == node;
		uint64_t same = 1;
		while (same < run.count && home == (node >= 0 && origins[same] == node))
			same++;
		struct pages next = part(run, 0, same);
		result = home ? give_back(pager, next, NT_AT_HOME) : pager->mechanism->move(pager, next, node, moved);
		run = part(run, same, run.count - same);
	}
	set_states(pager, run, NT_ARMED);
	return result;
}

/* How many pages to move for a fault at `address`: see FIRST_WINDOW. */
static uint64_t window_of(const struct nt_pager *pager, struct toucher *toucher, uint64_t address)
{
	uint64_t reach = toucher->window * pager->page_size;
	bool next = toucher->window && address + reach >= toucher->low && address < toucher->high + reach;
	uint64_t window = !toucher->window ? FIRST_WINDOW : next ? toucher->window * 2 : toucher->window / 2;
	if (window < 1)
		window = 1;
	return window < pager->options.window ? window : pager->options.window;
}

/* The armed pages around `page` in the aligned block of the window, claimed. Empty when somebody else was faster. */
static struct pages claim_window(struct nt_pager *pager, const struct segment *segment, uint64_t page, uint64_t window)
{
	uint64_t unit = segment->unit;
	if (unit > 1)
		window = (window + unit - 1) / unit * unit;
	uint64_t number = (segment->start / pager->page_size) + page; /* blocks are aligned by address */
	uint64_t before = number % window < page ? number % window : page;
	uint64_t low = page - before, high = low + window < segment->pages ? low + window : segment->pages;
	if (high <= page)
		high = page + 1;
	uint64_t first = page;
	while (first > low && state_of(pager, segment, first - 1) == NT_ARMED)
		first--;
	uint64_t claimed = claim(pager, segment, first, high, NT_ARMED);
	return (struct pages){segment, first, claimed};
}

/*
 * Resolve a fault at page address `address`. 0, EEXIST or EAGAIN if the page is one of this pager's (the access is redone
 * in any case), another errno if the kernel knows nothing of it.
 */
int serve(struct nt_pager *pager, uint64_t address, struct toucher *toucher)
{
	const struct segment *segment = segment_at(pager, address);
	uint64_t page = segment ? (address - segment->start) / pager->page_size : 0;
	uint8_t state = segment ? state_of(pager, segment, page) : NT_REASON;
	count(&pager->counts.faults, 1);
	/* Planned, too: the fault may be another pager's that is gone, and a zero page would come to be where we are about to arm. */
	if (state == NT_PLANNED || state == NT_ARMING || state == NT_MOVING) {
		sched_yield();
		wake_range(pager, address, pager->page_size);
		return EAGAIN;
	}
	if (state != NT_ARMED) {
		count(&pager->counts.hole_faults, 1);
		return pager->mechanism->let_go(pager, address);
	}
	uint64_t window = window_of(pager, toucher, address);
	struct pages run = claim_window(pager, segment, page, window);
	if (run.count) {
		toucher->window = window;
		toucher->low = address_of(pager, segment, run.first);
		toucher->high = toucher->low + run.count * pager->page_size;
		count(&pager->counts.windows, 1);
		int node = pager->options.toucher ? toucher->node : -1;
		if (pager->options.toucher && node < 0) /* a thread that is gone: leave its page where it is */
			node = pager->origins[segment->first + page];
		move_run(pager, run, node, NT_MOVED_FAULT);
	}
	wake_range(pager, address, pager->page_size);
	return 0;
}

/* Arm the next batch; whether the last one is done. */
static bool arm_batch(struct nt_pager *pager)
{
	uint64_t began = now_ns(), claimed = 0;
	while (!claimed && pager->arm_segment < pager->segments_count) {
		const struct segment *segment = &pager->segments[pager->arm_segment];
		uint64_t limit = pager->arm_page + ARM_PAGES < segment->pages ? pager->arm_page + ARM_PAGES : segment->pages;
		claimed = claim(pager, segment, pager->arm_page, limit, NT_PLANNED);
		int again = claimed ? pager->mechanism->arm(pager, (struct pages){segment, pager->arm_page, claimed}) : 0;
		if (again)
			break; /* what was not armed is planned again, and claimed again from the same place */
		pager->arm_page += claimed ? claimed : 1;
		if (pager->arm_page >= segment->pages) {
			pager->arm_segment++;
			pager->arm_page = 0;
		}
	}
	count(&pager->counts.arm_ns, now_ns() - began);
	return pager->arm_segment == pager->segments_count;
}

/* The next run of armed pages at the sweep's place, claimed; a second round finds what was armed again behind it. */
static struct pages claim_swept(struct nt_pager *pager)
{
	for (size_t round = 0; round <= pager->segments_count; round++) {
		const struct segment *segment = &pager->segments[pager->sweep_segment];
		uint64_t chunk = segment->unit > SWEEP_PAGES ? segment->unit : SWEEP_PAGES;
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

static void sweep(struct nt_pager *pager, bool late)
{
	uint64_t began = now_ns();
	struct pages run = claim_swept(pager);
	if (!run.count)
		return;
	count(&pager->counts.sweeps, 1);
	int again = pager->options.nodes_count ? move_run(pager, run, -1, NT_MOVED_SWEEP) : give_back(pager, run, NT_UNTOUCHED);
	if (!again)
		pager->sweep_page += run.count;
	uint64_t ended = now_ns();
	pace_step(&pager->pace, began, ended, late ? 0 : (double)(run.count * pager->page_size) / pager->options.rate);
	count(&pager->counts.sweep_ns, ended - began);
}

/* Give every page back that is not touched yet; false when an event has to be read first. */
static bool disarm_all(struct nt_pager *pager, uint8_t reason)
{
	for (size_t number = 0; number < pager->segments_count; number++) {
		const struct segment *segment = &pager->segments[number];
		for (uint64_t page = 0; page < segment->pages;) {
			uint64_t limit = page + ARM_PAGES < segment->pages ? page + ARM_PAGES : segment->pages;
			uint64_t planned = claim(pager, segment, page, limit, NT_PLANNED);
			finish(pager, (struct pages){segment, page, planned}, reason);
			uint64_t armed = claim(pager, segment, page + planned, limit, NT_ARMED);
			if (armed && give_back(pager, (struct pages){segment, page + planned, armed}, reason))
				return false;
			page += planned + armed ? planned + armed : 1;
		}
	}
	return atomic_load(&pager->unfinished) == 0;
}

/* ---- the thread ---- */

static void set_phase(struct nt_pager *pager, enum nt_phase phase)
{
	pthread_mutex_lock(&pager->mutex);
	atomic_store(&pager->phase, phase);
	pthread_cond_broadcast(&pager->changed);
	pthread_mutex_unlock(&pager->mutex);
}

/* Wait for a message, a request, the end of the process, or `until`. False when the process has ended. */
static bool wait_for_work(struct nt_pager *pager, uint64_t until)
{
	struct pollfd files[] = {{.fd = pager->uffd, .events = POLLIN},
				 {.fd = pager->wake_fd, .events = POLLIN},
				 {.fd = pager->options.alive_fd, .events = POLLIN}};
	uint64_t now = now_ns(), pause = until > now ? until - now : 0;
	struct timespec timeout = {.tv_sec = (time_t)(pause / 1000000000u), .tv_nsec = (long)(pause % 1000000000u)};
	int ready = ppoll(files, 3, until == UINT64_MAX ? NULL : &timeout, NULL);
	if (ready > 0 && files[0].revents)
		handle_messages(pager);
	uint64_t ignored;
	if (ready > 0 && files[1].revents && read(pager->wake_fd, &ignored, sizeof ignored) < 0)
		return true;
	return !(ready > 0 && files[2].revents);
}

static uint8_t request_reason(const struct nt_pager *pager)
{
	switch (atomic_load(&pager->request)) {
	case NT_CANCEL:
		return NT_CANCELLED;
	case NT_FORK:
		return NT_FORKED;
	default:
		return 0;
	}
}

static void tell(struct nt_pager *pager, enum nt_word word)
{
	pthread_mutex_lock(&pager->mutex);
	pager->word = word;
	pthread_cond_broadcast(&pager->changed);
	pthread_mutex_unlock(&pager->mutex);
}

static bool told_to_begin(struct nt_pager *pager)
{
	pthread_mutex_lock(&pager->mutex);
	while (pager->word == NT_NO_WORD)
		pthread_cond_wait(&pager->changed, &pager->mutex);
	bool begin = pager->word == NT_BEGIN;
	pthread_mutex_unlock(&pager->mutex);
	return begin;
}

static void *run_pager(void *argument)
{
	struct nt_pager *pager = argument;
	bool armed = false, alive = true;
	if (!told_to_begin(pager))
		return NULL;
	prctl(PR_SET_NAME, "nexttouch");
	forget_node();
	while (alive) {
		uint8_t reason = request_reason(pager);
		alive = wait_for_work(pager, armed && !reason ? pace_next(&pager->pace) : 0) && !pager->gone;
		if (reason) {
			if (disarm_all(pager, reason))
				break;
		} else if (!armed) {
			armed = arm_batch(pager);
			if (armed) {
				double rate = pager->options.nodes_count ? pager->options.rate : 0;
				pace_begin(&pager->pace, now_ns(), rate, pager->options.deadline);
				set_phase(pager, NT_SERVING);
			}
		} else if (now_ns() >= pace_next(&pager->pace)) {
			sweep(pager, now_ns() >= pager->pace.deadline);
		}
		if (armed && atomic_load(&pager->unfinished) == 0)
			break;
	}
	if (!alive)
		disarm_all(pager, NT_UNMAPPED);
	shut_gate(pager);
	dismantle(pager);
	set_phase(pager, NT_DONE); /* before a fork that waits for us goes on: whoever asks after it is to hear that */
	process_leave(pager);
	return NULL;
}

/* ---- starting, asking ---- */

/* A handler of the program that ran in the pager's thread and touched an armed page would wait for itself. */
static int create_thread(struct nt_pager *pager)
{
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int number = pthread_create(&pager->thread, NULL, run_pager, pager);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return number;
}

/* The thread is there before anything is watched: to make it takes memory, which may lie in what is watched. */
int nt_pager_start(struct nt_pager *pager, struct nt_error *error)
{
	if (process_join(pager, error))
		return -1;
	atomic_store(&pager->phase, NT_ARMING_PHASE);
	errno = create_thread(pager);
	bool threaded = errno == 0;
	if (!threaded) {
		fail(error, "pthread_create", NULL);
		pager->ranges_count = 0; /* none was registered */
	} else if (pager->options.mechanism == NT_RELOCATE) {
		own_pages(pager);
	}
	pager->started = threaded && watch_ranges(pager, error);
	if (pager->started) {
		tell(pager, NT_BEGIN);
		return 0;
	}
	shut_gate(pager);
	dismantle(pager);
	if (threaded) { /* now: to end it frees memory */
		tell(pager, NT_END);
		pthread_join(pager->thread, NULL);
	}
	process_leave(pager);
	set_phase(pager, NT_DONE);
	return -1;
}

bool nt_pager_wait(struct nt_pager *pager, enum nt_phase phase, double seconds)
{
	if (pager->owner != getpid())
		return true;
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	double whole = floor(seconds);
	until.tv_sec += (time_t)whole;
	until.tv_nsec += (long)((seconds - whole) * NS);
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	int late = 0, cancellable;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancellable); /* the wait would end with the mutex taken */
	pthread_mutex_lock(&pager->mutex);
	while (!late && atomic_load(&pager->phase) < (int)phase)
		late = pthread_cond_timedwait(&pager->changed, &pager->mutex, &until);
	bool reached = atomic_load(&pager->phase) >= (int)phase;
	pthread_mutex_unlock(&pager->mutex);
	pthread_setcancelstate(cancellable, NULL);
	return reached;
}

void nt_pager_cancel(struct nt_pager *pager)
{
	int none = NT_NONE;
	atomic_compare_exchange_strong(&pager->request, &none, NT_CANCEL);
	wake_thread(pager);
}

/* ---- watching one ---- */

enum nt_phase nt_pager_phase(const struct nt_pager *pager)
{
	return pager->owner == getpid() ? (enum nt_phase)atomic_load(&pager->phase) : NT_DONE;
}

uint64_t nt_bucket_limit(unsigned bucket)
{
	return (uint64_t)(4 + bucket % 4 + 1) << (bucket / 4) >> 2;
}

void nt_pager_stats(const struct nt_pager *pager, struct nt_stats *stats)
{
	const struct counts *counts = &pager->counts;
	*stats = (struct nt_stats){.faults = atomic_load(&counts->faults),
				   .hole_faults = atomic_load(&counts->hole_faults),
				   .windows = atomic_load(&counts->windows),
				   .sweeps = atomic_load(&counts->sweeps),
				   .events = atomic_load(&counts->events),
				   .arm_ns = atomic_load(&counts->arm_ns),
				   .service_ns = atomic_load(&counts->service_ns),
				   .sweep_ns = atomic_load(&counts->sweep_ns),
				   .longest_ns = atomic_load(&counts->longest_ns)};
	for (unsigned bucket = 0; bucket < NT_BUCKETS; bucket++)
		stats->latency[bucket] = atomic_load(&counts->latency[bucket]);
}

const uint8_t *nt_pager_states(const struct nt_pager *pager, size_t *pages)
{
	*pages = pager->pages;
	return (const uint8_t *)pager->states;
}

struct nt_range nt_pager_shadow(const struct nt_pager *pager)
{
	return (struct nt_range){pager->shadow, pager->shadow_size};
}
