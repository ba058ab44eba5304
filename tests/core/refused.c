/*
 * An unmapping that fails leaves what was there, although the kernel has told of it before it fails.
 *
 * usage: refused HOW CALL WAY
 *   HOW   sealed    the page behind is (mseal(2), Linux 6.10)
 *         limit     more than RLIMIT_AS would be mapped over it; with mmap only
 *         mappings  the hole would make one mapping more than there may be
 *   CALL  munmap | mmap
 * Exit 0, 1 with what was wrong, 77 if this kernel cannot refuse in that way.
 */
#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "migration.h"

#define PAGES 64u
#define SIZE (PAGES * (size_t)PAGE)
#define HANG 120
#define MSEAL 462
#define MOST_MAPPINGS 1000000ul
#define TOO_MUCH (1ul << 30)

static uint8_t *area; /* the pages, and as many without access behind */

static void say_where(void)
{
	size_t wrong = 0;
	for (size_t word = 0; word < PAGES * WORDS; word++)
		wrong += ((uint64_t *)area)[word] != word + 1;
	dprintf(STDOUT_FILENO, "%zu of %lu words are wrong\n", wrong, PAGES * WORDS);
}

static bool seal(void)
{
	return syscall(MSEAL, area + SIZE, (size_t)PAGE, 0ul) == 0;
}

static bool limit(void)
{
	size_t pages = 0;
	FILE *file = fopen("/proc/self/statm", "r");
	if (!file || fscanf(file, "%zu", &pages) != 1)
		return false;
	fclose(file);
	struct rlimit most = {pages * PAGE + TOO_MUCH / 2, RLIM_INFINITY};
	return setrlimit(RLIMIT_AS, &most) == 0;
}

/* Every other page of a large area a mapping of its own, until there may be no more. */
static bool fill_mappings(void)
{
	size_t most = 0, page = 0;
	FILE *file = fopen("/proc/sys/vm/max_map_count", "r");
	if (!file || fscanf(file, "%zu", &most) != 1 || most > MOST_MAPPINGS)
		return false;
	fclose(file);
	uint8_t *crowd = mmap(NULL, (most + 1) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	while (crowd != MAP_FAILED && page < most && !mprotect(crowd + page * PAGE, PAGE, PROT_READ))
		page += 2;
	return crowd != MAP_FAILED && page < most;
}

static int unmap(const char *call, uint8_t *from, size_t size)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
	if (strcmp(call, "munmap") == 0)
		return munmap(from, size);
	return mmap(from, size, PROT_READ, flags, -1, 0) == MAP_FAILED ? -1 : 0;
}

int main(int count, char **arguments)
{
	static struct plan plan;
	struct nt_error error;
	if (count < 4)
		return 2;
	const char *how = arguments[1], *call = arguments[2];
	struct nt_options options = options_of(arguments[3]);
	need(arguments[3]);
	options.rate = 0;
	hang_after(HANG);
	area = mmap(NULL, 2 * TOO_MUCH, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(area != MAP_FAILED && !mprotect(area, SIZE, PROT_READ | PROT_WRITE), "mmap: %s", strerror(errno));
	munmap(area + SIZE + PAGE, 2 * TOO_MUCH - SIZE - PAGE);
	madvise(area, SIZE, MADV_NOHUGEPAGE);
	for (size_t word = 0; word < PAGES * WORDS; word++)
		((uint64_t *)area)[word] = word + 1;
	plan_range(&plan, area, PAGES);
	plan_run(&plan, area, PAGES);
	struct nt_pager *pager = begin(&options, &plan, &error);
	CHECK(pager && nt_pager_wait(pager, NT_SERVING, HANG), "%s: %s", error.call, strerror(error.number));
	int result = -1;
	if (strcmp(how, "sealed") == 0)
		result = seal() ? unmap(call, area + SIZE / 2, SIZE / 2 + PAGE) : CANNOT;
	else if (strcmp(how, "limit") == 0)
		result = limit() ? unmap(call, area, TOO_MUCH) : CANNOT;
	else if (strcmp(how, "mappings") == 0)
		result = fill_mappings() ? unmap(call, area + SIZE / 2, PAGE) : CANNOT;
	if (result == CANNOT)
		return CANNOT;
	CHECK(result == -1, "%s succeeds", call);
	for (size_t word = 0; word < PAGES * WORDS; word += WORDS)
		CHECK(((volatile uint64_t *)area)[word] == word + 1, "page %zu is %lu", word / WORDS, ((uint64_t *)area)[word]);
	nt_pager_cancel(pager);
	CHECK(nt_pager_wait(pager, NT_DONE, HANG), "it does not end");
	for (size_t word = 0; word < PAGES * WORDS; word++)
		CHECK(((uint64_t *)area)[word] == word + 1, "word %zu is %lu in the end", word, ((uint64_t *)area)[word]);
	nt_pager_free(pager);
	return 0;
}
