"""Moving one page: isolate, lock, walk 1, commit, copy, walk 2; and back, when it cannot be.

This is unmap_and_move of mm/migrate.c; what the two walks and the commit test do is the design's. The thread has the
page as `frame`, the target as `new`. `lazy` says that the fault handler is at it, which holds a reference of its own.
"""

from __future__ import annotations

from .access import redo
from .entry import Entry, Kind
from .locks import (
    lock_page,
    lock_rmap,
    lock_table,
    read_lock,
    read_unlock,
    unlock_page,
    unlock_rmap,
    unlock_table,
    walk_rmap,
)
from .thread import WAIT, Thread, Wait
from .tlb import flush, flush_all
from .violation import Broken
from .vm import (
    ACTIVE,
    ANON,
    DIRTY,
    FILE,
    ISOLATED,
    LRU,
    NO_FRAME,
    NO_SLOT,
    REFERENCED,
    SWAPCACHE,
    UPTODATE,
    VM,
)

__all__ = ["PASSES", "conceal_entries", "migrate", "move_locked"]

PASSES = 2
"""How often a migration is tried; the kernel's 10, made small: what fails twice can fail ten times."""

_KEPT = UPTODATE | ACTIVE | REFERENCED


def migrate(vm: VM, thread: Thread) -> Wait | None:
    """The operation: take the page off the LRU, and a frame on the target node for it."""
    place = (thread.mm, thread.operation.va)
    safe = vm.design.rules.anon_vma_safe
    if safe == "mmap_sem":
        if not read_lock(vm, thread.id, thread.mm):
            return WAIT
        thread.sem = thread.mm
    entry = vm.entry(*place)
    if not entry.mapped:
        _finish(vm, thread, "ENOENT")
        return None
    if not vm.has(entry.number, LRU):
        _finish(vm, thread, "EBUSY")
        return None
    thread.frame = entry.number
    vm.get(thread.frame, "isolation")
    vm.flag(thread.frame, on=ISOLATED, off=LRU if vm.design.rules.isolates else 0)
    thread.new = vm.allocate(thread.operation.node)
    if thread.new == NO_FRAME:
        thread.why = "ENOMEM"
        thread.then(_put_back)
    else:
        thread.then(_lock)
    return None


def move_locked(vm: VM, thread: Thread) -> None:
    """Begin with the page locked, by a fault handler: isolate it; a page that cannot be moved is left as it is."""
    if not vm.has(thread.frame, LRU):
        thread.why = "EBUSY"
        return
    thread.new = vm.allocate(thread.node)
    if thread.new == NO_FRAME:
        thread.why = "ENOMEM"
        return
    vm.get(thread.frame, "isolation")
    vm.flag(thread.frame, on=ISOLATED, off=LRU)
    vm.change(thread.new, locked_by=thread.id + 1)
    thread.lazy = True
    thread.then(_begin)


def _lock(vm: VM, thread: Thread) -> Wait | None:
    frame = vm.alive_frame(thread.frame, "a migration")
    if frame.refs == 1:  # only ours: every other holder has given it up
        thread.why = "gone"
        thread.then(_put_back)
        return None
    if not vm.design.rules.locks_in_order:
        vm.rmap_lock = thread.id + 1
    if not lock_page(vm, thread.id, thread.frame):
        return WAIT
    if vm.frames[thread.new].locked_by != thread.id + 1:
        vm.change(thread.new, locked_by=thread.id + 1)
    thread.then(_begin)
    return None


def _begin(vm: VM, thread: Thread) -> None:
    design = vm.design
    thread.saved = vm.frames[thread.frame].flags
    if not design.prepare(vm, thread):
        thread.why = "ENOMEM"
        thread.then(_unlock)
        return
    if design.rules.switches_first and vm.frames[thread.frame].mapping == FILE:
        thread.then(_commit_first)
    else:
        thread.then(conceal_entries, _after_walk_1)


# ---- walk 1 ----


def conceal_entries(vm: VM, thread: Thread) -> Wait | None:
    """Walk 1: take all entries of the page out of the way, and flush."""
    if not _reach_rmap(vm, thread, thread.frame):
        thread.why = "gone"
        return None
    if not lock_rmap(vm, thread.id):
        return WAIT
    thread.position = thread.found = 0
    thread.then(_conceal)
    return None


# page_lock_anon_vma: whether there is a reverse map to walk; if nothing keeps it, it may be another's by now.
def _reach_rmap(vm: VM, thread: Thread, frame: int) -> bool:
    if vm.frames[frame].mapping != ANON:
        return True
    if vm.design.rules.anon_vma_safe == "mapcount" and not vm.frames[thread.frame].maps:
        return False
    if not any(vm.areas[mm][va].linked and not vm.areas[mm][va].file for mm, va in vm.order):
        if vm.design.rules.anon_vma_safe == "reference":
            return True
        raise Broken("I-UAF", "the migration walks an anon_vma that has been freed")
    return True


