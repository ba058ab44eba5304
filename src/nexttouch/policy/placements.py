"""Policies that look at addresses only: every page has its node, whoever touches it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["STAY", "interleave", "spread"]

STAY = -1
"""Instead of a node: the page stays where it is, or goes to the node of the thread that touches it next."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: multiplied with it, neighbours fall far apart


def interleave(addresses: NDArray[np.uint64], sizes: NDArray[np.uint64], nodes: tuple[int, ...]) -> NDArray[np.int16]:
    """Return for each page at `addresses`, shape (n,), of `sizes` bytes, one of `nodes` in turn; none: STAY.

    By address, as the kernel's policy does it (MPOL_INTERLEAVE), so that a page's node does not hang on the others.

    >>> interleave(np.array([0, 4096, 8192], np.uint64), np.full(3, 4096, np.uint64), (1, 2))
    array([1, 2, 1], dtype=int16)
    """
    turns = addresses // sizes % np.uint64(len(nodes) or 1)
    return np.array(nodes or (STAY,), np.int16)[turns.astype(np.intp)]


def spread(addresses: NDArray[np.uint64], sizes: NDArray[np.uint64], weights: Mapping[int, float]) -> NDArray[np.int16]:
    """Return for each page a node, in proportion to `weights` (node: share, as of bandwidth or room).

    By a hash of the address: neighbours fall apart, and a page's node does not hang on the others.

    >>> pages = np.arange(1000, dtype=np.uint64) * 4096
    >>> nodes, counts = np.unique(spread(pages, np.full(1000, 4096, np.uint64), {0: 3, 1: 1}), return_counts=True)
    >>> nodes.tolist(), counts.tolist()
    ([0, 1], [750, 250])
    """
    shares = np.cumsum([weights[node] for node in weights], dtype=np.float64)
    if not len(shares) or shares[-1] <= 0:
        return np.full(len(addresses), STAY, np.int16)
    places = (addresses // sizes * _GOLDEN >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    chosen = np.searchsorted(shares / shares[-1], places, side="right")
    return np.array(list(weights), np.int16)[np.minimum(chosen, len(shares) - 1)]
