"""Marking: turning entries into traps, for pages to be moved when they are next touched."""

from __future__ import annotations

from .entry import Kind
from .locks import read_lock, read_unlock
from .thread import WAIT, Thread, Wait
from .tlb import flush_all
from .vm import VM

__all__ = ["mark"]


def mark(vm: VM, thread: Thread) -> Wait | None:
    """Mark every present entry of the address space, under mmap_sem and the page table lock; no page is locked."""
    if not read_lock(vm, thread.id, thread.mm):
        return WAIT
    thread.then(_mark_entry)
    return None


def _mark_entry(vm: VM, thread: Thread) -> Wait | None:
    mm, va = thread.mm, thread.position
    if va == len(vm.areas[mm]):
        flush_all(vm, thread, [(mm, at) for at in range(va)], _finish)
        return None
    if vm.spinlocks[mm]:
        return WAIT
    thread.position += 1
    thread.then(_mark_entry)
    entry = vm.entry(mm, va)
    if entry.kind is Kind.PRESENT:
        vm.mark("a page is marked")
        vm.set_entry(mm, va, vm.design.mark_entry(vm, mm, va, entry))
    return None


def _finish(vm: VM, thread: Thread) -> None:
    read_unlock(vm, thread.mm)
    thread.finish("done")
