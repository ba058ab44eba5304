"""The engine's protocols in every program: numbers of states, shortest paths, and the kernel's part of the model."""

from __future__ import annotations

import pytest

from nexttouch.check.explorer import Choice, explore, replay
from nexttouch.errors import InvalidArgument
from nexttouch.model.engine.engines import ENGINES
from nexttouch.model.engine.machine import EngineMachine
from nexttouch.model.engine.program import Operation
from nexttouch.model.engine.programs import PROGRAMS
from nexttouch.model.engine.promises import PROMISES
from nexttouch.model.engine.rules import Rules, parse_rule
from nexttouch.model.engine.world import EMPTY, UNREGISTERED, Mapping, World

PASSES = {
    ("relocate", "move"): (1170, 2354, 35),
    ("relocate", "move-onto"): (481, 916, 23),
    ("relocate", "move-two"): (5750, 14372, 28),
    ("relocate", "move-late"): (14764, 36320, 35),
    ("relocate", "move-both"): (44579, 107120, 42),
    ("relocate", "move-unknown"): (2124, 4763, 24),
    ("relocate", "move-again"): (12332, 28726, 45),
    ("relocate", "move-armed"): (8205, 20460, 32),
    ("relocate", "move-and-unmap"): (3187, 6353, 31),
    ("relocate", "unmap"): (3171, 7243, 24),
    ("relocate", "unmap-late"): (10501, 23515, 31),
    ("relocate", "unmap-armed"): (15639, 43138, 30),
    ("relocate", "unmap-in-vain"): (609, 1658, 16),
    ("relocate", "unmap-in-vain-move"): (10533, 26142, 32),
    ("relocate", "discard-late"): (25016, 61041, 41),
    ("relocate", "write-and-move"): (4515, 11636, 30),
    ("relocate", "move-and-fork"): (10000, 23294, 29),
    ("relocate", "two-pagers"): (5972, 15192, 26),
    ("relocate-one", "move"): (294, 391, 31),
    ("relocate-one", "move-onto"): (110, 142, 19),
    ("relocate-one", "move-two"): (2100, 3913, 24),
    ("relocate-one", "move-again"): (2556, 4357, 42),
    ("relocate-one", "move-armed"): (2687, 4965, 26),
    ("relocate-one", "move-and-unmap"): (914, 1186, 27),
    ("relocate-one", "unmap"): (850, 1434, 22),
    ("relocate-one", "unmap-armed"): (3372, 6917, 26),
    ("relocate-one", "unmap-in-vain"): (183, 381, 12),
    ("relocate-one", "write-and-move"): (1315, 2517, 26),
    ("relocate-one", "move-and-fork"): (3939, 7545, 25),
    ("relocate-one", "two-pagers"): (4820, 12120, 26),
    ("relocate-0.1", "move-onto"): (161, 228, 21),
    ("relocate-0.1", "move-and-unmap"): (1138, 1703, 30),
    ("relocate-0.1", "unmap"): (1085, 2024, 22),
    ("relocate-0.1", "unmap-armed"): (3315, 7272, 26),
}
"""States, transitions and depth. They change when a step is split or joined; each change has to be understood."""

