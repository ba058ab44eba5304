"""One line on standard error that says how far a long command has come; nothing when that is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from ..linux.syscall import PAGE_SIZE
from ..quantities import format_size

__all__ = ["Progress"]

_INTERVAL = 0.1


class Progress:
    """A line such as "moved 1.2 GiB of 4 GiB (30%)", rewritten in place and wiped at the end of the block.

    Attributes:
        done, total: the pages that it was last told of, shown or not.
    """

    def __init__(self, verb: str, *, quiet: bool = False) -> None:
        self._verb = verb
        self._active = not quiet and sys.stderr.isatty()
        self._next = 0.0
        self._shown = 0
        self.done = self.total = 0

    def show(self, done: int, total: int) -> None:
        """Show that `done` of `total` pages are; at most ten times a second."""
        self.done, self.total = done, total
        now = time.monotonic()
        if not self._active or now < self._next:
            return
        self._next = now + _INTERVAL
        percent = 100 * done // total if total else 100
        self._write(f"{self._verb} {format_size(done * PAGE_SIZE)} of {format_size(total * PAGE_SIZE)} ({percent}%)")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._write("")
            print("\r", end="", file=sys.stderr, flush=True)

    def _write(self, line: str) -> None:
        print(f"\r{line:{self._shown}}", end="", file=sys.stderr, flush=True)
        self._shown = max(self._shown, len(line))
