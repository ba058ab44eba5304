"""D3: migrate on fault. Pages are unmapped into the swap cache; the first fault that finds one moves it."""

from __future__ import annotations

from ..entry import Entry, Kind
from ..locks import lock_page, may_sleep, read_lock, read_unlock, unlock_page
from ..migrate import conceal_entries
from ..swap import put_back
from ..thread import WAIT, Step, Thread, Wait
from ..vm import ANON, DIRTY, ISOLATED, LRU, NO_FRAME, SWAPCACHE, UPTODATE, VM
from .swap_entries import SwapEntries

__all__ = ["MigrateOnFault"]


class MigrateOnFault(SwapEntries):
    """No walk in the fault: the cache names the old page or the new one, for the faults that come later."""

    name = "D3"
    title = "migrate on fault (2006-2010, never merged)"
    source = "linux-mm, 9 March and 7 April 2006 (V0.2)"
    eager = False
    lazy = True
    kinds = ("anonymous",)

    @property
    def mark(self) -> Step:
        """migrate_pages_unmap_only."""
        return _mark

    def is_trap(self, entry: Entry) -> bool:
        """One that names a slot."""
        return entry.kind is self.slot_kind

    def move_found(self, vm: VM, thread: Thread) -> None:
        """check_migrate_misplaced_page: the page is locked, and no entry maps it."""
        may_sleep(vm, thread.id, "allocates a page")
        if not vm.has(thread.frame, LRU):
            return
        thread.new = vm.allocate(thread.node)
        if thread.new == NO_FRAME:
            return
        vm.mark("a fault moves the page")
        vm.get(thread.frame, "isolation")
        vm.flag(thread.frame, on=ISOLATED, off=LRU)
        vm.change(thread.new, locked_by=thread.id + 1)
        thread.then(_commit)


def _mark(vm: VM, thread: Thread) -> Wait | None:
    if not read_lock(vm, thread.id, thread.mm):
        return WAIT
    entry = vm.entry(thread.mm, thread.operation.va)
    frame = entry.number
    anonymous = entry.kind is Kind.PRESENT and vm.frames[frame].mapping == ANON
    if not anonymous or not vm.has(frame, LRU) or vm.frames[frame].locked_by:
        read_unlock(vm, thread.mm)
        thread.finish("left")
        return None
    vm.mark("a page is marked")
    thread.frame = frame
    vm.get(frame, "isolation")
    vm.flag(frame, on=ISOLATED, off=LRU)
    lock_page(vm, thread.id, frame)
    if vm.design.prepare(vm, thread):
        thread.then(conceal_entries, _marked)
    else:
        thread.then(_marked)
    return None


def _marked(vm: VM, thread: Thread) -> None:
    put_back(vm, thread)
    read_unlock(vm, thread.mm)
    thread.finish("done")


def _commit(vm: VM, thread: Thread) -> None:
    """The references are the cache's, the isolation's and the fault's own."""
    frame = thread.frame
    if vm.design.rules.checks_references and vm.frames[frame].refs != vm.design.cache_references(vm, frame) + 2:
        unlock_page(vm, thread.id, thread.new)
        vm.put(thread.new)
        thread.new = NO_FRAME
        vm.flag(frame, on=LRU, off=ISOLATED)
        vm.put(frame)
        return
    vm.design.switch(vm, thread)
    thread.word = 0
    thread.then(_copy_word)


def _copy_word(vm: VM, thread: Thread) -> None:
    thread.then(_take_new if vm.copy_word(thread.frame, thread.new, thread.word) else _copy_word)
    thread.word += 1


def _take_new(vm: VM, thread: Thread) -> None:
    old, new = thread.frame, thread.new
    vm.flag(new, on=vm.frames[old].flags & ~(ISOLATED | LRU) | UPTODATE | LRU)
    vm.flag(old, off=SWAPCACHE | DIRTY | ISOLATED)
    vm.change(old, mapping=0, private=-1)
    unlock_page(vm, thread.id, old)
    vm.put(old)
    vm.put(old)
    thread.frame, thread.new = new, NO_FRAME
