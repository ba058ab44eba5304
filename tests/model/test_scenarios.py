"""Scenarios: what they are made of, and that each design keeps its promises as far as a short search can see.

The searches to the end are those of tests/check/test_suite.py; here is every case, also those that it leaves out, as
deep as some states allow.
"""

from __future__ import annotations

import pytest

from nexttouch.check.explorer import Result, explore
from nexttouch.model import migrate
from nexttouch.model.design import Design
from nexttouch.model.designs import DESIGNS
from nexttouch.model.machine import OPERATIONS, Machine
from nexttouch.model.scenarios import KINDS, SCENARIOS, Scenario, cases
from nexttouch.model.thread import Thread
from nexttouch.model.violation import Violation
from nexttouch.model.vm import VM

MOST = 1_500
each_design = pytest.mark.parametrize("name", DESIGNS)
each_scenario = pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)


def search(design: Design, scenario: Scenario, kind: str, *, most: int = MOST) -> Result:
    def claimed(violation: Violation) -> bool:
        return violation.invariant not in design.weaknesses

    return explore(scenario.machine(design, kind), most_states=most, only=claimed)


# ---- every design in every scenario ----


@each_design
def test_a_design_keeps_its_promises_or_is_known_not_to(name: str) -> None:
    """A search that is complete has come upon what the scenario is about."""
    design = DESIGNS[name]()
    complete = 0
    for scenario, kind in cases(design):
        result = search(design, scenario, kind)
        if result.violation:
            assert result.violation.invariant in design.refuted, (scenario.name, kind, result.violation)
        elif result.complete:
            complete += 1
            assert result.marks >= set(scenario.sometimes), (scenario.name, kind)
    assert complete >= 6


def test_a_broken_copy_would_be_noticed_wherever_a_page_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken on purpose: the second word of a page is not copied."""
    whole = migrate._copy_word

    def copy_word(vm: VM, thread: Thread) -> None:
        whole(vm, thread)
        vm.change(thread.new, words=(vm.frames[thread.new].words[0], 0))

    monkeypatch.setattr(migrate, "_copy_word", copy_word)
    design = DESIGNS["B"]()
    moving = [(scenario, kind) for scenario, kind in cases(design) if "migrate: moved" in scenario.sometimes]
    for scenario, kind in moving:
        violation = search(design, scenario, kind, most=20_000).violation
        assert violation is not None, (scenario.name, kind)
        assert violation.invariant in ("I-LOSTWRITE", "I-STALE")


# ---- what scenarios are made of ----


@each_scenario
def test_a_scenario_is_whole(scenario: Scenario) -> None:
    assert SCENARIOS[scenario.name] is scenario
    assert scenario.sentence
    assert scenario.kinds
    assert set(scenario.kinds) <= set(KINDS)
    assert list(scenario.kinds) == sorted(scenario.kinds, key=KINDS.index)
    assert scenario.mappers + scenario.unmapped <= scenario.spaces
    for worker in scenario.workers:
        assert worker.script
        assert worker.mm < scenario.spaces
        assert worker.node < len(scenario.frames)
        for operation in worker.script:
            assert operation.name in OPERATIONS
            assert operation.va < scenario.addresses
            assert operation.mm < scenario.spaces
            if operation.name in ("mremap", "exec"):
                assert operation.value in range(scenario.addresses)


def values(scenario: Scenario) -> list[int | None]:
    names = ("store", "write", "pin")
    return [one.value for worker in scenario.workers for one in worker.script if one.name in names]


@each_scenario
def test_what_is_stored_can_be_told_apart(scenario: Scenario) -> None:
    """From what else is stored, and from what the page has in the beginning."""
    stored = values(scenario)
    assert len(set(stored)) == len(stored)
    assert not {0, 1, 2, None} & set(stored)


@each_scenario
def test_some_design_can_do_it(scenario: Scenario) -> None:
    assert any(scenario.applies(design()) for design in DESIGNS.values())


@each_scenario
def test_the_machine_of_a_scenario(scenario: Scenario) -> None:
    design = next(design for make in DESIGNS.values() if scenario.applies(design := make()))
    for kind in scenario.kinds:
        machine = scenario.machine(design, kind)
        shared, locals_ = machine.initial()
        vm = machine.vm(shared)
        assert len(locals_) == len(machine.workers) == 1 + len(scenario.workers)
        assert machine.workers[1:] == scenario.workers
        assert machine.workers[0].mm == 0
        assert [frame.node for frame in vm.frames] == [
            node for node, number in enumerate(scenario.frames) for _ in range(number)
        ]
        assert len(vm.tables) == scenario.spaces
        assert vm.mappings(0) == [(mm, 0) for mm in range(scenario.mappers)]
        assert machine.broken(shared) is None
        assert not any(machine.ended(thread, local) for thread, local in enumerate(locals_))


def operations(machine: Machine) -> set[str]:
    return {operation.name for worker in machine.workers for operation in worker.script}


@each_scenario
def test_designs_get_what_they_can_do(scenario: Scenario) -> None:
    for make in DESIGNS.values():
        design = make()
        does = operations(scenario.machine(design, scenario.kinds[0]))
        can = (design.eager or "migrate" not in does) and (design.lazy or "mark" not in does)
        if "reclaim" not in does:
            assert scenario.applies(design) == can
        elif scenario.applies(design):
            assert can


def test_every_operation_is_in_some_scenario() -> None:
    done = {operation for scenario in SCENARIOS.values() for operation in operations(a_machine(scenario))}
    assert done == set(OPERATIONS)


def a_machine(scenario: Scenario) -> Machine:
    return scenario.machine(DESIGNS["B"](), scenario.kinds[0])


@each_design
def test_cases_are_the_scenarios_that_apply_with_each_kind(name: str) -> None:
    design = DESIGNS[name]()
    found = [(scenario.name, kind) for scenario, kind in cases(design)]
    assert len(set(found)) == len(found)
    assert set(found) == {
        (scenario.name, kind)
        for scenario in SCENARIOS.values()
        if scenario.applies(design)
        for kind in scenario.kinds
        if kind in design.kinds
    }
    assert {"alone", "access"} & {scenario for scenario, _ in found} or not design.eager


def test_system_calls_overlap_with_every_migration() -> None:
    """Under mmap_sem they could not, and a design would pass whatever it makes of them."""
    for make in DESIGNS.values():
        for scenario in filter(lambda scenario: scenario.outside, SCENARIOS.values()):
            machine = scenario.machine(make(), scenario.kinds[0])
            assert machine.design.rules.anon_vma_safe != "mmap_sem"
    assert {"fork", "munmap", "mprotect", "mremap"} <= {name for name, one in SCENARIOS.items() if one.outside}
    assert SCENARIOS["access"].machine(DESIGNS["D4"](), "shared").design.rules.anon_vma_safe == "mmap_sem"


def test_a_migration_has_to_succeed_only_where_it_is_free_to() -> None:
    """Private pages of a file may be copied meanwhile, and then the page is another one."""
    free = {scenario.name for scenario in SCENARIOS.values() if scenario.free}
    assert free == {"alone", "access"}
    for name in free:
        machines = {kind: SCENARIOS[name].machine(DESIGNS["B"](), kind) for kind in KINDS}
        assert {kind for kind, machine in machines.items() if machine.free} == {"anonymous", "shared"}
