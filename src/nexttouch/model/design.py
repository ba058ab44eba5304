"""A design: how pages are marked, trapped, moved and mapped again. The hooks are where designs differ.

`Design` itself is an eager migration without a trap of its own: its subclasses, in `designs`, say what an entry turns
into, when a page may move, and what fork, unmap, mprotect and reclaim do to entries that are not present.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from ..errors import InvalidArgument
from .entry import Entry, Kind
from .fault import fault_missing, fault_write
from .lazy import mark
from .swap import fault_slot
from .thread import Step, Thread
from .vm import VM, Area

__all__ = ["Design", "Rules", "parse_rule"]


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules a design keeps. Each is a race's fix; a mutation is a design with one of them broken.

    Attributes:
        isolates: a page that is being moved is taken off the LRU first.
        locks_in_order: the page lock is taken before the lock of the reverse map.
        flushes_first: walk 1 ends only when no TLB has a translation of the page.
        minds_pending_flush: a fault on a trap flushes before it copies, as the thread that set it may not have yet.
        minds_batched_flush: unmap flushes also where it finds an entry that is not present, for the same reason.
        clears_atomically: walk 1 reads and clears an entry in one atomic operation.
        keeps_lock: the page stays locked as long as its entries are concealed.
        waiter_locks_table: a waiter reads the entry under the page table lock before it uses the frame.
        waiter_sleeps: waiting is sleeping on the page lock, not redoing the fault until it is over.
        waiter_holds_reference: a waiter keeps the page's refcount raised while it sleeps.
        repairs_locked: the fault handler locks the page before it sets the present bit again.
        rereads_entry: the fault handler reads the entry again when it has what it waited for.
        anon_vma_safe: what keeps the anon_vma alive during a migration: "mmap_sem", "mapcount", "reference", "nothing".
        restores_unmapped: walk 2 also happens for pages whose mapcount is 0.
        looks_under_lock: walk 2 takes the page table lock before it looks at an entry.
        looks_again: what walk 2 has seen without that lock it reads again.
        child_behind: fork and mremap put the new area behind the old one in the reverse map.
        skips_unfinished_stack: walk 1 leaves alone an area that exec is still moving.
        demotes_in_child: fork makes entries that are not present read-only in parent and child.
        protects_hidden: mprotect makes migration entries read-only.
        keeps_area_protection: walk 2 gives no more permission than the area has now.
        keeps_write: migration entries and hinting faults give write permission back.
        keeps_bits: migration entries keep the accessed and the dirty bit, if the design has them.
        counts_rss: fork and unmap count entries that are not present.
        counts_atomically: the count of a cache's entry is read and written in one atomic operation.
        pushes_dirty: walk 1 hands the dirty bit of an entry to the page.
        dirty_with_contents: the new page becomes dirty when its contents are there.
        moves_flags: the flags of the page move along.
        checks_references: the commit test compares the refcount.
        counts_entries: the commit test also compares the entries that walk 1 met with the mapcount.
        checks_under_lock: the commit test and the switch of the mapping are one step under the lock of the mapping.
        inserts_new: the mapping gets the new page in place of the old one, not the other way round.
        switches_first: of file pages, the mapping changes before walk 1 (F1), not after it (F2).
        walks_back: a migration that fails puts the entries back.
        walks_again: walk 2 is repeated while the old page still has entries.
        understands_valid: fork, unmap and mprotect treat entries that are valid and not present as mapped.
        redoes_lookup: a fault that found its page in a cache looks again after it has locked the page.
        knows_locked: dropping an entry of a cache does not lock the page again that the fault has locked.
        rechecks_count: the thread that unlocks a page of a cache frees its entry, if nothing names it any more.
        copy_clears_first: copy-on-write clears the entry and flushes before it sets the new one.
        copies_locked: copy-on-touch has the page locked until the entry is set, and stores to it wait.
        checks_pins: copy-on-touch leaves pages alone to which there is a reference.
        missing_locks_page: the fault handler locks a page of a file before it maps it.
        truncate_unmaps_again: truncate looks for entries again when it has locked the page.
        sleeps_outside: the fault handler drops the page table lock before it allocates, locks a page, or copies.
        marks_dirty_writable: setting the dirty bit of an entry also makes it writable, as on sparc64.
    """

    isolates: bool = True
    locks_in_order: bool = True
    flushes_first: bool = True
    minds_pending_flush: bool = True
    minds_batched_flush: bool = True
    clears_atomically: bool = True
    keeps_lock: bool = True
    waiter_locks_table: bool = True
    waiter_sleeps: bool = True
    waiter_holds_reference: bool = False
    repairs_locked: bool = True
    rereads_entry: bool = True
    anon_vma_safe: str = "mmap_sem"
    restores_unmapped: bool = True
    looks_under_lock: bool = True
    looks_again: bool = True
    child_behind: bool = True
    skips_unfinished_stack: bool = True
    demotes_in_child: bool = True
    protects_hidden: bool = True
    keeps_area_protection: bool = True
    keeps_write: bool = True
    keeps_bits: bool = True
    counts_rss: bool = True
    counts_atomically: bool = True
    pushes_dirty: bool = True
    dirty_with_contents: bool = True
    moves_flags: bool = True
    checks_references: bool = True
    counts_entries: bool = True
    checks_under_lock: bool = True
    inserts_new: bool = True
    switches_first: bool = False
    walks_back: bool = True
    walks_again: bool = True
    understands_valid: bool = True
    redoes_lookup: bool = True
    knows_locked: bool = True
    rechecks_count: bool = True
    copy_clears_first: bool = True
    copies_locked: bool = False
    checks_pins: bool = True
    missing_locks_page: bool = False
    truncate_unmaps_again: bool = True
    sleeps_outside: bool = True
    marks_dirty_writable: bool = False


