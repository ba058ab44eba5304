"""What is behind the addresses of a process: pages, the zero page, swap; by runs of neighbours that are alike.

All addresses are on page boundaries.

An entry that is not present need not be a page in swap: userfaultfd and MADV_GUARD_INSTALL leave markers, which hold no
page at all, and PAGEMAP_SCAN calls them swapped, too. Only the words of pagemap tell them apart (fs/proc/task_mmu.c,
pte_to_pagemap_entry; include/linux/swapops.h), and what they tell depends on who reads.
"""

from __future__ import annotations

import errno
import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FeatureMissing
from . import mempolicy, pagemap, procfs
from .pagemap import Category
from .process import Process
from .syscall import PAGE_SIZE

__all__ = [
    "Occupied",
    "in_swap",
    "mapped_often",
    "nodes_of",
    "occupied",
    "shared_in_swap",
    "unseen_in_swap",
    "words_at",
]

_BATCH = 1 << 18
"""Pages asked for in one call: between two of them a signal such as Ctrl-C gets its turn (50 ms)."""
_GAP = 128
"""Reading the pagemap words of this many holes costs as much as another read."""
_READ = 1 << 12
"""Pages wanted from one read of pagemap words; with the gaps at most 4 MiB of words."""
_PAGE = np.uint64(PAGE_SIZE)
_TOLD = Category.PRESENT | Category.SWAPPED | Category.PFNZERO | Category.HUGE


class Occupied(NamedTuple):
    """Runs of dtype `pagemap.RUN`, with categories PRESENT, SWAPPED, PFNZERO and HUGE; and whether HUGE is told."""

    runs: NDArray[np.void]
    knows_huge: bool


