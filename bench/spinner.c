/*
 * spinner FILE BYTES: a program to attach to. It fills BYTES of memory, then reads the clock without a pause and leaves in
 * FILE (two 64-bit words: longest, rounds) the longest gap in nanoseconds between two readings since somebody wrote 0 there.
 */
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static uint64_t now_ns(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

int main(int count, char **words)
{
	int file = count == 3 ? open(words[1], O_RDWR) : -1;
	if (file < 0)
		return 2;
	size_t size = strtoull(words[2], NULL, 10);
	_Atomic uint64_t *shared = mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || memory == MAP_FAILED)
		return 1;
	madvise(memory, size, MADV_NOHUGEPAGE);
	memset(memory, 1, size);
	for (uint64_t before = now_ns();;) {
		uint64_t now = now_ns();
		if (now - before > atomic_load(&shared[0]))
			atomic_store(&shared[0], now - before);
		before = now;
		atomic_fetch_add(&shared[1], 1);
	}
}
