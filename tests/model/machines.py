"""Machines of a few threads and one page, driven step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nexttouch.model.designs import DESIGNS
from nexttouch.model.entry import Entry
from nexttouch.model.machine import Machine, Page, Worker
from nexttouch.model.thread import Operation, Thread
from nexttouch.model.violation import Violation
from nexttouch.model.vm import VM

LOAD = Operation("load")
STORE = Operation("store", value=11)
MIGRATE = Operation("migrate", node=1)


def machine(*workers: Worker, design: str = "B", kind: str = "anonymous", **page: Any) -> Machine:
    """Some threads, or one that loads, under a design; `page` is as of `Page`."""
    return Machine(DESIGNS[design](), Page(kind, **page), workers or (Worker((LOAD,)),))


def vm_of(design: str = "B", kind: str = "anonymous", **page: Any) -> VM:
    """The VM of such a machine at its start."""
    one = machine(design=design, kind=kind, **page)
    return one.vm(one.initial()[0])


class Run:
    """One run of a machine: whoever is told to goes on by one step.

    Attributes:
        names: the names of the steps so far.
        broken: the promise that the last step broke, if any.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.shared, locals_ = machine.initial()
        self.locals = list(locals_)
        self.names: list[str] = []
        self.broken: Violation | None = None

    @property
    def vm(self) -> VM:
        """The VM as it is now; changing it changes nothing here."""
        return self.machine.vm(self.shared)

    def thread(self, number: int = 0) -> Thread:
        """A thread as it is now."""
        worker = self.machine.workers[number]
        return Thread(self.locals[number], number, worker.mm, worker.node, worker.script)

    def change(self, change: Callable[[VM], object]) -> None:
        """Change the state from outside."""
        vm = self.vm
        change(vm)
        self.shared = vm.frozen()

    def set_entry(self, entry: Entry, mm: int = 0) -> None:
        """Let somebody else have changed the entry of the page, without counting anything."""

        def change(vm: VM) -> None:
            vm.set_entry(mm, 0, entry)
            vm.set_touched(mm, 0, entry.accessed)

        self.change(change)

    def waits(self, thread: int = 0) -> bool:
        """Whether a thread cannot go on."""
        return not self.machine.moves(self.shared, thread, self.locals[thread])

    def step(self, thread: int = 0, count: int = 1) -> None:
        """Let a thread go on by some steps."""
        for _ in range(count):
            (move,) = self.machine.moves(self.shared, thread, self.locals[thread])
            self.names.append(move.name)
            self.broken = move.broken
            self.shared, self.locals[thread] = move.shared, move.local
            assert move.broken or self.machine.broken(self.shared) is None

    def finish(self, thread: int = 0) -> tuple[str, ...]:
        """Let a thread go on to its end; return what its operations came to."""
        while not self.machine.ended(thread, self.locals[thread]):
            self.step(thread)
            assert self.broken is None
        results: tuple[str, ...] = self.thread(thread).results
        return results