def occupied(process: Process, bounds: NDArray[np.uint64]) -> Occupied:
    """Find what is not a hole between the least and the greatest of `bounds`, shape (n, 2), [start, end) each.

    Runs are ascending. What lies in none of `bounds` may or may not be among them. Markers are holes, so SWAPPED means
    in swap, or being migrated at this moment. Costs 15 ns a present page and 50 ns a swapped one, nothing a hole;
    before Linux 6.7 50 ns a page of any kind.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    if not len(bounds):
        return Occupied(np.empty(0, dtype=pagemap.RUN), True)
    wanted = Category.PRESENT | Category.SWAPPED
    low, high = int(bounds.min()), int(bounds.max())
    try:
        found = pagemap.scan(process, low, high, any_of=wanted, return_mask=_TOLD)
    except FeatureMissing:
        return Occupied(_without_markers(process, _by_entries(process, _united(bounds))), False)
    return Occupied(_without_markers(process, found), True)


def nodes_of(process: Process, addresses: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Ask on which node each page at `addresses`, shape (n,), of `process` is.

    Returns shape (n,): the node, or -errno: -ENOENT no page there, -EFAULT zero page or no mapping. Costs 0.2 us a
    page. A query, unlike a move, is written in full or fails in full, so none is left unanswered.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    status = np.empty(len(addresses), dtype=np.int32)
    for first in range(0, len(addresses), _BATCH):
        status[first : first + _BATCH] = mempolicy.move_pages(process, addresses[first : first + _BATCH], None, 0)[1]
    return status


def mapped_often(process: Process, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each of the pages at ascending `addresses` of `process` is present, and mapped more than once.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    often: NDArray[np.bool_] = words_at(process, addresses) & (pagemap.PRESENT | pagemap.EXCLUSIVE) == pagemap.PRESENT
    return often


def in_swap(process: Process, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each of the pages at ascending `addresses` of `process` is in swap, or being migrated right now.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    words = words_at(process, addresses)
    swapped = pagemap.swapped(words)
    unclear = swapped & (words & pagemap.PFN == 0)  # the kernel blanks them for who lacks CAP_SYS_ADMIN
    if unclear.any():
        swapped[unclear] = _in_swapped_mapping(process, addresses[unclear])
    return swapped


def shared_in_swap(process: Process, bounds: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Count the pages in swap that no entry tells of: those of shared memory, in each of `bounds`, shape (n, 2).

    Each of these is a part of one mapping, and they ascend. The kernel counts by whole mappings: of one that is covered
    in part at least so many pages of the part are in swap as do not fit into the rest.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    counts = np.zeros(len(bounds), dtype=np.int64)
    if not len(bounds) or not procfs.swap_is_used():
        return counts
    for smap in procfs.smaps(process, int(bounds[0, 0]), int(bounds[-1, 1])):
        first, last = np.searchsorted(bounds[:, 0], [smap.mapping.start, smap.mapping.end], side="left")
        for row in range(first, last):
            counts[row] = unseen_in_swap(smap, int(bounds[row, 0]), int(bounds[row, 1]))
    return counts


def unseen_in_swap(smap: procfs.Smap, start: int, end: int) -> int:
    """Count as `shared_in_swap`, for the part [start, end) of one mapping."""
    if smap.mapping.kind is not procfs.Kind.SHMEM or not smap.mapping.shared:
        return 0
    rest = smap.mapping.end - smap.mapping.start - (end - start)
    return max(0, smap.swap - rest) // PAGE_SIZE


def words_at(process: Process, addresses: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Read the pagemap words of pages at ascending `addresses`, reading over short gaps and around long ones.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    far = (np.diff(addresses) > np.uint64(_GAP) * _PAGE).nonzero()[0] + 1
    regular = np.arange(0, len(addresses) + _READ, _READ).clip(max=len(addresses))
    cuts = np.sort(np.concatenate((far, regular))).tolist()
    words = np.empty(len(addresses), dtype=np.uint64)
    for first, last in itertools.pairwise(cuts):
        if first < last:
            offsets = (addresses[first:last] - addresses[first]) // _PAGE
            words[first:last] = pagemap.entries(process, int(addresses[first]), int(offsets[-1]) + 1)[offsets]
    return words


# A mapping of which nothing is in swap has markers only; and so has shared memory, of which the page table keeps none.
def _in_swapped_mapping(process: Process, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
    low, high = int(addresses[0]), int(addresses[-1]) + PAGE_SIZE
    found = [smap.mapping for smap in procfs.smaps(process, low, high) if smap.swap and not smap.mapping.shared]
    starts = np.array([mapping.start for mapping in found], dtype=np.uint64)
    ends = np.array([mapping.end for mapping in found], dtype=np.uint64)
    owner = np.searchsorted(starts, addresses, side="right") - 1
    inside = owner >= 0
    inside[inside] = addresses[inside] < ends[owner[inside]]
    return inside


def _without_markers(process: Process, runs: NDArray[np.void]) -> NDArray[np.void]:
    doubtful = runs["categories"] & Category.SWAPPED != 0
    if not doubtful.any():
        return runs
    found = np.concatenate((runs[~doubtful], _swapped_of(process, runs[doubtful])))
    return pagemap.joined(found[np.argsort(found["start"], kind="stable")])


def _swapped_of(process: Process, runs: NDArray[np.void]) -> NDArray[np.void]:
    counts = ((runs["end"] - runs["start"]) // _PAGE).astype(np.int64)
    turns = np.arange(counts.sum(), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    addresses = np.repeat(runs["start"], counts) + turns.astype(np.uint64) * _PAGE
    kept = np.concatenate([in_swap(process, addresses[at : at + _BATCH]) for at in range(0, len(addresses), _BATCH)])
    found = np.empty(int(kept.sum()), dtype=pagemap.RUN)
    found["start"], found["end"] = addresses[kept], addresses[kept] + _PAGE
    found["categories"] = np.repeat(runs["categories"], counts)[kept]
    return pagemap.joined(found)


# Before Linux 6.7 a hole costs as much as a page: so without what is between them. Ascending, none touching another.
def _united(bounds: NDArray[np.uint64]) -> list[tuple[int, int]]:
    united: list[tuple[int, int]] = []
    for start, end in sorted(bounds.tolist()):
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(united[-1][1], end))
        else:
            united.append((start, end))
    return united


def _by_entries(process: Process, pieces: list[tuple[int, int]]) -> NDArray[np.void]:
    """Do what `pagemap.scan` does, on kernels without it; HUGE is never set."""
    found = [
        _runs_of_words(process, first, pagemap.entries(process, first, min(_BATCH, (end - first) // PAGE_SIZE)))
        for start, end in pieces
        for first in range(start, end, _BATCH * PAGE_SIZE)
    ]
    none: NDArray[np.void] = np.empty(0, dtype=pagemap.RUN)
    return pagemap.joined(np.concatenate([none, *found]))


def _runs_of_words(process: Process, start: int, words: NDArray[np.uint64]) -> NDArray[np.void]:
    addresses = np.uint64(start) + np.arange(len(words) + 1, dtype=np.uint64) * _PAGE
    categories = np.zeros(len(words), dtype=np.int64)
    categories[words & pagemap.SWAP != 0] = Category.SWAPPED
    categories[words & pagemap.PRESENT != 0] = Category.PRESENT
    # The zero page looks like one of anonymous memory that is mapped often; move_pages alone tells them apart.
    maybe = (words & (pagemap.PRESENT | pagemap.FILE | pagemap.EXCLUSIVE) == pagemap.PRESENT).nonzero()[0]
    categories[maybe[nodes_of(process, addresses[maybe]) == -errno.EFAULT]] |= Category.PFNZERO
    first = np.concatenate(([0], (np.diff(categories) != 0).nonzero()[0] + 1, [len(words)]))
    runs = np.empty(len(first) - 1, dtype=pagemap.RUN)
    runs["start"], runs["end"], runs["categories"] = addresses[first[:-1]], addresses[first[1:]], categories[first[:-1]]
    filled: NDArray[np.void] = runs[runs["categories"] != 0]
    return filled
