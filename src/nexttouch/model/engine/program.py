"""A thread of the program: a script of calls and accesses, each a few atomic steps.

A call changes the mappings under the mmap lock, and raises mmap_changing there, once for each event that it will send.
Some time after it has let go of the lock it queues its first event, waits until that is read, lowers mmap_changing, and
queues the next one. mremap tells of what it unmapped at its new place, of the move, and of its old place being unmapped
(mm/mremap.c).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from ..violation import Broken
from .world import ANYWHERE, EMPTY, UNKNOWN, UNREGISTERED, Event, Mapping, Told, World, name_of

__all__ = ["Operation", "Progress", "Thread"]

_TOUCHES = ("read", "write")


class Operation(NamedTuple):
    """What a thread does.

    Attributes:
        name: "read", "write", "move", "unmap", "unmap in vain", "discard", "map", "move at", "fork".
        mapping: to which of the program's mappings; `map` makes it.
        value: what it writes.
        to: where it moves it; ANYWHERE: where the kernel finds room.
        start: of "move at", the address: whatever is there moves.
    """

    name: str
    mapping: int = 0
    value: int = 0
    to: int = ANYWHERE
    start: int = ANYWHERE

    def __str__(self) -> str:
        subject = f"what is at {self.start}" if self.name == "move at" else name_of(self.mapping)
        verb = self.name.removesuffix(" at")
        where = "" if self.to == ANYWHERE else f" to {self.to}"
        value = f" = {self.value}" if self.name in ("write", "map") else ""
        return self.name if self.name == "fork" else f"{verb} {subject}{where}{value}"


class Progress(NamedTuple):
    """How far a thread is.

    Attributes:
        at: number of the operation under way.
        stage: what comes next of it, if it has begun: "queues", "waits", "zaps", "faulted", "asked".
        events: descriptors and events still to be queued; of a thread that waits, the first one is queued.
        address: where the call moves the mapping, or where the access faulted.
        mapping: which mapping becomes known to be there when the call returns.
    """

    at: int = 0
    stage: str = ""
    events: tuple[tuple[int, Event], ...] = ()
    address: int = UNKNOWN
    mapping: int = UNKNOWN


_Step = Callable[[World], Progress]
_Steps = Iterator[tuple[str, _Step]]


class Thread(NamedTuple):
    """What does not change of a thread: its number and its script."""

    number: int
    script: tuple[Operation, ...]

    def ended(self, progress: Progress) -> bool:
        """Whether it has done all of its script."""
        return progress.at == len(self.script)

    def steps(self, shared: tuple[Any, ...], progress: Progress) -> Iterator[tuple[str, World, Progress]]:
        """Yield the alternatives of its next step: what it is called, the world and the progress after it."""
        if self.ended(progress):
            return
        operation = self.script[progress.at]
        for suffix, step in self._alternatives(World(shared), operation, progress):
            after = World(shared)
            yield f"{operation}{suffix}", after, step(after)

    def _alternatives(self, world: World, operation: Operation, progress: Progress) -> _Steps:
        if progress.stage in ("queues", "waits"):
            yield from self._sends(world, progress)
        elif progress.stage == "zaps":
            yield ": the pages go", partial(self._zap, progress)
        elif operation.name in _TOUCHES:
            if self._can_touch(world, operation, progress):
                yield "", partial(self._touch, operation, progress)
        elif operation.name == "fork":
            yield from self._fork(world, progress)
        elif operation.name == "map":
            for address in world.free():
                yield f" at {address}", partial(self._map, operation, progress, address)
        else:
            yield from self._changes(world, operation, progress)

    # ---- events ----

    def _sends(self, world: World, progress: Progress) -> _Steps:
        descriptor, event = progress.events[0]
        if progress.stage == "queues":
            yield f": tell {event}", partial(self._queue, progress)
        elif world.told[self.number] or world.ended[descriptor]:
            yield ": go on", partial(self._go_on, progress)

    def _begin(self, world: World, progress: Progress, *events: tuple[int, Event]) -> Progress:
        told = tuple((descriptor, event) for descriptor, event in events if descriptor != UNREGISTERED)
        for descriptor, _ in told:
            world.changing[descriptor] += 1
        return self._after(world, progress._replace(stage="queues", events=told))

    def _queue(self, progress: Progress, world: World) -> Progress:
        descriptor, event = progress.events[0]
        if not world.ended[descriptor]:
            world.queues[descriptor] = (*world.queues[descriptor], event)
        return progress._replace(stage="waits")

    def _go_on(self, progress: Progress, world: World) -> Progress:
        world.told[self.number] = False
        world.changing[progress.events[0][0]] -= 1
        return self._after(world, progress._replace(stage="queues", events=progress.events[1:]))

    def _after(self, world: World, progress: Progress) -> Progress:
        if progress.events:
            return progress
        if self.script[progress.at].name == "discard":
            return progress._replace(stage="zaps")
        return self._return(world, progress)

    def _return(self, world: World, progress: Progress) -> Progress:
        if progress.mapping != UNKNOWN:
            world.known[progress.mapping] = progress.address
        return Progress(progress.at + 1)

    # ---- calls ----

    def _changes(self, world: World, operation: Operation, progress: Progress) -> _Steps:
        start = operation.start if operation.name == "move at" else world.known[operation.mapping]
        if start == UNKNOWN:  # another thread's call has not returned yet
            return
        if operation.name == "unmap":
            yield "", partial(self._unmap, progress, start)
        elif operation.name == "unmap in vain":
            yield "", partial(self._unmap_in_vain, progress, start)
        elif operation.name == "discard":
            yield "", partial(self._discard, progress, start)
        else:
            for to in world.free() if operation.to == ANYWHERE else [operation.to]:
                yield f" to {to}" * (operation.to == ANYWHERE), partial(self._move, progress, start, to)

    def _move(self, progress: Progress, start: int, to: int, world: World) -> Progress:
        mapping, other = world.mappings[start], world.mappings[to]
        if mapping is None:  # EFAULT
            return self._return(world, progress)
        unmapped = self._event(Told.UNMAP, to)
        if other:
            world.contents[other.name], world.known[other.name] = None, UNKNOWN
        world.mappings[start], world.mappings[to] = None, mapping
        world.known[mapping.name] = UNKNOWN
        return self._begin(
            world,
            progress._replace(address=to, mapping=mapping.name),
            (other.descriptor if other else UNREGISTERED, unmapped),
            (mapping.descriptor, self._event(Told.REMAP, start, to)),
            (mapping.descriptor, self._event(Told.UNMAP, start)),
        )

    def _event(self, kind: Told, start: int, to: int = UNKNOWN) -> Event:
        return Event(kind, start, to, self.number)

    def _unmap(self, progress: Progress, start: int, world: World) -> Progress:
        mapping = world.mapping(start)
        world.mappings[start] = None
        world.contents[mapping.name], world.known[mapping.name] = None, UNKNOWN
        return self._begin(world, progress, (mapping.descriptor, self._event(Told.UNMAP, start)))

    # munmap(2) that fails, for a sealed mapping behind, or a limit: the kernel had the event ready by then.
    def _unmap_in_vain(self, progress: Progress, start: int, world: World) -> Progress:
        return self._begin(world, progress, (world.mapping(start).descriptor, self._event(Told.UNMAP, start)))

    # MADV_DONTNEED is told of before it happens.
    def _discard(self, progress: Progress, start: int, world: World) -> Progress:
        mapping = world.mapping(start)
        world.known[mapping.name] = UNKNOWN
        going = progress._replace(address=start, mapping=mapping.name)
        return self._begin(world, going, (mapping.descriptor, self._event(Told.REMOVE, start)))

    def _zap(self, progress: Progress, world: World) -> Progress:
        world.put(progress.address, EMPTY)
        world.contents[progress.mapping] = 0
        return self._return(world, progress)

    def _map(self, operation: Operation, progress: Progress, address: int, world: World) -> Progress:
        world.mappings[address] = Mapping(operation.mapping, UNREGISTERED, operation.value)
        world.contents[operation.mapping] = operation.value
        return self._return(world, progress._replace(address=address, mapping=operation.mapping))

    # ---- accesses ----

    def _can_touch(self, world: World, operation: Operation, progress: Progress) -> bool:
        if progress.stage == "faulted":
            return not any(progress.address in faults for faults in world.faults)
        return world.known[operation.mapping] != UNKNOWN

    def _touch(self, operation: Operation, progress: Progress, world: World) -> Progress:
        address = progress.address if progress.stage == "faulted" else world.known[operation.mapping]
        mapping = world.mapping(address)
        if mapping.word == EMPTY and mapping.descriptor != UNREGISTERED:
            world.faults[mapping.descriptor] = tuple(sorted({*world.faults[mapping.descriptor], address}))
            return progress._replace(stage="faulted", address=address)
        if operation.name == "write":
            world.put(address, operation.value)
            world.contents[mapping.name] = operation.value
            return self._return(world, progress)
        world.put(address, max(mapping.word, 0))
        found, written = world.mapping(address).word, world.contents[operation.mapping]
        if found != written:
            subject = name_of(operation.mapping)
            raise Broken("E-BYTES", f"the program reads {found} from {subject} at {address}, where it wrote {written}")
        return self._return(world, progress)

    # ---- fork ----

    def _fork(self, world: World, progress: Progress) -> _Steps:
        if progress.stage != "asked":
            yield ": ask for everything back", partial(self._ask, progress)
        elif all(world.ended):
            yield "", partial(self._be_two, progress)

    def _ask(self, progress: Progress, world: World) -> Progress:
        world.asked = [True for _ in world.asked]
        return progress._replace(stage="asked")

    # The child has what the page tables have.
    def _be_two(self, progress: Progress, world: World) -> Progress:
        for address, mapping in enumerate(world.mappings):
            if mapping and max(mapping.word, 0) != world.contents[mapping.name]:
                found, written = max(mapping.word, 0), world.contents[mapping.name]
                subject = name_of(mapping.name)
                raise Broken("E-BYTES", f"the child reads {found} from {subject} at {address}, not {written}")
        return self._return(world, progress)
