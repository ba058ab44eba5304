/*
 * Moving what is due, with move_pages(2): pages that are back in their place, whichever mechanism trapped them.
 *
 * The kernel's own migration is safe against stores, and refuses a page that is held by a reference: so nothing waits
 * meanwhile but who touches a page in the moment in which it is copied, and held pages stay (NT_BUSY). A call costs some
 * 30 us and more under load, as it waits for every CPU (lru_cache_disable), whatever it moves: what several faults made due
 * goes in one call.
 *
 * Which pages are due is in their states; a byte a block says where to look. A signal handler can write both. What is due is
 * the mover's alone until it has its final state.
 */
#include <errno.h>
#include <limits.h>
#include <sys/prctl.h>

#include "internal.h"

/* move_pages leaves the status of what it did not attempt as it found it. */
#define UNWRITTEN INT_MIN
/* How often pages are tried of which none moved. */
#define ATTEMPTS 3

/* ---- what goes into a call ---- */

static bool is_due(uint8_t state)
{
	return state == NT_DUE_FAULT || state == NT_DUE_SWEEP;
}

static bool is_in(const struct nt_nodemask *mask, int node)
{
	return mask->words[node / 64] >> (node % 64) & 1;
}

/* The due pages of the unit at `index`, at most up to its end: those that one address stands for. */
static struct pages due_unit(const struct nt_pager *pager, size_t index)
{
	const struct segment *segment = segment_of_index(pager, index);
	struct pages unit = {segment, index - segment->first, 1};
	uint64_t end = (unit.first / segment->unit + 1) * segment->unit;
	while (unit.first + unit.count < end && is_due(state_of(pager, segment, unit.first + unit.count)))
		unit.count++;
	return unit;
}

/* Add a unit to the call that is being put together, unless its node is known to have no room for it. */
static size_t add_unit(struct nt_pager *pager, size_t count, size_t index, struct pages unit)
{
	uint64_t address = address_of(pager, unit.segment, unit.first);
	int node = pager->wanted[index];
	if (is_in(&pager->full[unit.segment->unit > 1], node)) {
		conclude_due(pager, unit, NT_TARGET_FULL);
		return count;
	}
	pager->addresses[count] = (void *)(uintptr_t)address;
	pager->targets[count] = node;
	pager->indices[count] = index;
	return count + 1;
}

/* Whether the page at `index` is of a unit that is in the call: one that crosses the border of a block is met twice. */
static bool is_gathered(const struct nt_pager *pager, size_t count, size_t index)
{
	uint64_t unit = segment_of_index(pager, index)->unit;
	bool found = false;
	for (size_t other = 0; unit > 1 && other < count; other++)
		found |= index >= pager->indices[other] && index - pager->indices[other] < due_unit(pager, pager->indices[other]).count;
	return found;
}

/* Put together up to MOVE_UNITS due units; how many. */
static size_t gather(struct nt_pager *pager)
{
	size_t count = 0, blocks = (pager->pages + DUE_BLOCK - 1) / DUE_BLOCK;
	for (size_t looked = 0; looked < blocks; looked++) {
		size_t block = (pager->due_cursor + looked) % blocks;
		if (!atomic_load_explicit(&pager->due_blocks[block], memory_order_relaxed))
			continue;
		atomic_exchange(&pager->due_blocks[block], 0); /* before the states are looked at: what comes later marks it again */
		size_t end = lesser((block + 1) * DUE_BLOCK, pager->pages);
		for (size_t index = block * DUE_BLOCK; index < end;) {
			bool due = is_due(atomic_load_explicit(&pager->states[index], memory_order_acquire));
			if (!due || is_gathered(pager, count, index)) {
				index++;
				continue;
			}
			if (count == MOVE_UNITS) {
				atomic_store(&pager->due_blocks[block], 1);
				pager->due_cursor = block;
				return count;
			}
			struct pages unit = due_unit(pager, index);
			count = add_unit(pager, count, index, unit);
			index += unit.count;
		}
	}
	return count;
}

static void swap_units(struct nt_pager *pager, size_t a, size_t b)
{
	void *address = pager->addresses[a];
	int node = pager->targets[a], status = pager->statuses[a];
	size_t index = pager->indices[a];
	pager->addresses[a] = pager->addresses[b];
	pager->targets[a] = pager->targets[b];
	pager->statuses[a] = pager->statuses[b];
	pager->indices[a] = pager->indices[b];
	pager->addresses[b] = address;
	pager->targets[b] = node;
	pager->statuses[b] = status;
	pager->indices[b] = index;
}

/* Bring the units from `first` on that go to the same node as that one together; how many these are. */
static size_t same_node(struct nt_pager *pager, size_t first, size_t count)
{
	size_t same = first + 1;
	for (size_t unit = same; unit < count; unit++)
		if (pager->targets[unit] == pager->targets[first])
			swap_units(pager, unit, same++);
	return same - first;
}

/* ---- calls ---- */

