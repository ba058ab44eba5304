"""Which memory of this process is being moved lazily: two that move the same page would lose it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from ..errors import InvalidArgument

if TYPE_CHECKING:
    from .running import Running

__all__ = ["beginning", "refuse_overlap", "remember"]

_spans: WeakKeyDictionary[Running, tuple[int, int]] = WeakKeyDictionary()
_begun: list[tuple[int, int]] = []


def refuse_overlap(start: int, end: int) -> None:
    """Raise InvalidArgument, naming `x`, if a migration is moving a part of [start, end) or is about to."""
    for first, last in [*_begun, *(span for running, span in list(_spans.items()) if running.armed)]:
        if first < end and start < last:
            raise InvalidArgument("x", "overlaps memory that another migration is moving; wait for it or cancel it")


@contextmanager
def beginning(start: int, end: int) -> Iterator[None]:
    """While this lasts [start, end) is about to be moved; several at once if signal handlers call `lazy` too."""
    _begun.append((start, end))
    try:
        yield
    finally:
        _begun.remove((start, end))


def remember(running: Running, start: int, end: int) -> None:
    """Note what `running` is moving, for as long as it does."""
    _spans[running] = (start, end)
