/* What the pager's own files share; nothing outside _core includes this. */
#ifndef NT_INTERNAL_H
#define NT_INTERNAL_H

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "kernel.h"
#include "pager.h"

/* Why a page stays; the numbers of nexttouch.live.reason.Reason. */
enum nt_reason {
	NT_ABSENT = NT_REASON, /* nothing there */
	NT_AT_HOME,            /* is on the node it belongs on */
	NT_SHARED,             /* mapped by several processes */
	NT_BUSY,               /* pinned, or the kernel could not isolate it */
	NT_TARGET_FULL,
	NT_FORKED,             /* the process forked before the page was touched */
	NT_CANCELLED,
	NT_UNTOUCHED,          /* nobody touched it before the deadline */
	NT_UNMAPPED,
	NT_DISCARDED,          /* MADV_DONTNEED: the program wants zeros there */
	NT_REMAPPED,
	NT_UNSUITABLE,         /* the mapping forbids it */
	NT_STRANDED,           /* could not be put back: its contents are kept in the shadow */
};

struct segment {
	uint64_t start;
	uint64_t pages;
	uint64_t unit;
	uint64_t first;  /* index of its first page in the state bytes */
	uint64_t shadow; /* where relocate parks its first page */
};

/* A run of pages of one segment: indices are within the segment. */
struct pages {
	const struct segment *segment;
	uint64_t first;
	uint64_t count;
};

/* What is known of a thread that faults: its node, and the window that its faults move. */
struct toucher {
	pid_t thread;
	int node;
	uint64_t expires_ns; /* when `node` has to be looked up again */
	uint64_t low, high;  /* addresses of the last window moved for it */
	uint64_t window;     /* pages */
};

#define TOUCHERS 256

/* Messages kept at most until they are handled: each comes from a thread that waits. */
#define MESSAGES 512

/* A range of the plan whose mapping moved to `to`: its MOVING pages have to be put back there. */
struct displaced {
	uint64_t from, size, to;
};

#define DISPLACED 1024
#define MOVED_RANGES 1024
#define CUTS 1024

struct counts {
	_Atomic uint64_t faults, hole_faults, windows, sweeps, events;
	_Atomic uint64_t arm_ns, service_ns, sweep_ns, longest_ns;
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
 * What a mechanism does to a run. `arm` owns ARMING pages, `move` and `give_back` MOVING ones; each leaves every page in
 * another state. `move` and `give_back` return 0, or EAGAIN when an event has to be read first; the pages they could
 * not finish are then ARMED again (PLANNED again for `arm`; give_back of displaced pages, NT_REMAPPED: MOVING still). `let_go` resolves a fault
 * on a page that is not a trap (any more); 0, EEXIST or EAGAIN if the page is one of this pager's.
 */
struct mechanism {
	int (*arm)(struct nt_pager *pager, struct pages run);
	int (*move)(struct nt_pager *pager, struct pages run, int node, uint8_t moved);
	int (*give_back)(struct nt_pager *pager, struct pages run, uint64_t to, uint8_t reason);
	int (*let_go)(struct nt_pager *pager, uint64_t page);
};

extern const struct mechanism relocate, protect;

/* What the thread waits for: all is registered, or nothing will be. */
enum nt_word { NT_NO_WORD, NT_BEGIN, NT_END };

struct nt_pager {
	struct nt_options options;
	const struct mechanism *mechanism;
	uint64_t page_size;

	struct segment *segments;
	size_t segments_count;
	struct nt_range *ranges; /* what is registered; unmapping cuts holes into it */
	size_t ranges_count, ranges_room;
	_Atomic uint8_t *states;
	int16_t *origins;
	size_t pages;
	_Atomic size_t unfinished; /* pages without a final state */
	bool gone;                 /* the memory is: the process has ended, or become another program */
	bool dont_fork;            /* the ranges carry MADV_DONTFORK of ours */

	int *nodes;
	int *cpu_nodes;
	struct nt_nodemask target;