/* Where these are, or why the kernel does not say. */
static void query(struct nt_pager *pager, size_t first, size_t count)
{
	if (!nt_move_pages(pager->options.pid, count, pager->addresses + first, NULL, pager->statuses + first))
		return;
	int number = errno;
	pager->gone |= number == ESRCH;
	for (size_t unit = first; unit < first + count; unit++)
		pager->statuses[unit] = -number;
}

static void count_call(struct nt_pager *pager, uint64_t began)
{
	count(&pager->counts.moves, 1);
	count(&pager->counts.move_ns, now_ns() - began);
}

/* One call for units that go to one node; the statuses are those of before where the kernel wrote none. Its errno. */
static int call(struct nt_pager *pager, size_t first, size_t units)
{
	uint64_t began = now_ns();
	for (size_t unit = first; unit < first + units; unit++)
		pager->statuses[unit] = UNWRITTEN;
	long result = nt_move_pages(pager->options.pid, units, pager->addresses + first, pager->targets + first,
				    pager->statuses + first);
	int number = result < 0 ? errno : 0;
	count_call(pager, began);
	return number;
}

static bool is_swapped(const struct nt_pager *pager, uint64_t address)
{
	uint64_t entry = 0;
	off_t offset = (off_t)(address / pager->page_size * sizeof entry);
	return pager->pagemap_fd >= 0 && pread(pager->pagemap_fd, &entry, sizeof entry, offset) == sizeof entry &&
	       entry & NT_ENTRY_SWAPPED && !(entry & NT_ENTRY_PRESENT);
}

static uint8_t reason_of(const struct nt_pager *pager, int status, uint64_t address)
{
	switch (-status) {
	case ESRCH:
		return NT_UNMAPPED;
	case EACCES:
		return NT_SHARED;
	case ENOENT:
	case EFAULT:
		return is_swapped(pager, address) ? NT_SWAPPED : NT_ABSENT;
	case ENOMEM:
		return NT_TARGET_FULL;
	case EBUSY:
	case EAGAIN:
		return NT_BUSY;
	case ENODEV:
		return NT_TARGET_GONE;
	default:
		return NT_UNSUITABLE;
	}
}

static uint8_t moved_state(uint8_t due)
{
	return due == NT_DUE_FAULT ? NT_MOVED_FAULT : NT_MOVED_SWEEP;
}

/* What became of a huge page that was not moved as one, for `reason`: the kernel may have split it, and moved some of it. */
static void account_split(struct nt_pager *pager, struct pages due, int target, uint8_t reason)
{
	void *addresses[MOVE_UNITS];
	int nodes[MOVE_UNITS];
	while (due.count) {
		size_t count = lesser(due.count, MOVE_UNITS);
		for (size_t page = 0; page < count; page++) {
			addresses[page] = (void *)(uintptr_t)address_of(pager, due.segment, due.first + page);
			nodes[page] = -1;
		}
		nt_move_pages(pager->options.pid, count, addresses, NULL, nodes);
		for (size_t page = 0; page < count; page++) {
			uint8_t state = state_of(pager, due.segment, due.first + page);
			conclude_due(pager, part(due, page, 1), nodes[page] == target ? moved_state(state) : reason);
		}
		due = part(due, count, due.count - count);
	}
}

/* What became of a unit by its status: a node, or a negated errno. `asked`: not that of the call, so of its first page only. */
static void account(struct nt_pager *pager, size_t unit, bool asked)
{
	struct pages due = due_unit(pager, pager->indices[unit]);
	int status = pager->statuses[unit], target = pager->targets[unit];
	uint8_t reason = status >= 0 ? NT_BUSY : reason_of(pager, status, address_of(pager, due.segment, due.first));
	if (due.count > 1 && (asked || status != target))
		account_split(pager, due, target, reason);
	else if (status == target)
		conclude_due(pager, due, moved_state(state_of(pager, due.segment, due.first)));
	else
		conclude_due(pager, due, reason);
}

/* A node had no room for a unit of this size: no other one is tried. Without room for small pages on any there is none at all. */
static void note_full(struct nt_pager *pager, int node, bool huge)
{
	pager->full[1].words[node / 64] |= (uint64_t)1 << (node % 64);
	if (huge)
		return;
	pager->full[0].words[node / 64] |= (uint64_t)1 << (node % 64);
	bool all = pager->options.nodes_count;
	for (size_t number = 0; number < pager->options.nodes_count; number++)
		all &= is_in(&pager->full[0], pager->nodes[number]);
	pager->all_full = all;
}

/* Whether a status says that the call came to the unit: it is where it should be, or cannot be moved. */
static bool is_decided(const struct nt_pager *pager, size_t unit)
{
	int status = pager->statuses[unit];
	return status == pager->targets[unit] || (status < 0 && status != -EBUSY && status != -EAGAIN);
}

