/*
 * What the pager's own files share; nothing outside _core includes this.
 *
 * Who owns a page
 * ===============
 * A page of the plan has a *home*, its address when the plan was made, and one state byte. What follows holds at every
 * moment, and each change of a state names the function that makes it. "The program's memory" is a mapping registered
 * with this pager's userfaultfd. Of a parked page the frame is in the shadow, and nothing is at the program's address.
 *
 *  I1  The contents of a page are in exactly one place: in the program's memory, or in the shadow. No page is copied while
 *      the kernel allows its entry to be moved: who holds the frame by a reference (a read in flight, a pipe) goes on
 *      holding the page's own frame. (The exception, a mapping that has become read-only: `put_back_copy`.)
 *  I2  PLANNED, DUE_* and every final state but STRANDED: it is in the program's memory, or the program has given it up.
 *  I3  ARMING, ARMED, RETURNING: relocate has it in the shadow; the others in its place, with stores or every touch forbidden.
 *  I4  Who changes ARMED to RETURNING (`claim`, a compare-and-exchange) owns the page until it writes another state.
 *      PLANNED and ARMING are the pager's thread's alone, DUE_* are the mover's.
 *  I5  A page leaves the shadow only by UFFDIO_MOVE to an address where its mapping is: where its region says it is
 *      (regions.c), and while nothing is changing (the kernel refuses with EAGAIN as long as a change has not been told
 *      of in full). The kernel moves nothing into a mapping that is not registered with the same descriptor.
 *  I6  That a page is gone (UNMAPPED) is certain only when the kernel refuses to put it back though nothing is changing, or
 *      when another mapping has taken its place and no change explains where its own went. The event alone proves nothing:
 *      UFFD_EVENT_UNMAP is also sent for unmappings that fail.
 *  I7  Nothing that is registered is let go before all pages of the plan are in I2.
 *  I8  At the end no mapping is registered with the descriptor or carries a MADV_DONTFORK of ours (`stop_watching`).
 *
 *      from -> to                    by                         where the page is then
 *      PLANNED -> ARMING             claim (arm_batch)          program -> shadow under way
 *      ARMING -> ARMED               mechanism.arm              shadow
 *      ARMING -> PLANNED             mechanism.arm, EAGAIN      program
 *      ARMED -> RETURNING            claim (serve, sweep,       shadow -> program under way
 *                                    disarm_all, regions.c)
 *      RETURNING -> ARMED            rearm, EAGAIN              shadow
 *      RETURNING -> DUE_*            mechanism.give_back        program; its move is owed
 *      DUE_* -> MOVED_*, a reason    run_mover                  program
 *      RETURNING -> a reason         mechanism.give_back,       program; or gone (I6)
 *                                    restore_regions
 *      PLANNED, ARMED -> a reason    regions.c                  given up by the program (discard)
 *
 * `stress.c` and `operations.c` in tests/core assert these on real memory, `nexttouch check relocate` on every interleaving.
 */
#ifndef NT_INTERNAL_H
#define NT_INTERNAL_H

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#include "kernel.h"
#include "pager.h"

struct segment {
	uint64_t start;
	uint64_t pages;
	uint64_t unit;
	uint64_t first;    /* index of its first page in the state bytes */
	uint64_t shadow;   /* where relocate parks its first page */
	size_t descriptor; /* number of the one that watches it */
};

/* A run of pages of one segment: indices are within the segment. */
struct pages {
	const struct segment *segment;
	uint64_t first;
	uint64_t count;
};

/* A stretch of registered memory that changed as one, and where it is now: see regions.c. */
struct region {
	uint64_t home, size; /* addresses when the plan was made */
	uint64_t place;      /* where it is believed to be */
	uint32_t uprooted;   /* not 0: another mapping came to `place`, as the uprooted'th; where this one is is not known */
	uint32_t doubt;      /* not 0: the doubt'th unmapping was of it, and may have failed */
	uint16_t descriptor;
	bool pending;        /* has RETURNING pages to be put back */
	bool mapped;         /* was, all of it, when the event that is being handled waited to be read */
};

/*
 * A userfaultfd. Each mapping has one of its own, as far as there are enough: its events are then about that mapping, in
 * whatever order they are read; UFFDIO_MOVE puts nothing into another one; and what is refused while it changes is only what
 * is its own.
 */
