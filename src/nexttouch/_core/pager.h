/*
 * The pager: turns planned pages into traps, serves their faults, sweeps the rest, and gives everything back.
 *
 * A page has exactly one state byte. The thread that changes it from ARMED to RETURNING owns the page until it writes another
 * state: the byte is the page lock. Every other thread that touches the page waits in the kernel's fault queue and redoes
 * the access.
 *
 *     PLANNED -> ARMING -> ARMED -> RETURNING -> DUE_FAULT | DUE_SWEEP -> MOVED_FAULT | MOVED_SWEEP | a reason to stay
 *         \---------\----------------> a reason to stay (>= NT_REASON)
 *
 * A fault puts a window of pages back where they were and lets its thread go; then move_pages(2) moves what is due, in the
 * place where the program uses it. That call is safe against the program's stores, and it alone looks at who holds a page.
 *
 * The mechanisms differ in the trap:
 *
 * NT_RELOCATE       private anonymous memory of this process. UFFDIO_MOVE parks a page in a shadow range: it keeps its
 *                   frame, its old address faults. Parked pages are never written.
 * NT_WRITE_PROTECT  any process, anonymous, shmem and hugetlb memory. Pages stay where they are, write-protected; a store
 *                   faults. Contents are never out of place.
 * NT_RWP            the same, also in mappings that forbid writing; any touch faults. Since Linux 7.3.
 *
 * One thread, in C, without Python and without allocating memory after the start, does everything: it arms, serves,
 * reads the kernel's events about unmapping, moves, and sweeps when no fault waits. With NT_INLINE the faulting threads put
 * pages back themselves, in a SIGBUS handler, and the thread does the rest.
 */
#ifndef NT_PAGER_H
#define NT_PAGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum nt_mechanism { NT_RELOCATE, NT_WRITE_PROTECT, NT_RWP };
enum nt_service { NT_THREAD, NT_INLINE };

/* States below NT_REASON; from there on they are reasons. */
enum nt_state {
	NT_PLANNED = 0,
	NT_ARMING = 1,
	NT_ARMED = 2,
	NT_RETURNING = 3,
	NT_MOVED_FAULT = 4,
	NT_MOVED_SWEEP = 5,
	NT_DUE_FAULT = 6,
	NT_DUE_SWEEP = 7,
	NT_REASON = 32,
};

/* Why a page stays. Numbers that are missing are reasons of nexttouch.live.reason.Reason that no pager has. */
enum nt_reason {
	NT_ABSENT = NT_REASON, /* nothing there */
	NT_AT_HOME,            /* is on the node it belongs on */
	NT_SHARED,             /* mapped by several processes */
	NT_BUSY,               /* pinned or held, or the kernel could not isolate it */
	NT_TARGET_FULL,
	NT_FORKED,             /* the process forked before the page was touched */
	NT_CANCELLED,
	NT_UNTOUCHED,          /* no thread touched it before the deadline */
	NT_UNMAPPED,
	NT_DISCARDED,          /* MADV_DONTNEED: the program wants zeros there */
	NT_REMAPPED,           /* its mapping changed: mremap, or an unmapping that failed */
	NT_UNSUITABLE,         /* the mapping forbids it */
	NT_STRANDED,           /* could not be put back: its contents are kept in the shadow */
	NT_SWAPPED = 47,
	NT_TARGET_GONE = 49,   /* the target node may not be used any more */
	NT_OUTSIDE = 51,       /* touched from outside the program, or by a thread that has ended: there is no node to move it to */
	NT_TOUCHED,            /* and only noted: the pager was to observe */
};

struct nt_run {
	uint64_t start; /* address, a multiple of unit pages */
	uint64_t pages;
	uint64_t unit; /* pages that move together: 1, or those of a huge page */
};

struct nt_range {
	uint64_t start;
	uint64_t size; /* bytes */
};

/* Where a page is that has to move whatever node it is on. */
#define NT_ANYWHERE (-1)
/* Where a page goes that moves to the node of the thread that touches it. */
#define NT_TOUCHER (-1)

