/* Making a pager and what it has of the kernel (descriptor, shadow, staging area, registration), and giving all that back. */
#include "pager.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "internal.h"

#define UNREGISTER_SIZE (16UL << 20)
#define HEADER 16 /* a multiple of every alignment */

bool fail(struct nt_error *error, const char *call, const char *detail)
{
	*error = (struct nt_error){.call = call, .number = errno, .detail = detail};
	return false;
}

/* ---- what it has ---- */

/*
 * Zeros for `count` elements of `size` bytes, in a mapping of their own: on the heap the pager's memory could lie among the
 * pages that it arms, when these are all of the heap, and it would wait for itself. They are populated at once, as the
 * mapping may be in a hole of a range that is watched. Behind the elements is a page that nobody may touch, before them
 * the size of the mapping.
 */
static void *allot(size_t count, size_t size)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), used = HEADER + (count * size + HEADER - 1) / HEADER * HEADER;
	size_t whole = (used + page - 1) / page * page + page;
	uint8_t *mapping = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (mapping == MAP_FAILED)
		return NULL;
	uint8_t *header = mapping + whole - page - used;
	memcpy(header, &whole, sizeof whole);
	mprotect(mapping + whole - page, page, PROT_NONE);
	return header + HEADER;
}

static void release(void *array)
{
	if (!array)
		return;
	size_t whole, page = (size_t)sysconf(_SC_PAGESIZE);
	uint8_t *header = (uint8_t *)array - HEADER;
	memcpy(&whole, header, sizeof whole);
	munmap(header - (uintptr_t)header % page, whole);
}

static void *copy_of(const void *array, size_t count, size_t size)
{
	void *copy = allot(count, size);
	if (copy && count)
		memcpy(copy, array, count * size);
	return copy;
}

static bool copy_plan(struct nt_pager *pager, const struct nt_run *runs, size_t runs_count, const struct nt_range *ranges,
		      size_t ranges_count, const int16_t *origins)
{
	const struct nt_options *options = &pager->options;
	pager->segments_count = runs_count;
	pager->segments = allot(runs_count, sizeof *pager->segments);
	for (size_t number = 0; pager->segments && number < runs_count; number++) {
		pager->segments[number] = (struct segment){.start = runs[number].start,
							   .pages = runs[number].pages,
							   .unit = runs[number].unit,
							   .first = pager->pages};
		pager->pages += runs[number].pages;
	}
	uint64_t most = options->window > UNIT_PAGES ? options->window : UNIT_PAGES;
	pager->ranges_count = ranges_count;
	pager->ranges_room = ranges_count + CUTS;
	pager->ranges = allot(pager->ranges_room, sizeof *pager->ranges);
	if (pager->ranges && ranges_count)
		memcpy(pager->ranges, ranges, ranges_count * sizeof *ranges);
	pager->origins = copy_of(origins, pager->pages, sizeof *origins);
	pager->states = allot(pager->pages, 1);
	pager->nodes = copy_of(options->nodes, options->nodes_count, sizeof *options->nodes);
	pager->cpu_nodes = copy_of(options->cpu_nodes, options->cpus, sizeof *options->cpu_nodes);
	pager->options.nodes = pager->nodes;
	pager->options.cpu_nodes = pager->cpu_nodes;
	pager->addresses = allot(most, sizeof *pager->addresses);
	pager->statuses = allot(most, sizeof *pager->statuses);
	pager->wanted = allot(most, sizeof *pager->wanted);
	for (size_t number = 0; number < options->nodes_count; number++)
		pager->target.words[options->nodes[number] / 64] |= (uint64_t)1 << (options->nodes[number] % 64);
	atomic_store(&pager->unfinished, pager->pages);
	return pager->segments && pager->ranges && pager->origins && pager->states && pager->nodes && pager->cpu_nodes &&
	       pager->addresses && pager->statuses && pager->wanted;
}

static uint64_t features_of(const struct nt_options *options)
{
	uint64_t features = UFFD_FEATURE_THREAD_ID;
	if (options->mechanism == NT_PROTECT)
		return features | UFFD_FEATURE_PAGEFAULT_FLAG_WP;
	features |= UFFD_FEATURE_MOVE | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;
	return options->service == NT_INLINE ? features | UFFD_FEATURE_SIGBUS : features;
}

/* A handshake that failed may be done again with less: before 5.19 only anonymous memory can be protected. */
static bool shake_hands(int uffd, const struct nt_options *options)
{
	uint64_t features = features_of(options), more = options->mechanism == NT_PROTECT ? UFFD_FEATURE_WP_HUGETLBFS_SHMEM : 0;
	struct uffdio_api all = {.api = UFFD_API, .features = features | more}, least = {.api = UFFD_API, .features = features};
	return ioctl(uffd, UFFDIO_API, &all) == 0 || (more && ioctl(uffd, UFFDIO_API, &least) == 0);
}

