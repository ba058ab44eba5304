/* The life of a pager: made, started, asked, ended, freed. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "internal.h"

#define NS 1e9

/* ---- making one ---- */

static bool copy_runs(struct nt_pager *pager, const struct nt_run *runs, size_t count)
{
	pager->segments_count = count;
	pager->segments = allot(count, sizeof *pager->segments);
	for (size_t number = 0; pager->segments && number < count; number++) {
		pager->segments[number] = (struct segment){.start = runs[number].start,
							   .pages = runs[number].pages,
							   .unit = runs[number].unit,
							   .first = pager->pages};
		pager->pages += runs[number].pages;
		if (number && runs[number].start < runs[number - 1].start + runs[number - 1].pages * pager->page_size) {
			errno = EAGAIN; /* a page may have one state only: mappings changed while they were planned */
			return false;
		}
	}
	atomic_store(&pager->unfinished, pager->pages);
	atomic_store(&pager->unreturned, pager->pages);
	return pager->segments;
}

/* Where each page goes: NT_TOUCHER, or to one of the nodes by its address. */
static int16_t *make_wanted(const struct nt_pager *pager)
{
	int16_t *wanted = allot(pager->pages, sizeof *wanted);
	for (size_t number = 0; wanted && number < pager->segments_count; number++) {
		const struct segment *segment = &pager->segments[number];
		uint64_t size = segment->unit * pager->page_size;
		for (uint64_t page = 0; page < segment->pages; page++) {
			uint64_t place = address_of(pager, segment, page) / size;
			wanted[segment->first + page] =
				pager->options.nodes_count ? (int16_t)pager->nodes[place % pager->options.nodes_count] : NT_TOUCHER;
		}
	}
	return wanted;
}

/* Changes of the program's mappings can cut what is watched down to single pages. Without events there are none. */
static struct region *make_regions(const struct nt_range *ranges, size_t count, const struct mechanism *mechanism, uint64_t page_size)
{
	size_t most = 0;
	for (size_t number = 0; number < count; number++)
		most += ranges[number].size / page_size;
	return mechanism->out_of_place ? reserve(most, sizeof(struct region), count) : allot(count, sizeof(struct region));
}

static int by_start(const void *a, const void *b)
{
	uint64_t first = ((const struct nt_range *)a)->start, second = ((const struct nt_range *)b)->start;
	return (first > second) - (first < second);
}

static bool copy_plan(struct nt_pager *pager, const struct nt_run *runs, size_t runs_count, const struct nt_range *ranges,
		      size_t ranges_count, const int16_t *origins)
{
	const struct nt_options *options = &pager->options;
	if (!copy_runs(pager, runs, runs_count))
		return false;
	pager->ranges_count = ranges_count;
	pager->ranges = copy_of(ranges, ranges_count, sizeof *ranges);
	if (pager->ranges)
		qsort(pager->ranges, ranges_count, sizeof *ranges, by_start);
	pager->descriptors = allot(ranges_count + 1, sizeof *pager->descriptors);
	pager->regions = make_regions(ranges, ranges_count, pager->mechanism, pager->page_size);
	pager->origins = copy_of(origins, pager->pages, sizeof *origins);
	pager->states = allot(pager->pages, 1);
	pager->due_blocks = allot(pager->pages / DUE_BLOCK + 1, 1);
	pager->nodes = copy_of(options->nodes, options->nodes_count, sizeof *options->nodes);
	pager->wanted = !pager->nodes	   ? NULL
			: options->wanted ? copy_of(options->wanted, pager->pages, sizeof *options->wanted)
					  : make_wanted(pager);
	pager->cpu_nodes = copy_of(options->cpu_nodes, options->cpus, sizeof *options->cpu_nodes);
	pager->options.nodes = pager->nodes;
	pager->options.cpu_nodes = pager->cpu_nodes;
	pager->addresses = allot(MOVE_UNITS, sizeof *pager->addresses);
	pager->statuses = allot(MOVE_UNITS, sizeof *pager->statuses);
	pager->targets = allot(MOVE_UNITS, sizeof *pager->targets);
	pager->indices = allot(MOVE_UNITS, sizeof *pager->indices);
	return pager->ranges && pager->descriptors && pager->regions && pager->origins && pager->wanted && pager->states && pager->due_blocks &&
	       pager->nodes && pager->cpu_nodes && pager->addresses && pager->statuses && pager->targets && pager->indices;
}

struct nt_pager *nt_pager_new(const struct nt_options *options, const struct nt_run *runs, size_t runs_count,
			      const struct nt_range *ranges, size_t ranges_count, const int16_t *origins,
			      struct nt_error *error)
{
	struct nt_pager *pager = allot(1, sizeof *pager);
	if (!pager) {
		fail(error, "mmap", NULL);
		if (options->uffd >= 0) {
			nt_forget(options->uffd);
			close(options->uffd);
		}
		return NULL;
	}
	pager->options = *options;
	pager->owner = getpid();
	pager->mechanism = mechanism_of(options->mechanism);
	pager->page_size = (uint64_t)sysconf(_SC_PAGESIZE);
	pager->ready_fd = pager->wake_fd = pager->pagemap_fd = pager->smaps_fd = -1;
	bool made = copy_plan(pager, runs, runs_count, ranges, ranges_count, origins) || fail(error, "mmap", NULL);
	if (!made || !open_files(pager, error)) {
		nt_pager_free(pager);
		return NULL;
	}
	return pager;
}

/* ---- starting ---- */

/* Remove every trap and every resource of the kernel; the states stay. */
static void dismantle(struct nt_pager *pager)
{
	if (pager->descriptors_count)
		stop_watching(pager);
	close_files(pager);
}

