"""The machine: the protocol that the explorer asks for, the same again each time, on every architecture."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import LOAD, MIGRATE, STORE, Run, machine

from nexttouch.check.explorer import Result, explore
from nexttouch.model.arch import ARCHES, Unrepresentable
from nexttouch.model.designs import DESIGNS
from nexttouch.model.entry import NOTHING, Entry, Kind
from nexttouch.model.machine import OPERATIONS, Machine, Worker
from nexttouch.model.move import Move
from nexttouch.model.scenarios import SCENARIOS, cases
from nexttouch.model.thread import Operation, Thread
from nexttouch.model.violation import Violation
from nexttouch.model.vm import ACTIVE, ANON, DIRTY, FILE, FREE, LRU, NO_FRAME, REFERENCED, UPTODATE, VM, Translation

CASES = [
    ("D1", "last-exit", "anonymous"),
    ("D2", "mremap", "shared"),
    ("D3", "lazy-munmap", "anonymous"),
    ("D4", "exec", "anonymous"),
    ("D4", "mremap", "shared"),
    ("A", "lazy-mprotect", "shared"),
]
HIDING = [("B", "access", "anonymous"), ("B", "lazy-mremap", "private"), ("B-F1", "last-exit", "shared")]


def numbers(result: Result) -> Result:
    return replace(result, seconds=0)


def searched(design: str, scenario: str, kind: str, arch: str = "x86-64") -> Result:
    return numbers(explore(SCENARIOS[scenario].machine(DESIGNS[design](), kind, ARCHES[arch])))


# ---- again ----


@pytest.mark.parametrize("case", [*CASES, *HIDING], ids="-".join)
def test_two_searches_are_the_same(case: tuple[str, str, str]) -> None:
    first = searched(*case)
    assert first.complete
    assert searched(*case) == first


ALL_CASES = [(name, scenario.name, kind) for name, design in DESIGNS.items() for scenario, kind in cases(design())]


@given(st.sampled_from(ALL_CASES), st.integers(0, 2**32))
def test_a_step_depends_on_the_state_alone(case: tuple[str, str, str], seed: int) -> None:
    """Asked twice, asked of another machine, asked in any order: the answers are equal and change nothing."""
    ask_twice(*case, seed)


def test_a_step_that_remembers_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken on purpose: frames are taken in turn, which is nowhere in the state."""
    turn = iter(range(1 << 30))

    def allocate(self: VM, node: int) -> int:
        free = [number for number, frame in enumerate(self.frames) if frame.flags & FREE and frame.node == node]
        number = free[next(turn) % len(free)]
        self.frames[number] = self.frames[number]._replace(refs=1, held=1, flags=0)
        return number

    monkeypatch.setattr(VM, "allocate", allocate)
    with pytest.raises(AssertionError):
        ask_twice("D4", "alone", "anonymous", 1)


def ask_twice(design: str, scenario: str, kind: str, seed: int) -> None:
    one, other = (SCENARIOS[scenario].machine(DESIGNS[design](), kind) for _ in range(2))
    chances = random.Random(seed)
    shared, locals_ = one.initial()
    assert other.initial() == (shared, locals_)
    for _ in range(40):
        before = hash((shared, locals_))
        able = []
        for thread, local in chances.sample(list(enumerate(locals_)), len(locals_)):
            moves = one.moves(shared, thread, local)
            again = other.moves(shared, thread, local)
            assert [(move.name, move.shared, move.broken, move.fatal) for move in moves] == [
                (move.name, move.shared, move.broken, move.fatal) for move in again
            ]
            assert list(one.moves(shared, thread, local)) == list(moves)
            able += [(thread, move) for move in moves]
        assert hash((shared, locals_)) == before
        if not able:
            break
        thread, move = chances.choice(able)
        shared, locals_ = move.shared, (*locals_[:thread], move.local, *locals_[thread + 1 :])


PROGRAM = """
from nexttouch.check.explorer import explore
from nexttouch.model.designs import DESIGNS
from nexttouch.model.move import Move
from nexttouch.model.scenarios import SCENARIOS
for design, scenario, kind, rules in (
    ("D1", "mremap", "shared", {}),
    ("A", "lazy-access", "anonymous", {"minds_pending_flush": False}),
):
    result = explore(SCENARIOS[scenario].machine(DESIGNS[design]().with_rules(**rules), kind))
    print(result.states, result.transitions, result.depth, sorted(result.marks), result.violation, result.path)
"""


