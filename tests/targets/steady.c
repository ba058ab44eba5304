/*
 * A program that verifies and rewrites its memory all the time, every kind of it, by stores and by system calls.
 *
 * usage: steady STATUS SHARED HALF THREADS PAGES HUGETLB
 *   STATUS   descriptor of the status page
 *   SHARED   descriptor of a memfd of PAGES pages
 *   HALF     which half of each page of the memfd is this program's (0 or 1); with 1 it has no other memory
 *   PAGES    pages of each kind of memory
 *   HUGETLB  huge pages of hugetlb
 *
 * Each thread has every THREADSth page to itself, so that it knows what has to be there.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

#include "status.h"

#define HUGE_PAGES 512u
#define KINDS 7
#define RARELY 256 /* a store into cold memory is one of so many rounds */

struct memory {
	uint64_t *base;
	uint64_t pages, first, after; /* words of each page that are this program's */
	uint64_t stores; /* one round of so many stores; 0: none, it is read-only */
	uint64_t *sequences;
};

static struct memory memories[KINDS];
static unsigned kinds, threads;

static void *mapped(uint64_t pages, int flags, int descriptor)
{
	void *base = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, flags, descriptor, 0);
	if (base == MAP_FAILED) {
		perror("mmap");
		exit(3);
	}
	return base;
}

static struct memory *add(void *base, uint64_t pages)
{
	struct memory *memory = &memories[kinds++];
	*memory = (struct memory){base, pages, 0, WORDS, 1, calloc(pages, sizeof(uint64_t))};
	return memory;
}

static uint64_t *page_of(const struct memory *memory, uint64_t page)
{
	return memory->base + page * WORDS;
}

static void fill_all(struct memory *memory)
{
	for (uint64_t page = 0; page < memory->pages; page++)
		fill(page_of(memory, page), page, ++memory->sequences[page], memory->first, memory->after);
}

static void verify_all(const struct memory *memory)
{
	for (uint64_t page = 0; page < memory->pages; page++)
		verify(page_of(memory, page), page, memory->sequences[page], memory->first, memory->after);
}

/* The kernel stores into the page: through a pipe. */
static void fill_by_system_call(uint64_t *page, uint64_t number, uint64_t sequence, const struct memory *memory, int *ends)
{
	uint64_t words[WORDS];
	size_t size = (memory->after - memory->first) * 8;
	fill(words, number, sequence, memory->first, memory->after);
	if (write(ends[1], words + memory->first, size) != (ssize_t)size || read(ends[0], page + memory->first, size) != (ssize_t)size)
		fail((uint64_t)(uintptr_t)page, memory->first, size, 0);
}

static void *work(void *argument)
{
	uint64_t thread = (uint64_t)(uintptr_t)argument, state = 88172645463325252u + thread * 977;
	int ends[2];
	if (pipe(ends))
		abort();
	while (!status->stop) {
		struct memory *memory = &memories[random_word(&state) % kinds];
		uint64_t page = random_word(&state) % memory->pages / threads * threads + thread;
		if (page >= memory->pages)
			continue;
		uint64_t *at = page_of(memory, page);
		verify(at, page, memory->sequences[page], memory->first, memory->after);
		if (memory->stores && random_word(&state) % memory->stores == 0) {
			uint64_t sequence = ++memory->sequences[page];
			if (random_word(&state) % 8)
				fill(at, page, sequence, memory->first, memory->after);
			else
				fill_by_system_call(at, page, sequence, memory, ends);
		}
		atomic_fetch_add(&status->counters[thread], 1);
	}
	return NULL;
}

static void make_memories(int shared, int half, uint64_t pages, uint64_t hugetlb)
{
	struct memory *memory = add(mapped(pages, MAP_SHARED, shared), pages);
	memory->first = half ? WORDS / 2 : 0;
	memory->after = half ? WORDS : WORDS / 2;
	if (half)
		return;
	add(mapped(pages, MAP_PRIVATE | MAP_ANONYMOUS, -1), pages);
	mallopt(M_MMAP_THRESHOLD, 1 << 30);
	add((void *)(((uintptr_t)malloc((pages + 1) * PAGE) + PAGE - 1) / PAGE * PAGE), pages); /* the heap */
	uint8_t *huge = mapped(3 * HUGE_PAGES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	huge = (uint8_t *)(((uintptr_t)huge + HUGE_PAGES * PAGE - 1) / (HUGE_PAGES * PAGE) * (HUGE_PAGES * PAGE));
	madvise(huge, 2 * HUGE_PAGES * PAGE, MADV_HUGEPAGE);
	add(huge, 2 * HUGE_PAGES);
	memory = add(mapped(pages, MAP_PRIVATE | MAP_ANONYMOUS, -1), pages);
	memory->stores = 0;
	add(mapped(pages, MAP_PRIVATE | MAP_ANONYMOUS, -1), pages)->stores = RARELY;
	if (hugetlb)
		add(mapped(hugetlb * HUGE_PAGES, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1), hugetlb * HUGE_PAGES);
}

int main(int count, char **words)
{
	pthread_t others[32];
	if (count != 7)
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	map_status(words[1]);
	threads = (unsigned)atoi(words[4]);
	make_memories(atoi(words[2]), atoi(words[3]), (uint64_t)atol(words[5]), (uint64_t)atol(words[6]));
	for (unsigned kind = 0; kind < kinds; kind++) {
		fill_all(&memories[kind]);
		if (!memories[kind].stores)
			mprotect(memories[kind].base, memories[kind].pages * PAGE, PROT_READ);
	}
	status->generation++;
	status->ready++;
	for (uint64_t thread = 0; thread < threads; thread++)
		pthread_create(&others[thread], NULL, work, (void *)(uintptr_t)thread);
	for (unsigned thread = 0; thread < threads; thread++)
		pthread_join(others[thread], NULL);
	for (unsigned kind = 0; kind < kinds; kind++)
		verify_all(&memories[kind]);
	return status->failures != 0;
}
