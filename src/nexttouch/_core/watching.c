/*
 * What a pager watches: registering the program's memory, and letting all of it go at the end, wherever it is by then.
 *
 * Closing the descriptor would do, if it were certain to be the last one: a child forked by a bare clone(2) has another.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "internal.h"

#define GRACE_NS 20000000u
/* The kernel walks every entry that could be write-protected while it holds the lock of the memory map: 25 to 55 ms a GiB. */
#define UNREGISTER_SIZE (16UL << 20)

bool watch(const struct nt_pager *pager, int uffd, uint64_t address, uint64_t size)
{
	struct uffdio_register request = {.range = {.start = address, .len = size}, .mode = pager->mechanism->register_mode};
	return !ioctl(uffd, UFFDIO_REGISTER, &request);
}

/* Where changes are followed in one piece: a mapping that is cut for a moment is one that mremap(2) refuses then (EFAULT). */
void unwatch(const struct nt_pager *pager, int uffd, uint64_t address, uint64_t size)
{
	uint64_t most = pager->mechanism->out_of_place ? size : UNREGISTER_SIZE;
	for (uint64_t done = 0; done < size; done += most) {
		struct uffdio_range piece = {.start = address + done, .len = lesser(size - done, most)};
		ioctl(uffd, UFFDIO_UNREGISTER, &piece);
	}
}

static bool refused(struct nt_error *error)
{
	return fail(error, "UFFDIO_REGISTER",
		    errno == EBUSY ? "the memory is watched by another userfaultfd" : "the kernel refuses this mapping");
}

/*
 * Registering skips addresses without a mapping, and nothing would tell of a mapping made there later, so there must be
 * none. madvise finds out; what was mapped between the two calls is registered by a second one.
 *
 * MADV_DONTFORK: a fork that no handler hears of (clone by number) must not see holes. Better no mapping than zeros.
 */
static bool watch_range(struct nt_pager *pager, int uffd, struct nt_range range, struct nt_error *error)
{
	if (!watch(pager, uffd, range.start, range.size))
		return refused(error);
	if (!pager->mechanism->out_of_place)
		return true;
	pager->dont_fork = true;
	if (madvise((void *)(uintptr_t)range.start, range.size, MADV_DONTFORK)) {
		errno = EAGAIN;
		return fail(error, "madvise", "the memory is being unmapped");
	}
	return watch(pager, uffd, range.start, range.size) || refused(error);
}

/*
 * Register everything. Another process changes its mappings when it likes: what is not there as planned any more is passed
 * over, and arming its pages finds that out. Memory of this process has to be watched in full, or not at all; and memory
 * that another descriptor watches (EBUSY) is that one's altogether: two of us would disarm each other's pages.
 */
bool watch_ranges(struct nt_pager *pager, struct nt_error *error)
{
	for (size_t number = 0; number < pager->ranges_count; number++) {
		struct nt_range range = pager->ranges[number];
		size_t descriptor = number % pager->descriptors_count;
		bool watched = watch_range(pager, pager->descriptors[descriptor].uffd, range, error);
		if (!watched && (pager->mechanism->out_of_place || error->number == EBUSY))
			return false;
		if (watched)
			pager->regions[pager->regions_count++] = (struct region){
				.home = range.start, .size = range.size, .place = range.start, .descriptor = (uint16_t)descriptor};
	}
	return true;
}

/* ---- the end ---- */

/* A mapping of this process, and whether a userfaultfd watches it. */
struct mapping {
	uint64_t start, end;
	bool watched;
};

/* A file in /proc read line by line. */
struct lines {
	int file;
	char *text;
	size_t room, used, line; /* bytes of `text`; those that are filled; where the current line begins */
};

/* The next line, without its end; one that is longer than the room comes in pieces. NULL at the end. */
static char *next_line(struct lines *lines)
{
	for (;;) {
		char *start = lines->text + lines->line, *stop = memchr(start, '\n', lines->used - lines->line);
		if (stop || (lines->line == 0 && lines->used == lines->room)) {
			stop = stop ? stop : lines->text + lines->used - 1;
			*stop = '\0';
			lines->line = (size_t)(stop + 1 - lines->text);
			return start;
		}
		memmove(lines->text, start, lines->used - lines->line);
		lines->used -= lines->line;
		lines->line = 0;
		ssize_t got = read(lines->file, lines->text + lines->used, lines->room - lines->used);
		if (got < 0 && (errno == EINTR || errno == ENOMEM))
			continue;
		if (got <= 0)
			return NULL;
		lines->used += (size_t)got;
	}
}