def _conceal(vm: VM, thread: Thread) -> Wait | None:
    design, place = vm.design, _place(vm, thread)
    if place is None:
        unlock_rmap(vm)
        if design.rules.flushes_first and not design.flushes_each:
            flush_all(vm, thread, [place for place in vm.order if place not in thread.trusted])
        return None
    if vm.spinlocks[place[0]]:
        return WAIT
    vm.events["rmap_steps"] += 1
    entry = vm.entry(*place)
    thread.position += 1
    if not design.meets(vm, entry, thread.frame):
        thread.then(_conceal)
        return None
    thread.found += 1
    if not design.rules.clears_atomically:
        thread.entry = entry
        thread.position -= 1
        thread.then(_conceal_late)
        return None
    _write_concealed(vm, thread, place, entry)
    return None


# The entry was read before: what hardware has set since is lost.
def _conceal_late(vm: VM, thread: Thread) -> Wait | None:
    place = _place(vm, thread)
    assert place is not None
    if vm.spinlocks[place[0]]:
        return WAIT
    thread.position += 1
    _write_concealed(vm, thread, place, thread.entry)
    return None


def _write_concealed(vm: VM, thread: Thread, place: tuple[int, int], entry: Entry) -> None:
    design = vm.design
    if entry.kind is not Kind.PRESENT and not design.rules.minds_pending_flush:
        thread.trusted = (*thread.trusted, place)
    vm.set_entry(*place, design.conceal(vm, thread, place, entry))
    if design.flushes_each and design.rules.flushes_first and vm.translating(*place):
        lock_table(vm, thread.id, place[0])
        flush(vm, thread, place, _conceal_flushed)
    else:
        vm.events["tlb_flushes"] += design.flushes_each and design.rules.flushes_first
        thread.then(_conceal)


def _conceal_flushed(vm: VM, thread: Thread) -> None:
    unlock_table(vm, vm.order[thread.position - 1][0])
    thread.then(_conceal)


# The next place of the walk; one that cannot map the page is passed over without a step.
def _place(vm: VM, thread: Thread) -> tuple[int, int] | None:
    if vm.rmap_lock != thread.id + 1:
        raise Broken("I-LOCK", f"thread {thread.id} walks the reverse map without its lock")
    mapping = vm.frames[thread.frame].mapping
    while thread.position < len(vm.order):
        mm, va = vm.order[thread.position]
        area = vm.areas[mm][va]
        unfinished = area.temporary and vm.design.rules.skips_unfinished_stack
        if area.linked and (area.file or mapping == ANON) and not unfinished:
            return mm, va
        thread.position += 1
    return None


# ---- commit ----


def _commit_first(vm: VM, thread: Thread) -> None:
    """F1: the mapping changes first; the entries are dealt with when no lookup finds the old page any more."""
    if not _switch_if_unused(vm, thread, mapped=True):
        thread.why = "EAGAIN"
        thread.then(_reveal_entries, _unlock)
        return
    thread.then(conceal_entries, _after_walk_1)


def _switch_if_unused(vm: VM, thread: Thread, *, mapped: bool) -> bool:
    frame = vm.frames[thread.frame]
    expected = 1 + int(vm.page_cache == thread.frame) + thread.lazy + (frame.maps if mapped else 0)
    if vm.design.rules.checks_references and frame.refs != expected:
        return False
    vm.design.switch(vm, thread)
    return True


def _after_walk_1(vm: VM, thread: Thread) -> None:
    design = vm.design
    if thread.why == "gone":
        thread.then(_unlock)
        return
    if not design.may_move(vm, thread):
        vm.mark("a migration finds the page in use")
        thread.why = "EAGAIN"
        if design.rules.switches_first and vm.frames[thread.new].mapping == FILE:
            _switch_back(vm, thread)
        if design.rules.walks_back:
            thread.then(_reveal_entries, _unlock)
        else:
            thread.then(_unlock)
        return
    if not design.rules.keeps_lock:
        unlock_page(vm, thread.id, thread.frame)
    if design.rules.checks_under_lock:
        _switch(vm, thread)
    else:
        thread.then(_switch)


def _switch_back(vm: VM, thread: Thread) -> None:
    old, new = thread.frame, thread.new
    vm.page_cache = old
    vm.add_cache_reference(old)
    vm.change(new, mapping=0)
    vm.drop_cache_reference(new)


def _switch(vm: VM, thread: Thread) -> None:
    if not (vm.design.rules.switches_first and vm.frames[thread.frame].mapping == FILE):
        vm.design.switch(vm, thread)
    if not vm.design.rules.dirty_with_contents:
        vm.flag(thread.new, on=vm.frames[thread.frame].flags & DIRTY)
    thread.word = 0
    thread.then(_copy_word)


# ---- copy ----


def _copy_word(vm: VM, thread: Thread) -> None:
    if not thread.word:
        for cpu, tlb in enumerate(vm.tlbs):
            if any(translation and translation.frame == thread.frame and translation.write for translation in tlb):
                vm.complain("I-TLB", f"a page is copied while CPU {cpu} can still store to it through its TLB")
    thread.then(_move_flags if vm.copy_word(thread.frame, thread.new, thread.word) else _copy_word)
    thread.word += 1


