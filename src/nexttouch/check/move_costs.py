"""What a move costs in a design, undisturbed: the threads of a machine run one after the other, and are counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..costs import EventCounts
from ..errors import InvalidArgument
from ..model.designs import DESIGNS
from ..model.machine import Machine, Page, Worker
from ..model.move import State
from ..model.thread import Operation

__all__ = ["MAPPERS", "Cost", "costs_of", "run_thread"]

MAPPERS = (1, 2, 8)
"""How many address spaces map the page, in the table of costs."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one design does to a page.

    Attributes:
        design, kind, mappers: of what.
        way: "eager" or "lazy".
        moving: what marking or moving takes.
        touching: what the first touch of each mapper takes afterwards, a lazy move included.
        plain: what these touches take of a page that was not moved.
    """

    design: str
    kind: str
    mappers: int
    way: str
    moving: EventCounts
    touching: EventCounts
    plain: EventCounts

    @property
    def later(self) -> EventCounts:
        """What the touches take more than they would have without."""
        return self.touching - self.plain

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "design": self.design,
            "kind": self.kind,
            "mappers": self.mappers,
            "way": self.way,
            "moving": self.moving.to_dict(),
            "later": self.later.to_dict(),
        }


def costs_of(name: str, kind: str, mappers: int, way: str) -> Cost:
    """Count what a design does to a page of `kind` with so many mappers, each of which touches it afterwards.

    The touch is a store, but a load where a store would copy the page in any case: anonymous pages of several mappers.

    Raises:
        InvalidArgument: the design has no such way.
    """
    design = DESIGNS[name]()
    if not (design.eager if way == "eager" else design.lazy):
        raise InvalidArgument("way", f"is {way!r}, which {name} has not")
    touch = Operation("load") if kind == "anonymous" and mappers > 1 else Operation("store", value=11)
    touchers = tuple(Worker((touch,), mm=mm, node=1) for mm in range(mappers))
    first = Operation("migrate", node=1) if way == "eager" else Operation("mark")
    page = Page(kind, mappers, mappers, frames=(2, mappers + 1))
    counts = []
    for script in ((first,), ()):
        leaders = tuple(Worker(script, mm=mm, node=0) for mm in range(mappers if way == "lazy" else 1))
        machine = Machine(design, page, (*leaders, *touchers))
        shared = machine.initial()[0]
        for thread in range(len(leaders)):
            shared = run_thread(machine, shared, thread)
        moving = EventCounts.of(machine.events)
        for thread in range(len(leaders), len(machine.workers)):
            shared = run_thread(machine, shared, thread)
        counts.append((moving, EventCounts.of(machine.events) - moving))
    return Cost(name, kind, mappers, way, counts[0][0], counts[0][1], counts[1][1])


def run_thread(machine: Machine, shared: State, thread: int) -> State:
    """Let one thread go on until it ends, and return the state then.

    Raises:
        RuntimeError: it waits for another thread.
    """
    local = machine.initial()[1][thread]
    while not machine.ended(thread, local):
        moves = machine.moves(shared, thread, local)
        if not moves:
            raise RuntimeError(f"thread {thread} waits, though it is alone")
        shared, local = moves[0].shared, moves[0].local
    return shared
