"""The fast explorer agrees with a plain one: on random models, and on designs, right and broken."""

from __future__ import annotations

import pytest
import reference
from handmade import random_models
from hypothesis import given
from hypothesis import strategies as st

from nexttouch.check import explorer
from nexttouch.check.explorer import Model, Result, explore, replay
from nexttouch.model.designs import DESIGNS
from nexttouch.model.scenarios import SCENARIOS
from nexttouch.model.violation import Violation

MOST = 2_000
ANY_CYCLE = "I-PROGRESS"
INVARIANTS = st.sampled_from(["I-STEP", "I-COMPLAINT", "I-STATE", "I-END", "I-DEADLOCK", "I-PROGRESS"])
UNWORDED = {"I-DEADLOCK", "I-PROGRESS"}  # which cycle, and whom to name first, is the explorer's choice


def agree(result: Result, found: reference.Found) -> None:
    """All is the same that a search to its end finds out."""
    assert result.complete
    assert (result.states, result.transitions, result.depth) == (found.states, found.transitions, found.depth)
    assert (result.ends, result.shared) == (found.ends, found.shared)


def same_violation(one: Violation | None, other: Violation | None) -> bool:
    if one and other and one.invariant in UNWORDED:
        return one.invariant == other.invariant
    return one == other


def nothing(_: Violation) -> bool:
    return False


def agree_on_all(model: Model) -> None:
    """Compare the search that stops at nothing, and the one that stops at the first violation."""
    result, found = explore(model, only=nothing), reference.explore(model, only=nothing)
    agree(result, found)
    assert result.violation is None
    assert result.passed_over.keys() == found.passed_over.keys()
    assert all(same_violation(result.passed_over[name], found.passed_over[name]) for name in found.passed_over)
    agree_on_the_verdict(model)


def agree_on_one(model: Model, invariant: str) -> None:
    """Compare the searches that stop at one invariant and pass over the others."""

    def only(violation: Violation) -> bool:
        return violation.invariant == invariant

    result, found = explore(model, only=only), reference.explore(model, only=only)
    assert same_violation(result.violation, found.violation)
    assert result.passed_over.keys() == found.passed_over.keys()
    if result.violation and invariant not in UNWORDED:
        assert len(result.path) == found.steps


def agree_on_the_verdict(model: Model) -> Violation | None:
    result, found = explore(model), reference.explore(model)
    assert same_violation(result.violation, found.violation)
    assert result.passed == (found.violation is None)
    if found.violation is None:
        agree(result, found)
    elif found.violation.invariant != ANY_CYCLE:
        assert len(result.path) == found.steps
        steps = replay(model, result.path)
        if steps and found.violation.invariant not in UNWORDED:
            assert steps[-1].broken == found.violation
    return found.violation


@given(random_models())
def test_random_models(model: Model) -> None:
    agree_on_all(model)


@given(random_models(loops=False))
def test_random_models_without_cycles(model: Model) -> None:
    agree_on_all(model)


@given(random_models(), INVARIANTS)
def test_random_models_searched_for_one_invariant(model: Model, invariant: str) -> None:
    agree_on_one(model, invariant)


PASSING = [
    ("D1", "alone", "private"),
    ("D1", "exec", "anonymous"),
    ("D3", "lazy-access", "shared"),
    ("D2", "mremap", "shared"),
    ("D2", "full", "anonymous"),
    ("D3", "lazy-mremap", "anonymous"),
    ("A", "lazy-munmap", "anonymous"),
    ("D4", "last-exit", "anonymous"),
    ("D4", "mremap", "shared"),
    ("B", "exec", "anonymous"),
    ("B", "last-exit", "shared"),
    ("B-F1", "pin-alone", "shared"),
    ("mainline", "mremap", "anonymous"),
    ("mainline", "mprotect", "shared"),
]

BROKEN = [
    ("D1", "flushes_first", False, "last-exit", "anonymous", "I-TLB"),
    ("D1", "counts_atomically", False, "last-exit", "anonymous", "I-SWAP"),
    ("D1", "knows_locked", False, "last-exit", "anonymous", "I-DEADLOCK"),
    ("D2", "walks_back", True, "last-exit", "anonymous", "I-CACHE"),
    ("A", "minds_pending_flush", False, "lazy-access", "anonymous", "I-LOSTWRITE"),
    ("D4", "waiter_locks_table", False, "last-exit", "anonymous", "I-UAF"),
    ("D4", "waiter_sleeps", False, "last-exit", "anonymous", "I-PROGRESS"),
    ("D4", "skips_unfinished_stack", False, "exec", "anonymous", "I-COMPLETE"),
    ("B", "understands_valid", False, "fork", "shared", "I-MAP"),
    ("mainline", "keeps_bits", False, "alone", "anonymous", "I-ACC"),
    ("mainline", "counts_rss", False, "fork", "shared", "I-RSS"),
]


@pytest.mark.parametrize(("design", "scenario", "kind"), PASSING)
def test_designs_that_pass(design: str, scenario: str, kind: str) -> None:
    machine = SCENARIOS[scenario].machine(DESIGNS[design](), kind)
    assert agree_on_the_verdict(machine) is None
    assert explore(machine).states < MOST


@pytest.mark.parametrize(("design", "rule", "value", "scenario", "kind", "invariant"), BROKEN)
def test_designs_with_a_rule_broken(
    design: str, rule: str, value: bool, scenario: str, kind: str, invariant: str
) -> None:
    machine = SCENARIOS[scenario].machine(DESIGNS[design]().with_rules(**{rule: value}), kind)
    violation = agree_on_the_verdict(machine)
    assert violation is not None
    assert violation.invariant == invariant


def test_the_comparison_finds_an_explorer_that_forgets_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken on purpose: locals are told apart by too few bits, so that states fall together."""
    monkeypatch.setattr(explorer, "_BITS", 2)
    monkeypatch.setattr(explorer, "_MASK", 3)
    machine = SCENARIOS["access"].machine(DESIGNS["B"](), "anonymous")
    with pytest.raises((AssertionError, OverflowError)):
        agree_on_the_verdict(machine)
