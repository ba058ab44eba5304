"""System calls that change an address space: fork, munmap and exit, mprotect, mremap.

All hold mmap_sem for writing. What they do to an entry that is not present is what the email says would have to be
fixed.
"""

from __future__ import annotations

from .entry import NOTHING, Kind
from .locks import lock_table, unlock_table, write_lock, write_unlock
from .thread import WAIT, Thread, Wait
from .tlb import flush
from .vm import DIRTY, FILE, NO_FRAME, REFERENCED, UNMAPPED, VM

__all__ = ["exit_space", "fork", "mprotect", "mremap", "munmap", "shift_stack", "zap"]

# ---- fork ----


def fork(vm: VM, thread: Thread) -> Wait | None:
    """Give the child areas like the parent's, known to the reverse map, before any entry is copied."""
    parent, child = thread.mm, thread.operation.mm
    if vm.rmap_lock or not write_lock(vm, thread.id, parent):
        return WAIT
    vm.forking[parent] = child
    for va, area in enumerate(vm.areas[parent]):
        vm.set_area(child, va, area._replace(settled=False))
        vm.set_truth(child, va, vm.truth[parent][va])
    _link(vm, [(child, va) for va in range(len(vm.areas[child]))])
    thread.position = 0
    thread.then(_copy_entry)
    return None


def _link(vm: VM, places: list[tuple[int, int]]) -> None:
    rest = tuple(place for place in vm.order if place not in places)
    vm.order = (*rest, *places) if vm.design.rules.child_behind else (*places, *rest)


def _copy_entry(vm: VM, thread: Thread) -> Wait | None:
    parent, child, va = thread.mm, thread.operation.mm, thread.position
    if va == len(vm.areas[parent]):
        for at, settled in enumerate(vm.areas[child]):
            vm.set_area(child, at, settled._replace(settled=True))
        vm.forking[parent] = -1
        vm.alive[child] = True
        write_unlock(vm, parent)
        thread.finish("done")
        return None
    if vm.spinlocks[parent]:
        return WAIT
    thread.position += 1
    thread.then(_copy_entry)
    entry = vm.entry(parent, va)
    area = vm.areas[parent][va]
    valid = entry.kind is Kind.VALID_NONPRESENT
    if entry.kind is Kind.PRESENT or (valid and vm.design.rules.understands_valid):
        ours = theirs = entry if area.shared else entry._replace(write=False)
        vm.map(entry.number)
        vm.rss[child] += 1
    elif entry.kind is vm.design.slot_kind:
        ours = theirs = entry
        vm.count_slot(entry.number, 1)
    else:
        ours, theirs = vm.design.fork_entry(vm, (parent, va), entry, area)
        if ours.kind is Kind.MIGRATION and vm.design.counts_hidden and vm.design.rules.counts_rss:
            vm.rss[child] += 1
    vm.set_touched(child, va, theirs.accessed)
    if theirs != NOTHING:
        vm.set_entry(child, va, theirs)
    if ours != entry:
        vm.set_entry(parent, va, ours)
        flush(vm, thread, (parent, va))
    return None


# ---- munmap, exit ----


def munmap(vm: VM, thread: Thread) -> Wait | None:
    """Unmap one page."""
    return _unmap(vm, thread, thread.operation.va)


def exit_space(vm: VM, thread: Thread) -> Wait | None:
    """Unmap everything; the threads of the address space have ended before."""
    return _unmap(vm, thread, 0)


def _unmap(vm: VM, thread: Thread, first: int) -> Wait | None:
    if not write_lock(vm, thread.id, thread.mm):
        return WAIT
    thread.position = first
    last = len(vm.areas[thread.mm]) if thread.operation.name == "exit" else first + 1
    for va in range(first, last):
        vm.set_area(thread.mm, va, vm.areas[thread.mm][va]._replace(mapped=False, settled=False))
    thread.found = last
    thread.then(_zap_next)
    return None


def _zap_next(vm: VM, thread: Thread) -> Wait | None:
    mm, va = thread.mm, thread.position
    if va == thread.found:
        return _unlink(vm, thread)
    if vm.spinlocks[mm]:
        return WAIT
    thread.position += 1
    thread.frame = zap(vm, mm, va)
    if thread.frame == NO_FRAME and not vm.design.rules.minds_batched_flush:
        thread.then(_zap_next)
    else:
        flush(vm, thread, (mm, va), _release_zapped, _zap_next)
    return None


def zap(vm: VM, mm: int, va: int) -> int:
    """Take an entry away; return the frame whose reference has to be dropped when the TLBs are flushed, or NO_FRAME."""
    entry = vm.entry(mm, va)
    if entry == NOTHING:
        return NO_FRAME
    vm.set_entry(mm, va, NOTHING)
    vm.set_touched(mm, va, False)
    if entry.kind is Kind.PRESENT or (entry.kind is Kind.VALID_NONPRESENT and vm.design.rules.understands_valid):
        if vm.frames[entry.number].mapping == FILE:
            vm.flag(entry.number, on=(DIRTY if entry.dirty else 0) | (REFERENCED if entry.accessed else 0))
        vm.unmap(entry.number, to_held=True)
        vm.rss[mm] -= 1
        return entry.number
    if entry.kind is vm.design.slot_kind:
        _free_slot(vm, entry.number)
    elif vm.design.zap_entry(vm, (mm, va), entry) and vm.design.rules.counts_rss:
        vm.rss[mm] -= 1
    return NO_FRAME


