"""The pages of an address range, as arrays: where each is, or why on no node, and how many move together."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..linux import pagemap, procfs
from ..linux.occupied import nodes_of, occupied, shared_in_swap, words_at
from ..linux.pagemap import Category
from ..linux.process import Process
from ..linux.syscall import PAGE_SIZE
from .reason import Reason

__all__ = ["HUGE_PAGES", "IN_SWAP", "Mapped", "Pages", "explained", "find", "find_each", "find_mapped", "reasons"]

IN_SWAP = -4096
"""Instead of a node: the page is in swap. No -errno: those end at -4095."""

HUGE_PAGES = PAGE_SIZE // 8
"""Pages that one entry of the next level of the page table maps: a transparent huge page."""

_REASONS = {
    -errno.EACCES: Reason.SHARED,
    -errno.EBUSY: Reason.BUSY,
    -errno.ENOENT: Reason.ABSENT,
    -errno.ENOMEM: Reason.TARGET_FULL,
    IN_SWAP: Reason.SWAPPED,
}
_LARGEST = 2 << 20  # bytes of a transparent huge page that is moved as a whole; larger ones (arm64) move in small pages


@dataclass(frozen=True, slots=True)
class Pages:
    """What was found, one element a unit that moves as a whole, ascending by address.

    Attributes:
        addresses: shape (n,), uint64: the first byte of each unit.
        units: shape (n,), uint32: pages a unit, 1 or those of a huge page.
        nodes: shape (n,), int32: the node it is on, -errno if the kernel would not say, or IN_SWAP.
    """

    addresses: NDArray[np.uint64]
    units: NDArray[np.uint32]
    nodes: NDArray[np.int32]

    @staticmethod
    def joined(parts: Sequence[Pages]) -> Pages:
        """All units of several finds, in their order."""
        none = Pages(np.empty(0, np.uint64), np.empty(0, np.uint32), np.empty(0, np.int32))
        parts = [none, *parts]
        return Pages(
            np.concatenate([part.addresses for part in parts]),
            np.concatenate([part.units for part in parts]),
            np.concatenate([part.nodes for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.addresses)

    @property
    def count(self) -> int:
        """Pages in all."""
        return int(self.units.sum())

    def those(self, chosen: NDArray[np.bool_]) -> Pages:
        """The units for which `chosen`, shape (n,), is true."""
        return Pages(self.addresses[chosen], self.units[chosen], self.nodes[chosen])

    def part(self, first: int, last: int) -> Pages:
        """The units from position `first` up to `last`."""
        return Pages(self.addresses[first:last], self.units[first:last], self.nodes[first:last])

    def by_node(self) -> dict[int, int]:
        """Pages on each node, those with an unknown node left out."""
        known = self.nodes >= 0
        counts = np.bincount(self.nodes[known], weights=self.units[known])
        return {node: int(count) for node, count in enumerate(counts) if count}


def find(process: Process, start: int, end: int, *, unit: int = 1) -> Pages:
    """Find the pages in [start, end) of `process`, those in swap too; zero pages and holes are none.

    `unit` is the size of the mapping's pages where that is not `PAGE_SIZE` (hugetlb), in pages. Costs 0.2 us a page.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    return find_each(process, [(start, end, unit)])[0]


class Mapped(NamedTuple):
    """The pages of a process by its mappings.

    Attributes:
        movable: pages that the kernel can migrate.
        fixed: pages that it never does: of drivers, of its own, of memfd_secret(2).
        swapped: how many pages of shared memory are in swap, of which no entry tells.
    """

    movable: Pages
    fixed: Pages
    swapped: int