BREAKS = {
    ("relocate-one", "move-late"): (24, "E-BYTES", "the program reads 10 from b at 1, where it wrote 11"),
    ("relocate-one", "move-both"): (24, "E-BYTES", "the program reads 10 from b at 1, where it wrote 11"),
    ("relocate-one", "move-unknown"): (20, "E-BYTES", "in the end a at 3 has 0, not 10"),
    ("relocate-one", "unmap-late"): (21, "E-BYTES", "the program reads 10 from b at 1, where it wrote 11"),
    ("relocate-one", "unmap-in-vain-move"): (21, "E-BYTES", "the program reads 11 from a at 2, where it wrote 10"),
    ("relocate-one", "discard-late"): (29, "E-BYTES", "the program reads 11 from a at 2, where it wrote 0"),
    ("relocate-0.1", "move"): (28, "E-BYTES", "the program reads 0 from b at 2, where it wrote 11"),
    ("relocate-0.1", "move-two"): (17, "E-BYTES", "the program reads 10 from b at 2, where it wrote 11"),
    ("relocate-0.1", "move-late"): (20, "E-BYTES", "the program reads 10 from b at 0, where it wrote 11"),
    ("relocate-0.1", "move-both"): (20, "E-BYTES", "the program reads 10 from b at 0, where it wrote 11"),
    ("relocate-0.1", "move-unknown"): (24, "E-BYTES", "in the end a at 3 has 0, not 10"),
    ("relocate-0.1", "move-again"): (17, "E-BYTES", "the program reads 0 from b at 1, where it wrote 11"),
    ("relocate-0.1", "move-armed"): (21, "E-BYTES", "the program reads 10 from b at 2, where it wrote 11"),
    ("relocate-0.1", "unmap-late"): (21, "E-BYTES", "the program reads 10 from b at 1, where it wrote 11"),
    ("relocate-0.1", "unmap-in-vain"): (8, "E-BYTES", "the program reads 0 from a at 0, where it wrote 10"),
    ("relocate-0.1", "unmap-in-vain-move"): (13, "E-BYTES", "the program reads 0 from a at 2, where it wrote 10"),
    ("relocate-0.1", "discard-late"): (22, "E-BYTES", "the program reads 11 from a at 2, where it wrote 0"),
    ("relocate-0.1", "write-and-move"): (29, "E-STATE", "b is said to be stranded, and is mapped"),
    ("relocate-0.1", "move-and-fork"): (25, "E-BYTES", "the child reads 0 from b at 0, not 11"),
    ("relocate-0.1", "two-pagers"): (13, "E-BYTES", "the program reads 0 from b at 0, where it wrote 11"),
}
"""Steps of the shortest path, the promise, and what is seen."""


def machine_of(engine: str, program: str, **rules: bool) -> EngineMachine:
    return PROGRAMS[program].machine(ENGINES[engine].with_rules(**rules).rules)


@pytest.mark.parametrize(("engine", "program"), PASSES, ids="-".join)
def test_a_program_whose_words_are_kept(engine: str, program: str) -> None:
    machine = machine_of(engine, program)
    result = explore(machine)
    assert result.violation is None
    assert (result.states, result.transitions, result.depth) == PASSES[engine, program]
    assert set(PROGRAMS[program].sometimes) <= machine.marks


@pytest.mark.parametrize(("engine", "program"), BREAKS, ids="-".join)
def test_a_program_that_loses_a_word(engine: str, program: str) -> None:
    machine = machine_of(engine, program)
    result = explore(machine)
    assert result.violation
    assert (len(result.path), *result.violation) == BREAKS[engine, program]
    assert replay(machine, result.path)[-1].broken == result.violation
    assert result.violation.invariant in ENGINES[engine].refuted


def test_every_program_is_tried_under_every_protocol() -> None:
    assert PASSES.keys() | BREAKS.keys() == {(engine, program) for engine in ENGINES for program in PROGRAMS}
    assert [program for engine, program in BREAKS if engine == "relocate"] == []


def steps(engine: str, program: str) -> list[tuple[int, str]]:
    machine = machine_of(engine, program)
    return [(step.choice.thread, step.name) for step in replay(machine, explore(machine).path)]


def test_an_unmapping_that_fails() -> None:
    """The kernel has told of it, the pager gives the page up, and the next touch gets the zero page."""
    assert steps("relocate-0.1", "unmap-in-vain") == [
        (0, "unmap in vain a"),
        (0, "unmap in vain a: tell UNMAP 0"),
        (2, "read UNMAP 0"),
        (0, "unmap in vain a: go on"),
        (0, "read a"),
        (2, "read: nothing"),
        (2, "serve 0"),
        (0, "read a"),
    ]


def test_a_stale_address_is_unregistered() -> None:
    """One thread: its first mapping went by address 2, and its second one has come there when that is unregistered."""
    path = steps("relocate-0.1", "move")
    assert path[14:20] == [
        (1, "read: nothing"),
        (1, "put a back at 0"),
        (0, "move b to 2"),
        (0, "move b: tell REMAP 1 -> 2"),
        (1, "unregister 0"),
        (1, "unregister 2"),
    ]
    assert path[-1] == (0, "read b")


def test_events_in_another_order_than_the_changes() -> None:
    """Thread 0 moves to where thread 1 has gone from, and is heard of first."""
    assert [name for _, name in steps("relocate-0.1", "move-two") if "tell REMAP" in name or "move" in name[:4]][
        :4
    ] == [
        "move b to 2",
        "move a to 1",
        "move a: tell REMAP 0 -> 1",
        "move b: tell REMAP 1 -> 2",
    ]


