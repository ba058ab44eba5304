"""Reclaim of an anonymous page to swap, and the fault that brings it back. The migration cache's faults are the same.

D1, D2 and D3 migrate by means of these: an entry that names a slot finds the page, old or new, through the cache.
"""

from __future__ import annotations

from .access import redo, replace_entry
from .entry import Entry, Kind
from .locks import lock_page, lock_table, read_unlock, unlock_page, unlock_rmap, unlock_table, walk_rmap
from .thread import WAIT, Thread, Wait
from .tlb import flush
from .vm import ANON, DIRTY, ISOLATED, LRU, NO_FRAME, NO_SLOT, SWAPCACHE, UPTODATE, VM

__all__ = ["fault_slot", "put_back", "reclaim"]

# ---- do_swap_page ----


def fault_slot(vm: VM, thread: Thread) -> Wait | None:
    """Find the page in the cache, or read it back into it; the reference is taken under the cache's lock."""
    slot = vm.slots[thread.entry.number]
    if slot.frame != NO_FRAME:
        thread.frame = slot.frame
        vm.get(slot.frame, "a lookup in the swap cache")
    elif slot.disk is not None:
        thread.frame = vm.allocate_near(thread.node)
        if thread.frame == NO_FRAME:
            read_unlock(vm, thread.mm)
            thread.finish("SIGKILL")
            return None
        vm.change(thread.frame, words=slot.disk, mapping=ANON, private=thread.entry.number)
        vm.flag(thread.frame, on=UPTODATE | SWAPCACHE | LRU)
        vm.slots[thread.entry.number] = slot._replace(frame=thread.frame)
        vm.add_cache_reference(thread.frame)
    else:  # the entry was read before it went away
        redo(vm, thread)
        return None
    thread.then(_lock_found)
    return None


def _lock_found(vm: VM, thread: Thread) -> Wait | None:
    if not lock_page(vm, thread.id, thread.frame):
        vm.mark("a fault waits for the page lock")
        return WAIT
    slot, frame = thread.entry.number, vm.frames[thread.frame]
    if vm.design.rules.redoes_lookup and not (frame.flags & SWAPCACHE and frame.private == slot):
        vm.mark("a fault has locked a page that left the cache")
        unlock_page(vm, thread.id, thread.frame)
        vm.put(thread.frame)
        redo(vm, thread)
        return None
    if not vm.design.rules.sleeps_outside and not lock_table(vm, thread.id, thread.mm):
        unlock_page(vm, thread.id, thread.frame)
        return WAIT
    thread.then(_map_found)
    if not frame.maps and frame.node != thread.node:
        vm.design.move_found(vm, thread)
    return None


def _map_found(vm: VM, thread: Thread) -> Wait | None:
    mm, va = thread.mm, thread.operation.va
    if vm.spinlocks[mm]:
        return WAIT
    frame, slot = thread.frame, thread.entry.number
    if vm.entry(mm, va) != thread.entry and vm.design.rules.rereads_entry:
        unlock_page(vm, thread.id, frame)
        vm.put(frame)
        redo(vm, thread)
        return None
    store = thread.operation.value is not None
    exclusive = store and vm.areas[mm][va].write and not vm.frames[frame].maps and vm.slots[slot].entries == 1
    replace_entry(vm, thread, Entry(Kind.PRESENT, frame, exclusive, accessed=True, dirty=exclusive))
    vm.set_touched(mm, va, True)
    vm.map(frame, from_held=True)
    vm.rss[mm] += 1
    if not vm.design.rules.knows_locked:
        lock_page(vm, thread.id, frame)
    if vm.design.rules.counts_atomically:
        vm.count_slot(slot, -1)
        _leave_found(vm, thread)
    else:
        thread.saved = vm.slots[slot].entries - 1
        thread.then(_write_count)
    return None


# What others have counted since is lost.
def _write_count(vm: VM, thread: Thread) -> None:
    slot = thread.entry.number
    vm.count_slot(slot, thread.saved - vm.slots[slot].entries)
    _leave_found(vm, thread)


