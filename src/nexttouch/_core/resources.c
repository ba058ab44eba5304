/* What a pager has of the kernel: its descriptors, and what it wakes its thread with. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "internal.h"

#define MOST_DESCRIPTORS 1024

/* A handshake that failed may be done again with less. */
static bool shake_hands(int uffd, const struct nt_pager *pager)
{
	uint64_t features = pager->mechanism->features | (pager->options.service == NT_INLINE ? UFFD_FEATURE_SIGBUS : 0);
	uint64_t more = pager->mechanism->more_features;
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

static int open_uffd(const struct nt_pager *pager, struct nt_error *error)
{
	int uffd = make_uffd(O_CLOEXEC | O_NONBLOCK | (pager->options.user_mode ? UFFD_USER_MODE_ONLY : 0));
	if (uffd < 0) {
		fail(error, "userfaultfd", "see `nexttouch doctor`");
	} else if (!shake_hands(uffd, pager)) {
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
		int uffd = given >= 0 ? given : open_uffd(pager, error);
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

/* Whether a process is in another pid namespace than this one; also where that cannot be told. */
static bool is_elsewhere(pid_t pid)
{
	struct stat ours, its;
	char path[32];
	snprintf(path, sizeof path, "/proc/%d/ns/pid", pid);
	return stat("/proc/self/ns/pid", &ours) || stat(path, &its) || ours.st_ino != its.st_ino;
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
	pager->elsewhere = pager->options.pid && is_elsewhere(pager->options.pid);
	if (pager->options.pid)
		snprintf(path, sizeof path, "/proc/%d/pagemap", pager->options.pid);
	pager->pagemap_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (pager->mechanism->out_of_place)
		pager->smaps_fd = open("/proc/self/smaps", O_RDONLY | O_CLOEXEC);
	if (pager->mechanism->out_of_place && pager->smaps_fd < 0)
		return fail(error, "open", "/proc/self/smaps");
	return !pager->mechanism->acquire || pager->mechanism->acquire(pager, error);
}

void close_files(struct nt_pager *pager)
{
	close_descriptors(pager);
	if (pager->pagemap_fd >= 0)
		close(pager->pagemap_fd);
	if (pager->smaps_fd >= 0)
		close(pager->smaps_fd);
	pager->pagemap_fd = pager->smaps_fd = -1;
	if (pager->mechanism->release)
		pager->mechanism->release(pager);
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

bool is_readable(int file)
{
	struct pollfd poll_file = {.fd = file, .events = POLLIN};
	return poll(&poll_file, 1, 0) > 0;
}