def parse_rule(text: str) -> tuple[str, bool | str]:
    """Read a rule and what it is to be: "counts_entries=no", "anon_vma_safe=nothing".

    Raises:
        InvalidArgument: there is no such rule, it is of another kind, or has no value.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidArgument("--rule", f"is {text!r}, but has to be a rule and its value, such as counts_entries=no")
    usual = getattr(Rules(), name, None) if name in Rules.__slots__ else None
    if usual is None:
        raise InvalidArgument("--rule", f"names {name!r}, but the rules are {', '.join(Rules.__slots__)}")
    values = ("mmap_sem", "mapcount", "reference", "nothing") if isinstance(usual, str) else ("yes", "no")
    if value not in values:
        raise InvalidArgument("--rule", f"{name} is {value!r}, but has to be one of {', '.join(values)}")
    return name, value if isinstance(usual, str) else value == "yes"


class Design:
    """One design, by the name it goes by and with the rules it keeps.

    Attributes:
        name: short name.
        title: what it is.
        source: where it was described.
        claims: what it says it keeps: "write", "accessed", "dirty" (in the entry or in the page), "dirty entries",
            "file entries".
        eager: it moves pages at once.
        lazy: it marks pages, and moves them when they are touched.
        kinds: the kinds of pages that it has to do with.
        flushes_each: walk 1 flushes for each entry; else once behind the walk.
        counts_hidden: an entry that is neither present nor gone counts in the rss.
        gives_up: why a migration can fail though only its own waiters stand in its way: a cost; empty: it must not.
        weaknesses: promises that it does not make, with what happens instead: a cost, no failure.
        refuted: promises that it makes and breaks, with why.
        slot_kind, slot_invariant: what entries of its cache are, and the promise about their count.
    """

    name = ""
    title = ""
    source = ""
    claims: frozenset[str] = frozenset()
    eager = True
    lazy = False
    kinds: tuple[str, ...] = ("anonymous", "private", "shared")
    flushes_each = True
    counts_hidden = True
    slot_kind = Kind.SWAP
    slot_invariant = "I-SWAP"
    gives_up = ""
    weaknesses: Mapping[str, str] = MappingProxyType({})
    refuted: Mapping[str, str] = MappingProxyType({})

    write_fault: Step = staticmethod(fault_write)

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or self.usual_rules()
        self.handlers: dict[Kind, Step] = {Kind.NONE: fault_missing, self.slot_kind: fault_slot, **self.faults()}

    @classmethod
    def usual_rules(cls) -> Rules:
        """The rules of the design as it is meant."""
        return Rules()

    def with_rules(self, **changed: Any) -> Design:  # noqa: ANN401 (of as many types as there are rules)
        """Return the design with some rules changed."""
        return type(self)(replace(self.rules, **changed))

    def faults(self) -> dict[Kind, Step]:
        """The handlers of faults on entries that only this design has."""
        return {}

    # ---- marking ----

    @property
    def mark(self) -> Step:
        """The operation that marks pages."""
        return mark

    def mark_entry(self, vm: VM, mm: int, va: int, entry: Entry) -> Entry:
        """Turn a present entry into a trap."""
        raise AssertionError(f"{self.name} does not mark pages: {entry}")

    def is_trap(self, entry: Entry) -> bool:
        """Whether an entry may be one that was marked, or that a move has concealed in the same way."""
        return False

    # ---- moving ----

    def prepare(self, vm: VM, thread: Thread) -> bool:
        """With the page locked, before walk 1; False gives up for want of memory."""
        return True

    def meets(self, vm: VM, entry: Entry, frame: int) -> bool:
        """Whether walk 1 has to do with the entry."""
        return entry.mapped and entry.number == frame

    def conceal(self, vm: VM, thread: Thread, place: tuple[int, int], entry: Entry) -> Entry:
        """Walk 1: take the entry of `place` out of the way; do the counting; return what it becomes."""
        raise NotImplementedError

    def expected_references(self, vm: VM, thread: Thread) -> int:
        """The refcount of a page that only the migration and the caches hold."""
        frame = vm.frames[thread.frame]
        return 1 + self.cache_references(vm, thread.frame) + thread.lazy + (self.hidden_references(frame.maps))

    def hidden_references(self, maps: int) -> int:
        """Of `maps` entries, those that hold a reference while they are concealed."""
        return 0

    def cache_references(self, vm: VM, frame: int) -> int:
        """References of caches."""
        return int(vm.page_cache == frame) + sum(slot.frame == frame for slot in vm.slots)

    def may_move(self, vm: VM, thread: Thread) -> bool:
        """The commit test."""
        if not self.rules.checks_references:
            return True
        return vm.frames[thread.frame].refs == self.expected_references(vm, thread)

    def switch(self, vm: VM, thread: Thread) -> None:
        """Make the caches point at the new page."""
        old, new = thread.frame, thread.new
        vm.change(new, mapping=vm.frames[old].mapping, private=vm.frames[old].private)
        if vm.page_cache == old:
            vm.page_cache = new if self.rules.inserts_new else old
            vm.add_cache_reference(vm.page_cache)
            vm.drop_cache_reference(old)

    def is_hidden(self, vm: VM, entry: Entry, frame: int) -> bool:
        """Whether walk 2 has to do with the entry: whether walk 1 made it out of one of `frame`."""
        raise NotImplementedError

    def reveal(self, vm: VM, place: tuple[int, int], entry: Entry, old: int, new: int) -> Entry:
        """Walk 2: make the entry map `new` (`old` again after a failure); do the counting; return what it becomes."""
        raise NotImplementedError

    def after_walk_2(self, vm: VM, thread: Thread) -> None:
        """With both pages still locked, when all entries are back."""

    # ---- what others do to entries that are not present ----

    def fork_entry(self, vm: VM, place: tuple[int, int], entry: Entry, area: Area) -> tuple[Entry, Entry]:
        """What fork makes of an entry that is not present: the parent's and the child's."""
        return entry, entry

    def zap_entry(self, vm: VM, place: tuple[int, int], entry: Entry) -> bool:
        """Count an entry out that is not present and goes away; whether it counted in the rss."""
        return False

    def protect_entry(self, vm: VM, entry: Entry, write: bool) -> Entry:
        """What mprotect makes of an entry that is not present."""
        return entry

    def entries_of(self, vm: VM, frame: int) -> int:
        """Entries that find the page through a cache."""
        private = vm.frames[frame].private
        return vm.slots[private].entries if private >= 0 else 0

    def move_found(self, vm: VM, thread: Thread) -> None:
        """A fault has found and locked a page in a cache that no entry maps: it may be moved now."""

    # ---- copying at a store ----

    def moves_at_store(self, vm: VM, thread: Thread, frame: int) -> bool:
        """Whether a store to a page that is no other process's copies it all the same, to move it."""
        return False