/* The next mapping of /proc/self/smaps: its first line names the addresses, its last one the flags. */
static bool next_mapping(struct lines *lines, struct mapping *mapping)
{
	char *line, *end;
	*mapping = (struct mapping){0};
	while ((line = next_line(lines))) {
		uint64_t start = strtoull(line, &end, 16);
		if (*end == '-')
			mapping->start = start, mapping->end = strtoull(end + 1, NULL, 16);
		if (strncmp(line, "VmFlags:", 8))
			continue;
		mapping->watched = strstr(line, " um");
		return true;
	}
	return false;
}

/*
 * Let go of [start, start + size) if it is a descriptor's: of another one's it is refused to register it. Older kernels
 * unregister what is registered with another one (until 6.17). Whether it was, or may be, if there was no memory to find
 * out. What children are still kept from stays watched, so that the next look finds it. Another mapping of ours can take the
 * place before it is let go; its thread waits for us, so it is there still when children get it, too.
 */
static bool let_go(const struct nt_pager *pager, int uffd, uint64_t start, uint64_t size)
{
	if (!watch(pager, uffd, start, size))
		return errno == ENOMEM;
	void *address = (void *)(uintptr_t)start;
	if (pager->dont_fork && madvise(address, size, MADV_DOFORK))
		return true;
	unwatch(pager, uffd, start, size);
	if (pager->dont_fork)
		madvise(address, size, MADV_DOFORK);
	return true;
}

/* Let go of a mapping if it is one of ours; whether it is. */
static bool let_go_mapping(const struct nt_pager *pager, const struct mapping *mapping)
{
	if (mapping->start < pager->unreadable && mapping->end > pager->shadow)
		return false;
	for (size_t number = 0; number < pager->descriptors_count; number++)
		if (let_go(pager, pager->descriptors[number].uffd, mapping->start, mapping->end - mapping->start))
			return true;
	return false;
}

/* Let go of every mapping that is registered with our descriptors: as a whole, as it is by now, grown or cut. Whether there was one. */
static bool let_go_mappings(struct nt_pager *pager)
{
	struct lines lines = {.file = pager->smaps_fd, .text = pager->text, .room = sizeof pager->text};
	struct mapping mapping;
	bool found = false;
	lseek(lines.file, 0, SEEK_SET);
	while (next_mapping(&lines, &mapping))
		found |= mapping.watched && let_go_mapping(pager, &mapping);
	return found;
}

static bool is_any_changing(const struct nt_pager *pager)
{
	bool changing = false;
	for (size_t number = 0; number < pager->descriptors_count; number++)
		changing |= is_changing(pager->descriptors[number].uffd);
	return changing;
}

/*
 * Let events go until no thread waits for us and none that we let go is about to discard. Nothing is armed any more. A
 * discard that happened after our end would be unknown to the next pager of that memory, which would bring the discarded
 * contents back. The kernel does not tell when a discard is done; GRACE_NS is longer than a thread takes from its wake-up to
 * the mmap lock.
 */
static void settle(struct nt_pager *pager)
{
	bool changing = true;
	while (changing || now_ns() - pager->discarded_ns < GRACE_NS) {
		changing = false;
		for (size_t descriptor = 0; descriptor < pager->descriptors_count; descriptor++) {
			int uffd = pager->descriptors[descriptor].uffd;
			while (read(uffd, pager->messages, sizeof pager->messages) > 0)
				;
			changing |= is_changing(uffd);
		}
		sched_yield();
	}
}

/*
 * First where memory is believed to be, then whatever a look at all mappings still finds: what has grown, what has moved
 * since. No event is read meanwhile: a thread that moves watched memory waits at the end of that, so each can get away once.
 * If none has, no change can begin any more; if one has, those that have begun are waited for, and there is another look.
 */
static void let_go_all(struct nt_pager *pager)
{
	bool changing;
	do {
		while (let_go_mappings(pager))
			;
		changing = is_any_changing(pager);
		settle(pager);
	} while (changing);
}

/* Nothing is armed: let go of all that is watched (I8). */
void stop_watching(struct nt_pager *pager)
{
	for (size_t number = 0; number < pager->regions_count; number++) {
		const struct region *region = &pager->regions[number];
		let_go(pager, pager->descriptors[region->descriptor].uffd, region->place, region->size);
	}
	pager->regions_count = 0;
	if (pager->mechanism->out_of_place)
		let_go_all(pager);
	if (pager->mechanism->unwatch_own)
		pager->mechanism->unwatch_own(pager);
}
