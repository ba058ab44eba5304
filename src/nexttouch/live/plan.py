"""Which pages move where and by which mechanism, and which cannot move and why.

Nothing here changes anything, but for one thing: pages of this process's shared memory and files that are in memory
get the entries here that they lack, since without an entry the kernel moves no page.

A mapping gets the first mechanism (`nexttouch.live.mechanisms`) that works here and is for it; everything else that can
move, such as files, is moved eagerly at the end, without a trap.

In another process the kernel's own accesses to the memory of a thread that ends would fail on a page that is a trap
(`nexttouch.linux.thread_exit`): those pages are moved at the end, too. So are those with its arguments and environment:
/proc/PID/cmdline, which everybody's `ps` reads, cannot wait for a page, and would be empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import TargetRefused
from ..linux import procfs
from ..linux.occupied import unseen_in_swap
from ..linux.pagecache import map_cached
from ..linux.process import Process
from ..linux.procfs import Smap
from ..linux.syscall import PAGE_SIZE
from ..linux.thread_exit import exit_spans
from ..linux.userfaultfd import Feature
from .descriptor import TAKEN
from .mechanisms import Mechanism, userfaultfd_features, working
from .pages import Pages, find, find_each, reasons
from .reason import Reason
from .target import wanted_nodes

__all__ = ["Part", "Plan", "make_plan"]

_WATCHED = frozenset({"um", "uw", "ui", "ur"})  # VmFlags of memory that a userfaultfd watches
_RESERVE = 512 * PAGE_SIZE  # holes up to this size are watched along: fewer, larger ranges
_MOST_RANGES = 1024


@dataclass(frozen=True, slots=True)
class Part:
    """What one pager takes.

    Attributes:
        mechanism: the name of that by which it traps.
        runs: shape (n, 3), uint64: address, pages, pages that move together.
        ranges: shape (m, 2), uint64: address and bytes of what is registered with the kernel.
        origins: shape (pages,), int16: the node each page is on, ANYWHERE (-1) to move it wherever it is.
        wanted: shape (pages,), int16: the node each page is to go to, TOUCHER (-1) for that of its next toucher.
    """

    mechanism: str
    runs: NDArray[np.uint64]
    ranges: NDArray[np.uint64]
    origins: NDArray[np.int16]
    wanted: NDArray[np.int16]


@dataclass(slots=True)
class Plan:
    """What a migration of the memory of `process` will do.

    Attributes:
        process: whose pages.
        targets: nodes, interleaved; none: the node of the thread that touches.
        parts: what is trapped.
        eager: what is moved at the end without a trap.
        left: pages that stay, by reason.
        pages: pages in all: trapped, eager and left.
    """

    process: Process
    targets: tuple[int, ...]
    parts: list[Part] = field(default_factory=list)
    eager: list[Pages] = field(default_factory=list)
    left: Counter[Reason] = field(default_factory=Counter)
    pages: int = 0


def make_plan(
    process: Process,
    spans: list[tuple[int, int]] | None,
    targets: tuple[int, ...],
    *,
    mechanism: Mechanism | None = None,
    traps: tuple[Mechanism, ...] | None = None,
    always: bool = False,
    exit_words: tuple[int, ...] = (),
) -> Plan:
    """Plan the migration of `spans` (byte addresses [start, end); None: all memory) of `process`.

    Whole pages only: a page that a span covers in part is left.

    Args:
        process: whose pages.
        spans: which.
        targets: nodes, interleaved; none: the node of the thread that touches.
        mechanism: this one, and what it is not for stays.
        traps: what to choose from, the best first (None: what works here), and the rest moves eagerly.
        always: pages that are on a target node already move as well, to another frame.
        exit_words: addresses whose pages are not trapped, see `exit_spans`.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
        TargetRefused: another program handles page faults of that other process.
    """
    plan = Plan(process, targets)
    if process.own:
        _map(plan, spans or [])
    features = userfaultfd_features()
    choice = (mechanism,) if mechanism else working(features) if traps is None else traps
    found: dict[Mechanism, list[Pages]] = {}
    whole: list[tuple[int, int]] = []
    pieces = list(_pieces(plan, spans))
    if not process.own and any(smap.flags & _WATCHED for smap, _, _ in pieces):
        raise TargetRefused(process.pid, TAKEN)
    ends = np.array([] if process.own else exit_spans(process, exit_words), np.uint64).reshape(-1, 2)
    shown = np.array([] if process.own else procfs.argument_spans(process), np.uint64).reshape(-1, 2)
    each = find_each(process, [(start, end, smap.kernel_page_size // PAGE_SIZE) for smap, start, end in pieces])
    for (smap, start, end), pages in zip(pieces, each, strict=True):
        swapped = unseen_in_swap(smap, start, end)
        plan.left[Reason.SWAPPED] += swapped
        plan.pages += pages.count + swapped
        trap = _trap(smap, process, choice, features)
        movable = _is_movable(smap) and (trap is not None or mechanism is None)
        stay = _stay(pages, targets, movable, always and trap is not None, plan.left)
        trapped = ~stay & ~_within(pages, ends) & ~_within(pages, shown) if trap else np.zeros(len(pages), np.bool_)
        if movable and (~stay & ~trapped).any():
            plan.eager.append(pages.those(~stay & ~trapped))
        if trap and trapped.any():
            found.setdefault(trap, []).append(pages.those(trapped))
            if not process.own:
                whole.append((start, end - start))
    for trap, parts in found.items():
        plan.parts.append(_part(trap, parts, targets, always, whole))
    plan.left = +plan.left
    return plan


def _map(plan: Plan, spans: list[tuple[int, int]]) -> None:
    for start, end in spans:
        without = map_cached(start, end)
        plan.left[Reason.NOT_MAPPED] += without
        plan.pages += without


# Each mapping with the part [start, end) of it that is wanted, in whole pages of it.
def _pieces(plan: Plan, spans: list[tuple[int, int]] | None) -> Iterator[tuple[Smap, int, int]]:
    low, high = (0, 1 << 64) if spans is None else (min(span[0] for span in spans), max(span[1] for span in spans))
    for smap in procfs.smaps(plan.process, low, high):
        mapping = smap.mapping
        if mapping.path == "[vsyscall]":  # not in user space
            continue
        for start, end in [(mapping.start, mapping.end)] if spans is None else spans:
            unit = smap.kernel_page_size
            first, last = max(mapping.start, start), min(mapping.end, end)
            whole, rest = -(-first // unit) * unit, last // unit * unit
            if first < last:
                _count_partial(plan, first, last, whole, rest)
            if whole < rest:
                yield smap, whole, rest


# The pages of [first, last) that are not whole, [start, end) being those that are.
def _count_partial(plan: Plan, first: int, last: int, start: int, end: int) -> None:
    edges = {(first // PAGE_SIZE, first < start), (last // PAGE_SIZE, max(end, first) < last)}
    for page in {page for page, partial in edges if partial}:
        count = find(plan.process, page * PAGE_SIZE, (page + 1) * PAGE_SIZE).count
        plan.left[Reason.PARTIAL] += count
        plan.pages += count


def _is_movable(smap: Smap) -> bool:
    return smap.mapping.kind.movable and not smap.flags & (_WATCHED | {"io", "pf"})


# The first mechanism that is for a mapping.
def _trap(smap: Smap, process: Process, choice: tuple[Mechanism, ...], features: Feature) -> Mechanism | None:
    fit = (each for each in choice if (each.foreign or process.own) and each.can_trap(smap, features))
    return next(fit, None) if _is_movable(smap) else None


def _stay(
    pages: Pages, targets: tuple[int, ...], movable: bool, always: bool, left: Counter[Reason]
) -> NDArray[np.bool_]:
    home = np.zeros(len(pages), dtype=np.bool_)
    if not always:
        for node in targets:
            home |= pages.nodes == node
    absent = pages.nodes < 0
    left[Reason.AT_HOME] += int(pages.units[home].sum())
    left.update(reasons(pages.nodes[absent], pages.units[absent]))
    if not movable:
        left[Reason.UNSUITABLE] += int(pages.units[~home & ~absent].sum())
    stay: NDArray[np.bool_] = home | absent
    return stay


# Which of the pages lie in one of `spans`, shape (n, 2), sorted and apart, at least in part: in the first that ends
# behind their own begin.
def _within(pages: Pages, spans: NDArray[np.uint64]) -> NDArray[np.bool_]:
    stops = pages.addresses + pages.units.astype(np.uint64) * np.uint64(PAGE_SIZE)
    first = np.searchsorted(spans[:, 1], pages.addresses, side="right")
    within = first < len(spans)
    within[within] = spans[first[within], 0] < stops[within]
    return within


# `whole`: what to watch of another process's memory: its mappings as they are. The end of a range within one would cut
# it in two, and mremap(2) fails on two mappings (EFAULT): that program would learn of it.
def _part(
    mechanism: Mechanism,
    pieces: list[Pages],
    targets: tuple[int, ...],
    always: bool,
    whole: list[tuple[int, int]],
) -> Part:
    pages = Pages.joined(pieces)
    ends = pages.addresses + pages.units.astype(np.uint64) * np.uint64(PAGE_SIZE)
    borders = np.zeros(max(len(pages) - 1, 0), dtype=np.bool_)  # before the first page of another mapping
    borders[np.cumsum([len(piece) for piece in pieces if len(piece)])[:-1] - 1] = True
    breaks = borders | (pages.addresses[1:] != ends[:-1]) | (pages.units[1:] != pages.units[:-1])
    starts, stops = _pairs(pages.addresses, ends, breaks)
    runs = np.stack((starts, (stops - starts) // np.uint64(PAGE_SIZE), _firsts(pages.units, breaks)), axis=1)
    origins = np.full(pages.count, _core.ANYWHERE) if always else np.repeat(pages.nodes, pages.units)
    wanted = np.repeat(wanted_nodes(pages, targets), pages.units)
    ranges = np.array(whole, np.uint64) if whole else _ranges(starts, stops, borders[breaks])
    return Part(mechanism.name, np.ascontiguousarray(runs, np.uint64), ranges, origins.astype(np.int16), wanted)


# Few ranges that hold all runs. What lies between runs is watched too, and a touch there costs a fault that does
# nothing; but each range can cut a mapping in two more, and their number is limited (vm.max_map_count).
def _ranges(starts: NDArray[np.uint64], stops: NDArray[np.uint64], borders: NDArray[np.bool_]) -> NDArray[np.uint64]:
    gaps = starts[1:] - stops[:-1]
    reserve = np.uint64(_RESERVE)
    while np.count_nonzero(gaps > reserve) >= _MOST_RANGES:
        reserve *= np.uint64(2)
    first, last = _pairs(starts, stops, borders | (gaps > reserve))
    return np.stack((first, last - first), axis=1)


# Starts and ends of what is left when neighbours are put together except where `breaks` is true between them.
def _pairs(
    starts: NDArray[np.uint64], ends: NDArray[np.uint64], breaks: NDArray[np.bool_]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    return _firsts(starts, breaks), ends[np.concatenate((breaks, [True]))]


def _firsts(values: NDArray[Any], breaks: NDArray[np.bool_]) -> NDArray[Any]:
    chosen: NDArray[Any] = values[np.concatenate(([True], breaks))]
    return chosen