def _leave_found(vm: VM, thread: Thread) -> None:
    if vm.has(thread.frame, SWAPCACHE) and not vm.slots[thread.entry.number].entries:
        vm.uncache_frame(thread.frame)
    unlock_page(vm, thread.id, thread.frame)
    redo(vm, thread)


# ---- reclaim ----


def reclaim(vm: VM, thread: Thread) -> Wait | None:
    """Swap the page out that is at the address: isolate it, and give up if a thread has locked it."""
    entry = vm.entry(thread.mm, thread.operation.va)
    if not entry.mapped or not vm.has(entry.number, LRU) or vm.frames[entry.number].locked_by:
        thread.finish("kept")
        return None
    frame = thread.frame = entry.number
    vm.get(frame, "isolation")
    vm.flag(frame, on=ISOLATED, off=LRU)
    vm.change(frame, locked_by=thread.id + 1)
    if not vm.has(frame, SWAPCACHE) and vm.cache_frame(frame) == NO_SLOT:
        thread.then(_keep)
    else:
        thread.then(_lock_to_unmap)
    return None


def _lock_to_unmap(vm: VM, thread: Thread) -> Wait | None:
    return walk_rmap(vm, thread, _unmap_next)


def _unmap_next(vm: VM, thread: Thread) -> Wait | None:
    while thread.position < len(vm.order):
        mm, va = vm.order[thread.position]
        if vm.areas[mm][va].linked:
            break
        thread.position += 1
    else:
        unlock_rmap(vm)
        thread.then(_write_out)
        return None
    if vm.spinlocks[mm]:
        return WAIT
    thread.position += 1
    thread.then(_unmap_next)
    entry = vm.entry(mm, va)
    known = entry.kind is Kind.PRESENT or vm.design.rules.understands_valid
    if entry.mapped and known and entry.number == thread.frame:
        lock_table(vm, thread.id, mm)
        _to_slot(vm, thread.frame, (mm, va), entry)
        flush(vm, thread, (mm, va), _unlock_last_table)
    return None


def _to_slot(vm: VM, frame: int, place: tuple[int, int], entry: Entry) -> None:
    """Replace an entry that maps `frame` by one that names its slot."""
    slot = vm.frames[frame].private
    if entry.dirty:
        vm.flag(frame, on=DIRTY)
    vm.set_entry(*place, Entry(vm.design.slot_kind, slot))
    vm.count_slot(slot, 1)
    vm.set_touched(place[0], place[1], False)
    vm.unmap(frame)
    vm.rss[place[0]] -= 1


def _unlock_last_table(vm: VM, thread: Thread) -> None:
    unlock_table(vm, vm.order[thread.position - 1][0])


def _write_out(vm: VM, thread: Thread) -> None:
    frame = vm.frames[thread.frame]
    slot = frame.private
    if frame.maps:
        vm.mark("reclaim cannot unmap a page")
    if frame.maps or frame.refs != 2:  # the cache's and ours
        thread.then(_keep)
        return
    if frame.flags & DIRTY:
        vm.slots[slot] = vm.slots[slot]._replace(disk=frame.words)
        vm.flag(thread.frame, off=DIRTY)
    vm.slots[slot] = vm.slots[slot]._replace(frame=NO_FRAME)
    vm.flag(thread.frame, off=SWAPCACHE | ISOLATED)
    vm.change(thread.frame, private=NO_SLOT, mapping=0)
    vm.drop_cache_reference(thread.frame)
    unlock_page(vm, thread.id, thread.frame)
    vm.put(thread.frame)
    thread.finish("swapped out")


def _keep(vm: VM, thread: Thread) -> None:
    put_back(vm, thread)
    thread.finish("kept")


def put_back(vm: VM, thread: Thread) -> None:
    """Unlock the thread's isolated page and give it back to the lists; out of the cache where no entry names its slot.

    try_to_free_swap, unlock_page, putback_lru_page.
    """
    frame = thread.frame
    if vm.has(frame, SWAPCACHE) and not vm.slots[vm.frames[frame].private].entries:
        vm.uncache_frame(frame)
    unlock_page(vm, thread.id, frame)
    vm.flag(frame, on=LRU, off=ISOLATED)
    vm.put(frame)
