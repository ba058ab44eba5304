"""The migrations of this process that are under way, and which of its memory they move.

Two migrations that move the same page would lose it, so a second one is refused. At the end of the interpreter all are
cancelled. In a forked child none is under way any more: the threads that serve them are the parent's.

The modules that move import this one, and it imports none of them.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakKeyDictionary

from ..errors import InvalidArgument

__all__ = ["Run", "beginning", "forks", "refuse_overlap", "remember", "running"]


class Run(Protocol):
    """A migration under way, as far as it is known here."""

    @property
    def armed(self) -> bool:
        """Whether a page may still be a trap."""

    def cancel(self) -> None:
        """Give every page back, and return when that is done."""

    def forget(self) -> None:
        """Take it for done, in a forked child, where nothing of it runs."""


running: set[Run] = set()
"""The migrations under way: each is here from when it is armed until all is given back."""

_spans: WeakKeyDictionary[Run, tuple[int, int]] = WeakKeyDictionary()
_begun: list[tuple[int, int]] = []
_forks = 0


def refuse_overlap(start: int, end: int) -> None:
    """Raise InvalidArgument, naming `x`, if a migration is moving a part of [start, end) or is about to."""
    for first, last in [*_begun, *(span for run, span in list(_spans.items()) if run.armed)]:
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


def remember(run: Run, start: int, end: int) -> None:
    """Note what `run` is moving, for as long as it does."""
    _spans[run] = (start, end)


def forks() -> int:
    """How many forks lead from the first process here to this one: a start that sees it change was forked midway."""
    return _forks


def _cancel_all() -> None:
    for run in list(running):
        run.cancel()


def _forget_all() -> None:
    global _forks  # noqa: PLW0603 (of the process, as the fork is)
    _forks += 1
    for run in list(running):
        run.forget()
    running.clear()


atexit.register(_cancel_all)
os.register_at_fork(after_in_child=_forget_all)
