"""How fast the checker visits states, beside the plainest search there is."""

from __future__ import annotations

import time

from nexttouch.check.explorer import explore
from nexttouch.errors import NexttouchError
from nexttouch.model.designs import DESIGNS
from nexttouch.model.scenarios import SCENARIOS

from .figures import Figure, Series

__all__ = ["states"]

_THREADS, _STEPS = 4, 16
_FLOOR = 60_000.0


def states(repetitions: int) -> list[Figure]:
    """Distinct states a second of D4 moving a page that two processes map, and of a toy in tuples and a set."""
    model, toy = [], []
    for _ in range(repetitions):
        design = DESIGNS["D4"]()
        machine = SCENARIOS["mappers"].machine(design, "anonymous")
        result = explore(machine)
        if not result.passed:
            raise NexttouchError(f"the search did not pass, so there is no figure: {result.violation}")
        model.append(result.states / result.seconds)
        toy.append(_toy())
    return [
        Figure(
            "states",
            "distinct states a second: D4, eager, two mappers",
            Series("the checker, invariants and search for cycles included", "states/s", tuple(model)),
            floor=_FLOOR,
            at_most=False,
            sides=(
                Series("plain breadth-first search of a toy: tuples in a set, nothing checked", "states/s", tuple(toy)),
            ),
            note=f"{result.states:,} states, of {result.shared:,} states of the VM.",
        )
    ]


# Threads that each take some steps, the first and the last of which are a lock's: states a second.
def _toy() -> float:
    began = time.perf_counter()
    start = ((0,) * _THREADS, -1)
    seen, frontier = {start}, [start]
    while frontier:
        found = []
        for at, lock in frontier:
            for thread in range(_THREADS):
                step = at[thread]
                if step == _STEPS or (step == _STEPS // 2 and lock not in (-1, thread)):
                    continue
                holder = thread if step == _STEPS // 2 else -1 if step == _STEPS // 2 + 1 else lock
                state = ((*at[:thread], step + 1, *at[thread + 1 :]), holder)
                if state not in seen:
                    seen.add(state)
                    found.append(state)
        frontier = found
    return len(seen) / (time.perf_counter() - began)
