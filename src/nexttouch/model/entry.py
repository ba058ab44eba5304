"""A page table entry as a value: what the VM reads and writes, whatever the words of an architecture look like."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

__all__ = ["NOTHING", "Entry", "Kind"]


class Kind(IntEnum):
    """What an entry is. `number` of the entry is a frame, a slot of swap, an id or a page offset accordingly."""

    NONE = 0
    PRESENT = 1
    VALID_NONPRESENT = 2
    """The email's entry: everything a present one says, except that hardware faults on it."""
    SWAP = 3
    MIGRATION = 4
    CACHE = 5
    """An id of the migration cache."""
    FILE = 6
    """A page offset of a nonlinear file mapping (until 4.0); `number` is that offset."""


class Entry(NamedTuple):
    """One entry.

    >>> Entry(Kind.PRESENT, 3, write=True)._replace(dirty=True)
    Entry(kind=<Kind.PRESENT: 1>, number=3, write=True, accessed=False, dirty=True)
    """

    kind: Kind
    number: int = 0
    write: bool = False
    accessed: bool = False
    dirty: bool = False

    @property
    def mapped(self) -> bool:
        """Whether it maps a frame: it holds one of the frame's references and is counted in its mapcount."""
        return self.kind in (Kind.PRESENT, Kind.VALID_NONPRESENT)


NOTHING = Entry(Kind.NONE)
"""The entry of a page that is not there."""