struct descriptor {
	int uffd;
	bool unsettled;                     /* changes have not been worked off */
	uint64_t put_off_low, put_off_high; /* between which addresses faults were read that are not served; high 0: none */
};

/* What is known of a thread that faults: its node, and the window that its faults move. */
struct toucher {
	pid_t thread;  /* as it calls itself */
	pid_t task;    /* as it is called here; 0: not looked up */
	int node;      /* negative: not a thread of the program's */
	uint64_t expires_ns; /* when `node` has to be looked up again */
	uint64_t low, high;  /* addresses of the last window moved for it */
	uint64_t window;     /* pages */
};

#define TOUCHERS 256

/* Messages kept at most until they are handled: each comes from a thread that waits. */
#define MESSAGES 512

struct counts {
	_Atomic uint64_t faults, hole_faults, windows, sweeps, events, moves;
	_Atomic uint64_t arm_ns, service_ns, sweep_ns, move_ns, longest_ns;
	_Atomic uint64_t latency[NT_BUCKETS];
};

/*
 * When the sweep may take its next step: when it is due by its rate, and it is `quiet` after faults, or patience is
 * over; or when the deadline has passed.
 */
struct pace {
	uint64_t due, deadline;
	uint64_t took; /* by the last step */
	uint64_t quiet, patience;
};

struct nt_pager;

/*
 * A mechanism: how pages become traps, and stop being ones. docs/adding-a-mechanism.md says how to make one.
 *
 * `arm` owns ARMING pages, `give_back` RETURNING ones; each leaves every page in another state. They return 0, or EAGAIN
 * when an event has to be read first; the pages they could not finish are then PLANNED, or RETURNING, again. `give_back`
 * puts the run where `to` is, lets its waiters go, and gives it state `state`: a reason, or that its move is due.
 * `resolve_stray` resolves a fault on a page that is not a trap (any more): 0, EEXIST or EAGAIN if the page is one that the
 * descriptor watches.
 *
 * Where armed pages are `out_of_place` the kernel tells of every change of their mappings, and more is at stake:
 * - registered memory is watched in full or not at all, followed through changes (regions.c; `is_registered`), and let go of
 *   only when nothing of it is missing (watching.c);
 * - a fork waits until everything is back, as the child would find holes (process.c).
 * Of the others a copy of the memory map has ordinary pages, and what becomes of a mapping the kernel sees to.
 */
struct mechanism {
	const char *name;
	uint64_t features, more_features; /* of the handshake: needed; asked for where the kernel has them */
	uint64_t register_mode;
	bool out_of_place;
	/* What it has of its own: made when the descriptors are there; watched no more when nothing is; given up when they are closed. */
	bool (*acquire)(struct nt_pager *pager, struct nt_error *error);
	void (*unwatch_own)(struct nt_pager *pager);
	void (*release)(struct nt_pager *pager);
	/* Make planned pages fit to be armed, before anything is watched. */
	void (*prepare)(const struct nt_pager *pager);
	int (*arm)(struct nt_pager *pager, struct pages run);
	int (*give_back)(struct nt_pager *pager, struct pages run, uint64_t to, uint8_t state);
	int (*resolve_stray)(struct nt_pager *pager, int uffd, uint64_t page);
	/* Whether memory at `address` is registered with the descriptor, or may be, as something is changing. */
	bool (*is_registered)(const struct nt_pager *pager, int uffd, uint64_t address);
	/* Of those whose pages stay in place (in_place.c): set or lift the trap of a range. 0, or an errno. */
	int (*protect)(int uffd, uint64_t address, uint64_t size, bool on);
};

/* By enum nt_mechanism (mechanisms.c). */
extern const struct mechanism relocate, write_protect, rwp;
const struct mechanism *mechanism_of(enum nt_mechanism number);

/* What the thread waits for: all is registered, or nothing will be. */
enum start_signal { NT_START_NOT_YET, NT_START_BEGIN, NT_START_END };

/* Units that one call of move_pages(2) takes at most: bounds how long faults wait behind it. */
#define MOVE_UNITS 64
/* Pages of a block, of which one byte says that pages in it are due. */
#define DUE_BLOCK 512

struct nt_pager {
	struct nt_options options;
	const struct mechanism *mechanism;
	uint64_t page_size;

