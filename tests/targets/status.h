/* What a target tells the test that watches it: words in a memfd that both map, written by the target alone but `stop`. */
#ifndef STATUS_H
#define STATUS_H

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096u
#define WORDS (PAGE / 8)

struct status {
	_Atomic uint64_t failures;   /* words that were not what was written */
	_Atomic uint64_t bad[4];     /* of the first: address, word within the page, expected, found */
	_Atomic uint64_t generation; /* programs that ran under this process id */
	_Atomic uint64_t ready;      /* of these, how many had all their memory filled */
	_Atomic uint64_t stop;       /* set by the test: verify everything once more and exit */
	_Atomic uint64_t children;   /* forked children that ended well */
	_Atomic uint64_t refused;    /* mappings that mremap(2) would not take (EFAULT), as it takes no two at once */
	_Atomic uint64_t counters[32]; /* of each thread: rounds */
};

static struct status *status;

static inline void map_status(const char *descriptor)
{
	status = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(descriptor), 0);
	if (status == MAP_FAILED)
		abort();
}

static inline void fail(uint64_t address, uint64_t word, uint64_t expected, uint64_t found)
{
	if (atomic_fetch_add(&status->failures, 1))
		return;
	status->bad[0] = address;
	status->bad[1] = word;
	status->bad[2] = expected;
	status->bad[3] = found;
}

static inline uint64_t random_word(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* The word that belongs at `word` of the page `number` written for the `sequence`th time; 0 for one never written. */
static inline uint64_t word_of(uint64_t number, uint64_t sequence, uint64_t word)
{
	return sequence ? (sequence * 0x9E3779B97F4A7C15u + number * 0xD1342543DE82EF95u + word) | 1 : 0;
}

static inline void fill(uint64_t *page, uint64_t number, uint64_t sequence, uint64_t first, uint64_t after)
{
	for (uint64_t word = first; word < after; word++)
		page[word] = word_of(number, sequence, word);
}

static inline void verify(const uint64_t *page, uint64_t number, uint64_t sequence, uint64_t first, uint64_t after)
{
	for (uint64_t word = first; word < after; word++) {
		uint64_t expected = word_of(number, sequence, word), found = ((volatile const uint64_t *)page)[word];
		if (found != expected) {
			fail((uint64_t)(uintptr_t)page, word, expected, found);
			return;
		}
	}
}

#endif