/* A handler of the program that ran in the pager's thread and touched an armed page would wait for itself. */
static int create_threads(struct nt_pager *pager)
{
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int number = pthread_create(&pager->mover, NULL, run_mover, pager);
	if (!number && (number = pthread_create(&pager->thread, NULL, run_pager, pager))) {
		end_mover(pager);
		pthread_join(pager->mover, NULL);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return number;
}

/* The threads are there before anything is watched: to make them takes memory, which may lie in what is watched. */
static int start(struct nt_pager *pager, struct nt_error *error)
{
	if (process_join(pager, error))
		return -1;
	futex_set(&pager->phase, NT_ARMING_PHASE);
	errno = create_threads(pager);
	bool threaded = errno == 0;
	if (!threaded)
		fail(error, "pthread_create", NULL);
	else if (pager->mechanism->prepare)
		pager->mechanism->prepare(pager);
	pager->started = threaded && watch_ranges(pager, error);
	if (pager->started) {
		futex_set(&pager->start_signal, NT_START_BEGIN);
		return 0;
	}
	shut_gate(pager);
	dismantle(pager);
	if (threaded) { /* now: to end it frees memory */
		futex_set(&pager->start_signal, NT_START_END);
		pthread_join(pager->thread, NULL);
		end_mover(pager);
		pthread_join(pager->mover, NULL);
	}
	process_leave(pager);
	futex_set(&pager->phase, NT_DONE);
	return -1;
}

/* A signal handler that forked in the middle of this would wait for a pager that waits for what it interrupted. */
int nt_pager_start(struct nt_pager *pager, struct nt_error *error)
{
	sigset_t before;
	block_signals(&before);
	int result = start(pager, error);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return result;
}

/* ---- asking ---- */

bool nt_pager_wait(struct nt_pager *pager, enum nt_phase phase, double seconds)
{
	if (pager->owner != getpid())
		return true;
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	double whole = floor(seconds);
	until.tv_sec += (time_t)whole;
	until.tv_nsec += (long)((seconds - whole) * NS);
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	return futex_wait_at_least(&pager->phase, phase, &until);
}

void nt_pager_cancel(struct nt_pager *pager)
{
	int none = NT_NONE;
	atomic_compare_exchange_strong(&pager->request, &none, NT_CANCEL);
	wake_thread(pager);
}

enum nt_phase nt_pager_phase(const struct nt_pager *pager)
{
	return pager->owner == getpid() ? (enum nt_phase)atomic_load(&pager->phase) : NT_DONE;
}

uint64_t nt_bucket_limit(unsigned bucket)
{
	return (uint64_t)(4 + bucket % 4 + 1) << (bucket / 4) >> 2;
}

void nt_pager_stats(const struct nt_pager *pager, struct nt_stats *stats)
{
	const struct counts *counts = &pager->counts;
	*stats = (struct nt_stats){.faults = atomic_load(&counts->faults),
				   .hole_faults = atomic_load(&counts->hole_faults),
				   .windows = atomic_load(&counts->windows),
				   .sweeps = atomic_load(&counts->sweeps),
				   .events = atomic_load(&counts->events),
				   .moves = atomic_load(&counts->moves),
				   .arm_ns = atomic_load(&counts->arm_ns),
				   .service_ns = atomic_load(&counts->service_ns),
				   .sweep_ns = atomic_load(&counts->sweep_ns),
				   .move_ns = atomic_load(&counts->move_ns),
				   .longest_ns = atomic_load(&counts->longest_ns)};
	for (unsigned bucket = 0; bucket < NT_BUCKETS; bucket++)
		stats->latency[bucket] = atomic_load(&counts->latency[bucket]);
}

const uint8_t *nt_pager_states(const struct nt_pager *pager, size_t *pages)
{
	*pages = pager->pages;
	return (const uint8_t *)pager->states;
}

const int16_t *nt_pager_wanted(const struct nt_pager *pager)
{
	return pager->wanted;
}

struct nt_range nt_pager_shadow(const struct nt_pager *pager)
{
	return (struct nt_range){pager->shadow, pager->shadow_size};
}

/* ---- the end ---- */

static void release_all(struct nt_pager *pager)
{
	release(pager->segments);
	release(pager->ranges);
	release(pager->descriptors);
	release(pager->regions);
	release(pager->origins);
	release(pager->wanted);
	release((void *)(uintptr_t)pager->states);
	release((void *)(uintptr_t)pager->due_blocks);
	release(pager->nodes);
	release(pager->cpu_nodes);
	release(pager->addresses);
	release(pager->statuses);
	release(pager->targets);
	release(pager->indices);
	release(pager);
}

/* Of a pager that was not started, or in a forked child. There it is the parent's: its events are not ours to read. */
static void discard(struct nt_pager *pager, bool ours)
{
	if (pager->options.uffd >= 0) { /* there was no place for it yet */
		nt_forget(pager->options.uffd);
		close(pager->options.uffd);
	}
	if (!ours) {
		close_descriptors(pager);
		return;
	}
	for (size_t number = 0; number < pager->descriptors_count; number++)
		nt_forget(pager->descriptors[number].uffd);
	dismantle(pager);
}

void nt_pager_free(struct nt_pager *pager)
{
	bool ours = pager->owner == getpid();
	sigset_t before;
	block_signals(&before);
	if (ours && pager->started) {
		nt_pager_cancel(pager);
		pthread_join(pager->thread, NULL);
		pthread_join(pager->mover, NULL);
	} else {
		discard(pager, ours);
	}
	if (pager->wake_fd >= 0)
		close(pager->wake_fd);
	if (pager->pagemap_fd >= 0)
		close(pager->pagemap_fd);
	if (pager->smaps_fd >= 0)
		close(pager->smaps_fd);
	release_all(pager);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}
