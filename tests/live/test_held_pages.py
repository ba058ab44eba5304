"""A page that others hold by a reference: what the program stores later has to reach them, wherever the page is."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from support.holders import in_a_pipe
from support.mechanisms import way
from support.memory import HANG, PAGE_SIZE, WORDS, Memory, settled

import nexttouch as nt
from nexttouch import Reason

FIRST, COUNT = 8, 16


def stores_reach(memory: Memory, pipe: int) -> bool:
    """Whether words stored now are what comes out of the pipe."""
    memory.expected[FIRST * WORDS : (FIRST + COUNT) * WORDS] += np.uint64(1)
    memory.fill()
    read = np.frombuffer(os.read(pipe, COUNT * PAGE_SIZE), np.uint64)
    return bool((read == memory.expected[FIRST * WORDS : (FIRST + COUNT) * WORDS]).all())


@way
@pytest.mark.parametrize("rate", [None, 0], ids=["sweep", "touch"])
def test_a_store_after_the_migration_reaches_the_pipe(options: dict[str, Any], rate: int | None) -> None:
    with Memory(64) as memory, in_a_pipe(memory, FIRST, COUNT) as pipe:
        with nt.lazy(memory.words, 0, always=True, rate=rate, **options) as migration:
            assert migration.wait_armed(HANG)
            memory.words[::WORDS] = memory.expected[::WORDS]
        stats = migration.stats
        assert settled(stats, 64)
        assert set(stats.left) <= {Reason.BUSY, Reason.CANCELLED}
        assert stores_reach(memory, pipe)
        memory.check()


@pytest.mark.lab
@way
def test_a_page_in_a_pipe_stays_on_its_node(options: dict[str, Any]) -> None:
    with Memory(64) as memory:
        memory.bind(0)
        with in_a_pipe(memory, FIRST, COUNT) as pipe:
            with nt.lazy(memory.words, 1, **options) as migration:
                assert migration.wait(HANG)
            stats = migration.stats
            assert (stats.moved, stats.left) == (64 - COUNT, {Reason.BUSY: COUNT})
            assert np.flatnonzero(memory.nodes() == 0).tolist() == list(range(FIRST, FIRST + COUNT))
            assert stores_reach(memory, pipe)
        memory.check()
