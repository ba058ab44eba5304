/*
 * Random operations on memory that migrates, those that fail among them, and a model of every word.
 *
 * usage: operations WAY OPERATIONS SEED
 *   WAY  a mechanism's name, or with -inline behind it: see ways.h
 * Each thread moves, cuts, unmaps, discards, protects, locks, grows and touches pieces of its own, and words of its own in
 * pages of all. One or two pagers at a time have them all. Every few rounds the process has as many mappings as it may.
 * What an operation that fails leaves is what was there. With inject.c in the program a call of the core fails, too, in each
 * migration. Exit 0 and a line of counts; 1 with what was wrong, 3 for a hang.
 */
#include <sched.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "injection.h"
#include "migration.h"
#include "pieces.h"
#include "watched.h"

#define OWNERS 3
#define SHARED_PAGES 64u
#define HANG (3 * DONE_SECONDS)
#define SLACK 500 /* operations while a migration is cancelled */
#define ROOM (4ul << 30)      /* that RLIMIT_AS leaves */
#define TOO_MUCH (ROOM + ROOM / 2)
#define FULL_ROUNDS 16        /* one of these is at the limit of mappings */
#define MOST_CALLS 300        /* of a kind among which one fails */
#define MOST_MAPPINGS 1000000 /* a limit above is out of reach */

#ifdef __SANITIZE_THREAD__
#define FORKS 0 /* it does not follow a fork of a program with threads */
#else
#define FORKS 1
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define FILLS 0 /* they need mappings themselves */
#else
#define FILLS 1
#endif

enum outcome { DONE, REFUSED, PASSED_OVER };

/* There with inject.c only. */
void inject(enum call call, uint64_t nth, int fault) __attribute__((weak));
void inject_memory(uint64_t start, uint64_t size) __attribute__((weak));
extern const struct call_kind call_kinds[CALLS] __attribute__((weak));

struct operation {
	const char *name;
	unsigned share; /* of 1024 */
	enum outcome (*run)(struct owner *owner);
};

static const char *way;
static uint64_t seed;
static struct owner owners[OWNERS];
static uint64_t *shared; /* pages of all, with a word for each owner */
static uint64_t shared_model[OWNERS][SHARED_PAGES];
static _Atomic uint64_t operations, allowed; /* the owners stop when they have got that far, so that migrations are short */
static _Atomic bool stop;
/* A plan is made and registered while no mapping changes. */
static pthread_rwlock_t planning = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
static struct nt_pager *_Atomic current[2]; /* what a failure shows the states of */

static struct {
	enum call call;
	unsigned nth;
	int fault;
} injected;

static void say_where(void)
{
	uint64_t counts[256] = {0};
	if (inject)
		dprintf(STDOUT_FILENO, "%s number %u: %d; ", call_kinds[injected.call].name, injected.nth, injected.fault);
	dprintf(STDOUT_FILENO, "%s, seed %lu, operation %lu, states", way, seed, atomic_load(&operations));
	for (unsigned number = 0; number < 2; number++)
		if (current[number])
			count_states(current[number], counts);
	print_states(counts);
}

/* ---- touching ---- */

static enum outcome touch(struct owner *owner)
{
	struct piece *piece = &owner->pieces[below(&owner->random, owner->count)];
	unsigned page = below(&owner->random, piece->pages), word = below(&owner->random, WORDS);
	volatile uint64_t *at = page_of(piece, page) + word;
	if (!(piece->access & PROT_READ))
		return PASSED_OVER;
	uint64_t found = *at;
	CHECK(found == piece->model[page][word], "owner %u: word %u of page %u of %u at %p is %lx, not %lx", owner->number, word,
	      page, piece->pages, (void *)piece->at, found, piece->model[page][word]);
	if (piece->access & PROT_WRITE)
		*at = piece->model[page][word] = next_random(&owner->random);
	return DONE;
}

static enum outcome touch_shared(struct owner *owner)
{
	unsigned page = below(&owner->random, SHARED_PAGES);
	volatile uint64_t *at = shared + page * WORDS + owner->number;
	uint64_t found = *at, *model = &shared_model[owner->number][page];
	CHECK(found == *model, "owner %u: its word of shared page %u is %lx, not %lx", owner->number, page, found, *model);
	*at = *model = next_random(&owner->random);
	return DONE;
}

