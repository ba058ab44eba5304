"""Move pages now, with move_pages(2), so that the program never waits long and every page that stays has its reason.

What the call does not do by itself: one page that fails ends the batch and leaves the statuses behind it unwritten, so
a batch that was not done in full is asked about and halved until the page that fails is alone. And the call holds up
the threads that touch one of its pages, so its size follows a target for its duration.
"""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from .. import placement
from ..errors import InvalidArgument, KernelError, NexttouchError, NoSuchProcess
from ..linux import mempolicy
from ..linux.pagecache import map_cached, unmapped
from ..linux.process import SELF, Process
from ..linux.syscall import PAGE_SIZE
from ..quantities import is_number
from ..topology import check_target
from . import registry
from .pages import Mapped, Pages, explained, find_mapped, reasons
from .reason import Reason, keyed
from .target import wanted_nodes

__all__ = ["MoveResult", "Progress", "move", "move_pages"]

Progress = Callable[[int, int], None]
"""Called with (pages done, pages in all) after each batch."""

# Pages a call: the first, and the least, since below that the call itself costs more than its pages.
_SMALLEST_BATCH = 64
_LARGEST_BATCH = 1 << 16
_ATTEMPTS = 3

# Statuses after which a page may be anywhere: the call did not come to it, or not in time.
_UNDECIDED = (mempolicy.UNWRITTEN, -errno.EBUSY, -errno.EAGAIN)