	struct segment *segments;
	size_t segments_count;
	struct nt_range *ranges; /* what is registered at the start, sorted */
	size_t ranges_count;
	struct region *regions; /* where it is now */
	size_t regions_count;
	uint32_t uprootings, unmappings; /* that have been told of */
	struct descriptor *descriptors;
	size_t descriptors_count;
	int ready_fd;   /* an epoll of them */
	bool unsettled; /* one of them is */
	_Atomic uint8_t *states;
	int16_t *origins;
	int16_t *wanted; /* node that a page goes to; NT_TOUCHER: that of the thread that touches it, once one has */
	_Atomic uint8_t *due_blocks;
	size_t due_cursor;
	size_t pages;
	_Atomic size_t unreturned; /* pages that are traps, or will be */
	_Atomic size_t unfinished; /* these, and those that are due: pages without a final state */
	_Atomic bool gone;         /* the memory is: the process has ended, or become another program */
	bool elsewhere;            /* the program is in another pid namespace */
	bool dont_fork;            /* registered memory carries MADV_DONTFORK of ours */
	_Atomic bool all_full;     /* no target node has room */
	struct nt_nodemask full[2]; /* nodes that had no room for small pages, for huge ones */

	int *nodes;
	int *cpu_nodes;

	int wake_fd;
	int pagemap_fd; /* -1 where /proc does not have it */
	int smaps_fd;   /* relocate's; open from the start: at the end there may be no descriptor left for it */
	struct nt_range reserved;     /* with the shadow in it */
	uint64_t shadow, shadow_size; /* what is registered of it */
	uint64_t spare;               /* a page of the shadow in which there is never anything */
	uint64_t unreadable;          /* one behind it, which may not be read */
	void **addresses; /* arguments of move_pages, one call's worth */
	int *statuses, *targets;
	size_t *indices; /* of the states of these units' first pages */

	struct toucher touchers[TOUCHERS];
	struct uffd_msg messages[MESSAGES]; /* read, but not handled yet */
	size_t messages_count;
	size_t arm_segment;
	uint64_t arm_page;
	size_t sweep_segment;
	uint64_t sweep_page;
	struct pace pace;     /* of the sweep */
	uint64_t swept_ns;    /* when its last step began, until that is moved; 0: it is */
	uint64_t swept_pages; /* in it */
	uint64_t discarded_ns;
	char text[1 << 15]; /* of a file in /proc: a line with a path of which each byte is escaped fits */

	/* Inline service: handlers enter through the gate, which the thread shuts while it reads events. */
	_Atomic bool gate_shut;
	_Atomic unsigned inside;

	pthread_t thread, mover;
	pid_t owner; /* the process whose thread it is: a forked child has only the memory */
	bool started;
	_Atomic int request;
	_Atomic uint32_t phase, start_signal, due_signal, moved_all; /* futexes */
	_Atomic bool ending;                                         /* the mover is to */
	_Atomic bool let_go;                                         /* nothing is armed or watched any more */
	struct counts counts;
};

/* Pages that a sweep moves, and that are armed, at a time: bounds how long a fault waits for either. */
#define SWEEP_PAGES 64
#define ARM_PAGES 512

