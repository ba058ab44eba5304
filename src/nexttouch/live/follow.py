"""Memory that follows its users: who touches what is looked at again and again, and what proves misplaced is moved.

One round makes all pages of the program traps and notes, until it ends, which node's threads touch which of them. Pages
that were touched from the same node in two rounds, and are on another one, are moved there in batches; no thread waits
for more than its trap. Which pages move is decided by `nexttouch.policy`; what is here counts.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidArgument, NoSuchProcess
from ..linux import procfs
from ..linux.process import Process
from ..linux.syscall import PAGE_SIZE
from ..policy import STAY, ping_pong, two_touch
from ..printable import printable
from ..quantities import is_number
from . import eager
from .attach import observe
from .migration import Migration
from .pages import Pages
from .reason import Reason, keyed

__all__ = ["MOST_MOVES", "Follower", "Round"]

MOST_MOVES = 3
"""So often a page moves; then it is one that threads of several nodes use, and stays."""


@dataclass(slots=True)
class Round:
    """What one round has found and done; counts of pages.

    Attributes:
        number: which round, from 1.
        pages: that were traps.
        touched: of these, how many a thread touched.
        by_node: touched pages by the node of the thread that touched them.
        remote: of these, how many were on another node.
        moved: how many were moved after the round.
        held_back: how many more would have been, but for the cap on a round's moves.
        left: that were to move and stayed, by reason.
        ping_pong: that have moved MOST_MOVES times, and stay; by the name of their mapping.
        stopped: seconds that the program stood still to be attached to.
    """

    number: int
    pages: int = 0
    touched: int = 0
    by_node: dict[int, int] = field(default_factory=dict)
    remote: int = 0
    moved: int = 0
    held_back: int = 0
    left: Counter[Reason] = field(default_factory=Counter)
    ping_pong: dict[str, int] = field(default_factory=dict)
    stopped: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the attributes, with reasons by name and the names of mappings `printable`."""
        ping_pong = {printable(name): count for name, count in self.ping_pong.items()}
        return asdict(self) | {"left": keyed(self.left), "ping_pong": ping_pong}