@dataclass(slots=True)
class MoveResult:
    """What an eager move did.

    Attributes:
        pages: pages looked at: all that were present or in swap.
        moved: those that were moved (with dry_run: that would be).
        left: of the others, how many for which reason.
        by_node: pages on each node afterwards, asked of the kernel again.
        seconds: duration.
        longest_call: seconds of the longest single call: no thread was held up for longer.
        dry_run: whether nothing was done.
        ended: what ended it early; None if nothing did. The pages that it had not come to are Reason.UNMAPPED if the
            process has ended, else Reason.UNREACHED, as when a node left its cpuset.
    """

    pages: int = 0
    moved: int = 0
    left: Counter[Reason] = field(default_factory=Counter)
    by_node: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    longest_call: float = 0.0
    dry_run: bool = False
    ended: NexttouchError | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the attributes, with the reasons by name, and `ended` as a sentence or ""."""
        return {
            "pages": self.pages,
            "moved": self.moved,
            "left": keyed(self.left),
            "by_node": {str(node): count for node, count in self.by_node.items()},
            "seconds": self.seconds,
            "longest_call": self.longest_call,
            "dry_run": self.dry_run,
            "ended": str(self.ended or ""),
        }


def move(
    x: object,
    to: SupportsIndex | Iterable[SupportsIndex],
    *,
    latency: float = 0.02,
    rate: float | None = None,
    shared: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> MoveResult:
    """Move the pages of `x` to node `to` now, and return what became of each.

    Args:
        x: an array, anything with the buffer protocol, or a process id. A page that a buffer covers in part moves too.
        to: target node, or several: pages are interleaved over them, and those that are on one of them stay.
        latency: seconds that one call may take, and so the longest that a thread which touches a page waits. Batches
            adapt to it, down to 64 pages; a single huge page takes what it takes.
        rate: bytes a second at most, None for no limit.
        shared: also move pages that other processes map (needs CAP_SYS_NICE).
        dry_run: only say what would be moved, and what could not; what turns out to be busy, or not to fit,
            is not known beforehand. Pages in memory that this process has not touched stay NOT_MAPPED then.
        progress: called with (pages done, pages in all) after each batch.

    >>> array = nt.zeros((1024, 512), node=0)
    >>> array[:512] = 1
    >>> result = nt.move(array, to=(1, 2))
    >>> result.pages, result.moved, result.left, result.by_node
    (512, 512, Counter(), {1: 256, 2: 256})

    Raises:
        InvalidArgument: `x`, `to`, `latency` or `rate` makes no sense; `x`, too, if it is being moved lazily.
        NoSuchNode, NodeUnavailable: about `to`.
        NoSuchProcess, NotPermitted: about a process. Once a page has moved no error is raised but told in the result.
        FeatureMissing: /proc is of another pid namespace; or a container's seccomp filter forbids what this needs.
    """
    if not (is_number(latency) and latency > 0):
        raise InvalidArgument("latency", f"is {latency!r}, but has to be a positive number of seconds")
    if rate is not None and not (is_number(rate) and rate > 0):
        raise InvalidArgument("rate", f"is {rate!r}, but has to be a positive number of bytes a second")
    targets = check_target(to)
    began = time.monotonic()
    with Process.open(x, argument="x") if isinstance(x, int | np.generic) else SELF as process:
        without, found = _pages_of(x, process, dry_run)
        pages = found.movable
        targets = check_target(targets, process=process)
        flags = mempolicy.MOVE_ALL if shared else mempolicy.MOVE
        if shared:  # whether it may is known without a page
            mempolicy.move_pages(process, np.empty(0, np.uint64), targets[0], flags)
        wanted = wanted_nodes(pages, targets)
        result = move_pages(
            process, pages, wanted, latency=latency, rate=rate, flags=flags, dry_run=dry_run, progress=progress
        )
        if result.ended is not None and not result.moved:
            raise result.ended
        _count_others(result, without, found, targets)
        result.by_node = (Pages.joined([pages, found.fixed]) if dry_run else _now(process, found)).by_node()
    result.seconds = time.monotonic() - began
    return result


# What was found, on the nodes where it is now; nothing if the process has ended.
def _now(process: Process, found: Mapped) -> Pages:
    pages = found.movable
    try:
        nodes = placement.nodes_of(process, pages.addresses)
    except NoSuchProcess:
        return Pages.joined([])
    return Pages.joined([Pages(pages.addresses, pages.units, nodes), found.fixed])


# How many pages have no entry in the process though they are in memory, and the others.
def _pages_of(x: object, process: Process, dry_run: bool) -> tuple[int, Mapped]:
    if not process.own:
        return 0, find_mapped(process)
    start, end = placement.span(x)
    registry.refuse_overlap(start, end)
    without = unmapped(start, end) if dry_run else map_cached(start, end)
    return without, find_mapped(process, start // PAGE_SIZE * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE)


def _count_others(result: MoveResult, without: int, found: Mapped, targets: tuple[int, ...]) -> None:
    swapped = max(0, found.swapped - without)  # what is on its way out, or was read back, is in memory, too
    result.pages += found.fixed.count + swapped + without
    home = np.isin(found.fixed.nodes, targets)
    result.left[Reason.NOT_MAPPED] += without
    result.left[Reason.SWAPPED] += swapped
    result.left[Reason.AT_HOME] += int(found.fixed.units[home].sum())
    result.left[Reason.UNSUITABLE] += int(found.fixed.units[~home].sum())
    result.left = +result.left


def move_pages(
    process: Process,
    pages: Pages,
    wanted: NDArray[np.int16],
    *,
    latency: float = 0.02,
    rate: float | None = None,
    flags: int = mempolicy.MOVE,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> MoveResult:
    """Move `pages`, found in `process`, each to its node of `wanted`, shape (n,). As `move`; `by_node` is the caller's.

    What fails as a whole is told in the result.
    """
    result = MoveResult(pages=pages.count, dry_run=dry_run)
    present = pages.nodes >= 0
    result.left[Reason.AT_HOME] = int(pages.units[present & (pages.nodes == wanted)].sum())
    result.left.update(reasons(pages.nodes[~present], pages.units[~present]))
    todo = present & (pages.nodes != wanted)
    if dry_run:
        shared = (
            placement.mapped_often(process, pages.addresses) & todo if flags == mempolicy.MOVE else np.zeros_like(todo)
        )
        result.left[Reason.SHARED] += int(pages.units[shared].sum())
        result.moved = int(pages.units[todo & ~shared].sum())
    else:
        try:
            _Mover(process, flags, result).run(pages.those(todo), wanted[todo], latency, rate, progress)
        except NexttouchError as error:
            result.ended = error
            reason = Reason.UNMAPPED if isinstance(error, NoSuchProcess) else Reason.UNREACHED
            result.left[reason] += result.pages - result.moved - sum(result.left.values())
    result.left = +result.left
    return result


# The positions `chosen`, grouped by size and target node.
def _alike(chosen: NDArray[np.intp], units: NDArray[np.uint32], wanted: NDArray[np.int16]) -> list[NDArray[np.intp]]:
    kinds, kind = np.unique(np.stack((units, wanted), axis=1)[chosen], axis=0, return_inverse=True)
    return [chosen[kind.reshape(-1) == number] for number in range(len(kinds))]


class _Mover:
    """One eager move under way: calls, and what came of them."""

    def __init__(self, process: Process, flags: int, result: MoveResult) -> None:
        self.process = process
        self.flags = flags
        self.result = result

    def run(
        self,
        pages: Pages,
        wanted: NDArray[np.int16],
        latency: float,
        rate: float | None,
        progress: Progress | None,
    ) -> None:
        began, done, size, total = time.monotonic(), 0, _SMALLEST_BATCH, pages.count
        ends = np.cumsum(pages.units, dtype=np.int64)
        first = 0
        while first < len(pages):
            last = max(first + 1, int(np.searchsorted(ends, done + size, side="right")))
            batch = slice(first, last)
            took = self.batch(pages.addresses[batch], pages.units[batch], wanted[batch])
            done = int(ends[last - 1])
            first = last
            size = int(size * min(2.0, latency / took if took else 2.0))
            size = min(_LARGEST_BATCH, max(_SMALLEST_BATCH, size))
            if progress:
                progress(done, total)
            if rate and first < len(pages):
                time.sleep(max(0.0, began + done * PAGE_SIZE / rate - time.monotonic()))

    def batch(self, addresses: NDArray[np.uint64], units: NDArray[np.uint32], wanted: NDArray[np.int16]) -> float:
        """Move these and account for each; return the seconds of the first call."""
        took, undone, full = self.attempt(addresses, units, wanted)
        rest = np.flatnonzero(undone)
        alike = _alike(rest, units, wanted) if full else []
        if len(alike) == 1 and len(rest) == len(addresses):  # not one found room
            self.result.left[Reason.TARGET_FULL] += int(units.sum())
        elif len(addresses) == 1 and len(rest):
            self.insist(addresses, units, wanted)
        else:  # that there was no room for one says nothing of those of another size, or for another node
            for part in alike if len(alike) > 1 else np.array_split(rest, 2):
                if len(part):
                    self.batch(addresses[part], units[part], wanted[part])
        return took

    def insist(self, addresses: NDArray[np.uint64], units: NDArray[np.uint32], wanted: NDArray[np.int16]) -> None:
        """Try one page again that failed by itself: what holds it may be short."""
        for _ in range(_ATTEMPTS - 1):
            _, undone, full = self.attempt(addresses, units, wanted)
            if not undone.any():
                return
        self.result.left[Reason.TARGET_FULL if full else Reason.BUSY] += int(units.sum())

    def attempt(
        self, addresses: NDArray[np.uint64], units: NDArray[np.uint32], wanted: NDArray[np.int16]
    ) -> tuple[float, NDArray[np.bool_], bool]:
        """One call: its seconds, which pages it left undone, whether for want of memory. Accounts for all others."""
        began, full = time.monotonic(), False
        try:
            _, status = mempolicy.move_pages(self.process, addresses, wanted.astype(np.int32), self.flags)
        except KernelError as error:
            if error.errno != errno.ENOMEM:
                raise
            full = True
            status = np.full(len(addresses), mempolicy.UNWRITTEN, dtype=np.int32)
        finally:
            took = time.monotonic() - began
            self.result.longest_call = max(self.result.longest_call, took)
        undone = np.isin(status, _UNDECIDED)
        if undone.any():
            status[undone] = placement.nodes_of(self.process, addresses[undone])
        lost = status < 0
        told = explained(self.process, addresses[lost], status[lost])
        undone &= (status >= 0) & (status != wanted)
        self.result.moved += int(units[status == wanted].sum())
        self.result.left.update(reasons(told, units[lost]))
        return took, undone, full
