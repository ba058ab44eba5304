"""D4: swapless migration. While a page moves its entries are migration entries, which hold no reference."""

from __future__ import annotations

from types import MappingProxyType

from ..access import redo
from ..design import Design, Rules
from ..entry import Entry, Kind
from ..thread import WAIT, Step, Thread, Wait
from ..vm import DIRTY, VM, Area

__all__ = ["MigrationEntries", "SwaplessV1", "SwaplessV2", "lose_accessed", "wait_for_migration"]


class MigrationEntries(Design):
    """As merged for 2.6.18, with the fixes of fork, zap and truncate that came later."""

    name = "D4"
    title = "swapless migration, with entries for reading and for writing (2.6.18)"
    source = "0697212a411c and its follow-ups"
    claims = frozenset({"write", "dirty", "file entries"})

    gives_up = "waiters raise the refcount of the page, and the migration gives up"

    @classmethod
    def usual_rules(cls) -> Rules:
        """Waiters of 2.6.18 hold a reference while they sleep."""
        return Rules(waiter_holds_reference=True)

    def faults(self) -> dict[Kind, Step]:
        """A thread that meets a migration entry waits for its page."""
        return {Kind.MIGRATION: wait_for_migration}

    def conceal(self, vm: VM, thread: Thread, place: tuple[int, int], entry: Entry) -> Entry:
        """The frame loses mapcount and reference; its dirty bit goes to the page."""
        if entry.dirty and self.rules.pushes_dirty:
            vm.flag(entry.number, on=DIRTY)
        vm.unmap(entry.number)
        if not self.counts_hidden:
            vm.rss[place[0]] -= 1
        return self.migration_entry(entry)

    def migration_entry(self, entry: Entry) -> Entry:
        """What stands for `entry` while its page moves."""
        return Entry(Kind.MIGRATION, entry.number, write=entry.write and self.rules.keeps_write)

    def is_hidden(self, vm: VM, entry: Entry, frame: int) -> bool:
        """A migration entry of the frame."""
        return entry.kind is Kind.MIGRATION and entry.number == frame

    def reveal(self, vm: VM, place: tuple[int, int], entry: Entry, old: int, new: int) -> Entry:
        """The entry maps the page again, with the permission that its area has by now."""
        mm, va = place
        if not self.counts_hidden:
            vm.rss[mm] += 1
        vm.map(new)
        write = entry.write and (vm.areas[mm][va].write or not self.rules.keeps_area_protection)
        if entry.dirty and self.rules.marks_dirty_writable:
            write = True
        lose_accessed(vm, place, entry)
        return Entry(Kind.PRESENT, new, write, entry.accessed, entry.dirty)

    def fork_entry(self, vm: VM, place: tuple[int, int], entry: Entry, area: Area) -> tuple[Entry, Entry]:
        """Copied as it is, but neither may restore a private page as writable."""
        if entry.kind is Kind.MIGRATION:
            vm.mark("fork copies a migration entry")
            if not area.shared and self.rules.demotes_in_child:
                entry = entry._replace(write=False)
        return entry, entry

    def zap_entry(self, vm: VM, place: tuple[int, int], entry: Entry) -> bool:
        """There is no reference to drop."""
        vm.mark("unmap takes an entry whose page is moving")
        return self.counts_hidden

    def protect_entry(self, vm: VM, entry: Entry, write: bool) -> Entry:
        """A protection check is difficult there: it is made read-only, to be safe."""
        hidden = entry.kind is Kind.MIGRATION and self.rules.protects_hidden
        return entry._replace(write=False) if hidden else entry


class SwaplessV1(MigrationEntries):
    """The first version, as it was meant: one kind of entry; write permission comes back by a fault."""

    name = "D4-V1"
    title = "swapless migration, first version (3 April 2006)"
    source = "linux-mm, 3 April 2006"
    claims = frozenset({"dirty"})
    refuted = MappingProxyType(
        {"I-LOSTWRITE": "an entry that comes back as it was, read-only, hides a store from a copy-on-write under way"}
    )

    def migration_entry(self, entry: Entry) -> Entry:
        """Nothing of the entry is kept but the frame."""
        return Entry(Kind.MIGRATION, entry.number)


class SwaplessV2(SwaplessV1):
    """The second version: a fault on a migration entry yields and is redone, so that no waiter raises the refcount."""

    name = "D4-V2"
    title = "swapless migration, second version (13 April 2006): faults yield until the page has moved"
    source = "linux-mm, 13 April 2006"
    counts_hidden = False
    gives_up = ""
    weaknesses = MappingProxyType({"I-PROGRESS": "a fault on a migration entry is busy until the page has moved"})

    @classmethod
    def usual_rules(cls) -> Rules:
        """Waiting is redoing."""
        return Rules(waiter_sleeps=False)


def lose_accessed(vm: VM, place: tuple[int, int], entry: Entry) -> None:
    """Note that an accessed bit is not restored, if the design does not say that it is."""
    mm, va = place
    if vm.touched[mm][va] and not entry.accessed and "accessed" not in vm.design.claims:
        vm.mark("cost: an accessed bit is lost")
        vm.set_touched(mm, va, False)


def wait_for_migration(vm: VM, thread: Thread) -> Wait | None:
    """migration_entry_wait: make sure that the entry is still there, sleep on the page lock, redo the fault."""
    mm, va = thread.mm, thread.operation.va
    frame = thread.entry.number
    if vm.design.rules.waiter_locks_table:
        if vm.spinlocks[mm]:
            return WAIT
        if vm.entry(mm, va) != thread.entry:
            redo(vm, thread)
            return None
    if not vm.design.rules.waiter_sleeps:
        vm.mark("a fault waits for a migration")
        redo(vm, thread)
    elif vm.design.rules.waiter_holds_reference or not vm.design.rules.waiter_locks_table:
        vm.get(frame, "a waiter")
        thread.frame = frame
        thread.then(_sleep)
    elif vm.frames[frame].locked_by:
        vm.mark("a fault waits for a migration")
        return WAIT
    else:
        redo(vm, thread)
    return None


def _sleep(vm: VM, thread: Thread) -> Wait | None:
    if vm.frames[thread.frame].locked_by:
        vm.mark("a fault waits for a migration")
        return WAIT
    vm.put(thread.frame)
    redo(vm, thread)
    return None
