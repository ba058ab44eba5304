"""Locks: the page lock, the page tables' spinlocks, the mmap semaphores, the lock of the reverse map.

The order is that of mm/rmap.c (2.6.18): mmap_sem, page lock, lock of the reverse map, page table lock. The lock of a
mapping and lru_lock are held within single steps only, so they are not here.
"""

from __future__ import annotations

from .thread import WAIT, Step, Thread, Wait
from .violation import Broken
from .vm import VM

__all__ = [
    "lock_page",
    "lock_rmap",
    "lock_table",
    "may_sleep",
    "read_lock",
    "read_unlock",
    "unlock_page",
    "unlock_rmap",
    "unlock_table",
    "walk_rmap",
    "write_lock",
    "write_unlock",
]

# A semaphore is 0, the number of its readers, or - (its writer + 1).


def lock_page(vm: VM, thread: int, frame: int) -> bool:
    """Take the page lock, if no thread has it; whether it was taken. A thread that waits for it sleeps."""
    found = vm.alive_frame(frame, f"thread {thread}, which locks a page,")
    if found.locked_by:
        if found.locked_by == thread + 1:
            raise Broken(
                "I-DEADLOCK", f"thread {thread} waits for the page lock of frame {frame}, which it holds itself"
            )
        may_sleep(vm, thread, f"waits for the page lock of frame {frame}")
        return False
    if thread + 1 == vm.rmap_lock or thread + 1 in vm.spinlocks:
        raise Broken("I-ORDER", f"thread {thread} takes a page lock under a spinlock")
    vm.change(frame, locked_by=thread + 1)
    vm.events["atomics"] += 1
    return True


def unlock_page(vm: VM, thread: int, frame: int) -> None:
    """Release the page lock; the threads that wait may go on."""
    if vm.frames[frame].locked_by != thread + 1:
        raise Broken("I-LOCK", f"thread {thread} unlocks frame {frame}, whose page lock it does not hold")
    vm.change(frame, locked_by=0)
    vm.events["atomics"] += 1


def lock_table(vm: VM, thread: int, mm: int) -> bool:
    """Take the spinlock of an mm's page tables, if it is free; whether it was taken."""
    if vm.spinlocks[mm]:
        return False
    vm.spinlocks[mm] = thread + 1
    return True


def unlock_table(vm: VM, mm: int) -> None:
    """Release it."""
    vm.spinlocks[mm] = 0


def lock_rmap(vm: VM, thread: int) -> bool:
    """Take the lock of the reverse map (anon_vma->lock or i_mmap_lock), if it is free; whether it was taken."""
    if vm.rmap_lock:
        return False
    if thread + 1 in vm.spinlocks:
        raise Broken("I-ORDER", f"thread {thread} takes the lock of the reverse map under that of a page table")
    vm.rmap_lock = thread + 1
    return True


def walk_rmap(vm: VM, thread: Thread, step: Step) -> Wait | None:
    """Take the lock of the reverse map, and go on with `step` at its first place."""
    if not lock_rmap(vm, thread.id):
        return WAIT
    thread.position = 0
    thread.then(step)
    return None


def unlock_rmap(vm: VM) -> None:
    """Release it."""
    vm.rmap_lock = 0


def read_lock(vm: VM, thread: int, mm: int) -> bool:
    """Take an mmap_sem for reading, if no writer has it; whether it was taken."""
    if vm.sems[mm] < 0:
        may_sleep(vm, thread, "waits for mmap_sem")
        return False
    vm.sems[mm] += 1
    return True


def read_unlock(vm: VM, mm: int) -> None:
    """Release it."""
    vm.sems[mm] -= 1


def write_lock(vm: VM, thread: int, mm: int) -> bool:
    """Take an mmap_sem for writing, if it is free; whether it was taken."""
    if vm.sems[mm]:
        return False
    vm.sems[mm] = -thread - 1
    return True


def write_unlock(vm: VM, mm: int) -> None:
    """Release it."""
    vm.sems[mm] = 0


def may_sleep(vm: VM, thread: int, what: str) -> None:
    """Raise Broken (I-SLEEP) if the thread holds a spinlock."""
    if thread + 1 == vm.rmap_lock or thread + 1 in vm.spinlocks:
        raise Broken("I-SLEEP", f"thread {thread} {what} while it holds a spinlock")
