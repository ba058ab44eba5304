"""Policies on touches: against a loop over pages, on random ones."""

from __future__ import annotations

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from nexttouch.policy import STAY, ping_pong, two_touch

NODES = (STAY, 0, 1, 2, 3)


def nodes(chance: random.Random, count: int) -> NDArray[np.int16]:
    return np.array(chance.choices(NODES, k=count), np.int16)


@pytest.mark.parametrize("seed", range(20))
def test_two_touch(seed: int) -> None:
    chance = random.Random(seed)
    count = chance.randrange(300)
    on, before, now = (nodes(chance, count) for _ in range(3))
    expected = [
        new if old == new != STAY and node not in (new, STAY) else STAY
        for node, old, new in zip(on.tolist(), before.tolist(), now.tolist(), strict=True)
    ]
    found = two_touch(on, before, now)
    assert found.tolist() == expected
    assert found.dtype == np.int16


@pytest.mark.parametrize(
    ("on", "before", "now", "to"),
    [
        (0, 1, 1, 1),
        (0, STAY, 1, STAY),
        (0, 1, STAY, STAY),
        (0, 2, 1, STAY),
        (1, 1, 1, STAY),
        (0, STAY, STAY, STAY),
        (-2, 1, 1, STAY),
    ],
    ids=["twice", "for the first time", "not again", "by another", "at home", "by none", "on no node"],
)
def test_a_page_that_is_touched(on: int, before: int, now: int, to: int) -> None:
    assert two_touch(*(np.array([node], np.int16) for node in (on, before, now))).tolist() == [to]


@pytest.mark.parametrize("most", [0, 1, 3])
def test_ping_pong(most: int) -> None:
    moves = [0, 1, 2, 3, 4, 3]
    assert ping_pong(np.array(moves), most).tolist() == [count >= most for count in moves]
