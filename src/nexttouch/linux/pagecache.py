"""Pages of files and of shared memory that are in memory, but for which this process has no entry: mincore(2).

A page that another process has written, or that this one has read with read(2), is in the page cache. It gets an entry
here when it is touched here, and move_pages(2) sees entries only. madvise(MADV_POPULATE_READ) (Linux 5.14) makes
entries without changing a byte; a page that is not in memory it would read or make, so it is asked for no others.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from . import pagemap, procfs
from .occupied import words_at
from .process import SELF
from .procfs import Kind, Mapping
from .syscall import PAGE_SIZE, try_call

__all__ = ["map_cached", "unmapped"]

_MADV_POPULATE_READ = 22
_BATCH = 1 << 18  # pages
_ENTRY = pagemap.PRESENT | pagemap.SWAP  # a page, or a marker: not nothing
_NOT_TO_TOUCH = frozenset({"um", "uw", "ui", "io", "pf"})  # VmFlags: a userfaultfd's, a device's


def unmapped(start: int, end: int) -> int:
    """Count the pages in [start, end) of this process that are in memory and have no entry.

    Of files that this user may not write mincore(2) does not tell; they count as none. Nor does it of hugetlb.

    Raises:
        FeatureMissing, NotPermitted: about /proc/self.
    """
    return sum(len(found) for mapping in _mappings(start, end) for found in _missing(mapping, start, end))


def map_cached(start: int, end: int) -> int:
    """Make entries for these pages; return how many stay without, as the kernel, or a userfaultfd, has it.

    Raises:
        FeatureMissing, NotPermitted: about /proc/self.
    """
    without = 0
    for mapping in _mappings(start, end):
        for addresses in _missing(mapping, start, end):
            if _may_touch(mapping):
                _populate(addresses)
            without += int(np.count_nonzero(words_at(SELF, addresses) & _ENTRY == 0))
    return without


def _mappings(start: int, end: int) -> list[Mapping]:
    found = procfs.mappings(SELF, start, end)
    return [each for each in found if each.kind in {Kind.SHMEM, Kind.FILE} and each.readable and _tells(each)]


# To who may not write a file mincore says that all of it is in memory (mm/mincore.c, can_do_mincore).
def _tells(mapping: Mapping) -> bool:
    try:
        file = os.stat(mapping.path)  # noqa: PTH116 (a path may have bytes that are no text)
        named = file.st_ino == mapping.inode
    except (OSError, ValueError):
        named = False
    if named:
        return file.st_uid == os.geteuid() or os.access(mapping.path, os.W_OK, effective_ids=True)
    return mapping.writable and mapping.shared  # it was opened for writing


# Of [start, end) within the mapping; some at a time.
def _missing(mapping: Mapping, start: int, end: int) -> Iterator[NDArray[np.uint64]]:
    first, last = max(mapping.start, start), min(mapping.end, end)
    for at in range(first // PAGE_SIZE * PAGE_SIZE, last, _BATCH * PAGE_SIZE):
        pages = min(_BATCH, -(-(last - at) // PAGE_SIZE))
        chosen = np.flatnonzero(_in_memory(at, pages) & (pagemap.entries(SELF, at, pages) & _ENTRY == 0))
        if len(chosen):
            yield np.uint64(at) + chosen.astype(np.uint64) * np.uint64(PAGE_SIZE)


def _in_memory(start: int, pages: int) -> NDArray[np.bool_]:
    vector = np.zeros(pages, dtype=np.uint8)
    _, error = try_call("mincore", ctypes.c_void_p(start), pages * PAGE_SIZE, ctypes.c_void_p(vector.ctypes.data))
    found: NDArray[np.bool_] = vector & 1 != 0
    return found if not error else np.zeros(pages, dtype=np.bool_)  # unmapped since


def _may_touch(mapping: Mapping) -> bool:
    smaps = procfs.smaps(SELF, mapping.start, mapping.end)
    return not any(smap.flags & _NOT_TO_TOUCH for smap in smaps)


def _populate(addresses: NDArray[np.uint64]) -> None:
    breaks = np.flatnonzero(np.diff(addresses) != np.uint64(PAGE_SIZE)) + 1
    firsts = addresses[np.concatenate(([0], breaks))].tolist()
    lasts = addresses[np.concatenate((breaks - 1, [len(addresses) - 1]))].tolist()
    for first, last in zip(firsts, lasts, strict=True):
        try_call("madvise", ctypes.c_void_p(first), last + PAGE_SIZE - first, _MADV_POPULATE_READ)
