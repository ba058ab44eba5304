"""Killing whoever has attached, at any moment of its life: the program has lost nothing and nothing is left behind."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from targets.migrators import Nursery
from targets.programs import Program, compiled, descriptors, leftovers, steady, until

KILLS = 12  # in each stage of each kind of life
STAGES = ("forked", "attached", "armed")  # each until the next: start-up and injection, arming, serving and sweeping


@pytest.fixture(scope="session")
def steady_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("steady", tmp_path_factory.mktemp("targets"))


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


def kinds_of_life(pid: int) -> list[dict[str, object]]:
    """Migrations that differ in what they are doing most of the time."""
    base = {"pid": pid, "to": 0, "always": True}
    return [
        base | {"rate": 20 * 2.0**20},  # a sweep with pauses
        base | {"rate": 0, "deadline": 0.1, "window": 1},  # faults, one page each, then a sweep at full speed
        base | {"rate": 2.0**30, "window": 8},
    ]


def durations(nursery: Nursery, life: dict[str, object]) -> dict[str, float]:
    """How long a migration that nobody kills is in each stage."""
    nursery.fork(**life)
    begins = [time.monotonic()]
    for word in ("attached", "armed", "done", "ended"):
        nursery.hear_until(word)
        begins.append(time.monotonic())
    return {stage: end - begin for stage, begin, end in zip(STAGES, begins, begins[1:], strict=False)}


def unharmed(program: Program, before: dict[str, str]) -> None:
    assert leftovers(program.pid) == []
    assert descriptors(program.pid) == before
    program.advance(3)
    until(lambda: "D" not in states(program.pid), "the end of every uninterruptible wait")


def states(pid: int) -> set[str]:
    return {path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")}


def test_a_migrator_killed_at_any_moment(nursery: Nursery, steady_binary: Path) -> None:
    moments = random.Random(20060405)
    killed: Counter[tuple[str, int]] = Counter()  # by the stage that it was in, and the kind of life
    with steady(steady_binary) as (program, companion):
        before = descriptors(program.pid)
        lives = kinds_of_life(program.pid)
        lengths = [durations(nursery, life) for life in lives]
        unharmed(program, before)
        for stage, kind in itertools.product(STAGES, range(len(lives))):
            while killed[stage, kind] < KILLS:
                reached = nursery.kill_at(lives[kind], stage, moments.uniform(0, lengths[kind][stage]))
                killed[reached, kind] += 1
                if reached != stage:  # too late: the stage has become shorter than it was when it was measured
                    lengths[kind][stage] *= 0.9
                unharmed(program, before)
                companion.advance()
        # It is attached to and migrated as if nothing had been.
        durations(nursery, lives[0])
