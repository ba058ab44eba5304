"""Which pages move where and by which mechanism, and which cannot move and why.

Nothing here changes anything, but for one thing: pages of this process's shared memory and files that are in memory
get the entries here that they lack, since without an entry the kernel moves no page.

A mapping gets the best mechanism that it allows:

    relocate        private anonymous memory of this process, writable: traps any touch
    write_protect   anonymous memory, shared memory and hugetlb, writable, of any process: traps stores
    eager           everything else that can move (files, read-only memory): moved at the end, without a trap

In another process the kernel's own stores to the memory of a thread that ends would fail on a page that is protected
(`nexttouch.linux.threads`): those pages are moved at the end, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import FeatureMissing, KernelError, TargetRefused
from ..linux import procfs
from ..linux.occupied import unseen_in_swap
from ..linux.pagecache import map_cached
from ..linux.procfs import Kind, Smap
from ..linux.syscall import PAGE_SIZE
from ..linux.threads import exit_spans
from ..linux.userfaultfd import Feature, available_features
from .descriptor import TAKEN
from .pages import Pages, find, find_each, reasons
from .reason import Reason

__all__ = ["Mechanism", "Part", "Plan", "make_plan"]

Mechanism = Literal["relocate", "write_protect", "eager"]

_WATCHED = frozenset({"um", "uw", "ui"})  # VmFlags of memory that a userfaultfd watches
_RESERVE = 512 * PAGE_SIZE  # holes up to this size are watched along: fewer, larger ranges
_MOST_RANGES = 1024
_ANYWHERE = -1


@dataclass(frozen=True, slots=True)
class Part:
    """What one pager takes.

    Attributes:
        mechanism: how it traps and moves.
        runs: shape (n, 3), uint64: address, pages, pages that move together.
        ranges: shape (m, 2), uint64: address and bytes of what is registered with the kernel.
        origins: shape (pages,), int16: the node each page is on, -1 to move it wherever it is.
    """

    mechanism: Mechanism
    runs: NDArray[np.uint64]
    ranges: NDArray[np.uint64]
    origins: NDArray[np.int16]


@dataclass(slots=True)
class Plan:
    """What a migration of process `pid` (0: this one) will do.

    Attributes:
        pid: whose pages.
        targets: nodes, interleaved; none: the node of the thread that touches.
        parts: what is trapped.
        eager: what is moved at the end without a trap.
        left: pages that stay, by reason.
        pages: pages in all: trapped, eager and left.
    """

    pid: int
    targets: tuple[int, ...]
    parts: list[Part] = field(default_factory=list)
    eager: list[Pages] = field(default_factory=list)
    left: Counter[Reason] = field(default_factory=Counter)
    pages: int = 0


def make_plan(
    pid: int,
    spans: list[tuple[int, int]] | None,
    targets: tuple[int, ...],
    *,
    mechanism: Mechanism | None = None,
    always: bool = False,
) -> Plan:
    """Plan the migration of `spans` (byte addresses [start, end); None: all memory) of process `pid` (0: this one).

    Whole pages only: a page that a span covers in part is left. With `always`, pages that are on a target node already
    move as well, to another frame.

    Raises:
        NoSuchProcess, NotPermitted: about `pid`.
        TargetRefused: somebody handles page faults of that other process.
    """
    plan = Plan(pid, targets)
    if not pid:
        _map(plan, spans or [])
    found: dict[Mechanism, list[Pages]] = {}
    whole: list[tuple[int, int]] = []
    pieces = list(_pieces(plan, spans))
    if pid and any(smap.flags & _WATCHED for smap, _, _ in pieces):
        raise TargetRefused(pid, TAKEN)
    ends = np.array(exit_spans(pid) if pid else [], np.uint64).reshape(-1, 2)
    each = find_each(pid, [(start, end, smap.kernel_page_size // PAGE_SIZE) for smap, start, end in pieces])
    for (smap, start, end), pages in zip(pieces, each, strict=True):
        swapped = unseen_in_swap(smap, start, end)
        plan.left[Reason.SWAPPED] += swapped
        plan.pages += pages.count + swapped
        way = _way(smap, pid, mechanism)
        stay = _stay(pages, targets, way, always, plan.left)
        if way is not None:
            untrapped = ~stay & _within(pages, ends)
            if untrapped.any():
                plan.eager.append(pages.those(untrapped))
            trapped = ~stay & ~untrapped
            found.setdefault(way, []).append(pages.those(trapped))
            if pid and way == "write_protect" and trapped.any():
                whole.append((start, end - start))
    for way, parts in found.items():
        if way == "eager":
            plan.eager += [pages for pages in parts if len(pages)]
        elif any(len(pages) for pages in parts):
            plan.parts.append(_part(way, parts, always, whole))
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
    for smap in procfs.smaps(plan.pid, low, high):
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
        count = find(plan.pid, page * PAGE_SIZE, (page + 1) * PAGE_SIZE).count
        plan.left[Reason.PARTIAL] += count
        plan.pages += count


# The mechanism for a mapping; None if it has none, or not the one that was asked for.
def _way(smap: Smap, pid: int, asked: Mechanism | None) -> Mechanism | None:
    allowed = list(_ways(smap, pid))
    if asked is not None:
        return asked if asked in allowed else None
    return allowed[0] if allowed else None


def _ways(smap: Smap, pid: int) -> Iterator[Mechanism]:
    mapping, flags = smap.mapping, smap.flags
    if not mapping.kind.movable or flags & _WATCHED or flags & {"io", "pf"}:
        return
    anonymous = mapping.kind in {Kind.ANONYMOUS, Kind.HEAP, Kind.STACK} and not mapping.shared
    if anonymous and mapping.writable and not mapping.executable and pid == 0 and not flags & {"lo", "dc", "gd"}:
        yield "relocate"
    shared = mapping.kind in {Kind.SHMEM, Kind.HUGETLB} and mapping.shared
    if mapping.writable and (anonymous or (shared and _can_protect_shared())):
        yield "write_protect"
    yield "eager"


def _can_protect_shared() -> bool:  # since Linux 5.19
    with suppress(FeatureMissing, KernelError):
        return Feature.WP_HUGETLBFS_SHMEM in available_features()
    return False


def _stay(
    pages: Pages, targets: tuple[int, ...], way: Mechanism | None, always: bool, left: Counter[Reason]
) -> NDArray[np.bool_]:
    home = np.zeros(len(pages), dtype=np.bool_)
    if not always or way == "eager":
        for node in targets:
            home |= pages.nodes == node
    absent = pages.nodes < 0
    left[Reason.AT_HOME] += int(pages.units[home].sum())
    left.update(reasons(pages.nodes[absent], pages.units[absent]))
    if way is None:
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
def _part(mechanism: Mechanism, pieces: list[Pages], always: bool, whole: list[tuple[int, int]]) -> Part:
    pages = Pages.joined(pieces)
    ends = pages.addresses + pages.units.astype(np.uint64) * np.uint64(PAGE_SIZE)
    borders = np.zeros(max(len(pages) - 1, 0), dtype=np.bool_)  # before the first page of another mapping
    borders[np.cumsum([len(piece) for piece in pieces if len(piece)])[:-1] - 1] = True
    breaks = borders | (pages.addresses[1:] != ends[:-1]) | (pages.units[1:] != pages.units[:-1])
    starts, stops = _pairs(pages.addresses, ends, breaks)
    runs = np.stack((starts, (stops - starts) // np.uint64(PAGE_SIZE), _firsts(pages.units, breaks)), axis=1)
    origins = np.full(pages.count, _ANYWHERE) if always else np.repeat(pages.nodes, pages.units)
    ranges = np.array(whole, np.uint64) if whole else _ranges(starts, stops, borders[breaks])
    return Part(mechanism, np.ascontiguousarray(runs, np.uint64), ranges, origins.astype(np.int16))


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