static int make_uffd(int flags)
{
	int uffd = (int)syscall(SYS_userfaultfd, flags);
	if (uffd >= 0 || errno != EPERM || flags & UFFD_USER_MODE_ONLY)
		return uffd;
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC); /* 6.1: its mode says who may, commit 2d5de004e009 */
	if (device >= 0) {
		uffd = ioctl(device, USERFAULTFD_IOC_NEW, flags);
		close(device);
	} else {
		errno = EPERM; /* what the call said: there is no such device, or it is not for this user either */
	}
	return uffd;
}

static int open_uffd(const struct nt_options *options, struct nt_error *error)
{
	int uffd = make_uffd(O_CLOEXEC | O_NONBLOCK | (options->user_mode ? UFFD_USER_MODE_ONLY : 0));
	if (uffd < 0) {
		fail(error, "userfaultfd", "see `nexttouch doctor`");
	} else if (!shake_hands(uffd, options)) {
		fail(error, "UFFDIO_API", "this kernel lacks a feature that the mechanism needs; see `nexttouch doctor`");
		close(uffd);
		uffd = -1;
	}
	return uffd;
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
	size += STAGE_SIZE;
	void *shadow = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (shadow == MAP_FAILED)
		return fail(error, "mmap", "reserving addresses for parked pages");
	pager->shadow = (uint64_t)(uintptr_t)shadow;
	pager->shadow_size = size;
	/* mlockall(MCL_FUTURE) locks it too, and would fill it; pages do not move between locked and other memory. */
	munlock(shadow, size);
	if (mprotect(shadow, size, PROT_READ | PROT_WRITE))
		return fail(error, "mprotect", "reserving addresses for parked pages");
	uint64_t base = aligned(pager->shadow, STAGE_SIZE, 0);
	for (size_t number = 0; number < pager->segments_count; number++)
		pager->segments[number].shadow += base;
	madvise(shadow, size, MADV_DONTFORK);
	return true;
}

static bool make_stage(struct nt_pager *pager, struct nt_error *error)
{
	bool huge = false;
	for (size_t number = 0; number < pager->segments_count; number++)
		huge |= pager->segments[number].unit > 1;
	if (!huge && !pager->options.staged)
		return true;
	uint64_t size = 2 * STAGE_SIZE + STAGE_SIZE;
	uint8_t *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		return fail(error, "mmap", "staging area");
	uint8_t *stage = (uint8_t *)(uintptr_t)aligned((uint64_t)(uintptr_t)area, STAGE_SIZE, 0);
	if (stage > area)
		munmap(area, (size_t)(stage - area));
	munmap(stage + 2 * STAGE_SIZE, (size_t)(area + size - stage) - 2 * STAGE_SIZE);
	pager->stage = stage;
	madvise(stage, STAGE_SIZE, MADV_HUGEPAGE);
	madvise(stage + STAGE_SIZE, STAGE_SIZE, MADV_NOHUGEPAGE);
	madvise(stage, 2 * STAGE_SIZE, MADV_DONTFORK);
	return true;
}

static bool open_files(struct nt_pager *pager, struct nt_error *error)
{
	if (pager->uffd < 0)
		pager->uffd = open_uffd(&pager->options, error);
	if (pager->uffd < 0)
		return false;
	pager->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (pager->wake_fd < 0)
		return fail(error, "eventfd", NULL);
	return pager->options.mechanism == NT_PROTECT || (reserve_shadow(pager, error) && make_stage(pager, error));
}

/* ---- what it watches ---- */

/*
 * Closing the descriptor would do, if it were certain to be the last one: a child forked by a bare clone(2) has another.
 * Only what is known to be ours: older kernels unregister another descriptor's memory as well. In pieces, as the kernel
 * walks every entry that could be write-protected while it holds the lock of the memory map: 25 to 55 ms a GiB.
 */
void stop_watching(struct nt_pager *pager, struct nt_range range)
{
	if (pager->dont_fork && range.size)
		madvise((void *)(uintptr_t)range.start, range.size, MADV_DOFORK);
	for (uint64_t done = 0; done < range.size; done += UNREGISTER_SIZE) {
		uint64_t rest = range.size - done;
		struct uffdio_range piece = {.start = range.start + done, .len = rest < UNREGISTER_SIZE ? rest : UNREGISTER_SIZE};
		ioctl(pager->uffd, UFFDIO_UNREGISTER, &piece);
	}
}

static bool register_range(struct nt_pager *pager, struct nt_range range, struct nt_error *error)
{
	bool missing = pager->options.mechanism == NT_RELOCATE;
	struct uffdio_register request = {.range = {.start = range.start, .len = range.size},
					  .mode = missing ? UFFDIO_REGISTER_MODE_MISSING : UFFDIO_REGISTER_MODE_WP};
	if (ioctl(pager->uffd, UFFDIO_REGISTER, &request))
		return fail(error, "UFFDIO_REGISTER",
			    errno == EBUSY ? "the memory is watched by another userfaultfd" : "the kernel refuses this mapping");
	return true;
}