struct nt_options {
	enum nt_mechanism mechanism;
	enum nt_service service;
	pid_t pid;        /* whose memory; 0: this process */
	int uffd;         /* descriptor of that memory, owned from here on; -1: make one (pid 0 only) */
	int alive_fd;     /* a pidfd of `pid`: readable when the process is gone; -1: none */
	bool user_mode;   /* the descriptor to make serves no faults of system calls */
	bool toucher;     /* the nodes of threads that touch are wanted */
	bool observe;     /* and only noted: nothing moves */
	const int *nodes; /* target: one node, or several; none where every page goes to its toucher */
	size_t nodes_count;
	const int16_t *wanted; /* where each page goes; NULL: to `nodes`, interleaved by address as the kernel's policy does it */
	const int *cpu_nodes; /* node of each CPU */
	size_t cpus;
	uint64_t window; /* most pages a fault moves */
	double rate;     /* bytes a second that the sweep moves; 0: no sweep; INFINITY: as fast as it goes */
	double deadline; /* seconds from the end of arming after which the sweep stops keeping to `rate`; INFINITY: never */
};

/* What went wrong: the call, its errno, and what it was for. */
struct nt_error {
	const char *call;
	int number;
	const char *detail;
};

/* Latencies of serving a fault: four buckets a power of two of nanoseconds. */
#define NT_BUCKETS 128

struct nt_stats {
	uint64_t faults;       /* faults served */
	uint64_t hole_faults;  /* of these, touches of pages that were not there yet */
	uint64_t windows;      /* runs of pages put back for a fault, to be moved */
	uint64_t sweeps;       /* runs of pages put back by the sweep, to be moved */
	uint64_t events;       /* unmap, remap and discard events read */
	uint64_t moves;        /* calls of move_pages(2) that were to move pages */
	uint64_t arm_ns;       /* time spent arming */
	uint64_t service_ns;   /* time spent serving faults */
	uint64_t sweep_ns;     /* time spent sweeping */
	uint64_t move_ns;      /* time spent in move_pages(2), that of the sweep included */
	uint64_t longest_ns;   /* longest service of one fault: until its thread was let go */
	uint64_t latency[NT_BUCKETS];
};

enum nt_phase { NT_CREATED, NT_ARMING_PHASE, NT_SERVING, NT_DONE };
enum nt_request { NT_NONE, NT_CANCEL, NT_FORK };

struct nt_pager;

/*
 * Make a pager for `runs` (sorted, disjoint), whose pages lie in `ranges` (what is registered) and are now on the nodes
 * `origins` (one a page, in the order of the runs). The arrays are copied. NULL on failure, with `error` filled in, and
 * `options->uffd` closed.
 */
struct nt_pager *nt_pager_new(const struct nt_options *options, const struct nt_run *runs, size_t runs_count,
			      const struct nt_range *ranges, size_t ranges_count, const int16_t *origins,
			      struct nt_error *error);

/* Register the ranges and start the thread, which begins to arm. 0, or -1 with `error`. */
int nt_pager_start(struct nt_pager *pager, struct nt_error *error);

/* Wait until `phase` is reached, at most `seconds`; whether it was. */
bool nt_pager_wait(struct nt_pager *pager, enum nt_phase phase, double seconds);

/* Ask the thread to give back every page that is still armed, and to end. */
void nt_pager_cancel(struct nt_pager *pager);

/* Cancel, wait for the end, free. */
void nt_pager_free(struct nt_pager *pager);

/*
 * Receive from a stream or packet socket, without waiting, up to `size` bytes and the descriptor that comes with them (-1:
 * none), which a child does not keep that is forked before a pager is started with it. The bytes, or -1 with errno.
 */
ssize_t nt_receive(int socket, void *data, size_t size, int *descriptor);

/* A received descriptor is about to be closed. */
void nt_forget(int descriptor);

enum nt_phase nt_pager_phase(const struct nt_pager *pager);
void nt_pager_stats(const struct nt_pager *pager, struct nt_stats *stats);
/* The state bytes, one a page in the order of the runs; they live as long as the pager. */
const uint8_t *nt_pager_states(const struct nt_pager *pager, size_t *pages);
/* The node that each page went to, or is to go to; NT_TOUCHER as long as no thread has touched a page that goes to its toucher. */
const int16_t *nt_pager_wanted(const struct nt_pager *pager);
/* The reservation of the parked pages: relocate's shadow; size 0 once it is gone. */
struct nt_range nt_pager_shadow(const struct nt_pager *pager);

/* A mechanism's name; NULL where there is none of that number. */
const char *nt_mechanism_name(int number);

/* The upper bound in nanoseconds of a latency bucket. */
uint64_t nt_bucket_limit(unsigned bucket);

#endif
