"""Random walks beyond the scope that is searched."""

from __future__ import annotations

import pytest

from nexttouch.check.explorer import replay
from nexttouch.check.walks import THREADS, large_machine, walk
from nexttouch.model.designs import DESIGNS
from nexttouch.model.machine import Machine


@pytest.mark.parametrize("name", DESIGNS)
def test_no_walk_breaks_a_promise(name: str) -> None:
    for seed in range(150):
        gone = walk(large_machine(DESIGNS[name](), seed), seed)
        assert gone.violation is None or gone.violation.invariant in DESIGNS[name].refuted, gone


def test_walks_find_what_is_broken() -> None:
    """This one found the race before any scenario knew of it."""
    broken = [walk(large_machine(DESIGNS["A"]().with_rules(copies_locked=False), seed), seed) for seed in (59, 60)]
    assert broken[0].violation is not None
    assert broken[0].violation.invariant == "I-LOSTWRITE"
    assert broken[1].violation is None


def test_a_walk_can_be_taken_again() -> None:
    def machine() -> Machine:
        return large_machine(DESIGNS["A"]().with_rules(copies_locked=False), 59)

    first = walk(machine(), 59)
    assert first == walk(machine(), 59)
    assert replay(machine(), first.path)[-1].broken == first.violation


def test_scopes_are_larger_than_those_that_are_searched() -> None:
    machines = [large_machine(DESIGNS["B"](), seed) for seed in range(20)]
    assert {(len(machine.workers), machine.page.pages) for machine in machines} == {(THREADS, 3)}
    names = {operation.name for machine in machines for worker in machine.workers for operation in worker.script}
    assert names == {"load", "store", "migrate", "mark", "pin", "mprotect", "reclaim"}