/*
 * Pages that are to move wherever they are, and are on their node: into other frames of it. move_pages(2) leaves them;
 * mbind(2) to no policy takes all pages of a range for misplaced, and their new frames come by this thread's own policy. It
 * looks at who holds a page as that does, but does not say which page stayed. A mapping that has a policy would lose it.
 */
static void renew(struct nt_pager *pager, size_t first, size_t count)
{
	int node = pager->targets[first];
	struct nt_nodemask only = {{0}};
	only.words[node / 64] = (uint64_t)1 << (node % 64);
	if (!count || nt_set_mempolicy(NT_MPOL_PREFERRED, &only))
		return;
	for (size_t unit = first, after; unit < first + count; unit = after) {
		uint64_t start = (uint64_t)(uintptr_t)pager->addresses[unit], end = start;
		const struct segment *segment = segment_of_index(pager, pager->indices[unit]); /* which lies in one mapping */
		for (after = unit; after < first + count && (uint64_t)(uintptr_t)pager->addresses[after] == end; after++) {
			struct pages next = due_unit(pager, pager->indices[after]);
			if (next.segment != segment)
				break;
			end += next.count * pager->page_size;
		}
		uint64_t began = now_ns();
		if (nt_policy_at(start) == NT_MPOL_DEFAULT)
			nt_migrate_by_policy(start, end - start);
		count_call(pager, began);
	}
}

/* Deal with those of the units that are to move wherever they are, and are on their node; how many are left. */
static size_t renew_at_home(struct nt_pager *pager, size_t first, size_t count)
{
	bool anywhere = pager->origins[pager->indices[first]] == NT_ANYWHERE;
	if (!anywhere || pager->options.pid) /* mbind(2) is for one's own memory */
		return count;
	query(pager, first, count);
	size_t home = 0;
	for (size_t unit = first; unit < first + count; unit++)
		if (pager->statuses[unit] == pager->targets[unit])
			swap_units(pager, unit, first + home++);
	renew(pager, first, home);
	for (size_t unit = first; unit < first + home; unit++)
		account(pager, unit, false);
	for (size_t unit = 0; unit < count - home && home; unit++)
		swap_units(pager, first + unit, first + home + unit);
	return count - home;
}

/*
 * Move units that go to one node, and account for each. One that fails ends a call behind its stretch and leaves the
 * statuses unwritten, so it is asked where they are, and what did not get there is tried again: as long as that moves
 * some, and ATTEMPTS times if not.
 */
static void move_units(struct nt_pager *pager, size_t first, size_t count)
{
	count = renew_at_home(pager, first, count);
	for (int idle = 0; count && idle < ATTEMPTS;) {
		int number = call(pager, first, count);
		bool written = true;
		for (size_t unit = first; unit < first + count; unit++)
			written &= pager->statuses[unit] != UNWRITTEN;
		if (!written)
			query(pager, first, count);
		size_t before = count;
		for (size_t unit = first; unit < first + count;) {
			if (!is_decided(pager, unit)) {
				unit++;
				continue;
			}
			account(pager, unit, !written);
			swap_units(pager, unit, first + --count);
		}
		if (number == ENOMEM && count) {
			note_full(pager, pager->targets[first], segment_of_index(pager, pager->indices[first])->unit > 1);
			for (size_t unit = first; unit < first + count; unit++)
				pager->statuses[unit] = -ENOMEM;
			break;
		}
		if (number == EACCES || number == ENODEV) { /* a cpuset that shrank, a node that went offline */
			for (size_t unit = first; unit < first + count; unit++)
				pager->statuses[unit] = -ENODEV;
			break;
		}
		idle = count < before ? 0 : idle + 1;
	}
	for (size_t unit = first; unit < first + count; unit++)
		account(pager, unit, true);
}

/* Move some of what is due, in one call a node; whether there may be more. */
static bool move_due(struct nt_pager *pager)
{
	size_t count = gather(pager);
	for (size_t first = 0; first < count;) {
		size_t same = same_node(pager, first, count);
		move_units(pager, first, same);
		first += same;
	}
	return count == MOVE_UNITS;
}

/*
 * The mover: a thread of its own, because a call can take seconds where the CPUs are busy, and neither a fault nor a thread
 * that unmaps shall wait for that. It ends when it is told to and nothing is due.
 */
void *run_mover(void *argument)
{
	struct nt_pager *pager = argument;
	bool ending;
	prctl(PR_SET_NAME, "nexttouch-move");
	do {
		futex_wait_at_least(&pager->due_signal, 1, NULL);
		ending = atomic_load(&pager->ending); /* first: nothing comes to be due after that */
		atomic_store(&pager->due_signal, 0);
		while (move_due(pager))
			;
		wake_thread(pager); /* which may sweep on */
	} while (!ending);
	futex_set(&pager->moved_all, 1);
	return NULL;
}

/* Have what is due moved, and the mover end; return when it has. */
void end_mover(struct nt_pager *pager)
{
	atomic_store(&pager->ending, true);
	futex_set(&pager->due_signal, 1);
	futex_wait_at_least(&pager->moved_all, 1, NULL);
}
