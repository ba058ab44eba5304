"""B, the email's own: clear the present bit, leave the entry valid. It keeps its reference and its mapcount."""

from __future__ import annotations

from ..access import redo, replace_entry
from ..design import Design, Rules
from ..entry import Entry, Kind
from ..locks import lock_page, unlock_page
from ..migrate import move_locked
from ..thread import WAIT, Step, Thread, Wait
from ..vm import DIRTY, VM

__all__ = ["PresentBit", "PresentBitMappingFirst"]


class PresentBit(Design):
    """Eager and lazy; of file pages the mapping changes when no entry is present any more (F2)."""

    name = "B"
    title = "clear the present bit (the email); file pages: mapping changed after walk 1"
    source = "linux-mm, 5 April 2006"
    claims = frozenset({"write", "accessed", "dirty", "dirty entries", "file entries"})
    lazy = True
    flushes_each = False

    @classmethod
    def usual_rules(cls) -> Rules:
        """What the email says of the anon_vma: the mapcount tells whether it is safe.

        A fault has to lock a page of a file before it maps it, as it does since 2.6.23: counting entries is not enough,
        as one that goes and one that comes late cancel out.
        """
        return Rules(anon_vma_safe="mapcount", missing_locks_page=True)

    def faults(self) -> dict[Kind, Step]:
        """The fault of the email's second step."""
        return {Kind.VALID_NONPRESENT: _fault_valid}

    def mark_entry(self, vm: VM, mm: int, va: int, entry: Entry) -> Entry:
        """Only the present bit goes."""
        return entry._replace(kind=Kind.VALID_NONPRESENT)

    def is_trap(self, entry: Entry) -> bool:
        """Valid, and not present."""
        return entry.kind is Kind.VALID_NONPRESENT

    def conceal(self, vm: VM, thread: Thread, place: tuple[int, int], entry: Entry) -> Entry:
        """No counter changes; the dirty bit stays, and is told to the page as well."""
        if entry.dirty and self.rules.pushes_dirty:
            vm.flag(entry.number, on=DIRTY)
        return entry._replace(kind=Kind.VALID_NONPRESENT)

    def hidden_references(self, maps: int) -> int:
        """Each entry holds its reference all the time."""
        return maps

    def may_move(self, vm: VM, thread: Thread) -> bool:
        """The references are those of the entries and the caches; and walk 1 met every entry there is."""
        if self.rules.counts_entries and thread.found != vm.frames[thread.frame].maps:
            return False
        return super().may_move(vm, thread)

    def is_hidden(self, vm: VM, entry: Entry, frame: int) -> bool:
        """A valid entry of the frame that is not present."""
        return entry.kind is Kind.VALID_NONPRESENT and entry.number == frame

    def reveal(self, vm: VM, place: tuple[int, int], entry: Entry, old: int, new: int) -> Entry:
        """One mapcount and one reference move over; after a failure there is nothing to count."""
        if new != old:
            vm.map(new)
            vm.unmap(old)
        return entry._replace(kind=Kind.PRESENT, number=new)


class PresentBitMappingFirst(PresentBit):
    """The other reading of the email's "first change the mapping" (F1)."""

    name = "B-F1"
    title = "clear the present bit (the email); file pages: mapping changed before walk 1"

    @classmethod
    def usual_rules(cls) -> Rules:
        """No fault finds the old page any more when walk 1 begins, so faults need not lock what they map."""
        return Rules(anon_vma_safe="mapcount", switches_first=True)


def _fault_valid(vm: VM, thread: Thread) -> Wait | None:
    """Lock the page, and so stall while it moves. The entry itself holds a reference, so the frame is there."""
    mm, va = thread.mm, thread.operation.va
    if vm.spinlocks[mm]:
        return WAIT
    if vm.entry(mm, va) != thread.entry:
        redo(vm, thread)
        return None
    frame = thread.frame = thread.entry.number
    if not vm.design.rules.repairs_locked:
        _set_present(vm, thread)
        redo(vm, thread)
        return None
    if vm.design.rules.waiter_holds_reference:
        vm.get(frame, "a waiter")
        thread.then(_lock_held)
        return None
    if vm.frames[frame].locked_by:
        vm.mark("a fault waits for a migration")
        thread.frame = -1
        return WAIT
    lock_page(vm, thread.id, frame)
    vm.get(frame, "a fault")
    thread.then(_repair)
    return None


def _lock_held(vm: VM, thread: Thread) -> Wait | None:
    if not lock_page(vm, thread.id, thread.frame):
        vm.mark("a fault waits for a migration")
        return WAIT
    thread.then(_repair)
    return None


def _repair(vm: VM, thread: Thread) -> Wait | None:
    """The present bit is checked again; if it is still clear the page moves, if it has to, and the bit is set."""
    mm, va = thread.mm, thread.operation.va
    if vm.spinlocks[mm]:
        return WAIT
    if vm.entry(mm, va) != thread.entry and vm.design.rules.rereads_entry:
        unlock_page(vm, thread.id, thread.frame)
        vm.put(thread.frame)
        redo(vm, thread)
        return None
    if vm.frames[thread.frame].node != thread.node and not thread.why:
        vm.mark("a fault moves the page")
        move_locked(vm, thread)
        if thread.lazy:
            return None
    _set_present(vm, thread)
    unlock_page(vm, thread.id, thread.frame)
    vm.put(thread.frame)
    redo(vm, thread)
    return None


def _set_present(vm: VM, thread: Thread) -> None:
    mm, va = thread.mm, thread.operation.va
    replace_entry(vm, thread, thread.entry._replace(kind=Kind.PRESENT, accessed=True))
    vm.set_touched(mm, va, True)
