"""TLB flushes: each CPU forgets a translation at a moment of its own; the flushing thread waits for the last one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from .thread import Step, Thread
from .vm import VM

__all__ = ["flush", "flush_all"]


def flush(vm: VM, thread: Thread, place: tuple[int, int], *after: Step) -> None:
    """Flush the translations of `place`, (mm, va), one CPU a step; then go on with `after`."""
    flush_all(vm, thread, [place], *after)


def flush_all(vm: VM, thread: Thread, places: Iterable[tuple[int, int]], *after: Step) -> None:
    """Flush the translations of all `places` in one batch; then go on with `after`.

    A CPU that has none is passed over: when it walks, it sees the entry as it is by now.
    """
    vm.events["tlb_flushes"] += 1
    thread.then(*(_flushing(*place, cpu) for place in places for cpu in vm.translating(*place)), *after)


@cache
def _flushing(mm: int, va: int, cpu: int) -> Step:
    def flush_tlb(vm: VM, thread: Thread) -> None:
        vm.set_translation(cpu, va, None)

    return flush_tlb