static enum outcome look(struct owner *owner)
{
	check_piece(owner, &owner->pieces[below(&owner->random, owner->count)]);
	return DONE;
}

/* ---- moving ---- */

/*
 * Move a piece to a free place; `leave`: its old addresses stay mapped, and are zeros. Registering cuts a mapping, and since
 * Linux 6.17 what is before the cut has moved when the call fails for it.
 */
static enum outcome move(struct owner *owner, struct piece *piece, int leave)
{
	int place = take_place(owner);
	if (place < 0)
		return PASSED_OVER;
	uint64_t *from = piece->at, *to = room_in(owner, place, piece->pages);
	size_t size = size_of(piece);
	unsigned moved = piece->pages;
	if (mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED | leave, to) == MAP_FAILED)
		for (moved = 0; moved < piece->pages && is_mapped(to + moved * WORDS);)
			moved++;
	enum outcome outcome = moved == piece->pages ? DONE : REFUSED;
	if (!moved) {
		leave_place((unsigned)place);
		return REFUSED;
	}
	cut(owner, piece, moved);
	used[place]++;
	piece->at = to;
	if (leave)
		add_piece(owner, from, moved, piece->access);
	vacate(from);
	return outcome;
}

static enum outcome move_once(struct owner *owner)
{
	return move(owner, some_piece(owner), 0);
}

static enum outcome move_twice(struct owner *owner)
{
	struct piece *piece = some_piece(owner);
	enum outcome outcome = move(owner, piece, 0);
	return outcome == DONE ? move(owner, piece, 0) : outcome;
}

static enum outcome move_and_leave(struct owner *owner)
{
	return move(owner, some_piece(owner), MREMAP_DONTUNMAP);
}

