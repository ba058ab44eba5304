"""A lazy migration under way, as its owner has it: watch it, wait for it, cancel it."""

from __future__ import annotations

import math
import warnings
import weakref
from types import TracebackType
from typing import Self

from ..errors import InvalidArgument
from ..quantities import is_number
from . import registry
from .descriptor import Acquired
from .options import Options
from .plan import Plan
from .running import Running
from .stats import Stats

__all__ = ["Migration", "migrations"]


class Migration:
    """A lazy migration, returned by `lazy`, `next_touch` and `attach`; it runs by itself for as long as it is kept.

    As a context manager it is over when the block is: the end of the block waits for a migration that ends by itself,
    cancels one that does not, and an exception cancels either. It keeps the buffer alive until then. One that is
    dropped before it is done (no variable holds it any more) is cancelled, with a ResourceWarning: else its thread,
    its descriptors and the buffer would stay for ever.

    Attributes:
        plan: what it set out to do.
    """

    def __init__(self, plan: Plan, options: Options, *, keep: object = None, attached: Acquired | None = None) -> None:
        self.plan = plan
        self._begun = False
        self._running = Running(plan, options, keep=keep, attached=attached)
        self._running.begin()
        self._begun = True
        _owned[self._running] = self

    @property
    def done(self) -> bool:
        """Whether every page is dealt with and nothing is armed any more."""
        return self._running.done

    @property
    def armed(self) -> bool:
        """Whether a page may still be a trap; not so from the end on, or from a fork on that gave all pages back."""
        return self._running.armed

    @property
    def process_ended(self) -> bool:
        """Whether the process that it is attached to ended, or became another program, before it was done."""
        return self._running.gone

    @property
    def stats(self) -> Stats:
        """What has been done up to now; may be asked at any time, also afterwards."""
        return self._running.stats

    @property
    def shadow(self) -> list[tuple[int, int]]:
        """Address and bytes of each range that still holds pages which could not be put back (Reason.STRANDED)."""
        return self._running.shadow

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is done, at most `timeout` seconds (None: for ever); return whether it is.

        The end of a process that it is attached to is no error: what was left of it is Reason.UNMAPPED.

        Raises:
            InvalidArgument: `timeout` is no number.
            NexttouchError: what kept the pages that no trap can be set for from being moved at the end.
        """
        return self._running.wait(_seconds(timeout))

    def wait_armed(self, timeout: float | None = None) -> bool:
        """Wait until every page of the plan is a trap or dealt with; return whether that is so.

        Until then a touch of a page that is not armed yet goes unnoticed. `timeout` as in `wait`.

        Raises:
            InvalidArgument: `timeout` is no number.
        """
        return self._running.wait_armed(_seconds(timeout))

    def cancel(self) -> None:
        """Give back every page that was not moved yet, and return when nothing is armed any more."""
        self._running.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None or not self._running.options.ends_itself:
            self.cancel()
        try:
            self.wait()
        except BaseException:
            self.cancel()
            raise

    # Any thread can be here, at any moment, also with a page fault of its own being served: nothing here waits. What is
    # to be done at the end is done by the thread that watches.
    def __del__(self) -> None:
        under_way = self.__dict__.get("_running")
        if under_way is None or under_way.done:
            return
        under_way.ask_to_end()
        if self._begun:
            warnings.warn(_DROPPED, ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        stats = self.stats
        return f"<Migration {stats.phase}: {stats.moved} of {stats.pages} pages moved, {stats.waiting} waiting>"


_DROPPED = "a migration was dropped while it was under way, and is cancelled: keep it, or use it in a with statement"

_owned: weakref.WeakValueDictionary[registry.Run, Migration] = weakref.WeakValueDictionary()


def migrations() -> list[Migration]:
    """Return the migrations of this process that are under way, in no particular order.

    >>> with nt.lazy(array, to=0, always=True, rate=0) as migration:
    ...     nt.migrations() == [migration]
    True
    >>> nt.migrations()
    []

    Raises:
        Nothing.
    """
    found = [_owned.get(each) for each in list(registry.running)]
    return [migration for migration in found if migration is not None and not migration.done]


def _seconds(timeout: float | None) -> float:
    if timeout is None:
        return math.inf
    if not is_number(timeout) or math.isnan(timeout):
        raise InvalidArgument("timeout", f"is {timeout!r}, but has to be a number of seconds, or None")
    return timeout