static inline uint64_t greater(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static inline uint64_t lesser(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t now_ns(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static inline void count(_Atomic uint64_t *counter, uint64_t by)
{
	atomic_fetch_add_explicit(counter, by, memory_order_relaxed);
}

static inline uint64_t address_of(const struct nt_pager *pager, const struct segment *segment, uint64_t page)
{
	return segment->start + page * pager->page_size;
}

static inline uint64_t shadow_of(const struct nt_pager *pager, const struct segment *segment, uint64_t page)
{
	return segment->shadow + page * pager->page_size;
}

static inline uint8_t state_of(const struct nt_pager *pager, const struct segment *segment, uint64_t page)
{
	return atomic_load_explicit(&pager->states[segment->first + page], memory_order_acquire);
}

static inline int uffd_of(const struct nt_pager *pager, const struct segment *segment)
{
	return pager->descriptors[segment->descriptor].uffd;
}

static inline struct pages part(struct pages run, uint64_t skip, uint64_t pages)
{
	return (struct pages){run.segment, run.first + skip, pages};
}

static inline bool fail(struct nt_error *error, const char *call, const char *detail) /* with errno; false */
{
	*error = (struct nt_error){.call = call, .number = errno, .detail = detail};
	return false;
}

/*
 * The files, by floors: each uses only what stands above it here.
 */

/* memory.c */
void *allot(size_t count, size_t size);
void *reserve(size_t room, size_t size, size_t count);
void *copy_of(const void *array, size_t count, size_t size);
void release(void *array);

/* futex.c */
void futex_set(_Atomic uint32_t *word, uint32_t value);
void futex_wake(_Atomic uint32_t *word);
void futex_wait_change(_Atomic uint32_t *word, uint32_t seen);
bool futex_wait_at_least(_Atomic uint32_t *word, uint32_t value, const struct timespec *until);

/* states.c */
void set_states(struct nt_pager *pager, struct pages run, uint8_t state);
void conclude(struct nt_pager *pager, struct pages run, uint8_t state);
void conclude_due(struct nt_pager *pager, struct pages run, uint8_t state);
void rearm(struct nt_pager *pager, struct pages run);
uint64_t claim(struct nt_pager *pager, const struct segment *segment, uint64_t first, uint64_t limit, uint8_t from);
const struct segment *segment_at(const struct nt_pager *pager, uint64_t address);
const struct segment *segment_of_index(const struct nt_pager *pager, size_t index);
bool next_run(const struct nt_pager *pager, uint64_t *at, uint64_t end, uint8_t state, struct pages *run);

/* resources.c */
bool open_files(struct nt_pager *pager, struct nt_error *error);
void close_files(struct nt_pager *pager);
void close_descriptors(struct nt_pager *pager);
void wake_thread(struct nt_pager *pager);
void wake_range(int uffd, uint64_t address, uint64_t size);
bool is_changing(int uffd);
bool is_readable(int file);

/* watching.c */
bool watch_ranges(struct nt_pager *pager, struct nt_error *error);
void stop_watching(struct nt_pager *pager);
bool watch(const struct nt_pager *pager, int uffd, uint64_t address, uint64_t size);
void unwatch(const struct nt_pager *pager, int uffd, uint64_t address, uint64_t size);

/* in_place.c */
int arm_in_place(struct nt_pager *pager, struct pages run);
int give_back_in_place(struct nt_pager *pager, struct pages run, uint64_t to, uint8_t state);
int resolve_stray_in_place(struct nt_pager *pager, int uffd, uint64_t page);

/* sweep_pace.c */
void pace_begin(struct pace *pace, uint64_t now, double rate, double deadline);
void pace_step(struct pace *pace, uint64_t began, uint64_t ended, double pause);
void pace_fault(struct pace *pace, uint64_t began, uint64_t ended);
uint64_t pace_next(const struct pace *pace);

/* touchers.c */
struct toucher *toucher_of(struct nt_pager *pager, pid_t thread);
int cpu_in_stat(const char *text);
pid_t innermost_in_status(const char *text);
int node_of_cpu(const struct nt_pager *pager, int cpu);

/* moving.c */
void *run_mover(void *argument);
void end_mover(struct nt_pager *pager);

/* fault.c */
int serve(struct nt_pager *pager, size_t descriptor, uint64_t address, struct toucher *toucher);
int return_run(struct nt_pager *pager, struct pages run, int node, uint8_t due);
int give_back(struct nt_pager *pager, struct pages run, uint8_t reason);
void record_service(struct nt_pager *pager, uint64_t took);

/* regions.c */
void note_mapped(struct nt_pager *pager, size_t descriptor);
void change_unmapped(struct nt_pager *pager, size_t descriptor, uint64_t start, uint64_t end);
void change_moved(struct nt_pager *pager, size_t descriptor, uint64_t from, uint64_t to, uint64_t size);
void change_discarded(struct nt_pager *pager, size_t descriptor, uint64_t start, uint64_t end);
bool restore_regions(struct nt_pager *pager, size_t descriptor);

/* process.c */
int process_join(struct nt_pager *pager, struct nt_error *error);
void process_leave(struct nt_pager *pager);
void block_signals(sigset_t *before);
/* Say that memory is watched no more for which handlers may be on their way; before they may look, which is behind the gate. */
void process_let_go(void);
/* Say that a pager has opened its gate. */
void process_settled(void);

/* events.c */
bool handle_messages(struct nt_pager *pager);
void shut_gate(struct nt_pager *pager);

/* loop.c */
void *run_pager(void *argument);

/* lifecycle.c: what pager.h declares */

#endif
