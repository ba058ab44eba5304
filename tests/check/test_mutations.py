"""The catalogue of races: every promise can be broken, and every broken rule is found."""

from __future__ import annotations

import pytest

from nexttouch.check.counterexample import trace
from nexttouch.check.explorer import explore
from nexttouch.check.mutations import INEXPRESSIBLE, MUTATIONS
from nexttouch.check.mutations_of_engine import MUTATIONS_OF_ENGINE
from nexttouch.check.subjects import PROMISES, SUBJECTS, machine_of, places_of
from nexttouch.check.suite import check_mutation
from nexttouch.model.design import Rules
from nexttouch.model.engine.rules import Rules as RulesOfEngine

LARGE = {"T08", "T18", "T21-leak", "T21-count", "swap-count"}  # fixed designs with tens of thousands of states
STEPS = {
    "T01": 18,
    "T05": 23,
    "T26": 16,
    "T27": 21,
    "A-again": 20,
    "A-flush": 12,
    "batch-flush": 13,
    "T31": 32,
    "B-H6": 19,
    "E-each": 21,
    "E-sum": 24,
    "E-vain": 8,
}
"""Lengths of shortest paths."""


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_race_is_found_and_not_in_the_design_itself(name: str) -> None:
    mutation = MUTATIONS[name]
    if name in LARGE:
        machine = machine_of(mutation.broken_design, mutation.scenario, mutation.kind)
        result = explore(machine, only=lambda violation: violation.invariant == mutation.breaks)
        violation, path = result.violation, tuple(result.path)
    else:
        verdict = check_mutation(name)
        assert verdict.good, verdict
        violation, path = verdict.violation, verdict.path
    assert violation is not None
    assert violation.invariant == mutation.breaks
    assert len(path) == STEPS.get(name, len(path))
    shown = trace(machine_of(mutation.broken_design, mutation.scenario, mutation.kind), path, name)
    assert len(shown.steps) == len(path)
    if violation.invariant not in ("I-DEADLOCK", "I-PROGRESS"):  # which no single step breaks
        assert shown.violation is not None


def test_every_promise_is_broken_by_a_mutation() -> None:
    assert {mutation.breaks for mutation in MUTATIONS.values()} == set(PROMISES)


def test_names_are_names() -> None:
    for mutation in MUTATIONS.values():
        assert mutation.design in SUBJECTS
        rules = RulesOfEngine if mutation in MUTATIONS_OF_ENGINE else Rules
        assert set(mutation.broken) | set(mutation.context) <= set(rules.__slots__)
        assert (mutation.scenario, mutation.kind) in places_of(mutation.broken_design)
    assert not set(MUTATIONS) & set(INEXPRESSIBLE)


CATALOGUE = [f"T{number:02}" for number in range(1, 42) if number not in (14, 28, 34, 36)]
"""The races that docs/designs.md names: of history, or derived from it."""


def test_every_race_of_the_catalogue_is_a_mutation_or_has_a_reason() -> None:
    known = {name.split("-")[0] if name.startswith("T") else name for name in (*MUTATIONS, *INEXPRESSIBLE)}
    assert set(CATALOGUE) <= known
    assert {f"B-H{number}" for number in range(1, 16) if number != 7} <= known


def test_every_rule_matters() -> None:
    """A rule that nothing breaks would prove nothing."""
    broken = {rule for mutation in MUTATIONS.values() for rule in mutation.broken}
    assert set(RulesOfEngine.__slots__) - broken == set()
    told_otherwise = {"switches_first", "missing_locks_page"}  # ways, not rules: both are right
    assert set(Rules.__slots__) - broken - told_otherwise == set()
