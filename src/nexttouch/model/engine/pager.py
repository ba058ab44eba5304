"""A pager: it reads events, puts pages back where their mappings went, serves faults, sweeps, and ends.

A step is one system call together with the bookkeeping around it. See `_core/events.c`, `pager.c` and `making.c`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from .beliefs import handle, lose
from .rules import Rules
from .world import EMPTY, PARKED, PageState, World, name_of

__all__ = ["BEGINNING", "Pager", "Phase"]


class Phase(NamedTuple):
    """What a pager is about, and the addresses that it has still to deal with (or that rest)."""

    name: str
    addresses: tuple[int, ...] = ()


BEGINNING = Phase("reads")
"""A pager whose memory is registered, and that has done nothing yet."""

_WORKS, _ENDED = Phase("works"), Phase("has ended")

_Step = Callable[[World], Phase]
_Steps = Iterator[tuple[str, _Step]]


class Pager(NamedTuple):
    """What does not change of a pager, or of a part of one that has a descriptor of its own.

    Attributes:
        number: that of its descriptor.
        pages: what is registered with that.
        all_pages: of the migration: it ends when these have been dealt with.
        rules: what it keeps.
    """

    number: int
    pages: tuple[int, ...]
    all_pages: tuple[int, ...]
    rules: Rules

    def ended(self, phase: Phase) -> bool:
        """Whether it has ended."""
        return phase == _ENDED

    def steps(self, shared: tuple[Any, ...], phase: Phase) -> Iterator[tuple[str, World, Phase]]:
        """Yield the alternatives of its next step: what it is called, the world and the phase after it."""
        world = World(shared)
        for name, step in getattr(self, f"_{phase.name.replace(' ', '_')}")(world, phase):
            after = World(shared)
            yield name, after, step(after)

    # ---- phases: what there is to do in each ----

    def _reads(self, world: World, phase: Phase) -> _Steps:
        """Read until nothing is left; while the kernel refuses everything else, wait for the next event."""
        queue, changing = world.queues[self.number], world.changing[self.number]
        if phase.addresses and (queue or not changing):
            yield f"register {phase.addresses[0]} again", partial(self._watch_again, phase)
        elif queue:
            yield f"read {queue[0]}", partial(self._read, phase)
        elif not changing or (world.moved[self.number] and not self.rules.keeps_watching and not self._due(world)):
            yield "read: nothing", lambda _: _WORKS
        elif self.rules.rests:
            for address in [address for address in self._idle(world) if address not in phase.addresses][:1]:
                yield f"unregister {address} for now", partial(self._rest, phase, address)

    def _works(self, world: World, phase: Phase) -> _Steps:
        """Put back what is due before anything else is done; end when there is nothing left to do."""
        due, moved = self._due(world), world.moved[self.number]
        if due:
            yield f"put {name_of(due[0])} back at {world.at[due[0]]}", partial(self._put, due[0], PageState.REMAPPED)
        elif self._uprooted(world):
            yield "give up what nothing explains", self._give_up
        elif moved and not self.rules.keeps_watching:
            yield f"unregister {moved[-1]}", partial(self._unwatch, "works", moved[-1:])
        elif all(world.states[page].final for page in self.all_pages):
            yield "nothing is left to do", self._begin_end
        elif world.asked[self.number]:
            yield from self._gives_back(world)
        else:
            yield from self._migrates(world)

    def _migrates(self, world: World) -> _Steps:
        planned, armed = self._of_state(world, PageState.PLANNED), self._of_state(world, PageState.ARMED)
        for address in world.faults[self.number]:
            yield f"serve {address}", partial(self._serve, address)
        for page in planned[:1]:
            yield f"arm {name_of(page)}", partial(self._arm, page)
        for page in armed if not planned else ():
            yield f"sweep {name_of(page)}", partial(self._put, page, PageState.MOVED)
        if not planned and not armed and world.changing[self.number]:  # the rest is other descriptors' to do
            yield "wait for an event", lambda _: BEGINNING

    def _gives_back(self, world: World) -> _Steps:
        left = self._of_state(world, PageState.PLANNED, PageState.ARMED)
        for page in left[:1]:
            if world.states[page] is PageState.ARMED:
                yield f"give {name_of(page)} back", partial(self._put, page, PageState.FORKED)
            else:
                yield f"leave {name_of(page)}", partial(self._leave, page)
        if not left and world.changing[self.number]:
            yield "wait for an event", lambda _: BEGINNING

    def _lets_go(self, world: World, phase: Phase) -> _Steps:
        if phase.addresses:
            yield f"unregister {phase.addresses[0]}", partial(self._unwatch, "lets go", phase.addresses)
        else:
            yield "all is unregistered", lambda _: Phase("looks" if self.rules.keeps_watching else "settles")

    def _looks(self, world: World, phase: Phase) -> _Steps:
        """Look which mappings are registered, until there is none."""
        if world.queues[self.number]:
            yield f"read {world.queues[self.number][0]}", partial(self._read, phase)
        else:
            found = world.registered(self.number)
            yield "look what is registered", lambda _: Phase("lets go", found) if found else Phase("settles")

    def _settles(self, world: World, phase: Phase) -> _Steps:
        if world.queues[self.number]:
            yield f"read {world.queues[self.number][0]}", partial(self._read, phase)
        elif not world.changing[self.number]:
            yield "nothing is changing", lambda _: Phase("closes")

    def _closes(self, world: World, phase: Phase) -> _Steps:
        yield "close the descriptor", self._close

    def _has_ended(self, world: World, phase: Phase) -> _Steps:
        yield from ()

    # ---- what it knows ----

    def _of_state(self, world: World, *states: PageState) -> list[int]:
        return [page for page in self.pages if world.states[page] in states and page not in world.uprooted]

    def _due(self, world: World) -> list[int]:
        return self._of_state(world, PageState.DUE)

    def _uprooted(self, world: World) -> list[int]:
        return [page for page in world.uprooted if page in self.pages]

    def _idle(self, world: World) -> list[int]:
        taken = {world.at[page] for page in self.pages if world.states[page] in PARKED}
        return [address for address in world.moved[self.number] if address not in taken]

    # ---- steps ----

    def _read(self, phase: Phase, world: World) -> Phase:
        event, *rest = world.queues[self.number]
        world.queues[self.number] = tuple(rest)
        world.told[event.thread] = True
        handle(world, self.pages, self.number, self.rules, event)
        return phase

    def _watch_again(self, phase: Phase, world: World) -> Phase:
        world.register(self.number, phase.addresses[0])
        return phase._replace(addresses=phase.addresses[1:])

    def _rest(self, phase: Phase, address: int, world: World) -> Phase:
        world.unregister(self.number, address, checks_owner=self.rules.checks_owner)
        return phase._replace(addresses=(*phase.addresses, address))

    # UFFDIO_COPY to move a page, UFFDIO_MOVE to put it back: the kernel says whether a mapping of this pager is there.
    def _put(self, page: int, state: PageState, world: World) -> Phase:
        own = state is not PageState.MOVED
        number = world.fill(self.number, world.at[page], world.parked[page], own=own)
        if number == "EAGAIN":
            return BEGINNING
        gone = number in ("ENOENT", "EINVAL")
        world.finish(page, PageState.UNMAPPED if gone else PageState.STRANDED if number else state)
        return _WORKS

    def _serve(self, address: int, world: World) -> Phase:
        for page in self._of_state(world, PageState.ARMED):
            if world.at[page] == address:
                return self._put(page, PageState.MOVED, world)
        if world.fill(self.number, address, 0, own=False) == "EAGAIN":
            return BEGINNING
        world.wake(self.number, address)
        return _WORKS

    # UFFDIO_MOVE into the shadow parks whatever is at the address.
    def _arm(self, page: int, world: World) -> Phase:
        address = world.at[page]
        if world.changing[self.number]:
            return BEGINNING
        mapping = world.mappings[address]
        if mapping is None or mapping.word == EMPTY:
            world.finish(page, PageState.UNMAPPED)
        else:
            world.parked[page], world.states[page] = mapping.word, PageState.ARMED
            world.put(address, EMPTY)
        return _WORKS

    def _leave(self, page: int, world: World) -> Phase:
        world.finish(page, PageState.FORKED)
        return _WORKS

    # What could explain them would be changing.
    def _give_up(self, world: World) -> Phase:
        if not world.changing[self.number]:
            for page in self._uprooted(world):
                world.uprooted.remove(page)
                lose(world, page)
        return BEGINNING

    def _unwatch(self, after: str, addresses: tuple[int, ...], world: World) -> Phase:
        world.unregister(self.number, addresses[0], checks_owner=self.rules.checks_owner)
        world.moved[self.number] = tuple(address for address in world.moved[self.number] if address != addresses[0])
        return Phase(after, addresses[1:])

    def _begin_end(self, world: World) -> Phase:
        if self.rules.closes:
            return Phase("settles")
        return Phase("looks") if self.rules.keeps_watching else Phase("lets go", world.ranges[self.number])

    def _close(self, world: World) -> Phase:
        world.close(self.number, last_copy=self.rules.last_copy)
        world.moved[self.number] = world.ranges[self.number] = ()
        return _ENDED