class Follower:
    """Has the memory of process `pid` follow its users, round by round.

    As a context manager it ends a round that is under way, and moves nothing then.

    Args:
        pid: the process.
        window: most pages that one touch makes accessible, and speaks for. Large windows cost the program fewer traps
            and blur who uses what.
        most: bytes that a round moves at most, None for no limit. A huge page that is larger moves alone.
        mechanism: as `attach`.

    >>> import time
    >>> with Follower(pid) as follower:
    ...     follower.arm()
    ...     time.sleep(0.1)
    ...     follower.move().moved
    0

    Raises:
        InvalidArgument: naming the argument.
        NoSuchProcess: there is no such process.
    """

    def __init__(
        self, pid: SupportsIndex, *, window: int = 16, most: float | None = None, mechanism: str | None = None
    ) -> None:
        if most is not None and not (is_number(most) and most > 0):
            raise InvalidArgument("most", f"is {most!r}, but has to be a positive number of bytes")
        self._window = window
        self._most = None if most in (None, math.inf) else max(1, int(most) // PAGE_SIZE)
        self._mechanism = mechanism
        self._process = Process.open(pid, needs_pidfd=True)
        self._round = 0
        self._observed: Migration | None = None
        self._seen = Pages.joined([])
        self._touched = np.empty(0, np.int16)
        self._moves = np.empty(0, np.int64)

    @property
    def process_ended(self) -> bool:
        """Whether the process has ended, or become another program."""
        return not self._process.there

    def arm(self) -> None:
        """Begin a round; return when every page is a trap, since a touch before that goes unnoticed.

        Raises:
            As `attach`.
        """
        process = Process.open(self._process.pid, needs_pidfd=True)
        try:
            self._process.check()  # behind that: while ours lives, the number is its
            self._observed = observe(process, window=self._window, mechanism=self._mechanism)
        except BaseException:
            process.close()
            raise
        self._round += 1
        self._observed.wait_armed()

    def move(self) -> Round:
        """End the round, move what proved misplaced, and tell.

        Raises:
            NexttouchError: what kept it from moving anything. That the process has ended is no error.
        """
        observed, self._observed = self._observed, None
        if observed is None:
            raise InvalidArgument("follower", "has no round under way; call `arm` first")
        observed.cancel()
        pages, touched = observed._running.touches()
        done = Round(self._round, pages=pages.count, stopped=observed.stats.stopped)
        self._count(done, pages, touched)
        self._recall(pages)
        wanted = two_touch(pages.nodes.astype(np.int16), self._touched, touched)
        self._touched = np.where(touched == STAY, self._touched, touched).astype(np.int16)
        self._leave(done, pages, wanted)
        self._move(done, pages, wanted)
        return done

    def close(self) -> None:
        """End a round that is under way, without a move."""
        observed, self._observed = self._observed, None
        if observed is not None:
            observed.cancel()
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _count(self, done: Round, pages: Pages, touched: NDArray[np.int16]) -> None:
        seen = touched != STAY
        nodes, where = np.unique(touched[seen], return_inverse=True)
        counts = np.bincount(where, weights=pages.units[seen], minlength=len(nodes)).astype(int)
        done.by_node = dict(zip(nodes.tolist(), counts.tolist(), strict=True))
        done.touched = int(pages.units[seen].sum())
        done.remote = int(pages.units[seen & (touched != pages.nodes)].sum())

    # What is known of `pages`, of which each is there once; of others nothing is kept. One that is on another node than
    # in the last round has moved: that it was to says nothing.
    def _recall(self, pages: Pages) -> None:
        both = np.intersect1d(pages.addresses, self._seen.addresses, assume_unique=True, return_indices=True)
        _, now, before = both
        touched, moves = np.full(len(pages), STAY, np.int16), np.zeros(len(pages), np.int64)
        touched[now] = self._touched[before]
        moves[now] = self._moves[before] + (pages.nodes[now] != self._seen.nodes[before])
        self._seen, self._touched, self._moves = pages, touched, moves

    # Pages that have moved often enough are named, and left.
    def _leave(self, done: Round, pages: Pages, wanted: NDArray[np.int16]) -> None:
        often = ping_pong(self._moves, MOST_MOVES)
        wanted[often] = STAY
        if often.any():
            with suppress(NoSuchProcess):
                done.ping_pong = _by_mapping(self._process, pages.those(often))

    def _move(self, done: Round, pages: Pages, wanted: NDArray[np.int16]) -> None:
        chosen = np.flatnonzero(wanted != STAY)
        if self._most is not None:
            within = np.cumsum(pages.units[chosen], dtype=np.int64) <= self._most
            within[:1] = True
            done.held_back = int(pages.units[chosen[~within]].sum())
            chosen = chosen[within]
        if not len(chosen):
            return
        mask = np.zeros(len(pages), np.bool_)
        mask[chosen] = True
        result = eager.move_pages(self._process, pages.those(mask), wanted[mask])
        if result.ended is not None and not isinstance(result.ended, NoSuchProcess):
            raise result.ended
        done.moved, done.left = result.moved, result.left


def _by_mapping(process: Process, pages: Pages) -> dict[str, int]:
    found: Counter[str] = Counter()
    mappings = procfs.mappings(process)
    ends = np.array([mapping.end for mapping in mappings], np.uint64)
    places = np.searchsorted(ends, pages.addresses, side="right")
    for place, address, units in zip(places.tolist(), pages.addresses.tolist(), pages.units.tolist(), strict=True):
        if place < len(mappings) and mappings[place].start <= address:  # or it was unmapped meanwhile
            found[mappings[place].path or mappings[place].kind.value] += units
    return dict(found.most_common())
