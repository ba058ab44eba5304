"""What can be shown on a machine with one node: pages move to other frames of it, and keep every word."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FeatureMissing, NexttouchError
from ..linux import pagemap
from ..linux.process import SELF
from ..linux.syscall import PAGE_SIZE
from ..live.lazy import lazy
from ..live.migration import Migration
from ..live.reason import keyed
from ..topology import topology

__all__ = ["relocate_here"]

_COMPARED = 1 << 14  # words compared at a time


def relocate_here(size: int) -> dict[str, Any]:
    """On a machine with one node: move an array of `size` bytes lazily into other frames of that node, and count them.

    Returns pages, changed_frames (None where only root may see them), moved_by_touch, moved_by_sweep, seconds,
    longest_service, left.
    """
    words = size // 8
    array = np.arange(words)
    start = -(-array.ctypes.data // PAGE_SIZE) * PAGE_SIZE
    pages = (array.ctypes.data + array.nbytes) // PAGE_SIZE - start // PAGE_SIZE
    before, began = _frames(start, pages), time.monotonic()
    with _lazily_here(array) as migration:
        migration.wait_armed()
        wrong = sum(_wrong_words(array, first) for first in range(0, words, _COMPARED))
    seconds = time.monotonic() - began
    changed = None if before is None else int(np.count_nonzero(_frames(start, pages) != before))
    if wrong:
        raise NexttouchError(f"{wrong} words of the array are not what they were: this is a bug")
    stats = asdict(migration.stats)
    kept = ("pages", "moved_by_touch", "moved_by_sweep", "longest_service")
    return {name: stats[name] for name in kept} | {
        "changed_frames": changed,
        "seconds": seconds,
        "left": keyed(migration.stats.left),
    }


def _wrong_words(array: NDArray[np.int64], first: int) -> int:
    part = array[first : first + _COMPARED]
    return int(np.count_nonzero(part != np.arange(first, first + len(part))))


def _frames(start: int, pages: int) -> NDArray[np.uint64] | None:
    try:
        return pagemap.frames(SELF, start, pages)
    except FeatureMissing:
        return None


# Faults of system calls take a privilege to be caught; what is shown here makes none on the array.
def _lazily_here(array: NDArray[np.int64]) -> Migration:
    node = topology().memory_nodes[0]
    try:
        return lazy(array, node, always=True)
    except FeatureMissing:
        return lazy(array, node, always=True, service="inline")