/* Move a piece, which grows by a page thereby, over the front of another one, which is gone with that. */
static enum outcome move_over(struct owner *owner)
{
	struct piece *piece = &owner->pieces[below(&owner->random, owner->count)];
	struct piece *other = &owner->pieces[below(&owner->random, owner->count)];
	if (other->pages <= piece->pages || piece->pages == PLACE_PAGES || owner->count + 2 > MOST_PIECES)
		return PASSED_OVER;
	uint64_t *from = piece->at, *to = other->at;
	size_t size = size_of(piece);
	cut(owner, other, piece->pages + 1);
	void *moved = mremap(from, size, size + PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	if (moved == MAP_FAILED && is_mapped(to))
		return REFUSED;
	used[place_of(to)]++; /* keeps the place */
	unsigned at = (unsigned)(piece - owner->pieces), last = owner->count - 1;
	drop_piece(owner, other);
	piece = at == last ? other : piece;
	if (moved == MAP_FAILED) {
		vacate(to);
		return REFUSED;
	}
	piece->at = to;
	piece->model[piece->pages] = owner->spare[--owner->spare_count];
	memset(piece->model[piece->pages++], 0, PAGE);
	vacate(from);
	return DONE;
}

/* ---- unmapping, mapping ---- */

static enum outcome make(struct owner *owner)
{
	unsigned sizes[] = {1, 3, 16, PLACE_PAGES}, pages = sizes[below(&owner->random, 4)];
	int place = owner->count + 4 > MOST_PIECES ? -1 : take_place(owner);
	if (place < 0)
		return PASSED_OVER;
	uint64_t *at = room_in(owner, place, pages);
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
	if (mmap(at, pages * (size_t)PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) {
		CHECK(errno != EEXIST, "owner %u: place %d is not free", owner->number, place);
		leave_place((unsigned)place);
		return REFUSED;
	}
	madvise(at, pages * (size_t)PAGE, MADV_NOHUGEPAGE);
	struct piece *piece = add_piece(owner, at, pages, PROT_READ | PROT_WRITE);
	for (unsigned word = 0; word < pages * WORDS; word++) /* all but every fourth page */
		if (word / WORDS % 4 != 3)
			at[word] = piece->model[word / WORDS][word % WORDS] = next_random(&owner->random);
	return DONE;
}

static enum outcome unmap(struct owner *owner, struct piece *piece)
{
	if (munmap(piece->at, size_of(piece)))
		return REFUSED;
	drop_piece(owner, piece);
	return DONE;
}

static enum outcome unmap_some(struct owner *owner)
{
	return unmap(owner, some_piece(owner));
}

static enum outcome replace(struct owner *owner)
{
	struct piece *piece = some_piece(owner);
	int access = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
	if (mmap(piece->at, size_of(piece), access, flags, -1, 0) == MAP_FAILED) {
		if (!is_mapped(piece->at)) /* before Linux 6.12 it unmaps first */
			drop_piece(owner, piece);
		return REFUSED;
	}
	madvise(piece->at, size_of(piece), MADV_NOHUGEPAGE);
	piece->access = access;
	clear_model(piece);
	return DONE;
}

static enum outcome shrink(struct owner *owner)
{
	struct piece *piece = &owner->pieces[below(&owner->random, owner->count)];
	unsigned kept = 1 + below(&owner->random, piece->pages);
	if (kept == piece->pages)
		return PASSED_OVER;
	if (mremap(piece->at, size_of(piece), kept * (size_t)PAGE, 0) == MAP_FAILED)
		return REFUSED;
	cut(owner, piece, kept);
	drop_piece(owner, &owner->pieces[owner->count - 1]);
	return DONE;
}

static enum outcome grow(struct owner *owner)
{
	struct piece *piece = &owner->pieces[below(&owner->random, owner->count)];
	unsigned end = (unsigned)(piece->at - place_at(place_of(piece->at))) / WORDS + piece->pages;
	if (end == PLACE_PAGES)
		return PASSED_OVER;
	unsigned more = 1 + below(&owner->random, PLACE_PAGES - end);
	if (owner->spare_count < more || mremap(piece->at, size_of(piece), size_of(piece) + more * (size_t)PAGE, 0) == MAP_FAILED)
		return REFUSED;
	while (more--) {
		piece->model[piece->pages] = owner->spare[--owner->spare_count];
		memset(piece->model[piece->pages++], 0, PAGE);
	}
	return DONE;
}

/* ---- discarding, protecting, locking ---- */

static enum outcome discard(struct owner *owner)
{
	struct piece *piece = some_piece(owner);
	if (madvise(piece->at, size_of(piece), MADV_DONTNEED))
		return REFUSED;
	clear_model(piece);
	return DONE;
}

/* Pages that may be freed are what they were, or zeros, up to the next store. */
static enum outcome let_free(struct owner *owner)
{
	struct piece *piece = some_piece(owner);
	if (!(piece->access & PROT_WRITE) || madvise(piece->at, size_of(piece), MADV_FREE))
		return REFUSED;
	for (unsigned page = 0; page < piece->pages; page++) {
		uint64_t *at = page_of(piece, page), *model = piece->model[page], value = next_random(&owner->random);
		*(volatile uint64_t *)at = value;
		if (memcmp(at + 1, model + 1, PAGE - sizeof *at))
			memset(model, 0, PAGE);
		model[0] = value;
		check_page(owner, piece, page);
	}
	return DONE;
}

/*
 * Change what may be done with pages of which it was `was` before; whether it could. Registering cuts mappings: at the limit
 * of these a part of the pages has changed when the call fails.
 */
static bool change_access(uint64_t *at, size_t size, int access, int was)
{
	bool changed = !mprotect(at, size, access);
	CHECK(changed || !mprotect(at, size, was), "mprotect: %s", strerror(errno));
	return changed;
}

static enum outcome protect(struct owner *owner)
{
	static const int accesses[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE};
	struct piece *piece = some_piece(owner);
	int access = accesses[below(&owner->random, 4)];
	if (!change_access(piece->at, size_of(piece), access, piece->access))
		return REFUSED;
	piece->access = access;
	return DONE;
}

/* What is locked cannot be discarded. */
static enum outcome lock(struct owner *owner)
{
	struct piece *piece = some_piece(owner);
	if (syscall(SYS_mlock, piece->at, size_of(piece))) /* by number: the sanitizers' does nothing */
		return syscall(SYS_munlock, piece->at, size_of(piece)), REFUSED;
	int discarded = madvise(piece->at, size_of(piece), MADV_DONTNEED);
	CHECK(discarded && errno == EINVAL, "owner %u: %u locked pages at %p: %s", owner->number, piece->pages, (void *)piece->at,
	      discarded ? strerror(errno) : "discarded");
	check_piece(owner, piece);
	syscall(SYS_munlock, piece->at, size_of(piece));
	return DONE;
}

/* ---- what has to fail ---- */

static struct piece *piece_before(struct owner *owner, const uint64_t *end)
{
	for (unsigned number = 0; number < owner->count; number++)
		if (page_of(&owner->pieces[number], owner->pieces[number].pages) == end)
			return &owner->pieces[number];
	return NULL;
}

static enum outcome fail_at_seal(struct owner *owner)
{
	const struct piece *any = &owner->pieces[below(&owner->random, owner->count)];
	struct piece *piece = piece_before(owner, place_at(place_of(any->at)) + PLACE_PAGES * WORDS);
	if (!sealed || !piece)
		return PASSED_OVER;
	size_t size = size_of(piece) + PAGE;
	if (below(&owner->random, 2))
		CHECK(munmap(piece->at, size) && errno == EPERM, "unmapped what is sealed");
	else
		CHECK(mmap(piece->at, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED,
		      "mapped over what is sealed");
	if (below(&owner->random, 2))
		check_piece(owner, piece);
	return DONE;
}

/* More than RLIMIT_AS allows, as a new mapping over a piece or as a piece that grows. */
static enum outcome fail_at_limit(struct owner *owner)
{
	struct piece *piece = &owner->pieces[below(&owner->random, owner->count)];
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
	if (!sealed && below(&owner->random, 2))
		CHECK(mmap(piece->at, TOO_MUCH, PROT_READ, flags, -1, 0) == MAP_FAILED, "mapped more than RLIMIT_AS allows");
	else
		CHECK(mremap(piece->at, size_of(piece), TOO_MUCH, MREMAP_MAYMOVE) == MAP_FAILED,
		      "grew by more than RLIMIT_AS allows");
	if (below(&owner->random, 2))
		check_piece(owner, piece);
	return DONE;
}

/* Two mappings, which differ in what may be done with them, do not move as one. */
static enum outcome fail_across(struct owner *owner)
{
	struct piece *first = &owner->pieces[below(&owner->random, owner->count)];
	unsigned pages = first->pages, half = pages / 2;
	int other = first->access == PROT_READ ? PROT_READ | PROT_WRITE : PROT_READ;
	size_t rest = (pages - half) * (size_t)PAGE;
	if (!half || pages == PLACE_PAGES || !change_access(page_of(first, half), rest, other, first->access))
		return PASSED_OVER;
	cut(owner, first, half);
	owner->pieces[owner->count - 1].access = other;
	int place = take_place(owner);
	if (place < 0)
		return PASSED_OVER;
	size_t size = pages * (size_t)PAGE;
	void *to = place_at((unsigned)place);
	CHECK(mremap(first->at, size, size + PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED, "two mappings moved as one");
	leave_place((unsigned)place);
	if (below(&owner->random, 2))
		check_piece(owner, first);
	return DONE;
}

static enum outcome fail_overlapping(struct owner *owner)
{
	struct piece *piece = &owner->pieces[below(&owner->random, owner->count)];
	size_t size = size_of(piece);
	CHECK(mremap(piece->at, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, piece->at) == MAP_FAILED, "moved onto itself");
	return DONE;
}

static enum outcome fork_and_check(struct owner *owner)
{
	int status;
	pid_t child = FORKS ? fork() : -1;
	if (child == 0) {
		check_owner(owner);
		_exit(0);
	}
	if (child < 0)
		return PASSED_OVER;
	waitpid(child, &status, 0);
	CHECK(status == 0, "owner %u: its child ends with status %x", owner->number, status);
	return DONE;
}

/* ---- the limit of mappings ---- */

static pthread_mutex_t crowd_lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t *crowd; /* pages of which every other one is a mapping of its own, up to `crowd_next` */
static size_t crowd_pages, crowd_next;

/* Look how many mappings the process may have. */
static void prepare_crowd(void)
{
	FILE *file = fopen("/proc/sys/vm/max_map_count", "r");
	if (!file || fscanf(file, "%zu", &crowd_pages) != 1 || crowd_pages > MOST_MAPPINGS || !FILLS)
		crowd_pages = 0;
	if (file)
		fclose(file);
}

/* Have as many mappings as there may be; others go away and come meanwhile. */
static enum outcome fill_mappings(struct owner *owner)
{
	(void)owner;
	pthread_mutex_lock(&crowd_lock);
	enum outcome outcome = crowd ? DONE : PASSED_OVER;
	for (; crowd && crowd_next < crowd_pages; crowd_next += 2)
		if (mprotect(crowd + crowd_next * PAGE, PAGE, PROT_READ))
			break;
	pthread_mutex_unlock(&crowd_lock);
	return outcome;
}

static void begin_crowd(void)
{
	pthread_mutex_lock(&crowd_lock);
	void *area = mmap(NULL, (crowd_pages + 1) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	crowd = area == MAP_FAILED ? NULL : area;
	crowd_next = 0;
	pthread_mutex_unlock(&crowd_lock);
	fill_mappings(NULL);
}

static void end_crowd(void)
{
	pthread_mutex_lock(&crowd_lock);
	if (crowd)
		munmap(crowd, (crowd_pages + 1) * PAGE);
	crowd = NULL;
	pthread_mutex_unlock(&crowd_lock);
}

static const struct operation table[] = {
	{"touch", 540, touch},
	{"touch_shared", 64, touch_shared},
	{"look", 32, look},
	{"move", 56, move_once},
	{"move_twice", 32, move_twice},
	{"move_and_leave", 12, move_and_leave},
	{"move_over", 24, move_over},
	{"make", 68, make},
	{"unmap", 28, unmap_some},
	{"replace", 16, replace},
	{"shrink", 8, shrink},
	{"grow", 12, grow},
	{"discard", 32, discard},
	{"free", 8, let_free},
	{"protect", 24, protect},
	{"lock", 6, lock},
	{"fail_at_seal", 18, fail_at_seal},
	{"fail_at_limit", 6, fail_at_limit},
	{"fail_across", 12, fail_across},
	{"fail_overlapping", 5, fail_overlapping},
	{"fill_mappings", 20, fill_mappings},
	{"fork", 1, fork_and_check},
};
#define KINDS (sizeof table / sizeof *table)
static uint64_t outcomes[OWNERS][KINDS][3];

static unsigned choose(struct owner *owner)
{
	unsigned number = 0, choice = below(&owner->random, 1024);
	while (choice >= table[number].share)
		choice -= table[number++].share;
	return number;
}

static void *work(void *argument)
{
	struct owner *owner = argument;
	while (!atomic_load(&stop)) {
		if (atomic_load(&operations) >= atomic_load(&allowed)) {
			sched_yield();
			continue;
		}
		pthread_rwlock_rdlock(&planning);
		while (owner->count + 4 > MOST_PIECES && unmap(owner, &owner->pieces[below(&owner->random, owner->count)]) == DONE)
			;
		if (!owner->count)
			make(owner);
		unsigned kind = choose(owner);
		if (owner->count && owner->count + 4 <= MOST_PIECES)
			outcomes[owner->number][kind][table[kind].run(owner)]++;
		atomic_fetch_add_explicit(&operations, 1, memory_order_relaxed);
		pthread_rwlock_unlock(&planning);
	}
	return NULL;
}

/* ---- migrations ---- */

/* Each piece, or most of its pages, of which the rest is watched as well three times out of four. */
static void plan_owner(struct plan *plans, unsigned plans_count, struct owner *owner, uint64_t *random)
{
	for (unsigned number = 0; number < owner->count; number++) {
		struct piece *piece = &owner->pieces[number];
		struct plan *plan = &plans[place_of(piece->at) % plans_count];
		unsigned skipped = below(random, 2) ? below(random, piece->pages) : 0;
		unsigned watched = below(random, 4) ? 0 : skipped;
		plan_range(plan, page_of(piece, watched), piece->pages - watched);
		plan_run(plan, page_of(piece, skipped), piece->pages - skipped);
	}
}

/* Ranges that meet are one, and so are runs: an array lies in several mappings. */
static void join(struct plan *plan)
{
	size_t ranges = 0, runs = 0;
	qsort(plan->ranges, plan->ranges_count, sizeof *plan->ranges, by_address);
	qsort(plan->runs, plan->runs_count, sizeof *plan->runs, by_address);
	for (size_t number = 1; number < plan->ranges_count; number++) {
		struct nt_range *last = &plan->ranges[ranges], next = plan->ranges[number];
		if (last->start + last->size == next.start)
			last->size += next.size;
		else
			plan->ranges[++ranges] = next;
	}
	for (size_t number = 1; number < plan->runs_count; number++) {
		struct nt_run *last = &plan->runs[runs], next = plan->runs[number];
		if (last->start + last->pages * PAGE == next.start)
			last->pages += next.pages;
		else
			plan->runs[++runs] = next;
	}
	plan->ranges_count = plan->ranges_count ? ranges + 1 : 0;
	plan->runs_count = plan->runs_count ? runs + 1 : 0;
}

/* Choose the call that fails; where it cannot, it is late. */
static void choose_failure(uint64_t *random)
{
	injected.call = (enum call)below(random, CALLS);
	injected.nth = 1 + below(random, below(random, 2) ? 10 : MOST_CALLS);
	injected.fault = call_kinds[injected.call].faults[below(random, MOST_FAULTS)];
	if (!injected.fault)
		injected.fault = below(random, 2) ? PAUSE_BEFORE : PAUSE_AFTER;
	inject_memory((uint64_t)(uintptr_t)REGION, PLACES * PLACE_WORDS * sizeof *REGION);
	inject(injected.call, injected.nth, injected.fault);
}

/* Begin one or two; how many have begun. */
static unsigned migrate(uint64_t *random, bool full)
{
	static struct plan plans[2];
	unsigned count = 1 + below(random, 2), begun = 0;
	memset(plans, 0, sizeof plans);
	if (inject)
		choose_failure(random);
	for (unsigned number = 0; number < OWNERS; number++)
		plan_owner(plans, count, &owners[number], random);
	plan_range(&plans[0], shared, SHARED_PAGES);
	plan_run(&plans[0], shared, SHARED_PAGES);
	for (unsigned number = 0; number < count; number++) {
		struct nt_options options = options_of(way);
		struct nt_error error = {0};
		options.window = 1u << below(random, 7);
		options.rate = below(random, 3) ? 1e7 * (1 + below(random, 100)) : 0;
		options.toucher = below(random, 4) == 0;
		if (below(random, 2))
			join(&plans[number]);
		struct nt_pager *pager = plans[number].runs_count ? begin(&options, &plans[number], &error) : NULL;
		CHECK(pager || full || inject || !plans[number].runs_count, "%s: %s (%s)", error.call, strerror(error.number), error.detail);
		if (pager)
			current[begun++] = pager;
	}
	return begun;
}

/* Let the owners go on for a while, or until the pagers are done by themselves, then end them. */
static void see_through(uint64_t *random, unsigned begun, bool full, uint64_t states[256])
{
	uint64_t until = atomic_load(&operations) + 100 + below(random, 2000);
	bool done = false;
	atomic_store(&allowed, until + SLACK);
	if (full && begun && nt_pager_wait(current[0], NT_SERVING, DONE_SECONDS) && !crowd)
		begin_crowd();
	while (!done && atomic_load(&operations) < until) {
		done = begun > 0;
		for (unsigned number = 0; number < begun; number++)
			done &= nt_pager_wait(current[number], NT_DONE, 1e-3);
		if (!begun)
			sched_yield();
	}
	for (unsigned number = 0; number < begun; number++)
		nt_pager_cancel(current[number]);
	for (unsigned number = 0; number < begun; number++) {
		uint64_t counts[256] = {0};
		CHECK(nt_pager_wait(current[number], NT_DONE, DONE_SECONDS), "not done after %d s", DONE_SECONDS);
		count_states(current[number], counts);
		for (unsigned state = 0; state < 256; state++) {
			CHECK(!counts[state] || is_final((uint8_t)state), "%lu pages are left in state %u", counts[state], state);
			states[state] += counts[state];
		}
	}
	end_crowd();
}

static void end_pagers(unsigned begun)
{
	for (unsigned number = 0; number < begun; number++) {
		struct nt_pager *pager = current[number];
		current[number] = NULL;
		nt_pager_free(pager);
	}
}

/*
 * Nothing is left of the last migration: no mapping is watched, nor kept from children. Where the limit of mappings was
 * reached the kernel may have refused to cut a mapping for that; what is left then is undone.
 */
static void check_mappings(bool full)
{
	for (unsigned number = 0; number < OWNERS && full; number++)
		for (unsigned piece = 0; piece < owners[number].count; piece++)
			madvise(owners[number].pieces[piece].at, size_of(&owners[number].pieces[piece]), MADV_DOFORK);
	CHECK(!watched_mappings(REGION, place_at(PLACES)), "that is left of a migration");
}

static void limit_addresses(void)
{
	size_t pages = 0;
	FILE *file = fopen("/proc/self/statm", "r");
	CHECK(file && fscanf(file, "%zu", &pages) == 1, "/proc/self/statm");
	fclose(file);
	struct rlimit limit = {pages * PAGE + ROOM, RLIM_INFINITY};
	CHECK(setrlimit(RLIMIT_AS, &limit) == 0, "setrlimit: %s", strerror(errno));
}

static void prepare(pthread_t threads[OWNERS])
{
	make_places();
	prepare_crowd();
	shared = mmap(NULL, SHARED_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(shared != MAP_FAILED, "mmap: %s", strerror(errno));
	madvise(shared, SHARED_PAGES * PAGE, MADV_NOHUGEPAGE);
	limit_addresses();
	for (unsigned number = 0; number < OWNERS; number++) {
		struct owner *owner = &owners[number];
		owner->number = number;
		owner->random = seed * 0x9e3779b97f4a7c15u + number + 1;
		for (unsigned page = 0; page < MODEL_PAGES; page++)
			owner->spare[owner->spare_count++] = owner->models[page];
		pthread_create(&threads[number], NULL, work, owner);
	}
}

static void print_counts(uint64_t rounds, const uint64_t states[256])
{
	printf("operations %s: %lu in %lu migrations;", way, atomic_load(&operations), rounds);
	for (unsigned kind = 0; kind < KINDS; kind++) {
		uint64_t sums[3] = {0};
		for (unsigned number = 0; number < OWNERS; number++)
			for (unsigned outcome = 0; outcome < 3; outcome++)
				sums[outcome] += outcomes[number][kind][outcome];
		printf(" %s:%lu/%lu", table[kind].name, sums[DONE], sums[REFUSED]);
	}
	printf("; states");
	fflush(stdout);
	print_states(states);
}

int main(int count, char **arguments)
{
	if (count < 4)
		return 2;
	way = arguments[1];
	need(way);
	uint64_t wanted = strtoull(arguments[2], NULL, 10), states[256] = {0}, rounds = 0;
	seed = strtoull(arguments[3], NULL, 10);
	uint64_t random = seed * 0x9e3779b97f4a7c15u + 99;
	pthread_t threads[OWNERS];
	hang_after(HANG);
	prepare(threads);
	for (bool full = false; atomic_load(&operations) < wanted; rounds++) {
		bool was_full = full;
		full = crowd_pages && rounds % FULL_ROUNDS == FULL_ROUNDS - 1;
		hang_after(HANG);
		pthread_rwlock_wrlock(&planning);
		for (unsigned number = 0; number < OWNERS; number++)
			check_owner(&owners[number]);
		check_mappings(was_full);
		if (full && below(&random, 2))
			begin_crowd();
		unsigned begun = migrate(&random, full);
		pthread_rwlock_unlock(&planning);
		see_through(&random, begun, full, states);
		end_pagers(begun);
	}
	atomic_store(&stop, true);
	for (unsigned number = 0; number < OWNERS; number++)
		pthread_join(threads[number], NULL);
	for (unsigned number = 0; number < OWNERS; number++)
		check_owner(&owners[number]);
	print_counts(rounds, states);
	return 0;
}
