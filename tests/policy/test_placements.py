"""Policies on addresses: against a loop over pages, on random ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from nexttouch.policy import STAY, interleave, spread

PAGE = 4096
SIZES = (PAGE, 1 << 16, 2 << 20)
seeds = pytest.mark.parametrize("seed", range(20))


def some(chance: random.Random) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Addresses and sizes of pages, huge ones among them, up to the end of what a program can have."""
    sizes = [chance.choice(SIZES) for _ in range(chance.randrange(200))]
    addresses = [chance.randrange((1 << 47) // size) * size for size in sizes]
    return np.array(addresses, np.uint64), np.array(sizes, np.uint64)


@seeds
def test_interleave(seed: int) -> None:
    chance = random.Random(seed)
    addresses, sizes = some(chance)
    nodes = tuple(chance.sample(range(1024), chance.randrange(1, 6)))
    expected = [nodes[a // s % len(nodes)] for a, s in zip(addresses.tolist(), sizes.tolist(), strict=True)]
    found = interleave(addresses, sizes, nodes)
    assert found.tolist() == expected
    assert found.dtype == np.int16


@seeds
def test_spread(seed: int) -> None:
    chance = random.Random(seed)
    addresses, sizes = some(chance)
    nodes = chance.sample(range(1024), chance.randrange(1, 6))
    weights = {node: chance.randrange(8) for node in nodes} | {nodes[0]: 1 + chance.randrange(8)}
    pages = zip(addresses.tolist(), sizes.tolist(), strict=True)
    found = spread(addresses, sizes, weights)
    assert found.tolist() == [by_hand(address // size, weights) for address, size in pages]
    assert found.dtype == np.int16


def by_hand(page: int, weights: dict[int, int]) -> int:
    """The node whose part of [0, total) holds the page's hash."""
    place = Fraction((page * 0x9E3779B97F4A7C15 % 2**64) >> 11, 1 << 53) * sum(weights.values())
    for node, weight in weights.items():
        if place < weight:
            return node
        place -= weight
    raise AssertionError("the hash is less than 1")


@pytest.mark.parametrize("weights", [{0: 1, 1: 1}, {0: 3.0, 2: 1.5, 5: 0.5}, {3: 7, 4: 0}])
@pytest.mark.parametrize("size", SIZES)
def test_neighbours_are_spread_in_proportion(weights: dict[int, float], size: int) -> None:
    """A run of neighbours, wherever it lies, has on each node what its share asks for, within two in a hundred."""
    count = 2000
    for start in (0, 12_345, (1 << 47) // size - count):
        addresses = np.arange(start, start + count, dtype=np.uint64) * np.uint64(size)
        found = spread(addresses, np.full(count, size, np.uint64), weights)
        for node, weight in weights.items():
            assert (found == node).sum() == pytest.approx(count * weight / sum(weights.values()), abs=count / 50)


@pytest.mark.parametrize("weights", [{}, {0: 0}, {1: 0.0, 2: 0}])
def test_what_no_node_is_to_have_stays(weights: dict[int, float]) -> None:
    addresses, sizes = some(random.Random(0))
    assert spread(addresses, sizes, weights).tolist() == [STAY] * len(addresses)
    assert interleave(addresses, sizes, ()).tolist() == [STAY] * len(addresses)


@pytest.mark.parametrize(
    "policy",
    [lambda pages, sizes: interleave(pages, sizes, (2, 5, 7)), lambda pages, sizes: spread(pages, sizes, {2: 1, 5: 2})],
    ids=["interleave", "spread"],
)
def test_a_page_goes_where_it_went_whatever_the_others_are(
    policy: Callable[[NDArray[np.uint64], NDArray[np.uint64]], NDArray[np.int16]],
) -> None:
    addresses, sizes = some(random.Random(1))
    assert policy(addresses, sizes)[::3].tolist() == policy(addresses[::3], sizes[::3]).tolist()
