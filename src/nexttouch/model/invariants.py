"""The promises: what holds in every state, and what holds when every thread has ended.

What a single step can break (I-UAF, I-STALE, I-COW at a store, I-LOCK, I-ORDER, I-SLEEP, I-COMPLETE, I-FLAGS, I-PIN,
I-UPTODATE of a read) is raised by the step; I-DEADLOCK and I-PROGRESS are the explorer's.
"""

from __future__ import annotations

from collections.abc import Callable

from .entry import Entry, Kind
from .file import TRUNCATED
from .violation import Violation
from .vm import ANON, DIRTY, FREE, ISOLATED, LRU, NO_FRAME, SWAPCACHE, UNMAPPED, UPTODATE, VM, Words

__all__ = ["INVARIANTS", "broken_at_the_end", "broken_in"]

_Entries = list[tuple[tuple[int, int], Entry]]

INVARIANTS: dict[str, str] = {
    "I-LOSTWRITE": "every store is in the frame that its page resolves to",
    "I-STALE": "a load returns what was stored last",
    "I-TLB": "no TLB maps a frame that is copied (for stores) or free",
    "I-UAF": "no thread uses a frame or an anon_vma that is free",
    "I-COW": "what one address space stores in a private page no other sees",
    "I-SHARE": "all entries of a page of a shared file map the frame that the page cache has",
    "I-MAPPING": "an entry of a file maps the frame that the page cache has, and stays, where the design says so",
    "I-TRUNC": "after truncate no entry maps the page, and what has been unmapped does not come back",
    "I-PIN": "a page that a device writes to stays in its frame",
    "I-DIRTY": "a page with stores that are not written out is dirty",
    "I-ACC": "an accessed bit is kept, where the design says so",
    "I-PROT": "no entry allows more than its area; write permission is kept, where the design says so",
    "I-UPTODATE": "no thread sees a frame whose contents are not there yet",
    "I-FLAGS": "the flags of a page move along",
    "I-MAP": "the mapcount is the number of entries that map the frame",
    "I-REF": "the refcount is the number of references",
    "I-SWAP": "the count of a slot is the number of entries that name it",
    "I-CACHE": "the count of an id is the number of entries that name it",
    "I-RSS": "the rss of an address space is the number of its pages",
    "I-FRAMES": "a frame is free, or in use, and on one list at most",
    "I-LEAK": "at the end every frame that is not free is mapped or cached",
    "I-COMPLETE": "when a page has moved, no entry of the old one is left",
    "I-LOCK": "while there is a migration entry, its page is locked; who changes an entry or walks has the lock for it",
    "I-ORDER": "locks are taken in their order",
    "I-SLEEP": "no thread sleeps with a spinlock held",
    "I-DEADLOCK": "no thread waits for ever",
    "I-PROGRESS": "no thread is busy for ever, and a migration that nothing stands in the way of succeeds",
    "I-ROLLBACK": "a migration that fails leaves the entries as they were",
    "I-RETRY": "a thread that has waited reads the entry again",
}
"""What is promised, by name."""


def broken_in(vm: VM) -> Violation | None:
    """Return the first promise that the state breaks."""
    entries = vm.entries()
    for check in _CHECKS:
        violation = check(vm, entries)
        if violation:
            return violation
    return None


# ---- counters ----


def _counters(vm: VM, entries: _Entries) -> Violation | None:
    if any(vm.spinlocks):  # an entry may be on its way to another address
        return None
    mapped, cached = [0] * len(vm.frames), [0] * len(vm.frames)
    for _, entry in entries:
        if entry.mapped:
            mapped[entry.number] += 1
    for slot in vm.slots:
        if slot.frame != NO_FRAME:
            cached[slot.frame] += 1
    if vm.page_cache != NO_FRAME:
        cached[vm.page_cache] += 1
    for number, frame in enumerate(vm.frames):
        maps = mapped[number]
        have = maps + cached[number] + frame.held
        if frame.flags & FREE:
            if have:
                return Violation("I-UAF", f"frame {number} is free, and still mapped, cached or held")
            continue
        if frame.maps != maps:
            return Violation("I-MAP", f"the mapcount of frame {number} is {frame.maps}, but {maps} entries map it")
        if frame.refs != have:
            return Violation(
                "I-REF", f"the refcount of frame {number} is {frame.refs}, but there are {have} references"
            )
        if frame.flags & LRU and frame.flags & ISOLATED:
            return Violation("I-FRAMES", f"frame {number} is on the LRU and isolated from it")
    return None


