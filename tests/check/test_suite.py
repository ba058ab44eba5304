"""Every design in every scenario: verdicts, numbers of states, and that no race is claimed without being entered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nexttouch.check.explorer import explore
from nexttouch.check.subjects import SUBJECTS, sometimes_of
from nexttouch.check.suite import Case, all_cases, check_case, run_all
from nexttouch.errors import InvalidArgument
from nexttouch.model.designs import DESIGNS
from nexttouch.model.engine.programs import PROGRAMS
from nexttouch.model.scenarios import SCENARIOS

# States, transitions and depth. They change when a step is split or joined, and then each change has to be understood.
PINNED = {
    Case("D4", "access", "anonymous"): (5852, 12548, 39),
    Case("D4", "mappers", "anonymous"): (58369, 150685, 56),
    Case("B", "access", "shared"): (898, 1994, 25),
    Case("B", "late", "shared"): (4484, 10031, 43),
    Case("B", "lazy-nodes", "anonymous"): (2336, 5453, 30),
    Case("B-F1", "late", "shared"): (3758, 8686, 39),
    Case("A", "lazy-again", "anonymous"): (1150, 2479, 28),
    Case("D1", "access", "anonymous"): (8160, 18701, 45),
    Case("D2", "last-exit", "anonymous"): (261, 400, 35),
    Case("D3", "lazy-access", "anonymous"): (651, 1170, 24),
    Case("mainline", "lazy-access", "shared"): (3419, 7873, 28),
    Case("mainline", "munmap", "anonymous"): (1174, 2314, 34),
}

REFUTED = {
    **{Case("D4-V1", scenario, "anonymous"): "I-LOSTWRITE" for scenario in ("access", "munmap", "mprotect")},
    **{
        Case("relocate-one", program, "anonymous"): "E-BYTES"
        for program in ("move-late", "move-unknown", "unmap-late", "unmap-in-vain-move")
    },
    **{
        Case("relocate-0.1", program, "anonymous"): "E-STATE" if program == "write-and-move" else "E-BYTES"
        for program in PROGRAMS
        if program not in ("move-onto", "move-and-unmap", "unmap", "unmap-armed", "move-both", "discard-late")
    },
}


@pytest.mark.parametrize("case", PINNED, ids="-".join)
def test_numbers_of_states(case: Case) -> None:
    verdict = check_case(case)
    assert verdict.verdict == "passes"
    assert (verdict.states, verdict.transitions, verdict.depth) == PINNED[case]


def test_all_that_is_quick_is_as_it_should_be() -> None:
    verdicts = list(run_all(check_case, all_cases(quick=True)))
    assert [verdict for verdict in verdicts if not verdict.good] == []
    refuted = {verdict.case: verdict.violation.invariant for verdict in verdicts if verdict.violation}
    assert refuted == REFUTED  # V2 needs a case that is not quick
    entered = {verdict.case.scenario for verdict in verdicts}
    assert entered == {*SCENARIOS, *PROGRAMS} - {"move-both", "discard-late", "unmap-armed"}


def test_what_is_refuted_is_found() -> None:
    for name, design in DESIGNS.items():
        for invariant in design.refuted:
            verdict = check_case(Case(name, "pin", "anonymous"))
            assert (verdict.verdict, verdict.violation and verdict.violation.invariant) == ("refuted", invariant)


def test_a_search_that_is_cut_short_passes_nothing() -> None:
    verdict = check_case(Case("B", "access", "shared"), most_states=100)
    assert verdict.verdict == "INCOMPLETE"
    assert not verdict.good


def test_a_race_that_is_not_entered_is_no_proof() -> None:
    """A migration that always finds the page taken off the LRU by somebody else would pass everything."""
    scenario = SCENARIOS["alone"]
    machine = scenario.machine(DESIGNS["D4"](), "anonymous")
    explore(machine)
    assert set(scenario.sometimes) <= machine.marks
    full = replace(scenario, frames=(3, 0)).machine(DESIGNS["D4"](), "anonymous")
    assert explore(full).passed
    assert not set(scenario.sometimes) <= full.marks


def test_a_broken_rule_is_broken() -> None:
    rules = {"counts_entries": False, "missing_locks_page": False}
    verdict = check_case(Case("B", "late", "shared"), rules=rules)
    assert (verdict.verdict, verdict.violation and verdict.violation.invariant) == ("BROKEN", "I-TLB")
    assert verdict.to_dict()["path"] == ",".join(map(str, verdict.path))


def test_the_live_engine_is_checked_like_a_design() -> None:
    verdict = check_case(Case("relocate", "move-two", "anonymous"))
    assert (verdict.verdict, verdict.states, verdict.missing) == ("passes", 5750, ())
    broken = check_case(Case("relocate", "move-two", "anonymous"), rules={"closes": False, "last_copy": False})
    assert (broken.verdict, broken.violation and broken.violation.invariant) == ("passes", None)
    with pytest.raises(InvalidArgument, match="--arch does not go with relocate"):
        check_case(Case("relocate", "move-two", "anonymous"), arch="arm64")


def test_costs_are_told() -> None:
    costs = check_case(Case("D4", "access", "anonymous")).costs
    assert "an accessed bit is lost" in costs
    assert "a migration gives up" in costs
    assert check_case(Case("B", "access", "anonymous")).costs == ()


def test_quick_is_a_part() -> None:
    assert set(all_cases(quick=True)) < set(all_cases())
    assert {case.design for case in all_cases(quick=True)} == set(SUBJECTS)


def test_every_scenario_says_what_has_to_be_come_upon() -> None:
    assert [name for name in (*SCENARIOS, *PROGRAMS) if not sometimes_of(name)] == []
