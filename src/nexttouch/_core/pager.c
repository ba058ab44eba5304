/* The pager's life: made, armed, serving, sweeping, done. What happens to a page is the mechanisms' business. */
#include "pager.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "internal.h"

#define HUGE_SIZE (2UL << 20)
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
		uint8_t expected = from;
		if (!atomic_compare_exchange_strong(&pager->states[segment->first + page], &expected, (uint8_t)(from + 1)))
			break;
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
	if (state == NT_ARMING || state == NT_MOVING) {
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
	uint64_t now = now_ns(), pause = 0;
	if (!late && !isinf(pager->options.rate))
		pause = (uint64_t)((double)(run.count * pager->page_size) / pager->options.rate * NS);
	/* What the sweep could not do while faults had the thread is not made up for beyond one pause. */
	pager->sweep_due_ns = pager->sweep_due_ns + pause > began ? pager->sweep_due_ns + pause : began + pause;
	count(&pager->counts.sweep_ns, now - began);
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

static uint64_t next_sweep(const struct nt_pager *pager)
{
	uint64_t due = pager->options.rate > 0 && pager->options.nodes_count ? pager->sweep_due_ns : UINT64_MAX;
	return due < pager->deadline_ns ? due : pager->deadline_ns;
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

/* Remove every trap and every resource of the kernel; the states stay. */
static void dismantle(struct nt_pager *pager)
{
	if (pager->uffd < 0 && pager->shadow_fd < 0)
		return;
	bool stranded = false;
	for (size_t page = 0; page < pager->pages && !stranded; page++)
		stranded = atomic_load_explicit(&pager->states[page], memory_order_relaxed) == NT_STRANDED;
	for (size_t number = 0; number < pager->ranges_count; number++) {
		struct uffdio_range range = {.start = pager->ranges[number].start, .len = pager->ranges[number].size};
		if (pager->dont_fork)
			madvise((void *)(uintptr_t)range.start, range.len, MADV_DOFORK);
		ioctl(pager->uffd, UFFDIO_UNREGISTER, &range);
	}
	close(pager->uffd);
	pager->uffd = -1;
	if (pager->shadow_fd >= 0)
		close(pager->shadow_fd);
	pager->shadow_fd = -1;
	if (pager->shadow_size && !stranded) {
		munmap((void *)(uintptr_t)pager->shadow, pager->shadow_size);
		pager->shadow_size = 0;
	}
	if (pager->stage)
		munmap(pager->stage, HUGE_SIZE);
	pager->stage = NULL;
}

static void *run_pager(void *argument)
{
	struct nt_pager *pager = argument;
	bool armed = false, alive = true;
	prctl(PR_SET_NAME, "nexttouch");
	forget_node();
	while (alive) {
		uint8_t reason = request_reason(pager);
		alive = wait_for_work(pager, armed && !reason ? next_sweep(pager) : 0);
		if (reason) {
			if (disarm_all(pager, reason))
				break;
		} else if (!armed) {
			armed = arm_batch(pager);
			if (armed) {
				pager->sweep_due_ns = now_ns();
				if (!isinf(pager->options.deadline))
					pager->deadline_ns = pager->sweep_due_ns + (uint64_t)(pager->options.deadline * NS);
				set_phase(pager, NT_SERVING);
			}
		} else if (now_ns() >= next_sweep(pager)) {
			sweep(pager, now_ns() >= pager->deadline_ns);
		}
		if (armed && atomic_load(&pager->unfinished) == 0)
			break;
	}
	if (!alive)
		disarm_all(pager, NT_UNMAPPED);
	dismantle(pager);
	process_leave(pager);
	set_phase(pager, NT_DONE);
	return NULL;
}

/* ---- making one ---- */

static bool fail(struct nt_error *error, const char *call, const char *detail)
{
	*error = (struct nt_error){.call = call, .number = errno, .detail = detail};
	return false;
}

static void *copy_of(const void *array, size_t count, size_t size)
{
	void *copy = calloc(count ? count : 1, size);
	if (copy && count)
		memcpy(copy, array, count * size);
	return copy;
}

static bool copy_plan(struct nt_pager *pager, const struct nt_run *runs, size_t runs_count, const struct nt_range *ranges,
		      size_t ranges_count, const int16_t *origins)
{
	const struct nt_options *options = &pager->options;
	pager->segments_count = runs_count;
	pager->segments = calloc(runs_count ? runs_count : 1, sizeof *pager->segments);
	for (size_t number = 0; pager->segments && number < runs_count; number++) {
		pager->segments[number] = (struct segment){.start = runs[number].start,
							   .pages = runs[number].pages,
							   .unit = runs[number].unit,
							   .first = pager->pages};
		pager->pages += runs[number].pages;
	}
	uint64_t most = options->window > UNIT_PAGES ? options->window : UNIT_PAGES;
	pager->ranges_count = ranges_count;
	pager->ranges = copy_of(ranges, ranges_count, sizeof *ranges);
	pager->origins = copy_of(origins, pager->pages, sizeof *origins);
	pager->states = calloc(pager->pages ? pager->pages : 1, 1);
	pager->nodes = copy_of(options->nodes, options->nodes_count, sizeof *options->nodes);
	pager->cpu_nodes = copy_of(options->cpu_nodes, options->cpus, sizeof *options->cpu_nodes);
	pager->addresses = calloc(most, sizeof *pager->addresses);
	pager->statuses = calloc(most, sizeof *pager->statuses);
	pager->wanted = calloc(most, sizeof *pager->wanted);
	for (size_t number = 0; number < options->nodes_count; number++)
		pager->target.words[options->nodes[number] / 64] |= (uint64_t)1 << (options->nodes[number] % 64);
	atomic_store(&pager->unfinished, pager->pages);
	return pager->segments && pager->ranges && pager->origins && pager->states && pager->nodes && pager->cpu_nodes &&
	       pager->addresses && pager->statuses && pager->wanted;
}

static int open_uffd(bool user_mode, uint64_t features, struct nt_error *error)
{
	int flags = O_CLOEXEC | O_NONBLOCK | (user_mode ? UFFD_USER_MODE_ONLY : 0);
	int uffd = (int)syscall(SYS_userfaultfd, flags);
	if (uffd < 0 && errno == EPERM && !user_mode) {
		int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC); /* 6.1: its mode says who may, commit 2d5de004e009 */
		if (device >= 0) {
			uffd = ioctl(device, USERFAULTFD_IOC_NEW, flags);
			close(device);
		}
	}
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	if (uffd < 0) {
		fail(error, "userfaultfd", "see `nexttouch doctor`");
	} else if (ioctl(uffd, UFFDIO_API, &api)) {
		fail(error, "UFFDIO_API", "this kernel lacks a feature that the mechanism needs; see `nexttouch doctor`");
		close(uffd);
		uffd = -1;
	}
	return uffd;
}

static uint64_t features_of(const struct nt_options *options)
{
	uint64_t features = UFFD_FEATURE_THREAD_ID;
	if (options->mechanism == NT_PROTECT)
		return features | UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
	features |= UFFD_FEATURE_MOVE | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;
	return options->service == NT_INLINE ? features | UFFD_FEATURE_SIGBUS : features;
}

static uint64_t aligned(uint64_t address, uint64_t alignment, uint64_t remainder)
{
	uint64_t base = address / alignment * alignment + remainder;
	return base < address ? base + alignment : base;
}

/* Reserve the shadow: each run at an address that is as aligned as its own, so that huge pages are parked whole. */
static bool reserve_shadow(struct nt_pager *pager, struct nt_error *error)
{
	uint64_t size = 0;
	for (size_t number = 0; number < pager->segments_count; number++) {
		struct segment *segment = &pager->segments[number];
		uint64_t alignment = segment->unit * pager->page_size;
		segment->shadow = aligned(size, alignment, segment->start % alignment);
		size = segment->shadow + segment->pages * pager->page_size;
	}
	size += HUGE_SIZE;
	void *shadow = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (shadow == MAP_FAILED)
		return fail(error, "mmap", "reserving addresses for parked pages");
	pager->shadow = (uint64_t)(uintptr_t)shadow;
	pager->shadow_size = size;
	uint64_t base = aligned(pager->shadow, HUGE_SIZE, 0);
	for (size_t number = 0; number < pager->segments_count; number++)
		pager->segments[number].shadow += base;
	madvise(shadow, size, MADV_DONTFORK);
	pager->shadow_fd = open_uffd(true, UFFD_FEATURE_SIGBUS | UFFD_FEATURE_MOVE, error);
	struct uffdio_register request = {.range = {.start = pager->shadow, .len = size}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	if (pager->shadow_fd >= 0 && ioctl(pager->shadow_fd, UFFDIO_REGISTER, &request))
		return fail(error, "UFFDIO_REGISTER", "registering the shadow");
	return pager->shadow_fd >= 0;
}

static bool make_stage(struct nt_pager *pager, struct nt_error *error)
{
	bool huge = false;
	for (size_t number = 0; number < pager->segments_count; number++)
		huge |= pager->segments[number].unit > 1;
	if (!huge && !pager->options.staged)
		return true;
	uint64_t size = 2 * HUGE_SIZE;
	uint8_t *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		return fail(error, "mmap", "staging area");
	uint8_t *stage = (uint8_t *)(uintptr_t)aligned((uint64_t)(uintptr_t)area, HUGE_SIZE, 0);
	if (stage > area)
		munmap(area, (size_t)(stage - area));
	munmap(stage + HUGE_SIZE, (size_t)(area + size - stage) - HUGE_SIZE);
	pager->stage = stage;
	madvise(stage, HUGE_SIZE, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	madvise(stage, HUGE_SIZE, MADV_DONTFORK);
	return true;
}

static bool open_files(struct nt_pager *pager, struct nt_error *error)
{
	if (pager->uffd < 0)
		pager->uffd = open_uffd(pager->options.user_mode, features_of(&pager->options), error);
	if (pager->uffd < 0)
		return false;
	pager->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (pager->wake_fd < 0)
		return fail(error, "eventfd", NULL);
	return pager->options.mechanism == NT_PROTECT || (reserve_shadow(pager, error) && make_stage(pager, error));
}

struct nt_pager *nt_pager_new(const struct nt_options *options, const struct nt_run *runs, size_t runs_count,
			      const struct nt_range *ranges, size_t ranges_count, const int16_t *origins,
			      struct nt_error *error)
{
	struct nt_pager *pager = calloc(1, sizeof *pager);
	if (!pager) {
		fail(error, "calloc", NULL);
		if (options->uffd >= 0)
			close(options->uffd);
		return NULL;
	}
	pager->options = *options;
	pager->owner = getpid();
	pager->mechanism = options->mechanism == NT_RELOCATE ? &relocate : &protect;
	pager->page_size = (uint64_t)sysconf(_SC_PAGESIZE);
	pager->uffd = options->uffd;
	pager->wake_fd = pager->shadow_fd = -1;
	pager->deadline_ns = UINT64_MAX;
	pthread_condattr_t monotonic;
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_mutex_init(&pager->mutex, NULL);
	pthread_cond_init(&pager->changed, &monotonic);
	bool made = copy_plan(pager, runs, runs_count, ranges, ranges_count, origins) || fail(error, "calloc", NULL);
	if (!made || !open_files(pager, error)) {
		nt_pager_free(pager);
		return NULL;
	}
	return pager;
}

static bool register_ranges(struct nt_pager *pager, struct nt_error *error)
{
	bool missing = pager->options.mechanism == NT_RELOCATE;
	for (size_t number = 0; number < pager->ranges_count; number++) {
		struct nt_range range = pager->ranges[number];
		struct uffdio_register request = {.range = {.start = range.start, .len = range.size},
						  .mode = missing ? UFFDIO_REGISTER_MODE_MISSING : UFFDIO_REGISTER_MODE_WP};
		if (ioctl(pager->uffd, UFFDIO_REGISTER, &request))
			return fail(error, "UFFDIO_REGISTER",
				    errno == EBUSY ? "the memory is watched by another userfaultfd" : "the kernel refuses this mapping");
		/* A fork that no handler hears of (clone by number) must not see holes: better no mapping than zeros. */
		if (missing && !madvise((void *)(uintptr_t)range.start, range.size, MADV_DONTFORK))
			pager->dont_fork = true;
	}
	return true;
}

int nt_pager_start(struct nt_pager *pager, struct nt_error *error)
{
	if (process_join(pager, error))
		return -1;
	atomic_store(&pager->phase, NT_ARMING_PHASE);
	bool registered = register_ranges(pager, error);
	if (registered) {
		errno = pthread_create(&pager->thread, NULL, run_pager, pager);
		pager->started = errno == 0;
		if (!pager->started)
			fail(error, "pthread_create", NULL);
	}
	if (!pager->started) {
		dismantle(pager);
		process_leave(pager);
		set_phase(pager, NT_DONE);
	}
	return pager->started ? 0 : -1;
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
	int late = 0;
	pthread_mutex_lock(&pager->mutex);
	while (!late && atomic_load(&pager->phase) < (int)phase)
		late = pthread_cond_timedwait(&pager->changed, &pager->mutex, &until);
	bool reached = atomic_load(&pager->phase) >= (int)phase;
	pthread_mutex_unlock(&pager->mutex);
	return reached;
}

void nt_pager_cancel(struct nt_pager *pager)
{
	int none = NT_NONE;
	atomic_compare_exchange_strong(&pager->request, &none, NT_CANCEL);
	wake_thread(pager);
}

void nt_pager_free(struct nt_pager *pager)
{
	bool ours = pager->owner == getpid();
	if (ours && pager->started) {
		nt_pager_cancel(pager);
		pthread_join(pager->thread, NULL);
	} else if (pager->uffd >= 0) {
		dismantle(pager);
	}
	if (pager->wake_fd >= 0)
		close(pager->wake_fd);
	if (ours) {
		pthread_cond_destroy(&pager->changed);
		pthread_mutex_destroy(&pager->mutex);
	}
	free(pager->segments);
	free(pager->ranges);
	free(pager->origins);
	free(pager->states);
	free(pager->nodes);
	free(pager->cpu_nodes);
	free(pager->addresses);
	free(pager->statuses);
	free(pager->wanted);
	free(pager);
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