def _slots(vm: VM, entries: _Entries) -> Violation | None:
    if any(vm.spinlocks):
        return None
    naming = [0] * len(vm.slots)
    for _, entry in entries:
        if entry.kind is vm.design.slot_kind:
            naming[entry.number] += 1
    for number, slot in enumerate(vm.slots):
        if slot.entries != naming[number]:
            return Violation(
                vm.design.slot_invariant,
                f"the count of slot {number} is {slot.entries}, but {naming[number]} entries name it",
            )
    return None


def _rss(vm: VM, entries: _Entries) -> Violation | None:
    for mm in range(len(vm.tables)):
        if vm.alive[mm] or vm.sems[mm] or mm in vm.forking:
            continue
        if vm.rss[mm]:
            return Violation("I-RSS", f"address space {mm} is gone, and its rss is {vm.rss[mm]}")
    return None


# ---- contents ----


def _resolve(vm: VM, entry: Entry) -> tuple[int, Words] | None:
    """The frame and the contents that an access through the entry ends up with, as far as they are there."""
    number = entry.number
    if entry.kind is vm.design.slot_kind:
        slot = vm.slots[number]
        if slot.frame == NO_FRAME:
            return None if slot.disk is None else (NO_FRAME, slot.disk)
        number = slot.frame
    elif not entry.mapped:
        return None
    frame = vm.frames[number]
    if entry.kind is Kind.VALID_NONPRESENT and frame.locked_by:  # it may be about to map another frame
        return None
    return (number, frame.words) if frame.flags & UPTODATE else None


def _contents(vm: VM, entries: _Entries) -> Violation | None:
    for (mm, va), entry in entries:
        if not vm.areas[mm][va].mapped:
            continue
        found = _resolve(vm, entry)
        if entry.kind is Kind.PRESENT and not vm.frames[entry.number].flags & UPTODATE:
            return Violation("I-UPTODATE", f"frame {entry.number} is mapped, and its contents are not there yet")
        if found and found[1] != vm.true_words(mm, va) and vm.file_size >= 0:
            return Violation(
                "I-LOSTWRITE",
                f"address space {mm} has {found[1]} in frame {found[0]}, where {vm.true_words(mm, va)} was stored",
            )
    cached = vm.page_cache
    if cached != NO_FRAME and vm.has(cached, DIRTY) and not vm.has(cached, UPTODATE):
        return Violation("I-UPTODATE", f"frame {cached} is dirty, and its contents are not there yet")
    if cached != NO_FRAME and vm.has(cached, UPTODATE) and vm.frames[cached].words != vm.file_words:
        return Violation(
            "I-LOSTWRITE", f"the file has {vm.frames[cached].words} in frame {cached}, where {vm.file_words} was stored"
        )
    return None


def _sharing(vm: VM, entries: _Entries) -> Violation | None:
    for (mm, va), entry in entries:
        area = vm.areas[mm][va]
        if entry.kind is not Kind.PRESENT:
            continue
        frame = vm.frames[entry.number]
        if entry.write and not area.write and area.settled and area.mapped:
            return Violation("I-PROT", f"an entry of address space {mm} allows stores, and its area does not")
        if entry.write and not area.shared and frame.maps > 1 and vm.forking[mm] < 0 and mm not in vm.forking:
            return Violation("I-COW", f"a private page is writable in address space {mm}, and others map it")
        if "accessed" in vm.design.claims and vm.touched[mm][va] and not entry.accessed:
            return Violation("I-ACC", f"an entry of address space {mm} has lost its accessed bit")
    return None


