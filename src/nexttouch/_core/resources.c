/* What a pager has of the kernel: the descriptor, the shadow, and what it wakes its thread with. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "internal.h"

#define HUGE_SIZE (2UL << 20)
#define MOST_DESCRIPTORS 1024

static uint64_t features_of(const struct nt_options *options)
{
	uint64_t features = UFFD_FEATURE_THREAD_ID;
	if (options->mechanism == NT_WRITE_PROTECT)
		return features | UFFD_FEATURE_PAGEFAULT_FLAG_WP;
	features |= UFFD_FEATURE_MOVE | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;
	return options->service == NT_INLINE ? features | UFFD_FEATURE_SIGBUS : features;
}

/* A handshake that failed may be done again with less: before 5.19 only anonymous memory can be protected. */
static bool shake_hands(int uffd, const struct nt_options *options)
{
	uint64_t features = features_of(options);
	uint64_t more = options->mechanism == NT_WRITE_PROTECT ? UFFD_FEATURE_WP_HUGETLBFS_SHMEM : 0;
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

/* ---- descriptors ---- */

/* A fourth of what this process may have open: the rest is the program's. One there must be. */
static size_t most_descriptors(size_t wanted)
{
	struct rlimit limit = {0};
	getrlimit(RLIMIT_NOFILE, &limit);
	uint64_t most = lesser(lesser(limit.rlim_cur / 4, MOST_DESCRIPTORS), wanted);
	return most ? most : 1;
}

static bool add_descriptor(struct nt_pager *pager, int uffd)
{
	struct epoll_event event = {.events = EPOLLIN, .data = {.u32 = (uint32_t)pager->descriptors_count}};
	pager->descriptors[pager->descriptors_count++].uffd = uffd;
	return epoll_ctl(pager->ready_fd, EPOLL_CTL_ADD, uffd, &event) == 0;
}

/* The one that was given, or one for each range as far as there are enough; `error` says why there is none. */
static bool open_descriptors(struct nt_pager *pager, struct nt_error *error)
{
	int given = pager->options.uffd;
	size_t most = given >= 0 ? 1 : most_descriptors(pager->ranges_count);
	pager->options.uffd = -1;
	while (pager->descriptors_count < most) {
		int uffd = given >= 0 ? given : open_uffd(&pager->options, error);
		if (uffd < 0)
			break;
		if (!add_descriptor(pager, uffd))
			return fail(error, "epoll_ctl", NULL);
	}
	return pager->descriptors_count;
}

void close_descriptors(struct nt_pager *pager)
{
	for (size_t number = 0; number < pager->descriptors_count; number++)
		close(pager->descriptors[number].uffd);
	pager->descriptors_count = 0;
	if (pager->ready_fd >= 0)
		close(pager->ready_fd);
	pager->ready_fd = -1;
}

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

/* Each segment is watched by its range's descriptor. Ranges and segments are sorted. */
static void assign_descriptors(struct nt_pager *pager)
{
	size_t range = 0;
	for (size_t number = 0; number < pager->segments_count; number++) {
		struct segment *segment = &pager->segments[number];
		while (range + 1 < pager->ranges_count && segment->start >= pager->ranges[range].start + pager->ranges[range].size)
			range++;
		segment->descriptor = range % pager->descriptors_count;
	}
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
static bool reserve_shadow(struct nt_pager *pager, struct nt_error *error)
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

bool open_files(struct nt_pager *pager, struct nt_error *error)
{
	pager->ready_fd = epoll_create1(EPOLL_CLOEXEC);
	if (pager->ready_fd < 0)
		return fail(error, "epoll_create1", NULL);
	pager->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (pager->wake_fd < 0)
		return fail(error, "eventfd", NULL);
	if (!open_descriptors(pager, error))
		return false;
	assign_descriptors(pager);
	char path[32] = "/proc/self/pagemap";
	if (pager->options.pid)
		snprintf(path, sizeof path, "/proc/%d/pagemap", pager->options.pid);
	pager->pagemap_fd = open(path, O_RDONLY | O_CLOEXEC);
	return pager->options.mechanism == NT_WRITE_PROTECT || reserve_shadow(pager, error);
}

static bool has_stranded(const struct nt_pager *pager)
{
	for (size_t page = 0; page < pager->pages; page++)
		if (atomic_load_explicit(&pager->states[page], memory_order_relaxed) == NT_STRANDED)
			return true;
	return false;
}

/* Nothing is watched any more. The shadow stays if it holds pages that could not be put back. */
void close_files(struct nt_pager *pager)
{
	close_descriptors(pager);
	if (pager->pagemap_fd >= 0)
		close(pager->pagemap_fd);
	pager->pagemap_fd = -1;
	if (pager->reserved.size && !has_stranded(pager)) {
		munmap((void *)(uintptr_t)pager->reserved.start, pager->reserved.size);
		pager->reserved.size = pager->shadow_size = 0;
	}
}

void wake_range(int uffd, uint64_t address, uint64_t size)
{
	struct uffdio_range range = {.start = address, .len = size};
	ioctl(uffd, UFFDIO_WAKE, &range);
}

/* Make the thread look at what has changed. Safe in a signal handler. */
void wake_thread(struct nt_pager *pager)
{
	uint64_t one = 1;
	while (write(pager->wake_fd, &one, sizeof one) < 0 && errno == EINTR)
		;
}

/* Whether a thread is between the begin of a change of the memory of `uffd` and its going on after its event was read. */
bool is_changing(int uffd)
{
	struct uffdio_zeropage nothing = {.range = {.start = 0, .len = 0}};
	return ioctl(uffd, UFFDIO_ZEROPAGE, &nothing) && errno == EAGAIN; /* else EINVAL */
}