	int uffd;
	int wake_fd;
	uint64_t shadow, shadow_size;
	uint8_t *stage;        /* frames to copy into: STAGE_SIZE for a huge page, as much for small ones */
	_Atomic bool stage_taken;
	void **addresses;      /* arguments of move_pages, one unit's or window's worth */
	int *statuses, *wanted;

	struct toucher touchers[TOUCHERS];
	struct uffd_msg messages[MESSAGES]; /* read, but not handled yet */
	size_t messages_count;
	uint64_t put_off_low, put_off_high; /* addresses of faults that were read and found no room; high 0: none */
	struct displaced displaced[DISPLACED];
	size_t displaced_count;
	struct nt_range moved[MOVED_RANGES]; /* where mappings of ours went */
	size_t moved_count;
	size_t arm_segment;
	uint64_t arm_page;
	size_t sweep_segment;
	uint64_t sweep_page;
	struct pace pace; /* of the sweep */
	uint64_t discarded_ns;

	/* Inline service: handlers enter through the gate, which the thread shuts while it reads events. */
	_Atomic bool gate_shut;
	_Atomic unsigned inside;

	pthread_t thread;
	pid_t owner; /* the process whose thread it is: a forked child has only the memory */
	bool started;
	_Atomic int request, phase;
	pthread_mutex_t mutex;
	enum nt_word word; /* to the thread, under the mutex */
	pthread_cond_t changed;
	struct counts counts;
};

/* Pages that a sweep moves, and that are armed, at a time: bounds how long a fault waits for either. */
#define SWEEP_PAGES 64
#define ARM_PAGES 512
/* Pages of the largest unit that is moved through the staging area, and of the largest window. */
#define UNIT_PAGES 512
#define STAGE_SIZE (2UL << 20)

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

static inline struct pages part(struct pages run, uint64_t skip, uint64_t pages)
{
	return (struct pages){run.segment, run.first + skip, pages};
}

/* pager.c */
void set_states(struct nt_pager *pager, struct pages run, uint8_t state);
void finish(struct nt_pager *pager, struct pages run, uint8_t state);
uint64_t claim(struct nt_pager *pager, const struct segment *segment, uint64_t first, uint64_t limit, uint8_t from);
const struct segment *segment_at(const struct nt_pager *pager, uint64_t address);
int serve(struct nt_pager *pager, uint64_t address, struct toucher *toucher);
void wake_thread(struct nt_pager *pager);
void wake_range(struct nt_pager *pager, uint64_t address, uint64_t size);
int give_back(struct nt_pager *pager, struct pages run, uint8_t reason);

/* making.c */
bool fail(struct nt_error *error, const char *call, const char *detail); /* with errno; false */
bool watch_ranges(struct nt_pager *pager, struct nt_error *error);
void stop_watching(struct nt_pager *pager, struct nt_range range);
void dismantle(struct nt_pager *pager);

/* pace.c */
void pace_begin(struct pace *pace, uint64_t now, double rate, double deadline);
void pace_step(struct pace *pace, uint64_t began, uint64_t ended, double pause);
void pace_fault(struct pace *pace, uint64_t began, uint64_t ended);
uint64_t pace_next(const struct pace *pace);

/* relocate.c */
void own_pages(const struct nt_pager *pager);

/* policy.c */
void use_node(struct nt_pager *pager, int node);
void forget_node(void);

/* events.c */
void handle_messages(struct nt_pager *pager);
bool is_changing(const struct nt_pager *pager);
void shut_gate(struct nt_pager *pager);
void settle(struct nt_pager *pager);
void record_service(struct nt_pager *pager, uint64_t took);

/* touchers.c */
struct toucher *toucher_of(struct nt_pager *pager, pid_t thread);
int cpu_in_stat(const char *text);
int node_of_cpu(const struct nt_pager *pager, int cpu);

/* process.c */
int process_join(struct nt_pager *pager, struct nt_error *error);
void process_leave(struct nt_pager *pager);
/* Say that memory is watched no more for which handlers may be on their way; before they may look, which is behind the gate. */
void process_let_go(void);

#endif
