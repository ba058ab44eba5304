"""A device that writes to a page: get_user_pages, the transfer, and its end."""

from __future__ import annotations

from .access import fault, store_truth, write_word
from .entry import Kind
from .thread import WAIT, Thread, Wait
from .violation import Broken
from .vm import DIRTY, PINNED, VM

__all__ = ["pin"]


def pin(vm: VM, thread: Thread) -> Wait | None:
    """Take a reference to the page for a transfer; if it cannot be written to now, fault it in and begin again."""
    mm, va = thread.mm, thread.operation.va
    entry = vm.entry(mm, va)
    if entry.kind is not Kind.PRESENT or not entry.write:
        return fault(vm, thread, store=True)
    if vm.spinlocks[mm]:
        return WAIT
    thread.frame = entry.number
    vm.get(entry.number, "get_user_pages")
    vm.flag(entry.number, on=PINNED | DIRTY)
    vm.mark("a page is pinned")
    thread.then(_transfer)
    return None


def _transfer(vm: VM, thread: Thread) -> None:
    mm, operation = thread.mm, thread.operation
    vm.alive_frame(thread.frame, "a device")
    entry = vm.entry(mm, operation.va)
    assert operation.value is not None
    if entry.mapped and entry.number != thread.frame:
        raise Broken(
            "I-PIN", f"a device writes to frame {thread.frame}, but the page is in frame {entry.number} by now"
        )
    write_word(vm, thread.frame, operation.word, operation.value)
    store_truth(vm, mm, operation.va, operation.word, operation.value)
    thread.then(_unpin)


def _unpin(vm: VM, thread: Thread) -> None:
    vm.flag(thread.frame, on=DIRTY, off=PINNED)
    vm.put(thread.frame)
    thread.finish("done")
