"""What a design does, counted: the events that a machine charges for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

__all__ = ["EventCounts"]


@dataclass(frozen=True, slots=True)
class EventCounts:
    """How often each thing happens. What one of them costs is the machine's, and not here.

    Attributes:
        page_table_writes: entries written by the kernel or by hardware.
        tlb_flushes: flushes begun, of one page or of a batch.
        atomics: changes of refcounts, mapcounts, counts of slots, and page locks.
        rmap_steps: entries that walks of the reverse map have come to.
        faults: page faults.
        bits_set: accessed and dirty bits that hardware has set by a walk of its own.
        words_copied: words of pages copied.
        allocations: frames allocated.
        slots: slots of swap, or ids of the migration cache, taken.

    >>> EventCounts(faults=2) + EventCounts(faults=1, slots=1)
    EventCounts(page_table_writes=0, tlb_flushes=0, atomics=0, rmap_steps=0, faults=3, bits_set=0, words_copied=0, \
allocations=0, slots=1)
    """

    page_table_writes: int = 0
    tlb_flushes: int = 0
    atomics: int = 0
    rmap_steps: int = 0
    faults: int = 0
    bits_set: int = 0
    words_copied: int = 0
    allocations: int = 0
    slots: int = 0

    def __add__(self, other: EventCounts) -> EventCounts:
        return EventCounts(*(getattr(self, name) + getattr(other, name) for name in self.names()))

    def __sub__(self, other: EventCounts) -> EventCounts:
        return EventCounts(*(getattr(self, name) - getattr(other, name) for name in self.names()))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the events, in their order."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def of(cls, counted: Mapping[str, int]) -> EventCounts:
        """From counts by the names that the VM uses."""
        return cls(**{name: counted.get(name, 0) for name in cls.names()})

    def to_dict(self) -> dict[str, int]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.names()}
