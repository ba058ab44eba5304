"""Where each page is to go: one rule for every way to move pages."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..linux.syscall import PAGE_SIZE

__all__ = ["TOUCHER", "wanted_nodes"]

TOUCHER = _core.TOUCHER
"""Instead of a node: that of the thread which touches the page next."""


def wanted_nodes(
    addresses: NDArray[np.uint64], units: NDArray[np.uint32], targets: tuple[int, ...]
) -> NDArray[np.int16]:
    """Return the node that each unit at `addresses`, shape (n,), of `units` pages is to go to, shape (n,).

    Units are interleaved over `targets` by address, as the kernel's policy does it; without targets it is TOUCHER.

    >>> wanted_nodes(np.array([0, 4096, 8192], np.uint64), np.ones(3, np.uint32), (1, 2))
    array([1, 2, 1], dtype=int16)
    """
    nodes = np.array(targets or (TOUCHER,), np.int16)
    turns = addresses // (units.astype(np.uint64) * np.uint64(PAGE_SIZE)) % np.uint64(len(nodes))
    return nodes[turns.astype(np.intp)]