def _move_flags(vm: VM, thread: Thread) -> None:
    flags = vm.frames[thread.frame].flags
    moved = (
        flags & (_KEPT | DIRTY | SWAPCACHE) if vm.design.rules.moves_flags else UPTODATE | flags & (DIRTY | SWAPCACHE)
    )
    vm.flag(thread.new, on=moved)
    vm.flag(thread.frame, off=DIRTY | SWAPCACHE)
    thread.why = "moved"
    thread.then(_reveal_entries, _check_walk_2)


# ---- walk 2 ----


def _reveal_entries(vm: VM, thread: Thread) -> Wait | None:
    if not vm.design.rules.restores_unmapped and not vm.frames[thread.new].maps:
        return None  # page_lock_anon_vma refuses pages that are not mapped
    if not _reach_rmap(vm, thread, thread.frame):
        return None
    return walk_rmap(vm, thread, _reveal)


def _reveal(vm: VM, thread: Thread) -> Wait | None:
    design, place = vm.design, _place(vm, thread)
    if place is None:
        unlock_rmap(vm)
        return None
    entry = vm.entry(*place)
    if not design.rules.looks_under_lock and not design.is_hidden(vm, entry, thread.frame):
        thread.position += 1  # not ours, as far as can be seen from here
        thread.then(_reveal)
        return None
    if not design.rules.looks_again and design.is_hidden(vm, entry, thread.frame):
        thread.entry = entry
        thread.then(_reveal_late)
        return None
    if vm.spinlocks[place[0]]:
        return WAIT
    _write_revealed(vm, thread, place, entry)
    return None


# The entry was read before: what others have made of it since is lost.
def _reveal_late(vm: VM, thread: Thread) -> Wait | None:
    place = _place(vm, thread)
    assert place is not None
    if vm.spinlocks[place[0]]:
        return WAIT
    _write_revealed(vm, thread, place, thread.entry)
    return None


def _write_revealed(vm: VM, thread: Thread, place: tuple[int, int], entry: Entry) -> None:
    vm.events["rmap_steps"] += 1
    thread.position += 1
    if vm.design.is_hidden(vm, entry, thread.frame):
        to = thread.new if thread.why == "moved" else thread.frame
        vm.set_entry(*place, vm.design.reveal(vm, place, entry, thread.frame, to))
    thread.then(_reveal)


def _check_walk_2(vm: VM, thread: Thread) -> None:
    if vm.design.rules.walks_again and vm.frames[thread.frame].maps:
        vm.mark("walk 2 missed an entry, and goes again")
        thread.then(_reveal_entries, _check_walk_2)
        return
    vm.design.after_walk_2(vm, thread)
    thread.then(_unlock)


# ---- the end ----


def _unlock(vm: VM, thread: Thread) -> None:
    old, new = thread.frame, thread.new
    moved = thread.why == "moved"
    for place, entry in vm.entries():
        if entry.kind is Kind.MIGRATION and entry.number == old:
            raise Broken("I-COMPLETE", f"the page lock is released while {place} still has a migration entry")
    if moved:
        if vm.frames[old].maps:
            raise Broken("I-COMPLETE", f"frame {old} has moved, and still has {vm.frames[old].maps} entries")
        if thread.saved & _KEPT & ~vm.frames[new].flags:
            raise Broken("I-FLAGS", f"flags of frame {old} are not set on frame {new}")
        vm.change(old, mapping=0, private=NO_SLOT)
        vm.flag(new, on=LRU)
    unlock_page(vm, thread.id, old)
    if thread.why == "EAGAIN" and thread.tries + 1 < PASSES and not thread.lazy:
        thread.tries += 1
        thread.then(_lock)
        return
    thread.then(_put_back)


def _put_back(vm: VM, thread: Thread) -> None:
    """Give up the isolation: back to the LRU, or free, as no other reference is left."""
    if thread.new != NO_FRAME and vm.frames[thread.new].locked_by:
        unlock_page(vm, thread.id, thread.new)
    _free_unnamed(vm, thread)
    if thread.new != NO_FRAME:
        vm.put(thread.new)
    vm.flag(thread.frame, off=ISOLATED, on=0 if thread.why == "moved" else LRU)
    vm.put(thread.frame)
    if thread.lazy:
        if thread.why == "moved":
            vm.mark("a fault has moved the page")
        vm.put(thread.frame)
        redo(vm, thread)
        return
    _finish(vm, thread, thread.why)


# While the page was locked its last entry may have gone, and with it the right of the cache to keep it.
def _free_unnamed(vm: VM, thread: Thread) -> None:
    for frame in (thread.frame, thread.new):
        if frame == NO_FRAME or not vm.has(frame, SWAPCACHE) or vm.frames[frame].locked_by:
            continue
        if vm.design.rules.rechecks_count and not vm.slots[vm.frames[frame].private].entries:
            vm.uncache_frame(frame)


def _finish(vm: VM, thread: Thread, result: str) -> None:
    if thread.sem >= 0:
        read_unlock(vm, thread.sem)
    if result == "EAGAIN":
        vm.mark("cost: a migration gives up")
    thread.finish(result)
