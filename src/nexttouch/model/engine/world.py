"""The state: mappings, what the kernel has of each descriptor, what each pager believes, what the program wrote.

Addresses are small numbers, and a mapping is one page: cutting ranges is arithmetic, and no race.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

__all__ = [
    "ANYWHERE",
    "EMPTY",
    "PARKED",
    "UNKNOWN",
    "UNREGISTERED",
    "Event",
    "Mapping",
    "PageState",
    "Told",
    "World",
    "name_of",
]

EMPTY = -1
"""The word of a page that is not there: the next touch faults."""

UNREGISTERED = -1
"""The descriptor of a mapping that is not registered."""

UNKNOWN = -1
"""The address of a mapping that is gone, or whose move has not returned yet."""

ANYWHERE = -1
"""An address that the kernel picks."""


def name_of(mapping: int) -> str:
    """What a mapping is called: a, b, ..."""
    return chr(ord("a") + mapping)


class Mapping(NamedTuple):
    """What is mapped at an address: which of the program's mappings, the descriptor that it carries along, its word."""

    name: int
    descriptor: int
    word: int


class Told(Enum):
    """Kinds of events."""

    REMAP = "REMAP"
    UNMAP = "UNMAP"
    REMOVE = "REMOVE"


class Event(NamedTuple):
    """An event: what it tells of, the address, where that went, and the thread that waits for it to be read."""

    kind: Told
    start: int
    to: int
    thread: int

    def __str__(self) -> str:
        return f"{self.kind.value} {self.start}{f' -> {self.to}' if self.kind is Told.REMAP else ''}"


class PageState(Enum):
    """What a pager knows of a page; from MOVED on, what it says of it in the end."""

    PLANNED = "planned"
    ARMED = "armed"
    DUE = "due"
    MOVED = "moved"
    REMAPPED = "remapped"
    UNMAPPED = "unmapped"
    DISCARDED = "discarded"
    FORKED = "forked"
    LEFT = "left alone"
    STRANDED = "stranded"

    @property
    def final(self) -> bool:
        """Whether the pager has dealt with the page."""
        return self not in (PageState.PLANNED, PageState.ARMED, PageState.DUE)


PARKED = (PageState.ARMED, PageState.DUE)
"""States of pages whose contents are in the shadow."""


class World:
    """The shared part of a state while a step is taken.

    Attributes:
        mappings: by address.
        parked: by page, its word in the shadow, or EMPTY. Page n is that of the program's mapping n.
        changing, queues, faults: by descriptor: mmap_changing, events not read yet, addresses at which threads wait.
        told: by thread: whether its event was read.
        contents: by mapping, what the program wrote; None if it has unmapped it.
        known: by mapping, where the program knows it to be.
        states, at: by page: what its pager knows of it, and where it believes its mapping to be.
        uprooted: pages whose mappings another one came in the place of, in that order.
        doubted: pages of whose mappings an unmapping was told.
        moved: by pager, addresses where mappings went, in order.
        ranges: by pager, what it registered at the start and nothing was told of since.
        asked, ended: by pager: whether it is to give everything back, for a fork; whether its descriptor is closed.
    """

    __slots__ = (
        "asked",
        "at",
        "changing",
        "contents",
        "doubted",
        "ended",
        "faults",
        "known",
        "mappings",
        "moved",
        "parked",
        "queues",
        "ranges",
        "states",
        "told",
        "uprooted",
    )

    mappings: list[Mapping | None]
    parked: list[int]
    changing: list[int]
    queues: list[tuple[Event, ...]]
    faults: list[tuple[int, ...]]
    told: list[bool]
    contents: list[int | None]
    known: list[int]
    states: list[PageState]
    at: list[int]
    uprooted: list[int]
    doubted: list[int]
    moved: list[tuple[int, ...]]
    ranges: list[tuple[int, ...]]
    asked: list[bool]
    ended: list[bool]

    def __init__(self, frozen: tuple[Any, ...]) -> None:
        for name, value in zip(self.__slots__, frozen, strict=True):
            setattr(self, name, list(value))

    def frozen(self) -> tuple[Any, ...]:
        """Return it as a value."""
        return tuple(tuple(getattr(self, name)) for name in self.__slots__)

    # ---- the kernel ----

    def mapping(self, address: int) -> Mapping:
        """What is mapped at an address that is known to have a mapping."""
        found = self.mappings[address]
        assert found, f"nothing is mapped at {address}"
        return found

    def free(self) -> list[int]:
        """Addresses without a mapping."""
        return [address for address, mapping in enumerate(self.mappings) if mapping is None]

    def put(self, address: int, word: int) -> None:
        """Give the page at an address a word."""
        self.mappings[address] = self.mapping(address)._replace(word=word)

    def wake(self, descriptor: int, address: int) -> None:
        """Wake the threads that wait at an address."""
        self.faults[descriptor] = tuple(fault for fault in self.faults[descriptor] if fault != address)

    def fill(self, descriptor: int, address: int, word: int, *, own: bool) -> str:
        """Install a page, unless an errno is in the way, which is returned.

        `own`: in mappings of that very descriptor only, as UFFDIO_MOVE does, other than UFFDIO_COPY and _ZEROPAGE.
        """
        mapping = self.mappings[address] if 0 <= address < len(self.mappings) else None
        if self.changing[descriptor]:
            return "EAGAIN"
        if mapping is None or mapping.descriptor == UNREGISTERED:
            return "ENOENT"
        if own and mapping.descriptor != descriptor:
            return "EINVAL"
        if mapping.word != EMPTY:
            return "EEXIST"
        self.put(address, word)
        self.wake(descriptor, address)
        return ""

    def unregister(self, descriptor: int, address: int, *, checks_owner: bool) -> None:
        """Unregister whatever is at an address, whether or not anything is changing (UFFDIO_UNREGISTER)."""
        mapping = self.mappings[address]
        if mapping and mapping.descriptor != UNREGISTERED and (mapping.descriptor == descriptor or not checks_owner):
            self.wake(mapping.descriptor, address)
            self.mappings[address] = mapping._replace(descriptor=UNREGISTERED)

    def register(self, descriptor: int, address: int) -> None:
        """Register whatever is at an address, unless another descriptor has (UFFDIO_REGISTER)."""
        mapping = self.mappings[address]
        if mapping and mapping.descriptor == UNREGISTERED:
            self.mappings[address] = mapping._replace(descriptor=descriptor)

    def registered(self, descriptor: int) -> tuple[int, ...]:
        """Addresses of the mappings that a descriptor has registered."""
        return tuple(at for at, mapping in enumerate(self.mappings) if mapping and mapping.descriptor == descriptor)

    def close(self, descriptor: int, *, last_copy: bool) -> None:
        """Close a descriptor: the last copy lets go of its mappings, and threads that wait go on."""
        for address in self.registered(descriptor) if last_copy else ():
            self.unregister(descriptor, address, checks_owner=True)
        self.ended[descriptor] = True
        self.queues[descriptor] = ()

    # ---- what pagers know ----

    def finish(self, page: int, state: PageState) -> None:
        """Say what has become of a page; the shadow lets go of its contents, unless they are nowhere else."""
        self.states[page] = state
        if state is PageState.UNMAPPED:
            self.at[page] = UNKNOWN
        if state is not PageState.STRANDED:
            self.parked[page] = EMPTY