def find_mapped(process: Process, start: int = 0, end: int = 1 << 64) -> Mapped:
    """Find the pages in [start, end) of `process` by its mappings, as `find` does.

    A page of hugetlb that is covered in part is among them as a whole.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    mappings = [
        mapping for mapping in procfs.mappings(process, start, end) if mapping.path != "[vsyscall]"
    ]  # no user space
    unit = _units(process, mappings)
    pieces = [_piece(mapping, start, end, unit.get(mapping.start, 1)) for mapping in mappings]
    each = find_each(process, pieces)
    movable = [pages for pages, mapping in zip(each, mappings, strict=True) if mapping.kind.movable]
    fixed = [pages for pages, mapping in zip(each, mappings, strict=True) if not mapping.kind.movable]
    swapped = 0
    if any(mapping.kind is procfs.Kind.SHMEM for mapping in mappings):
        bounds = np.array([piece[:2] for piece in pieces], dtype=np.uint64)
        swapped = int(shared_in_swap(process, bounds).sum())
    return Mapped(Pages.joined(movable), Pages.joined(fixed), swapped)


# Pages that move together, by the start of the mapping: only smaps knows, and it costs a walk of all of them.
def _units(process: Process, mappings: list[procfs.Mapping]) -> dict[int, int]:
    huge = [mapping for mapping in mappings if mapping.kind is procfs.Kind.HUGETLB]
    if not huge:
        return {}
    smaps = procfs.smaps(process, huge[0].start, huge[-1].end)
    return {smap.mapping.start: smap.kernel_page_size // PAGE_SIZE for smap in smaps}


def _piece(mapping: procfs.Mapping, start: int, end: int, unit: int) -> tuple[int, int, int]:
    size = unit * PAGE_SIZE
    return max(mapping.start, start // size * size), min(mapping.end, -(-end // size) * size), unit


def find_each(process: Process, pieces: Sequence[tuple[int, int, int]]) -> list[Pages]:
    """Find the pages of each piece (start, end, unit) as `find` does, at one go: a process has thousands of mappings.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    if not pieces:
        return []
    bounds = np.array([piece[:2] for piece in pieces], dtype=np.uint64)
    runs = _cut(process, bounds)
    unit = np.array([piece[2] for piece in pieces], dtype=np.uint64)[runs.owner]
    units = np.where(runs.huge, np.maximum(unit, np.uint64(HUGE_PAGES)), unit)
    steps = units * np.uint64(PAGE_SIZE)
    counts = ((runs.end - runs.start) // steps).astype(np.int64)
    turns = np.arange(counts.sum(), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    addresses = np.repeat(runs.start, counts) + turns.astype(np.uint64) * np.repeat(steps, counts)
    found = Pages(addresses, np.repeat(units.astype(np.uint32), counts), np.full(len(addresses), IN_SWAP, np.int32))
    present = ~np.repeat(runs.swapped, counts)
    found.nodes[present] = explained(process, addresses[present], nodes_of(process, addresses[present]))
    borders = np.searchsorted(np.repeat(runs.owner, counts), np.arange(len(pieces) + 1)).tolist()
    return [found.part(first, last) for first, last in pairwise(borders)]


def explained(process: Process, addresses: NDArray[np.uint64], status: NDArray[np.int32]) -> NDArray[np.int32]:
    """Tell what -ENOENT in `status`, shape (n,), means for each of these pages of `process` that was seen before.

    It stays where the page is gone; is IN_SWAP where it was swapped out; and -EFAULT where the entry is as it was, but
    no page of memory is behind it, as with a device.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    missing = np.flatnonzero(status == -errno.ENOENT)
    missing = missing[np.argsort(addresses[missing], kind="stable")]
    words = words_at(process, addresses[missing])
    told = status.copy()
    told[missing[words & pagemap.PRESENT != 0]] = -errno.EFAULT
    told[missing[pagemap.swapped(words)]] = IN_SWAP
    return told


def reasons(status: NDArray[np.int32], units: NDArray[np.uint32]) -> Counter[Reason]:
    """Count pages, `units` each, by what their `status` says instead of a node; both have shape (n,).

    >>> reasons(np.array([-errno.EBUSY, IN_SWAP], np.int32), np.array([1, 512], np.uint32))
    Counter({<Reason.SWAPPED: 47>: 512, <Reason.BUSY: 35>: 1})
    """
    found: Counter[Reason] = Counter()
    for code in np.unique(status):
        found[_REASONS.get(int(code), Reason.UNSUITABLE)] += int(units[status == code].sum())
    return found


class _Runs(NamedTuple):
    """Runs of pages, one element each: its piece, whether of huge pages that lie in it whole, whether in swap."""

    start: NDArray[np.uint64]
    end: NDArray[np.uint64]
    owner: NDArray[np.intp]
    huge: NDArray[np.bool_]
    swapped: NDArray[np.bool_]


# The runs within each piece: bounds, shape (n, 2), in any order.
def _cut(process: Process, bounds: NDArray[np.uint64]) -> _Runs:
    runs = occupied(process, bounds).runs
    runs = runs[runs["categories"] & Category.PFNZERO == 0]
    first = np.searchsorted(runs["end"], bounds[:, 0], side="right")
    counts = np.maximum(np.searchsorted(runs["start"], bounds[:, 1], side="left") - first, 0)
    owner = np.repeat(np.arange(len(bounds)), counts)
    index = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)
    start = np.maximum(runs["start"][index], bounds[owner, 0])
    end = np.minimum(runs["end"][index], bounds[owner, 1])
    size = np.uint64(HUGE_PAGES * PAGE_SIZE)
    whole = (start % size == 0) & (end % size == 0) & (size <= _LARGEST)
    categories = runs["categories"][index]
    return _Runs(start, end, owner, whole & (categories & Category.HUGE != 0), categories & Category.SWAPPED != 0)
