"""A machine: one scenario under one design, as a model to explore."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from . import file, pin, space, swap
from .access import access
from .arch import ARCHES, Arch
from .design import Design
from .entry import NOTHING, Entry, Kind
from .entry_losses import LEAVE_ENTRIES, lost_of_entries
from .invariants import broken_at_the_end, broken_in
from .migrate import migrate
from .move import Move, State
from .thread import WAIT, Operation, Step, Thread
from .view import fields, script_of, step_of
from .violation import Broken, Violation
from .vm import (
    ACTIVE,
    ANON,
    DIRTY,
    FILE,
    LRU,
    NO_FRAME,
    REFERENCED,
    UNMAPPED,
    UPTODATE,
    VM,
    Area,
    Frame,
    Slot,
)

__all__ = ["OPERATIONS", "Machine", "Page", "Worker"]

OPERATIONS: dict[str, Step] = {
    "load": access,
    "store": access,
    "fork": space.fork,
    "munmap": space.munmap,
    "exit": space.exit_space,
    "mprotect": space.mprotect,
    "mremap": space.mremap,
    "exec": space.shift_stack,
    "read": file.read,
    "write": file.write,
    "truncate": file.truncate,
    "pin": pin.pin,
    "reclaim": swap.reclaim,
    "migrate": migrate,
    "mark": lambda vm, thread: vm.design.mark(vm, thread),
}
"""The first step of each operation."""


@dataclass(frozen=True, slots=True)
class Page:
    """The page that a scenario is about, as it is in the beginning: in the frame 0, on node 0.

    Attributes:
        kind: "anonymous", "private" (of a file, not written to yet) or "shared" (of a file).
        mappers: address spaces that map it.
        spaces: address spaces there are; those behind the mappers are for children.
        addresses: pages of each address space; the page is at address 0.
        pages: anonymous pages that are there in the beginning, at the first addresses, in the first frames.
        unmapped: of the other address spaces, those that have the area, but no entry yet.
        stack: the area is that of a stack which exec has yet to move.
        dirty: whether it and its entries are dirty.
        frames: frames on each node.
    """

    kind: str = "anonymous"
    mappers: int = 1
    spaces: int = 1
    addresses: int = 1
    pages: int = 1
    unmapped: int = 0
    stack: bool = False
    dirty: bool = False
    frames: tuple[int, ...] = (2, 2)


@dataclass(frozen=True, slots=True)
class Worker:
    """A thread of a scenario: its operations, the address space and the node it is in."""

    script: tuple[Operation, ...]
    mm: int = 0
    node: int = 1


@dataclass(slots=True)
class Machine:
    """Threads over a VM: the protocol that the explorer asks for.

    Attributes:
        design: what it runs.
        page, workers: the scenario.
        free: nothing but waiters stands in the way of the migration of thread 0: it has to succeed.
        arch: whose page table entries.
        marks: what its steps have come upon.
        events: what its steps have done; means something when it runs alone.
        running: the address space that each CPU runs.
    """

    design: Design
    page: Page
    workers: tuple[Worker, ...]
    free: bool = False
    arch: Arch = field(default_factory=lambda: ARCHES["x86-64"])
    marks: set[str] = field(default_factory=set)
    events: Counter[str] = field(default_factory=Counter)
    running: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.running = tuple(worker.mm for worker in self.workers)

    def vm(self, shared: State) -> VM:
        """The VM in a state."""
        return VM(shared, self.design, self.arch, self.running, self.events)

    def initial(self) -> tuple[Any, tuple[Any, ...]]:
        """Return the VM at the start, and threads that have done nothing."""
        return _initial(self), tuple(Thread.beginning() for _ in self.workers)

    def moves(self, shared: State, number: int, local: State) -> Sequence[Move]:
        """Take the next step of a thread. `ended` and `vm` are written out here: this is most of a search."""
        worker = self.workers[number]
        if local[0] == len(worker.script):
            return ()
        vm = VM(shared, self.design, self.arch, self.running, self.events)
        vm.stepping = number + 1
        thread = Thread(local, number, worker.mm, worker.node, worker.script)
        if (
            not vm.alive[worker.mm] and not local[0] and worker.mm >= self.page.mappers + self.page.unmapped
        ):  # a child that is not forked yet
            return ()
        operation = worker.script[local[0]].name
        races = () if thread.steps else self._new_races(vm, operation)
        step = thread.steps.pop() if thread.steps else OPERATIONS[operation]
        name = _step_name(step, operation)
        try:
            waits = step(vm, thread) is WAIT
        except Broken as broken:
            return (Move(name, shared, local, broken.violation, fatal=True),)
        if vm.marks:
            self.marks.update(vm.marks)
        if waits:
            return ()
        if races:
            self.marks.update(races)
        if len(thread.results) > len(local[2]):
            self.marks.add(f"{operation}: {thread.results[-1]}")
        return (Move(name, vm.frozen(), thread.frozen(), vm.complaint),)

    # What an operation that begins now comes upon, unless that is known to happen.
    def _new_races(self, vm: VM, operation: str) -> list[str]:
        moves, marked = f"{operation} while the page moves", f"{operation} while the page is marked"
        found = []
        if moves not in self.marks and any(frame.locked_by not in (0, vm.stepping) for frame in vm.frames):
            found.append(moves)
        if self.design.lazy and marked not in self.marks and any(self.design.is_trap(e) for _, e in vm.entries()):
            found.append(marked)
        return found

    def ended(self, number: int, local: State) -> bool:
        """Whether a thread has done all of its script."""
        return bool(local[0] == len(self.workers[number].script))

    def broken(self, shared: State) -> Violation | None:
        """The promise that the state breaks, if it does."""
        return broken_in(self.vm(shared))

    def broken_end(self, shared: State, locals_: tuple[State, ...]) -> Violation | None:
        """The promise that the end breaks, if it does."""
        if self.free and locals_[0][2] == ("EAGAIN",):
            if not self.design.gives_up:
                return Violation(
                    "I-PROGRESS", "the migration gives up, though nothing but its own waiters stood in its way"
                )
            self.marks.add(f"cost: {self.design.gives_up}")
        vm = self.vm(shared)
        names = {operation.name for worker in self.workers for operation in worker.script}
        if names <= LEAVE_ENTRIES:
            lost = lost_of_entries(self.vm(_initial(self)), vm, failed=bool({"EAGAIN", "ENOMEM"} & set(locals_[0][2])))
            if lost:
                return lost
        if "mark" not in names and any(entry.kind is Kind.VALID_NONPRESENT for _, entry in vm.entries()):
            return Violation("I-ROLLBACK", "a migration has failed, and left entries that are not present")
        return broken_at_the_end(vm)

    def fields(self, shared: State) -> dict[str, str]:
        """Return the state in words, field by field."""
        return fields(self, shared)

    def about(self, number: int, local: State) -> str:
        """What a thread is about to do, in words."""
        return step_of(self, number, local)

    def scripts(self) -> tuple[str, ...]:
        """What each thread is to do, in words."""
        return tuple(map(script_of, range(len(self.workers)), self.workers))


@cache
def _step_name(step: Step, operation: str) -> str:
    words = getattr(step, "__name__", "step").strip("_").replace("_", " ")
    return operation if words in (operation, "access", "<lambda>") else f"{operation}: {words}"


def _initial(machine: Machine) -> tuple[Any, ...]:
    page, count = machine.page, len(machine.workers)
    of_file = page.kind != "anonymous"
    shared = page.kind == "shared"
    words = (1, 2)
    frames = [Frame(node=node) for node, number in enumerate(page.frames) for _ in range(number)]
    flags = UPTODATE | LRU | ACTIVE | REFERENCED | (DIRTY if page.dirty else 0)
    for number in range(page.pages):
        frames[number] = Frame(
            refs=page.mappers + of_file,
            maps=page.mappers,
            flags=flags,
            node=frames[number].node,
            mapping=FILE if of_file else ANON,
            words=words,
        )
    write = shared or (page.mappers == 1 and not of_file)
    entry = Entry(Kind.PRESENT, 0, write, accessed=True, dirty=page.dirty and write)
    entries = tuple(machine.arch.encode(entry._replace(number=number)) for number in range(page.pages))
    empty = machine.arch.encode(NOTHING)
    mapped = range(page.mappers)
    there = range(page.mappers + page.unmapped)
    area = Area(mapped=True, shared=shared, write=True, file=of_file, settled=True, linked=True, temporary=page.stack)
    first, rest = page.pages, page.addresses - page.pages
    return (
        tuple(frames),
        tuple((entries if mm in mapped else (empty,) * first) + (empty,) * rest for mm in range(page.spaces)),
        tuple((area if mm in there else UNMAPPED,) * first + (UNMAPPED,) * rest for mm in range(page.spaces)),
        ((None,) * page.addresses,) * count,
        (Slot(),) * (1 if of_file else 3),
        tuple(
            ((None if of_file else words) if mm in mapped else None,) * first + (None,) * rest
            for mm in range(page.spaces)
        ),
        tuple((mm in mapped,) * first + (False,) * rest for mm in range(page.spaces)),
        (0,) * page.spaces,
        (0,) * page.spaces,
        tuple(first * (mm in mapped) for mm in range(page.spaces)),
        tuple(mm in there for mm in range(page.spaces)),
        tuple((mm, va) for mm in range(page.spaces) for va in range(page.addresses)),
        (-1,) * page.spaces,
        (0 if of_file else NO_FRAME, words if of_file else (0, 0), 1 if of_file else 0, page.dirty and of_file, 0),
    )
