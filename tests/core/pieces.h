/*
 * Memory that its owners move, cut and give up, and a model of every word of it.
 *
 * A piece is a run of pages of one owner; only its owner touches it. It lies in a place: addresses of which one owner after
 * the other has the use, so that where one's pages were another one's come to be soon. Behind each place is a page that
 * cannot be unmapped, where the kernel has mseal(2) (6.10).
 */
#ifndef NT_PIECES_H
#define NT_PIECES_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "checked.h"

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

#define PLACES 40
#define PLACE_PAGES 64u
#define PLACE_WORDS ((8ul << 30) / sizeof(uint64_t)) /* from one to the next: more than RLIMIT_AS will leave */
/* Below what the kernel chooses by itself, and within what the sanitizers leave to the program. */
#define REGION ((uint64_t *)0x7e8100000000)
#define MOST_PIECES 24
#define MODEL_PAGES (MOST_PIECES * PLACE_PAGES)

struct piece {
	uint64_t *at;
	unsigned pages;
	int access;                   /* PROT_... */
	uint64_t *model[PLACE_PAGES]; /* what each page holds */
};

struct owner {
	unsigned number;
	uint64_t random;
	struct piece pieces[MOST_PIECES];
	unsigned count;
	uint64_t models[MODEL_PAGES][WORDS];
	uint64_t *spare[MODEL_PAGES]; /* models of no page */
	unsigned spare_count;
};

static bool sealed; /* the pages behind the places are */
static pthread_mutex_t places_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned free_places[PLACES], free_count;
static unsigned used[PLACES]; /* pieces in each; its owner's */

static inline uint64_t *place_at(unsigned place)
{
	return REGION + place * PLACE_WORDS;
}

static inline unsigned place_of(const uint64_t *at)
{
	return (unsigned)((uint64_t)(at - REGION) / PLACE_WORDS);
}

static inline uint64_t *page_of(const struct piece *piece, unsigned page)
{
	return piece->at + page * WORDS;
}

static inline size_t size_of(const struct piece *piece)
{
	return piece->pages * (size_t)PAGE;
}

static void make_places(void)
{
	sealed = true;
	for (unsigned place = 0; place < PLACES; place++) {
		uint64_t *behind = place_at(place) + PLACE_PAGES * WORDS;
		int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
		CHECK(mmap(behind, PAGE, PROT_READ, flags, -1, 0) == behind, "no room for place %u: %s", place, strerror(errno));
		sealed &= syscall(SYS_mseal, behind, (size_t)PAGE, 0ul) == 0;
		free_places[free_count++] = place;
	}
}

/* The place that was left last, or any; -1 if there is none. */
static int take_place(struct owner *owner)
{
	int place = -1;
	pthread_mutex_lock(&places_lock);
	if (free_count) {
		unsigned choice = below(&owner->random, 2) ? free_count - 1 : below(&owner->random, free_count);
		place = (int)free_places[choice];
		free_places[choice] = free_places[--free_count];
	}
	pthread_mutex_unlock(&places_lock);
	return place;
}

static void leave_place(unsigned place)
{
	pthread_mutex_lock(&places_lock);
	free_places[free_count++] = place;
	pthread_mutex_unlock(&places_lock);
}

/* Where `pages` pages fit in an empty place: at its end, next to what is sealed, every other time. */
static uint64_t *room_in(struct owner *owner, int place, unsigned pages)
{
	unsigned rest = PLACE_PAGES - pages;
	return place_at((unsigned)place) + (below(&owner->random, 2) ? rest : below(&owner->random, rest + 1)) * WORDS;
}

static void clear_model(struct piece *piece)
{
	for (unsigned page = 0; page < piece->pages; page++)
		memset(piece->model[page], 0, PAGE);
}

/* Enter fresh pages, all zeros, at `at`, into the model. */
static struct piece *add_piece(struct owner *owner, uint64_t *at, unsigned pages, int access)
{
	struct piece *piece = &owner->pieces[owner->count++];
	*piece = (struct piece){.at = at, .pages = pages, .access = access};
	for (unsigned page = 0; page < pages; page++)
		piece->model[page] = owner->spare[--owner->spare_count];
	clear_model(piece);
	used[place_of(at)]++;
	return piece;
}

/* What was at `at` is a piece less there. */
static void vacate(const uint64_t *at)
{
	if (--used[place_of(at)] == 0)
		leave_place(place_of(at));
}

static void drop_piece(struct owner *owner, struct piece *piece)
{
	for (unsigned page = 0; page < piece->pages; page++)
		owner->spare[owner->spare_count++] = piece->model[page];
	vacate(piece->at);
	*piece = owner->pieces[--owner->count];
}

/* Make the pages of a piece from `first` on a piece of its own, if that is not empty. */
static void cut(struct owner *owner, struct piece *piece, unsigned first)
{
	if (first == 0 || first >= piece->pages)
		return;
	struct piece *rest = &owner->pieces[owner->count++];
	*rest = (struct piece){.at = page_of(piece, first), .pages = piece->pages - first, .access = piece->access};
	memcpy(rest->model, piece->model + first, rest->pages * sizeof *rest->model);
	piece->pages = first;
	used[place_of(piece->at)]++;
}

/* A piece, or every other time some pages of one, cut out of it; there is room for two pieces more. */
static struct piece *some_piece(struct owner *owner)
{
	struct piece *piece = &owner->pieces[below(&owner->random, owner->count)];
	if (below(&owner->random, 2) && piece->pages > 1) {
		unsigned first = below(&owner->random, piece->pages);
		unsigned count = 1 + below(&owner->random, piece->pages - first);
		if (first) {
			cut(owner, piece, first);
			piece = &owner->pieces[owner->count - 1];
		}
		cut(owner, piece, count);
	}
	return piece;
}

/* Whether there is a mapping at `at`. */
static bool is_mapped(const uint64_t *at)
{
	return msync((void *)(uintptr_t)at, PAGE, MS_ASYNC) == 0;
}

static void check_page(const struct owner *owner, const struct piece *piece, unsigned page)
{
	const uint64_t *found = page_of(piece, page), *expected = piece->model[page];
	if (memcmp(found, expected, PAGE) == 0)
		return;
	for (unsigned word = 0; word < WORDS; word++)
		CHECK(found[word] == expected[word], "owner %u: word %u of page %u of %u at %p is %lx, not %lx", owner->number,
		      word, page, piece->pages, (const void *)piece->at, found[word], expected[word]);
	CHECK(false, "owner %u: page %u of %u at %p was wrong, and is not any more", owner->number, page, piece->pages,
	      (const void *)piece->at);
}

static void check_piece(const struct owner *owner, const struct piece *piece)
{
	for (unsigned page = 0; page < piece->pages && piece->access & PROT_READ; page++)
		check_page(owner, piece, page);
}

static void check_owner(const struct owner *owner)
{
	for (unsigned number = 0; number < owner->count; number++)
		check_piece(owner, &owner->pieces[number]);
}

#endif