def after(scripts: tuple[tuple[Operation, ...], ...], choices: str) -> tuple[list[str], World]:
    """What a pager reads, and the world then."""
    steps = replay(EngineMachine(ENGINES["relocate-one"].rules, scripts), Choice.parse(choices))
    return [step.name for step in steps if step.choice.thread == len(scripts)], World(steps[-1].shared)


def test_two_histories_that_are_told_of_in_the_same_words() -> None:
    """Why one descriptor cannot do: nothing that the pager knows says whether b is at 2, or a is."""
    to_0, on, gone = Operation("move", 1, to=0), Operation("move", 1, to=2), Operation("unmap", 1)
    told, one = after(((Operation("unmap", 0),), (to_0, on)), "0,1,1,2,1,1,2,1,1,1,2,1,1,2,1,0,2,0")
    same, other = after(((Operation("move", 0, to=2),), (to_0, gone)), "0,1,1,2,1,1,2,1,0,2,0,0,2,0,1,1,2,1")
    assert told == same
    assert told == [f"read {event}" for event in ("REMAP 1 -> 0", "UNMAP 1", "REMAP 0 -> 2", "UNMAP 0", "UNMAP 0")]
    assert (one.states, one.at, one.uprooted, one.doubted) == (other.states, other.at, other.uprooted, other.doubted)
    assert (one.changing, other.changing) == ([0], [0])
    assert (one.mapping(2).name, other.mapping(2).name) == (1, 0)


# ---- the kernel ----


def world_with(*mappings: Mapping | None, changing: int = 0) -> World:
    world = World(EngineMachine(Rules(), ((),), groups=((0,), (1,))).initial()[0])
    world.mappings = list(mappings)
    world.changing = [changing, 0]
    return world


def test_why_a_page_is_not_installed() -> None:
    hole, page, foreign = Mapping(0, 0, EMPTY), Mapping(0, 0, 7), Mapping(1, 1, EMPTY)
    world = world_with(hole, page, foreign, Mapping(1, UNREGISTERED, EMPTY), None)
    assert [world.fill(0, address, 5, own=True) for address in range(5)] == ["", "EEXIST", "EINVAL", "ENOENT", "ENOENT"]
    assert world.mapping(0).word == 5
    assert world.fill(0, 2, 5, own=False) == ""
    assert world.fill(0, -1, 5, own=True) == world.fill(0, 9, 5, own=True) == "ENOENT"
    assert world_with(hole, changing=1).fill(0, 0, 5, own=True) == "EAGAIN"


def test_whose_mapping_is_unregistered() -> None:
    for checks_owner, left in ((True, 1), (False, UNREGISTERED)):
        world = world_with(Mapping(0, 1, EMPTY))
        world.faults = [(), (0,)]
        world.unregister(0, 0, checks_owner=checks_owner)
        assert world.mapping(0).descriptor == left
        assert world.faults[1] == ((0,) if checks_owner else ())
    world.register(0, 0)
    assert world.registered(0) == (0,)
    world.register(1, 0)
    assert world.registered(1) == ()


def test_a_copy_of_the_descriptor_keeps_the_traps() -> None:
    result = explore(machine_of("relocate", "unmap-in-vain", last_copy=False))
    assert result.violation
    assert (result.violation.invariant, len(result.path)) == ("E-WATCH", 15)


# ---- words ----


def test_what_a_machine_says_of_itself() -> None:
    machine = machine_of("relocate", "unmap-armed")
    assert machine.scripts() == (
        "thread 0: unmap a, map c = 20, read c",
        "thread 1: move b, read b",
        "thread 2, the pager of a",
        "thread 3, the pager of b",
    )
    shared, locals_ = machine.initial()
    fields = machine.fields(shared)
    assert fields["address 0"] == "a, registered with 0, 10"
    assert fields["page a"] == "planned at 0"
    assert [machine.about(number, local) for number, local in enumerate(locals_)] == [
        "unmap a",
        "move b",
        "reads",
        "reads",
    ]


@pytest.mark.parametrize("text", ["closes", "closes=2", "hopes=yes"])
def test_a_rule_that_is_none(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--rule"):
        parse_rule(text)
    assert parse_rule("closes=no") == ("closes", False)


def test_promises_and_rules_have_names() -> None:
    assert set(PROMISES) == {"E-BYTES", "E-STATE", "E-WATCH"}
    assert all(Rules.__doc__ and f"        {rule}:" in Rules.__doc__ for rule in Rules.__slots__)