def test_another_interpreter_finds_the_same_in_the_same_order() -> None:
    """Whatever its hashes are: the path to a violation is the first of several that are equally short."""
    outputs = set()
    for seed in ("0", "1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, check=True)
        outputs.add(done.stdout)
    (output,) = outputs
    assert b"I-LOSTWRITE" in output
    assert len(output.splitlines()) == 2


# ---- architectures ----

NO_HIDING = {"ppc64-2006"}
OF_NOW = {"x86-64", "arm64", "ia64", "ppc64"}


def same_numbers(result: Result, other: Result) -> bool:
    return numbers(result) == numbers(other)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_architecture_does_not_change_what_is_found(case: tuple[str, str, str], arch: str) -> None:
    """These designs need nothing of it that not all have."""
    result = searched(*case, arch)
    assert result == searched(*case)
    assert result.complete


@pytest.mark.parametrize("arch", [name for name in ARCHES if name not in NO_HIDING])
@pytest.mark.parametrize("case", HIDING, ids="-".join)
def test_the_email_s_design_works_wherever_entries_can_be_hidden(case: tuple[str, str, str], arch: str) -> None:
    result = searched(*case, arch)
    assert result == searched(*case)
    assert result.passed


@pytest.mark.parametrize("case", HIDING, ids="-".join)
def test_powerpc_of_2006_cannot_do_the_email_s_design(case: tuple[str, str, str]) -> None:
    with pytest.raises(Unrepresentable) as caught:
        searched(*case, "ppc64-2006")
    assert (caught.value.arch, caught.value.kind) == ("ppc64-2006", Kind.VALID_NONPRESENT)


@pytest.mark.parametrize("arch", ARCHES)
def test_migration_entries_keep_the_bits_only_where_there_is_room_for_them(arch: str) -> None:
    case = ("mainline", "mremap", "anonymous")
    if arch in OF_NOW:
        assert searched(*case, arch) == searched(*case)
    else:
        with pytest.raises(Unrepresentable) as caught:
            searched(*case, arch)
        assert (caught.value.arch, caught.value.kind) == (arch, Kind.MIGRATION)


def test_the_words_are_the_architecture_s() -> None:
    """Else all of this would compare one architecture with itself."""
    words = {
        arch.name: SCENARIOS["alone"].machine(DESIGNS["D4"](), "anonymous", arch).initial()[0][1][0][0]
        for arch in ARCHES.values()
    }
    assert len(set(words.values())) >= 5
    assert words["x86-64"] == 1 << 63 | 0x67  # frame 0; not executable, dirty, accessed, user's, writable, present


# ---- the start ----


@pytest.mark.parametrize(
    ("kind", "mapping", "refs", "write"),
    [
        ("anonymous", ANON, 1, True),
        ("private", FILE, 2, False),
        ("shared", FILE, 2, True),
    ],
)
def test_the_page_at_the_start(kind: str, mapping: int, refs: int, write: bool) -> None:
    one = Run(machine(kind=kind, spaces=2))
    vm = one.vm
    frame = vm.frames[0]
    assert (frame.refs, frame.maps, frame.held, frame.locked_by) == (refs, 1, 0, 0)
    assert (frame.mapping, frame.node, frame.words) == (mapping, 0, (1, 2))
    assert frame.flags == UPTODATE | LRU | ACTIVE | REFERENCED
    assert all(other.flags == FREE for other in vm.frames[1:])
    assert vm.entry(0, 0) == Entry(Kind.PRESENT, 0, write, accessed=True)
    assert vm.entry(1, 0) == NOTHING
    assert vm.page_cache == (NO_FRAME if kind == "anonymous" else 0)
    assert (vm.rss, vm.alive) == ([1, 0], [True, False])


def test_a_page_that_several_map_is_not_writable_unless_it_is_shared() -> None:
    for kind, write in (("anonymous", False), ("private", False), ("shared", True)):
        vm = Run(machine(kind=kind, mappers=2, spaces=2)).vm
        assert [vm.entry(mm, 0).write for mm in (0, 1)] == [write, write]
        assert vm.frames[0].maps == 2


@pytest.mark.parametrize(("kind", "dirty_entry"), [("anonymous", True), ("private", False), ("shared", True)])
def test_a_dirty_page(kind: str, dirty_entry: bool) -> None:
    vm = Run(machine(kind=kind, dirty=True)).vm
    assert vm.has(0, DIRTY)
    assert vm.entry(0, 0).dirty == dirty_entry
    assert vm.dirtied == (kind != "anonymous")


def test_frames_are_on_their_nodes() -> None:
    assert [frame.node for frame in Run(machine(frames=(2, 0, 3))).vm.frames] == [0, 0, 2, 2, 2]


# ---- threads ----


def test_a_thread_ends_with_its_script() -> None:
    one = Run(machine(Worker((LOAD, STORE))))
    assert not one.machine.ended(0, one.locals[0])
    assert one.finish() == ("done", "done")
    assert one.machine.ended(0, one.locals[0])
    assert one.waits()
    assert one.locals[0][1] == ()


def test_a_thread_without_a_script_has_ended() -> None:
    one = machine(Worker(()))
    assert one.ended(0, one.initial()[1][0])
    assert explore(one).states == 1


def test_what_a_thread_knows_is_forgotten_between_operations() -> None:
    """States that differ in nothing but what is of no use any more are the same."""
    one = Run(machine(Worker((MIGRATE, MIGRATE), node=0), design="D4"))
    while not one.thread().results:
        one.step()
    assert one.locals[0] == (1, (), ("moved",), Thread.beginning()[3])


def test_a_child_does_nothing_before_it_is_forked() -> None:
    one = Run(machine(Worker((Operation("fork", mm=1),)), Worker((LOAD,), mm=1), spaces=2))
    assert one.waits(1)
    assert one.finish(0) == ("done",)
    assert not one.waits(1)
    assert one.finish(1) == ("done",)


def test_an_address_space_that_has_the_area_only_is_no_child() -> None:
    one = Run(machine(Worker((LOAD,)), Worker((LOAD,), mm=1), kind="shared", spaces=2, unmapped=1))
    assert one.finish(1) == ("done",)
    assert one.vm.rss == [1, 1]


def test_a_step_that_breaks_a_promise_changes_nothing() -> None:
    one = Run(machine(Worker((LOAD,))))
    one.change(lambda vm: vm.set_translation(0, 0, Translation(1, write=True, dirty=True)))
    (move,) = one.machine.moves(one.shared, 0, one.locals[0])
    assert move.fatal
    assert (move.shared, move.local) == (one.shared, one.locals[0])


def test_a_step_that_complains_goes_on() -> None:
    """A copy while somebody can still store to the page: what comes of it is seen later."""
    one = Run(machine(Worker((MIGRATE,), node=0), Worker((STORE,)), design="D4"))
    one.machine.design = one.machine.design.with_rules(flushes_first=False)
    one.step(1)
    for _ in range(20):
        one.step(0)
        if one.broken:
            break
    assert one.broken == Violation("I-TLB", "a page is copied while CPU 1 can still store to it through its TLB")
    assert one.vm.frames[one.thread(0).new].words == (1, 0)
    assert not one.waits(0)


def test_waiting_leaves_no_trace() -> None:
    """Neither marks nor events: else they would tell of searches, not of states."""
    one = Run(machine(Worker((MIGRATE,), node=0), Worker((MIGRATE,), node=0), design="D4"))
    one.step(0, 2)
    before = one.shared
    marks = set(one.machine.marks)
    one.change(lambda vm: vm.sems.__setitem__(0, -5))
    assert one.waits(1)
    assert one.machine.marks == marks
    assert before == one.machine.vm(before).frozen()


# ---- names ----


def names_of(design: str, *operations: Operation, kind: str = "anonymous", **page: Any) -> list[str]:
    one = Run(machine(Worker(operations, node=0), design=design, kind=kind, **page))
    one.finish()
    return one.names


def test_the_steps_of_a_migration() -> None:
    assert names_of("D4", MIGRATE) == [
        "migrate",
        "migrate: lock",
        "migrate: begin",
        "migrate: conceal entries",
        "migrate: conceal",
        "migrate: conceal",
        "migrate: after walk 1",
        "migrate: copy word",
        "migrate: copy word",
        "migrate: move flags",
        "migrate: reveal entries",
        "migrate: reveal",
        "migrate: reveal",
        "migrate: check walk 2",
        "migrate: unlock",
        "migrate: put back",
    ]


def test_the_steps_of_other_operations() -> None:
    assert names_of("B", LOAD, STORE) == ["load", "load", "store", "store"]
    assert names_of("B", Operation("mark")) == ["mark", "mark: mark entry", "mark: mark entry", "mark: finish"]
    assert names_of("D1", Operation("munmap")) == [
        "munmap",
        "munmap: zap next",
        "munmap: release zapped",
        "munmap: zap next",
    ]
    assert names_of("B", Operation("pin", value=11))[0] == "pin"


@dataclass
class Named:
    """A machine that takes down the names of its steps."""

    machine: Machine
    names: set[str]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.machine, name)

    def moves(self, shared: Any, thread: int, local: Any) -> Sequence[Move]:
        moves = self.machine.moves(shared, thread, local)
        self.names.update(move.name for move in moves)
        return moves


