"""Policies that look at which node's threads touched a page, period by period."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .placements import STAY

__all__ = ["ping_pong", "two_touch"]


def two_touch(nodes: NDArray[np.int16], before: NDArray[np.int16], now: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return where each page should go that was touched from the same node in two periods, and is on another one.

    One touch proves little: a page that is read once on its way, as by a backup, should not follow. All arrays have
    shape (n,): the node each page is on, the node it was touched from in the period `before` and in the one that ended
    `now` (STAY: not touched).

    >>> stay = STAY
    >>> two_touch(np.array([0, 0, 0], np.int16), np.array([1, 1, stay], np.int16), np.array([1, 0, 1], np.int16))
    array([ 1, -1, -1], dtype=int16)
    """
    settled = (before == now) & (now != STAY) & (now != nodes) & (nodes >= 0)
    return np.where(settled, now, np.int16(STAY)).astype(np.int16)


def ping_pong(moves: NDArray[np.integer], most: int) -> NDArray[np.bool_]:
    """Return which pages have moved `most` times already: threads of several nodes use them, so they stay.

    >>> ping_pong(np.array([0, 2, 3]), 3)
    array([False, False,  True])
    """
    moved: NDArray[np.bool_] = moves >= most
    return moved
