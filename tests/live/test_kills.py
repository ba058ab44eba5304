"""Killing a migrator again and again while the program works: soak's kind of test, a part of which runs each time."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.mechanisms import foreign
from targets.migrators import Nursery
from targets.programs import compiled, leftovers, steady

from nexttouch.live.mechanisms import Mechanism

KILLS = int(os.environ.get("NEXTTOUCH_KILLS", "25"))
"""How many; a thousand take an hour on an emulated machine."""


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@foreign
def test_random_kills_of_a_migrator_lose_nothing(tmp_path: Path, nursery: Nursery, trap: Mechanism) -> None:
    """No word is lost, no thread hangs, and no page is left without permission, at whatever moment it is killed."""
    moments = random.Random(20060405)
    lives: list[dict[str, object]] = [
        {"rate": 0, "window": 1},
        {"rate": 20 * 2.0**20, "window": 8},
        {"rate": 0, "deadline": 0.1},
    ]
    with steady(compiled("steady", tmp_path), pages=256) as (program, companion):
        for _, life in zip(range(KILLS), itertools.cycle(lives), strict=False):
            arguments = life | {"pid": program.pid, "to": 0, "always": True, "mechanism": trap.name}
            stage = moments.choice(["forked", "attached", "armed", "armed"])
            nursery.kill_at(arguments, stage, moments.expovariate(20))
            assert leftovers(program.pid) == []
            program.advance()
            companion.advance()