def test_every_step_there_is_has_a_name_of_words() -> None:
    """Of every search: the operation, and what its step does."""
    found: set[str] = set()
    for design, scenario, kind in [*CASES, *HIDING]:
        one = SCENARIOS[scenario].machine(DESIGNS[design](), kind)
        explore(Named(one, found))
    for name in found:
        operation, _, what = name.partition(": ")
        assert operation in OPERATIONS
        assert what == what.strip()
        assert what.replace(" ", "").isalnum() or not what
        assert "lambda" not in name
    assert {"load", "store", "migrate: lock", "munmap: flush tlb", "load: fault valid"} <= found


# ---- marks and promises ----


def test_marks_say_how_operations_ended() -> None:
    one = Run(machine(Worker((MIGRATE, LOAD), node=0), design="D4"))
    one.finish()
    assert {"migrate: moved", "load: done"} <= one.machine.marks
    assert "load while the page moves" not in one.machine.marks


def test_marks_say_what_began_while_the_page_was_locked() -> None:
    one = Run(machine(Worker((MIGRATE,), node=0), Worker((LOAD,)), design="D4"))
    one.step(0, 2)
    one.step(1)
    assert "load while the page moves" in one.machine.marks
    assert "migrate while the page moves" not in one.machine.marks  # its own lock