def _file(vm: VM, entries: _Entries) -> Violation | None:
    for (mm, va), entry in entries:
        if vm.areas[mm][va] == UNMAPPED and entry.kind is not Kind.NONE:
            return Violation("I-TRUNC", f"address space {mm} has an entry at {va}, where nothing is mapped any more")
    if vm.file_size == TRUNCATED:
        return _truncated(vm, entries)
    quiet = not any(vm.spinlocks) and not any(frame.locked_by for frame in vm.frames)
    if vm.page_cache == NO_FRAME or not quiet:
        return None
    return _elsewhere(vm, entries, vm.page_cache) or _clean(vm, entries, vm.page_cache)


def _truncated(vm: VM, entries: _Entries) -> Violation | None:
    for (mm, va), entry in entries:
        if vm.areas[mm][va].file and entry.mapped:
            return Violation("I-TRUNC", f"the file is truncated, and address space {mm} still maps its page")
    return None


def _elsewhere(vm: VM, entries: _Entries, cached: int) -> Violation | None:
    for (mm, va), entry in entries:
        area = vm.areas[mm][va]
        of_file = area.file and entry.mapped and vm.frames[entry.number].mapping != ANON
        if of_file and entry.number != cached:
            name = "I-SHARE" if area.shared else "I-MAPPING"
            return Violation(name, f"address space {mm} maps frame {entry.number}, the page cache has frame {cached}")
    return None


def _clean(vm: VM, entries: _Entries, cached: int) -> Violation | None:
    if not vm.dirtied or vm.has(cached, DIRTY) or _dirty_entry(entries, cached):
        return None
    return Violation("I-DIRTY", f"frame {cached} has stores that are not written out, and nothing says so")


def _dirty_entry(entries: _Entries, frame: int) -> bool:
    return any(entry.dirty and entry.number == frame and entry.kind is not Kind.NONE for _, entry in entries)


def _swapped(vm: VM, entries: _Entries) -> Violation | None:
    for slot in vm.slots:
        if slot.frame == NO_FRAME or slot.disk is None or vm.frames[slot.frame].locked_by or any(vm.spinlocks):
            continue
        if vm.frames[slot.frame].words == slot.disk or vm.has(slot.frame, DIRTY) or _dirty_entry(entries, slot.frame):
            continue
        return Violation("I-DIRTY", f"frame {slot.frame} differs from what is on the disk, and nothing says so")
    return None


def _locks(vm: VM, entries: _Entries) -> Violation | None:
    for place, entry in entries:
        if entry.kind is Kind.MIGRATION and not vm.frames[entry.number].locked_by:
            return Violation("I-LOCK", f"{place} has a migration entry of frame {entry.number}, which is not locked")
    return None


_CHECKS: tuple[Callable[[VM, _Entries], Violation | None], ...] = (
    _counters,
    _slots,
    _locks,
    _contents,
    _sharing,
    _file,
    _swapped,
    _rss,
)


def broken_at_the_end(vm: VM) -> Violation | None:
    """Return the first promise that does not hold though every thread has ended."""
    for number, frame in enumerate(vm.frames):
        if frame.flags & FREE:
            continue
        if frame.held or frame.flags & ISOLATED or frame.locked_by:
            return Violation("I-LEAK", f"frame {number} is held, isolated or locked by no thread that is still there")
        cached = number == vm.page_cache or frame.flags & SWAPCACHE
        if not vm.mappings(number) and not cached:
            return Violation("I-LEAK", f"frame {number} is not free, though no entry maps it and no cache has it")
    for number, slot in enumerate(vm.slots):
        if vm.design.slot_kind is Kind.CACHE and slot.frame != NO_FRAME and not slot.entries:
            return Violation("I-CACHE", f"id {number} is not freed, though no entry names it")
    for mm, alive in enumerate(vm.alive):
        pages = sum(vm.entry(mm, va).mapped for va in range(len(vm.tables[mm])))
        if alive and vm.rss[mm] != pages:
            return Violation("I-RSS", f"the rss of address space {mm} is {vm.rss[mm]}, and it has {pages} pages")
    return None
