"""Where each page is to go: one rule for every way to move pages to nodes that are named."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..linux.syscall import PAGE_SIZE
from ..policy import interleave
from .pages import Pages

__all__ = ["wanted_nodes"]


def wanted_nodes(pages: Pages, targets: tuple[int, ...]) -> NDArray[np.int16]:
    """Return the node that each unit of `pages`, shape (n,), is to go to; STAY without targets: to its toucher.

    What is on one of `targets` is to stay there, so that a node can be emptied onto the others without moving what is
    there; the rest is interleaved over them by address, so that a second move changes nothing.

    >>> found = Pages(np.array([0, 4096, 8192], np.uint64), np.ones(3, np.uint32), np.array([0, 1, 0], np.int32))
    >>> wanted_nodes(found, (1, 2))
    array([1, 1, 1], dtype=int16)
    """
    sizes = pages.units.astype(np.uint64) * np.uint64(PAGE_SIZE)
    turns = interleave(pages.addresses, sizes, targets)
    return np.where(np.isin(pages.nodes, targets), pages.nodes, turns).astype(np.int16)