/*
 * Registering skips addresses without a mapping, and nothing would tell of a mapping made there later, so there must be
 * none. madvise finds out; what was mapped between the two calls is registered by a second one.
 *
 * MADV_DONTFORK: a fork that no handler hears of (clone by number) must not see holes. Better no mapping than zeros.
 */
static bool watch_range(struct nt_pager *pager, struct nt_range range, struct nt_error *error)
{
	if (!register_range(pager, range, error))
		return false;
	if (pager->options.mechanism == NT_PROTECT)
		return true;
	pager->dont_fork = true;
	if (madvise((void *)(uintptr_t)range.start, range.size, MADV_DONTFORK)) {
		stop_watching(pager, range);
		errno = EAGAIN;
		return fail(error, "madvise", "the memory is being unmapped");
	}
	return register_range(pager, range, error);
}

/*
 * Register everything. Another process changes its mappings when it likes: what is not there as planned any more is passed
 * over, and arming its pages finds that out. Memory of this process has to be watched in full, or not at all; and memory
 * that somebody else watches (EBUSY) is somebody else's altogether: two of us would disarm each other's pages.
 */
bool watch_ranges(struct nt_pager *pager, struct nt_error *error)
{
	for (size_t number = 0; number < pager->ranges_count; number++) {
		if (watch_range(pager, pager->ranges[number], error))
			continue;
		if (pager->options.mechanism == NT_RELOCATE || error->number == EBUSY) {
			pager->ranges_count = number; /* the rest is not ours to let go */
			return false;
		}
		pager->ranges[number].size = 0;
	}
	return true;
}

/* ---- its life ---- */

struct nt_pager *nt_pager_new(const struct nt_options *options, const struct nt_run *runs, size_t runs_count,
			      const struct nt_range *ranges, size_t ranges_count, const int16_t *origins,
			      struct nt_error *error)
{
	struct nt_pager *pager = allot(1, sizeof *pager);
	if (!pager) {
		fail(error, "mmap", NULL);
		if (options->uffd >= 0) {
			nt_forget(options->uffd);
			close(options->uffd);
		}
		return NULL;
	}
	pager->options = *options;
	pager->owner = getpid();
	pager->mechanism = options->mechanism == NT_RELOCATE ? &relocate : &protect;
	pager->page_size = (uint64_t)sysconf(_SC_PAGESIZE);
	pager->uffd = options->uffd;
	pager->wake_fd = -1;
	pthread_condattr_t monotonic;
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_mutex_init(&pager->mutex, NULL);
	pthread_cond_init(&pager->changed, &monotonic);
	bool made = copy_plan(pager, runs, runs_count, ranges, ranges_count, origins) || fail(error, "mmap", NULL);
	if (!made || !open_files(pager, error)) {
		nt_pager_free(pager);
		return NULL;
	}
	return pager;
}

/* Remove every trap and every resource of the kernel; the states stay. */
void dismantle(struct nt_pager *pager)
{
	if (pager->uffd < 0)
		return;
	bool stranded = false;
	for (size_t page = 0; page < pager->pages && !stranded; page++)
		stranded = atomic_load_explicit(&pager->states[page], memory_order_relaxed) == NT_STRANDED;
	for (size_t number = 0; number < pager->ranges_count; number++)
		stop_watching(pager, pager->ranges[number]);
	settle(pager);
	close(pager->uffd);
	pager->uffd = -1;
	if (pager->shadow_size && !stranded) {
		munmap((void *)(uintptr_t)pager->shadow, pager->shadow_size);
		pager->shadow_size = 0;
	}
	if (pager->stage)
		munmap(pager->stage, 2 * STAGE_SIZE);
	pager->stage = NULL;
}

void nt_pager_free(struct nt_pager *pager)
{
	bool ours = pager->owner == getpid();
	if (ours && pager->started) {
		nt_pager_cancel(pager);
		pthread_join(pager->thread, NULL);
	} else if (pager->uffd >= 0 && !ours) {
		close(pager->uffd); /* nothing else: its events are the parent's to read */
	} else if (pager->uffd >= 0) {
		nt_forget(pager->uffd);
		pager->ranges_count = 0; /* none was registered */
		dismantle(pager);
	}
	if (pager->wake_fd >= 0)
		close(pager->wake_fd);
	if (ours) {
		pthread_cond_destroy(&pager->changed);
		pthread_mutex_destroy(&pager->mutex);
	}
	release(pager->segments);
	release(pager->ranges);
	release(pager->origins);
	release(pager->states);
	release(pager->nodes);
	release(pager->cpu_nodes);
	release(pager->addresses);
	release(pager->statuses);
	release(pager->wanted);
	release(pager);
}
