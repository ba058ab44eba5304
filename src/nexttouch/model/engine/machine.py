"""A program and its pagers over one address space, as a model to explore."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..move import Move, State
from ..violation import Broken, Violation
from .pager import BEGINNING, Pager
from .program import Operation, Progress, Thread
from .promises import broken_at_the_end
from .rules import Rules
from .view import about, fields
from .world import EMPTY, UNKNOWN, Mapping, PageState, World, name_of

__all__ = ["EngineMachine"]


@dataclass(slots=True)
class EngineMachine:
    """The threads of a program, then its pagers: the protocol that the explorer asks for.

    Attributes:
        rules: what the pagers keep.
        program: the script of each thread.
        groups: the mappings that each pager migrates: a, b, ... at the addresses 0, 1, ...
        room: further addresses.
        planned: pages are still to be armed; else they are armed in the beginning.
        marks: what its steps have come upon.
        threads, pagers: made from these.
    """

    rules: Rules
    program: tuple[tuple[Operation, ...], ...]
    groups: tuple[tuple[int, ...], ...] = ((0, 1),)
    room: int = 1
    planned: bool = False
    marks: set[str] = field(default_factory=set)
    threads: tuple[Thread, ...] = field(init=False)
    pagers: tuple[Pager, ...] = field(init=False)

    def __post_init__(self) -> None:
        each = [((page,), group) for group in self.groups for page in group]
        parts = each if self.rules.descriptor_each else [(group, group) for group in self.groups]
        self.threads = tuple(Thread(number, script) for number, script in enumerate(self.program))
        self.pagers = tuple(Pager(number, *part, self.rules) for number, part in enumerate(parts))

    def initial(self) -> tuple[Any, tuple[Any, ...]]:
        """Return the world at the start, and threads and pagers that have done nothing."""
        threads = (*(Progress() for _ in self.threads), *(BEGINNING for _ in self.pagers))
        return self._beginning().frozen(), threads

    def _beginning(self) -> World:
        owner = {page: pager.number for pager in self.pagers for page in pager.pages}
        made = [operation.mapping for script in self.program for operation in script if operation.name == "map"]
        words = [10 + page for page in sorted(owner)]
        unknown = max([-1, *made]) + 1 - len(words)
        world = World(((),) * len(World.__slots__))
        holes = [word if self.planned else EMPTY for word in words]
        world.mappings = [Mapping(page, owner[page], word) for page, word in enumerate(holes)] + [None] * self.room
        world.parked = [EMPTY if self.planned else word for word in words]
        world.changing = [0 for _ in self.pagers]
        world.queues = [() for _ in self.pagers]
        world.faults = [() for _ in self.pagers]
        world.told = [False for _ in self.threads]
        world.contents = [*words, *[None] * unknown]
        world.known = [*sorted(owner), *[UNKNOWN] * unknown]
        world.states = [PageState.PLANNED if self.planned else PageState.ARMED for _ in words]
        world.at = sorted(owner)
        world.moved = [() for _ in self.pagers]
        world.ranges = [pager.pages for pager in self.pagers]
        world.asked = [False for _ in self.pagers]
        world.ended = [False for _ in self.pagers]
        return world

    def moves(self, shared: State, number: int, local: State) -> Sequence[Move]:
        """Take each alternative of the next step of a thread or a pager."""
        found: list[Move] = []
        steps = self._actor(number).steps(shared, local)
        try:
            for name, world, after in steps:
                found.append(Move(name, world.frozen(), after))
                self.marks.update(_marks(World(shared), world, name))
            if isinstance(local, Progress) and local.stage == "queues" and _is_overtaken(World(shared), local):
                self.marks.add("an event overtakes another thread's")
        except Broken as broken:
            name = str(self.threads[number].script[local.at])
            found.append(Move(name, shared, local, broken.violation, fatal=True))
        return found

    def _actor(self, number: int) -> Thread | Pager:
        threads = len(self.threads)
        return self.threads[number] if number < threads else self.pagers[number - threads]

    def ended(self, number: int, local: State) -> bool:
        """Whether a thread or a pager has ended."""
        return self._actor(number).ended(local)

    def broken(self, shared: State) -> Violation | None:
        """No promise is about a state under way: what is lost is seen when it is read, or at the end."""
        return None

    def broken_end(self, shared: State, locals_: tuple[State, ...]) -> Violation | None:
        """The promise that the end breaks, if it does."""
        return broken_at_the_end(World(shared))

    def fields(self, shared: State) -> dict[str, str]:
        """Return the state in words, field by field."""
        return fields(World(shared))

    def about(self, number: int, local: State) -> str:
        """What a thread or a pager is about to do, in words."""
        return about(self._actor(number), local)

    def scripts(self) -> tuple[str, ...]:
        """What each thread is to do, and which pages are each pager's."""
        lines = [f"thread {thread.number}: {', '.join(map(str, thread.script))}" for thread in self.threads]
        for number, pager in enumerate(self.pagers, len(lines)):
            lines.append(f"thread {number}, the pager of {' and '.join(map(name_of, pager.pages))}")
        return tuple(lines)


# What a step has come upon: its verb, and what has become of pages.
def _marks(before: World, after: World, name: str) -> Iterator[str]:
    yield re.split("[: ]", name, maxsplit=1)[0]
    yield from (state.value for page, state in enumerate(after.states) if state is not before.states[page])
    if len(after.uprooted) > len(before.uprooted):
        yield "uprooted"


# Whether, while a thread tells of something, another one has changed mappings and has yet to tell of it.
def _is_overtaken(world: World, progress: Progress) -> bool:
    return sum(world.changing) > sum(map(len, world.queues)) + sum(world.told) + len(progress.events)
