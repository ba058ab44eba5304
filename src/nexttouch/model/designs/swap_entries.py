"""D1 and D2: entries that name a slot, of swap or of the migration cache; the cache finds the page, old or new."""

from __future__ import annotations

from ..design import Design, Rules
from ..entry import NOTHING, Entry, Kind
from ..thread import Thread
from ..vm import ANON, DIRTY, NO_SLOT, SWAPCACHE, VM
from .migration_entries import lose_accessed

__all__ = ["MigrationCache", "SwapEntries"]


class SwapEntries(Design):
    """Direct migration: the page gets a slot of swap while it moves. Entries of files are just removed."""

    name = "D1"
    title = "direct migration through swap entries (2.6.16)"
    source = "a3351e525e47"
    claims = frozenset({"dirty"})
    gives_up = "faults raise the refcount of the page, and the migration gives up"

    @classmethod
    def usual_rules(cls) -> Rules:
        """A migration that fails leaves the entries as they are: faults resolve them."""
        return Rules(walks_back=False)

    def prepare(self, vm: VM, thread: Thread) -> bool:
        """add_to_swap."""
        if vm.frames[thread.frame].mapping != ANON or vm.has(thread.frame, SWAPCACHE):
            return True
        return vm.cache_frame(thread.frame) != NO_SLOT

    def conceal(self, vm: VM, thread: Thread, place: tuple[int, int], entry: Entry) -> Entry:
        """Mapcount and reference go; the slot counts the entry instead."""
        frame = entry.number
        if entry.dirty:
            vm.flag(frame, on=DIRTY)
        vm.unmap(frame)
        vm.rss[place[0]] -= 1
        if vm.frames[frame].mapping != ANON:
            lose_accessed(vm, place, NOTHING)
            vm.mark("cost: an entry of a file is removed")
            return NOTHING
        slot = vm.frames[frame].private
        vm.count_slot(slot, 1)
        return Entry(self.slot_kind, slot)

    def switch(self, vm: VM, thread: Thread) -> None:
        """Also the slot finds the new page from now on."""
        super().switch(vm, thread)
        old, new = thread.frame, thread.new
        slot = vm.frames[old].private
        if slot != NO_SLOT and vm.slots[slot].frame == old:
            found = new if self.rules.inserts_new else old
            vm.slots[slot] = vm.slots[slot]._replace(frame=found)
            vm.add_cache_reference(found)
            vm.drop_cache_reference(old)

    def is_hidden(self, vm: VM, entry: Entry, frame: int) -> bool:
        """An entry that names the slot of the frame."""
        return entry.kind is self.slot_kind and entry.number == vm.frames[frame].private

    def reveal(self, vm: VM, place: tuple[int, int], entry: Entry, old: int, new: int) -> Entry:
        """remove_from_swap: the entry comes back read-only, old and clean."""
        vm.map(new)
        vm.rss[place[0]] += 1
        vm.count_slot(entry.number, -1)
        lose_accessed(vm, place, entry)
        vm.mark("cost: write permission comes back by a fault")
        return Entry(Kind.PRESENT, new)

    def after_walk_2(self, vm: VM, thread: Thread) -> None:
        """The slot is free when no entry names it any more."""
        if vm.has(thread.new, SWAPCACHE) and not vm.slots[vm.frames[thread.new].private].entries:
            vm.uncache_frame(thread.new)


class MigrationCache(SwapEntries):
    """The same without swap: the slots are ids of a cache in memory, which does not count for itself."""

    name = "D2"
    title = "migration cache (2004-2010, never merged)"
    source = "linux-mm, 17 February 2006 (V8)"
    slot_kind = Kind.CACHE
    slot_invariant = "I-CACHE"
