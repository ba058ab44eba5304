"""The fault handlers that all designs share: a page that is not there, and a store to a page that is not writable.

Each begins with mmap_sem held for reading and `thread.entry` as it was read without a lock, and ends with `redo`.
"""

from __future__ import annotations

from .access import redo, replace_entry
from .entry import Entry, Kind
from .locks import lock_page, lock_table, read_unlock, unlock_page, unlock_table
from .thread import WAIT, Thread, Wait
from .tlb import flush
from .vm import ANON, NO_FRAME, NO_SLOT, SWAPCACHE, UPTODATE, VM

__all__ = ["fault_missing", "fault_write"]

# ---- do_no_page, do_anonymous_page ----


def fault_missing(vm: VM, thread: Thread) -> Wait | None:
    """Nothing is there: map a fresh page of zeros, or the file's page."""
    if not vm.areas[thread.mm][thread.operation.va].file:
        return _map_zeros(vm, thread)
    if vm.file_size <= 0:
        read_unlock(vm, thread.mm)
        thread.finish("SIGBUS")
        return None
    frame = vm.page_cache
    if frame == NO_FRAME:  # it is being truncated
        redo(vm, thread)
        return None
    vm.get(frame, "a lookup in the page cache")
    thread.frame = frame
    if vm.has(frame, UPTODATE) and not vm.design.rules.missing_locks_page:
        thread.then(_map_found)
    else:
        thread.then(_wait_for_found)
    return None


def _wait_for_found(vm: VM, thread: Thread) -> Wait | None:
    if not lock_page(vm, thread.id, thread.frame):
        vm.mark("a lookup waits for the page lock")
        return WAIT
    if vm.page_cache != thread.frame:
        vm.mark("a page has left the file")
        unlock_page(vm, thread.id, thread.frame)
        vm.put(thread.frame)
        redo(vm, thread)
    elif vm.design.rules.missing_locks_page:
        thread.then(_map_found)
    else:
        unlock_page(vm, thread.id, thread.frame)
        thread.then(_map_found)
    return None


def _map_found(vm: VM, thread: Thread) -> Wait | None:
    mm, va = thread.mm, thread.operation.va
    if vm.spinlocks[mm]:
        return WAIT
    area, frame = vm.areas[mm][va], thread.frame
    if vm.frames[frame].locked_by == thread.id + 1:
        unlock_page(vm, thread.id, frame)
    if vm.entry(mm, va).kind is Kind.NONE and vm.file_size > 0:
        vm.set_entry(mm, va, Entry(Kind.PRESENT, frame, write=area.shared and area.write))
        vm.map(frame, from_held=True)
        vm.rss[mm] += 1
    else:
        vm.put(frame)
    redo(vm, thread)
    return None


def _map_zeros(vm: VM, thread: Thread) -> Wait | None:
    mm, va = thread.mm, thread.operation.va
    if vm.spinlocks[mm]:
        return WAIT
    if vm.entry(mm, va).kind is Kind.NONE:
        frame = vm.allocate_near(thread.node)
        if frame == NO_FRAME:
            read_unlock(vm, mm)
            thread.finish("SIGKILL")
            return None
        vm.flag(frame, on=UPTODATE)
        vm.change(frame, mapping=ANON)
        vm.set_entry(mm, va, Entry(Kind.PRESENT, frame, write=vm.areas[mm][va].write))
        vm.map(frame, from_held=True)
        vm.rss[mm] += 1
    redo(vm, thread)
    return None


# ---- do_wp_page ----


def fault_write(vm: VM, thread: Thread) -> Wait | None:
    """The entry forbids the store: allow it if the page is no other process's, or the file's; else copy the page."""
    mm, va = thread.mm, thread.operation.va
    if vm.spinlocks[mm]:
        return WAIT
    entry = vm.entry(mm, va)
    if entry != thread.entry:
        redo(vm, thread)
        return None
    frame = vm.frames[entry.number]
    exclusive = frame.mapping == ANON and frame.maps == 1 and not _swapped_elsewhere(vm, entry.number)
    if exclusive and frame.locked_by and vm.design.rules.copies_locked:
        vm.mark("a store waits for the page lock")
        return WAIT
    if exclusive and frame.locked_by:
        vm.mark("cost: a page is copied because its lock was taken")
        exclusive = False
    if vm.areas[mm][va].shared or (exclusive and not vm.design.moves_at_store(vm, thread, entry.number)):
        replace_entry(vm, thread, entry._replace(write=True, accessed=True, dirty=True))
        vm.set_touched(mm, va, True)
        redo(vm, thread)
        return None
    vm.get(entry.number, "a fault that copies")
    thread.frame = entry.number
    if exclusive and vm.design.rules.copies_locked:
        lock_page(vm, thread.id, thread.frame)
    thread.then(_allocate_copy)
    if vm.design.rules.minds_pending_flush:  # the thread that took the permission away may not have flushed yet
        flush(vm, thread, (mm, va))
    return None


def _swapped_elsewhere(vm: VM, number: int) -> bool:
    frame = vm.frames[number]
    return bool(frame.flags & SWAPCACHE and frame.private != NO_SLOT and vm.design.entries_of(vm, number))


def _allocate_copy(vm: VM, thread: Thread) -> None:
    thread.new = vm.allocate_near(thread.node)
    if thread.new == NO_FRAME:
        _let_go(vm, thread)
        read_unlock(vm, thread.mm)
        thread.finish("SIGKILL")
        return
    thread.word = 0
    thread.then(_copy_word)


def _copy_word(vm: VM, thread: Thread) -> None:
    thread.then(_install if vm.copy_word(thread.frame, thread.new, thread.word) else _copy_word)
    thread.word += 1


def _install(vm: VM, thread: Thread) -> Wait | None:
    mm, place = thread.mm, (thread.mm, thread.operation.va)
    if not lock_table(vm, thread.id, mm):
        return WAIT
    if vm.entry(*place) != thread.entry:
        unlock_table(vm, mm)
        _let_go(vm, thread)
        vm.put(thread.new)
        redo(vm, thread)
        return None
    vm.unmap(thread.frame, to_held=True)
    if vm.design.rules.copy_clears_first:
        replace_entry(vm, thread, Entry(Kind.NONE))
        flush(vm, thread, place, _set_copy)
    else:
        _set_entry_of_copy(vm, thread)
        flush(vm, thread, place, _leave_copy)
    return None


def _set_copy(vm: VM, thread: Thread) -> None:
    _set_entry_of_copy(vm, thread)
    _leave_copy(vm, thread)


def _set_entry_of_copy(vm: VM, thread: Thread) -> None:
    mm, va = thread.mm, thread.operation.va
    vm.flag(thread.new, on=UPTODATE)
    vm.change(thread.new, mapping=ANON)
    vm.set_entry(mm, va, Entry(Kind.PRESENT, thread.new, write=True, accessed=True, dirty=True))
    vm.set_touched(mm, va, True)
    vm.set_truth(mm, va, vm.true_words(mm, va))
    vm.map(thread.new, from_held=True)


def _leave_copy(vm: VM, thread: Thread) -> None:
    vm.put(thread.frame)
    _let_go(vm, thread)
    unlock_table(vm, thread.mm)
    redo(vm, thread)


def _let_go(vm: VM, thread: Thread) -> None:
    if vm.frames[thread.frame].locked_by == thread.id + 1:
        unlock_page(vm, thread.id, thread.frame)
    vm.put(thread.frame)
