/* The state bytes, and the pages that they are of: see "Who owns a page" in internal.h. */
#include "internal.h"

void set_states(struct nt_pager *pager, struct pages run, uint8_t state)
{
	_Atomic uint8_t *states = &pager->states[run.segment->first + run.first];
	for (uint64_t page = 0; page < run.count; page++)
		atomic_store_explicit(&states[page], state, memory_order_release);
}

/*
 * Pages are due: which, is in their states; a byte a block says where to look. A signal handler can write both.
 */
static void mark_due(struct nt_pager *pager, struct pages run)
{
	size_t first = (run.segment->first + run.first) / DUE_BLOCK;
	size_t last = (run.segment->first + run.first + run.count - 1) / DUE_BLOCK;
	for (size_t block = first; block <= last && run.count; block++)
		atomic_store_explicit(&pager->due_blocks[block], 1, memory_order_release);
	if (!atomic_exchange(&pager->due_signal, 1)) /* a full barrier: the mover that set it to 0 sees the states */
		futex_wake(&pager->due_signal);
}

/* Give pages that are traps no more, nor will be, their final state; or leave them to the mover. */
void conclude(struct nt_pager *pager, struct pages run, uint8_t state)
{
	set_states(pager, run, state);
	if (state == NT_DUE_FAULT || state == NT_DUE_SWEEP)
		mark_due(pager, run);
	else
		atomic_fetch_sub(&pager->unfinished, run.count);
	atomic_fetch_sub(&pager->unreturned, run.count);
}

/* Give pages that were due their final state. */
void conclude_due(struct nt_pager *pager, struct pages run, uint8_t state)
{
	set_states(pager, run, state);
	atomic_fetch_sub(&pager->unfinished, run.count);
}

/* Make traps again of the pages of a claimed run that are RETURNING still. */
void rearm(struct nt_pager *pager, struct pages run)
{
	_Atomic uint8_t *states = &pager->states[run.segment->first + run.first];
	for (uint64_t page = 0; page < run.count; page++)
		if (atomic_load_explicit(&states[page], memory_order_relaxed) == NT_RETURNING)
			atomic_store_explicit(&states[page], NT_ARMED, memory_order_release);
}

/* Take the pages from `first` on that are in state `from`, up to `limit`: ARMED ones become RETURNING, PLANNED ones ARMING. */
uint64_t claim(struct nt_pager *pager, const struct segment *segment, uint64_t first, uint64_t limit, uint8_t from)
{
	uint64_t page = first;
	for (; page < limit; page++) {
		_Atomic uint8_t *state = &pager->states[segment->first + page];
		uint8_t expected = from;
		if (from == NT_PLANNED) { /* which only the pager's thread changes */
			if (atomic_load_explicit(state, memory_order_relaxed) != from)
				break;
			atomic_store_explicit(state, (uint8_t)(from + 1), memory_order_release);
		} else if (!atomic_compare_exchange_strong(state, &expected, (uint8_t)(from + 1))) {
			break;
		}
	}
	_Static_assert(NT_ARMING == NT_PLANNED + 1 && NT_RETURNING == NT_ARMED + 1, "claim counts on the order of the states");
	return page - first;
}

/* The number of segments that begin at `address` or before it. */
static size_t segments_until(const struct nt_pager *pager, uint64_t address)
{
	size_t low = 0, high = pager->segments_count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (pager->segments[middle].start <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static uint64_t end_of(const struct nt_pager *pager, const struct segment *segment)
{
	return segment->start + segment->pages * pager->page_size;
}

const struct segment *segment_at(const struct nt_pager *pager, uint64_t address)
{
	size_t until = segments_until(pager, address);
	const struct segment *segment = until ? &pager->segments[until - 1] : NULL;
	return segment && address < end_of(pager, segment) ? segment : NULL;
}

/* The segment of the page whose state has index `index`. */
const struct segment *segment_of_index(const struct nt_pager *pager, size_t index)
{
	size_t low = 0, high = pager->segments_count;
	while (high - low > 1) {
		size_t middle = low + (high - low) / 2;
		if (pager->segments[middle].first <= index)
			low = middle;
		else
			high = middle;
	}
	return &pager->segments[low];
}

/* The next run of pages in `state` whose home is in [*at, end), which is moved on behind it; false when there is none. */
bool next_run(const struct nt_pager *pager, uint64_t *at, uint64_t end, uint8_t state, struct pages *run)
{
	size_t number = segments_until(pager, *at);
	for (number -= number > 0; number < pager->segments_count; number++) {
		const struct segment *segment = &pager->segments[number];
		uint64_t low = greater(*at, segment->start), high = lesser(end, end_of(pager, segment));
		if (segment->start >= end)
			break;
		if (low >= high)
			continue;
		uint64_t page = (low - segment->start) / pager->page_size, stop = (high - segment->start) / pager->page_size;
		while (page < stop && state_of(pager, segment, page) != state)
			page++;
		uint64_t after = page;
		while (after < stop && state_of(pager, segment, after) == state)
			after++;
		*run = (struct pages){segment, page, after - page};
		*at = address_of(pager, segment, after);
		if (run->count)
			return true;
	}
	return false;
}
