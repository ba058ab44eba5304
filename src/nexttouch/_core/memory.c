/* The pager's own memory. */
#include <string.h>
#include <sys/mman.h>

#include "internal.h"

#define HEADER 16 /* a multiple of every alignment */

static void *map_elements(size_t count, size_t size, int flags)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), used = HEADER + (count * size + HEADER - 1) / HEADER * HEADER;
	size_t whole = (used + page - 1) / page * page + page;
	uint8_t *mapping = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
	if (mapping == MAP_FAILED)
		return NULL;
	uint8_t *header = mapping + whole - page - used;
	memcpy(header, &whole, sizeof whole);
	mprotect(mapping + whole - page, page, PROT_NONE);
	return header + HEADER;
}

/*
 * Zeros for `count` elements of `size` bytes, in a mapping of their own: on the heap the pager's memory could lie among the
 * pages that it arms, when these are all of the heap, and it would wait for itself. They are populated at once, as the
 * mapping may be in a hole of a range that is watched. Behind the elements is a page that no code may touch, before them
 * the size of the mapping.
 */
void *allot(size_t count, size_t size)
{
	return map_elements(count, size, MAP_POPULATE);
}

/* The same for up to `room` elements, of which only the first `count` are there. */
void *reserve(size_t room, size_t size, size_t count)
{
	uint8_t *array = map_elements(room, size, MAP_NORESERVE);
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)array / page * page;
	if (array && madvise((void *)start, ((uintptr_t)array - start) + count * size, MADV_POPULATE_WRITE)) {
		release(array);
		array = NULL;
	}
	return array;
}

void release(void *array)
{
	if (!array)
		return;
	size_t whole, page = (size_t)sysconf(_SC_PAGESIZE);
	uint8_t *header = (uint8_t *)array - HEADER;
	memcpy(&whole, header, sizeof whole);
	munmap(header - (uintptr_t)header % page, whole);
}

void *copy_of(const void *array, size_t count, size_t size)
{
	void *copy = allot(count, size);
	if (copy && count)
		memcpy(copy, array, count * size);
	return copy;
}