def _free_slot(vm: VM, slot: int) -> None:
    """Drop an entry of a cache; the last one takes the page out of it, unless a thread has the page locked."""
    frame = vm.slots[slot].frame
    vm.count_slot(slot, -1)
    if frame != NO_FRAME and not vm.slots[slot].entries:
        if vm.frames[frame].locked_by:
            vm.mark("an entry of a cache goes while the page is locked")
        else:
            vm.uncache_frame(frame)


def _release_zapped(vm: VM, thread: Thread) -> None:
    if thread.frame != NO_FRAME:
        vm.put(thread.frame)


def _unlink(vm: VM, thread: Thread) -> Wait | None:
    if vm.rmap_lock:
        return WAIT
    first = 0 if thread.operation.name == "exit" else thread.operation.va
    for va in range(first, thread.found):
        vm.set_area(thread.mm, va, UNMAPPED)
    if thread.operation.name == "exit":
        vm.alive[thread.mm] = False
    write_unlock(vm, thread.mm)
    thread.finish("done")
    return None


# ---- mprotect ----


def mprotect(vm: VM, thread: Thread) -> Wait | None:
    """Allow (value 1) or forbid (value 0) stores to one page."""
    if not write_lock(vm, thread.id, thread.mm):
        return WAIT
    va = thread.operation.va
    vm.set_area(thread.mm, va, vm.areas[thread.mm][va]._replace(write=bool(thread.operation.value), settled=False))
    thread.then(_protect_entry, _settle_protection)
    return None


def _protect_entry(vm: VM, thread: Thread) -> Wait | None:
    mm, va = thread.mm, thread.operation.va
    if vm.spinlocks[mm]:
        return WAIT
    entry, write = vm.entry(mm, va), vm.areas[mm][va].write
    if entry.kind is Kind.PRESENT or (entry.kind is Kind.VALID_NONPRESENT and vm.design.rules.understands_valid):
        changed = entry._replace(write=entry.write and write)
    else:
        changed = vm.design.protect_entry(vm, entry, write)
    if changed != entry:
        vm.set_entry(mm, va, changed)
    flush(vm, thread, (mm, va))
    return None


def _settle_protection(vm: VM, thread: Thread) -> None:
    va = thread.operation.va
    vm.set_area(thread.mm, va, vm.areas[thread.mm][va]._replace(settled=True))
    write_unlock(vm, thread.mm)
    thread.finish("done")


# ---- exec ----


def shift_stack(vm: VM, thread: Thread) -> Wait | None:
    """shift_arg_pages of exec: the area gets its new address at once, its entries move there later."""
    mm, old, new = thread.mm, thread.operation.va, thread.operation.value
    assert new is not None
    if vm.rmap_lock:
        return WAIT
    vm.set_area(mm, new, vm.areas[mm][old]._replace(settled=False))
    vm.set_area(mm, old, UNMAPPED._replace(settled=False))
    vm.set_truth(mm, new, vm.truth[mm][old])
    thread.then(_take_entry_of_stack)
    return None


def _take_entry_of_stack(vm: VM, thread: Thread) -> Wait | None:
    mm, old = thread.mm, thread.operation.va
    if not lock_table(vm, thread.id, mm):
        return WAIT
    thread.entry = vm.entry(mm, old)
    vm.set_entry(mm, old, NOTHING)
    flush(vm, thread, (mm, old), _set_entry, _finish_stack)
    return None


def _finish_stack(vm: VM, thread: Thread) -> None:
    mm, new = thread.mm, thread.operation.value
    assert new is not None
    vm.set_area(mm, thread.operation.va, UNMAPPED)
    vm.set_area(mm, new, vm.areas[mm][new]._replace(settled=True, temporary=False))
    thread.finish("done")


# ---- mremap ----


def mremap(vm: VM, thread: Thread) -> Wait | None:
    """Move one page to address `value`: the new area is linked, the entry moved, the old area unlinked."""
    mm, old = thread.mm, thread.operation.va
    new = thread.operation.value
    assert new is not None
    if vm.rmap_lock or not write_lock(vm, thread.id, mm):
        return WAIT
    vm.set_area(mm, new, vm.areas[mm][old]._replace(settled=False))
    vm.set_area(mm, old, vm.areas[mm][old]._replace(mapped=False, settled=False))
    vm.set_truth(mm, new, vm.truth[mm][old])
    _link(vm, [(mm, new)])
    thread.then(_take_entry)
    return None


def _take_entry(vm: VM, thread: Thread) -> Wait | None:
    mm, old = thread.mm, thread.operation.va
    if not lock_table(vm, thread.id, mm):
        return WAIT
    thread.entry = vm.entry(mm, old)
    if thread.entry.kind is Kind.MIGRATION:
        vm.mark("an entry moves while its page does")
    vm.set_entry(mm, old, NOTHING)
    flush(vm, thread, (mm, old), _set_entry, _unlink_old)
    return None


def _set_entry(vm: VM, thread: Thread) -> None:
    mm, new = thread.mm, thread.operation.value
    assert new is not None
    vm.set_entry(mm, new, thread.entry)
    vm.set_touched(mm, new, vm.touched[mm][thread.operation.va])
    vm.set_touched(mm, thread.operation.va, False)
    unlock_table(vm, mm)


def _unlink_old(vm: VM, thread: Thread) -> Wait | None:
    if vm.rmap_lock:
        return WAIT
    mm, new = thread.mm, thread.operation.value
    assert new is not None
    vm.set_area(mm, thread.operation.va, UNMAPPED)
    vm.set_area(mm, new, vm.areas[mm][new]._replace(settled=True))
    write_unlock(vm, mm)
    thread.finish("done")
    return None