def test_a_free_migration_does_not_give_up() -> None:
    one = machine(Worker((MIGRATE,), node=0), design="mainline")
    shared, (local,) = one.initial()
    gave_up = (1, (), ("EAGAIN",), local[3])
    assert one.broken_end(shared, (gave_up,)) is None
    violation = replace(one, free=True).broken_end(shared, (gave_up,))
    assert violation is not None
    assert violation.invariant == "I-PROGRESS"


def test_giving_up_is_a_cost_where_the_design_says_so_and_going_round_is_not() -> None:
    one = replace(machine(Worker((MIGRATE,), node=0), design="D4"), free=True)
    shared, (local,) = one.initial()
    assert one.broken_end(shared, ((1, (), ("EAGAIN",), local[3]),)) is None
    assert {mark for mark in one.marks if mark.startswith("cost")} == {f"cost: {one.design.gives_up}"}
    busy = SCENARIOS["access"].machine(DESIGNS["D4"]().with_rules(waiter_sleeps=False), "anonymous")
    violation = explore(busy, only=lambda violation: violation.invariant not in busy.design.weaknesses).violation
    assert violation is not None
    assert violation.invariant == "I-PROGRESS"


LOST = [
    ("B", "anonymous", "write", "I-PROT"),
    ("B", "anonymous", "accessed", "I-ACC"),
    ("B", "anonymous", "dirty", "I-DIRTY"),
    ("mainline", "shared", "dirty", "I-DIRTY"),
    ("D4", "shared", "write", "I-PROT"),
    ("D4", "shared", "dirty", None),  # it is the page that is dirty, and D4 claims no more
    ("D1", "anonymous", "write", None),
]


@pytest.mark.parametrize(("design", "kind", "bit", "invariant"), LOST)
@pytest.mark.parametrize("result", ["moved", "EAGAIN"])
def test_what_a_design_claims_to_keep_is_compared(
    design: str, kind: str, bit: str, invariant: str | None, result: str
) -> None:
    """Nobody else is there, so a bit that an entry had is there afterwards, whatever the migration came to."""
    one = Run(machine(Worker((MIGRATE,), node=0), design=design, kind=kind, dirty=True))
    kept = {"write": True, "accessed": True, "dirty": True, bit: False}
    one.set_entry(Entry(Kind.PRESENT, 0, **kept))
    violation = one.machine.broken_end(one.shared, ((1, (), (result,), one.locals[0][3]),))
    expected = invariant and ("I-ROLLBACK" if result == "EAGAIN" else invariant)
    assert (violation.invariant if violation else None) == expected


def test_entries_of_files_stay_where_the_design_says_so() -> None:
    for design, invariant in (("D4", "I-MAPPING"), ("D1", None)):
        one = Run(machine(Worker((MIGRATE,), node=0), design=design, kind="shared"))
        one.set_entry(NOTHING)
        one.change(lambda vm: vm.unmap(0))
        one.change(lambda vm: vm.rss.__setitem__(0, 0))
        violation = one.machine.broken_end(one.shared, ((1, (), ("moved",), one.locals[0][3]),))
        assert (violation.invariant if violation else None) == invariant


def test_a_migration_leaves_no_entry_hidden_at_the_end_unless_somebody_marks() -> None:
    for script, broken in ((MIGRATE, "I-ROLLBACK"), (Operation("mark"), None)):
        one = Run(machine(Worker((script,), node=0)))
        one.set_entry(Entry(Kind.VALID_NONPRESENT, 0, write=True, accessed=True))
        violation = one.machine.broken_end(one.shared, tuple(one.locals))
        assert (violation.invariant if violation else None) == broken
