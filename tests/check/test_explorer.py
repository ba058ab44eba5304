"""The explorer: exact numbers of small models, each kind of broken promise, and paths that can be gone again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from handmade import END, Thread, Threads, in_order, random_models, same
from hypothesis import given
from hypothesis import strategies as st

from nexttouch.check import explorer
from nexttouch.check.explorer import Choice, Model, Result, explore, replay
from nexttouch.errors import InvalidArgument
from nexttouch.model.move import Move
from nexttouch.model.violation import Violation

BAD = Violation("I-BAD", "it is bad")
WORSE = Violation("I-WORSE", "it is worse")


def counts(result: Result) -> tuple[int, int, int, int, int]:
    return result.states, result.transitions, result.depth, result.ends, result.shared


def choices(text: str) -> list[Choice]:
    return Choice.parse(text) if text else []


def only(*invariants: str) -> Callable[[Violation], bool]:
    return lambda violation: violation.invariant in invariants


def nothing(_: Violation) -> bool:
    return False


# ---- exact numbers ----


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_threads_that_have_nothing_to_do_with_each_other(threads: int, steps: int) -> None:
    """Each is at one of steps + 1 places, whatever the others do."""
    result = explore(Threads((in_order(*[same] * steps),) * threads))
    places = steps + 1
    assert counts(result) == (places**threads, threads * steps * places ** (threads - 1), threads * steps, 1, 1)
    assert result.passed


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_that_leave_their_order_behind(threads: int) -> None:
    """The states are the orders in which some of the threads have gone."""

    def leave(thread: int) -> Thread:
        return in_order(lambda gone: (*gone, thread))

    result = explore(Threads(tuple(map(leave, range(threads))), start=()))
    orders = sum(math.perm(threads, gone) for gone in range(threads + 1))
    assert counts(result) == (orders, orders - 1, threads, math.factorial(threads), orders)


def increment(shared: int, local: Any) -> Sequence[Move]:
    """Read the number, then write one more."""
    if local == 0:
        return (Move("read", shared, ("read", shared)),)
    return (Move("write", local[1] + 1, END),)


def two(number: int, _: tuple[Any, ...]) -> Violation | None:
    return None if number == 2 else Violation("I-LOST", f"two increments make {number}")


def test_two_increments_without_a_lock() -> None:
    """All 12 states: the number, and of each thread whether it reads next, has read r, or has ended.

    Two steps lead on from: 0 reads reads; 0 r0 reads; 0 reads r0; 0 r0 r0. One leads on from: 1 ended reads; 1 reads
    ended; 1 ended r0; 1 r0 ended; 1 ended r1; 1 r1 ended. None from: 1 ended ended; 2 ended ended.
    """
    result = explore(Threads((increment, increment), at_the_end=two), only=nothing)
    assert counts(result) == (12, 2 * 4 + 6, 4, 2, 3)
    assert result.passed_over == {"I-LOST": Violation("I-LOST", "two increments make 1")}


def locked(thread: int) -> Thread:
    """Increment under a lock. The shared part: whose lock it is, or -1, and the number."""
    return in_order(
        lambda shared: (thread, shared[1]) if shared[0] < 0 else None,
        lambda shared: (thread, shared[1] + 1),
        lambda shared: (-1, shared[1]),
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_increments_with_a_lock(threads: int) -> None:
    """Once a set of threads has ended, one of the others may be at each of its three steps.

    Whoever holds the lock keeps the others out, so it goes its way alone: of 2^n sets each but the full one allows
    every other thread to take the lock, to count, and to let go of it, which leads to another set.
    """

    def all_counted(shared: tuple[int, int], _: tuple[Any, ...]) -> Violation | None:
        return None if shared == (-1, threads) else BAD

    result = explore(Threads(tuple(map(locked, range(threads))), (-1, 0), at_the_end=all_counted))
    sets, entries = 2**threads, threads * 2 ** (threads - 1)
    assert counts(result)[:4] == (sets + 2 * entries, 3 * entries, 3 * threads, 1)
    assert result.passed


def test_a_thread_that_has_ended_is_not_waited_for() -> None:
    result = explore(Threads((in_order(same), in_order(lambda number: number + 1))))
    assert counts(result) == (4, 4, 2, 1, 2)


def test_no_thread_at_all_is_an_end() -> None:
    assert counts(explore(Threads(()))) == (1, 0, 0, 1, 1)


def test_each_pair_is_computed_once() -> None:
    model = Threads((in_order(*[same] * 3),) * 3)
    assert explore(model).states == 64
    assert len(model.asked) == len(set(model.asked)) == 3 * 4


def test_the_marks_are_the_model_s() -> None:
    model = Threads((in_order(same),))
    model.marks.add("seen")
    assert explore(model).marks == {"seen"}


# ---- what is found ----


def test_the_shortest_way_is_found_first() -> None:
    """The thread that the search goes by first would have broken its promise after five steps."""
    long = in_order(same, same, same, same, lambda _: BAD)
    short = in_order(same, same, lambda _: WORSE)
    result = explore(Threads((long, short)))
    assert (result.violation, result.path) == (WORSE, choices("1,1,1"))
    assert explore(Threads((short, long))).path == choices("0,0,0")


def test_of_equally_short_ways_the_first_is_found() -> None:
    """By the first thread at the first step, and by the first alternative."""
    result = explore(Threads((in_order(same, same), in_order(same, same, lambda _: BAD))))
    assert result.path == choices("1,1,1")
    result = explore(Threads((increment, increment), at_the_end=two))
    assert result.path == choices("0,1,0,1")


def test_a_step_breaks_a_promise() -> None:
    result = explore(Threads((in_order(same, lambda _: BAD), in_order(same))))
    assert (result.violation, result.path, result.complete, result.passed) == (BAD, choices("0,0"), True, False)


def test_a_state_breaks_a_promise() -> None:
    step = in_order(lambda number: number + 1)
    result = explore(Threads((step, step, step), promise=lambda number: BAD if number == 2 else None))
    assert (result.violation, result.path) == (BAD, choices("0,1"))


def test_the_start_breaks_a_promise() -> None:
    result = explore(Threads((in_order(same),), promise=lambda _: BAD))
    assert (result.violation, result.path, counts(result)) == (BAD, [], (1, 0, 0, 0, 1))


def test_the_end_breaks_a_promise() -> None:
    model = Threads(
        (in_order(lambda _: 1), in_order(lambda _: 2)), at_the_end=lambda number, _: BAD if number == 1 else None
    )
    result = explore(model)
    assert (result.violation, result.path, result.ends) == (BAD, choices("1,0"), 2)
    assert model.ends == {(1, (END, END)), (2, (END, END))}


def test_the_end_is_asked_about_with_what_each_thread_ended_with() -> None:
    model = Threads((in_order(same), in_order(same)))
    explore(model)
    assert model.ends == {(0, (END, END))}


def wait_for_ever(_: Any) -> None:
    return None


@pytest.mark.parametrize(
    ("threads", "sentence", "path"),
    [
        ((in_order(wait_for_ever),), "thread 0 waits for ever", ""),
        ((in_order(same), in_order(same, wait_for_ever)), "thread 1 waits for ever", "0,1"),
        (
            (in_order(wait_for_ever), in_order(same), in_order(wait_for_ever)),
            "thread 0 and thread 2 wait for ever",
            "1",
        ),
    ],
)
def test_waiting_for_ever(threads: tuple[Thread, ...], sentence: str, path: str) -> None:
    result = explore(Threads(threads))
    assert (result.violation, result.path) == (Violation("I-DEADLOCK", sentence), choices(path))
    assert result.ends == 0


def takes(thread: int, *locks: int) -> Thread:
    """Take locks in this order, then leave all of them. The shared part is who holds each."""

    def take(lock: int) -> Callable[[tuple[int, ...]], Any]:
        return lambda held: None if held[lock] >= 0 else (*held[:lock], thread, *held[lock + 1 :])

    return in_order(*map(take, locks), lambda held: tuple(-1 if holder == thread else holder for holder in held))


def test_two_locks_in_two_orders() -> None:
    result = explore(Threads((takes(0, 0, 1), takes(1, 1, 0)), (-1, -1)))
    assert result.violation == Violation("I-DEADLOCK", "thread 0 and thread 1 wait for ever")
    assert result.path == choices("0,1")
    assert explore(Threads((takes(0, 0, 1), takes(1, 0, 1)), (-1, -1))).passed


def test_somebody_else_going_round_does_not_hide_that_a_thread_waits() -> None:
    """It is busy for ever, which is found; and when that is passed over, nobody is at the end."""

    def round_and_round(shared: int, local: int) -> Sequence[Move]:
        return (Move("turn", shared, 1 - local),)

    model = Threads((in_order(wait_for_ever), round_and_round))
    assert explore(model).violation == Violation("I-PROGRESS", "thread 1 can go round 2 steps for ever")
    result = explore(model, only=nothing)
    assert (result.ends, list(result.passed_over)) == (0, ["I-PROGRESS"])


# ---- cycles ----


def walk(graph: dict[int, Sequence[int]]) -> Thread:
    """A thread that goes from node to node; a node from which nothing leads on is its end."""

    def moves(shared: int, local: int) -> Sequence[Move]:
        return tuple(Move(f"to {to}", shared, to if graph[to] else END) for to in graph[local])

    return moves


def test_a_diamond_is_no_cycle() -> None:
    """Two ways lead to one state, also ways of different lengths; none leads back."""
    result = explore(Threads((walk({0: [1, 2], 1: [3], 2: [3], 3: [4], 4: []}),)))
    assert result.passed
    assert counts(result) == (5, 5, 3, 1, 1)
    result = explore(Threads((walk({0: [1, 2], 1: [2], 2: [3, 4], 3: [4], 4: [5], 5: []}),)))
    assert result.passed
    assert counts(result) == (6, 7, 3, 1, 1)


@pytest.mark.parametrize(
    ("graph", "steps", "path"),
    [
        ({0: [0]}, 1, "0"),
        ({0: [1], 1: [1, 2], 2: []}, 1, "0,0"),
        ({0: [1], 1: [0]}, 2, "0,0"),
        ({0: [1, 3], 1: [2], 2: [1, 3], 3: []}, 2, "0,0,0"),
        ({0: [1], 1: [2], 2: [3, 4], 3: [1], 4: [5], 5: []}, 3, "0,0,0,0"),
    ],
)
def test_going_round(graph: dict[int, Sequence[int]], steps: int, path: str) -> None:
    result = explore(Threads((walk(graph),)))
    sentence = f"thread 0 can go round {steps} steps for ever"
    assert (result.violation, result.path) == (Violation("I-PROGRESS", sentence), choices(path))


def test_two_threads_go_round_together() -> None:
    """Each waits for the other to give the turn back."""

    def turn(mine: int) -> Thread:
        return lambda shared, local: (Move("pass on", 1 - mine, local),) if shared == mine else ()

    result = explore(Threads((turn(0), turn(1))))
    sentence = "thread 0 and thread 1 can go round 2 steps for ever"
    assert (result.violation, result.path) == (Violation("I-PROGRESS", sentence), choices("0,1"))
    assert counts(result) == (2, 2, 1, 0, 2)


def test_a_cycle_is_reported_after_what_is_broken_elsewhere() -> None:
    """The rest is searched first: a promise that is broken is more to the point."""
    result = explore(Threads((walk({0: [0, 1], 1: []}), in_order(same, same, lambda _: BAD))))
    assert (result.violation, result.path) == (BAD, choices("1,1,1"))


@given(random_models(breaks=False))
def test_a_path_round_a_cycle_ends_where_it_has_been(model: Threads) -> None:
    result = explore(model, only=only("I-PROGRESS"))
    if result.violation:
        states = [model.initial(), *((step.shared, step.locals) for step in replay(model, result.path))]
        turn = int(result.violation.sentence.split("can go round ")[1].split()[0])
        assert states[-1] == states[-1 - turn]
        assert len(set(states[-turn:])) == turn
        busy = sorted({choice.thread for choice in result.path[-turn:]})
        assert result.violation.sentence.startswith(" and ".join(f"thread {thread}" for thread in busy) + " can")


# ---- alternatives ----


def toss(shared: tuple[int, ...], local: int) -> Sequence[Move]:
    """Two coins one after the other."""
    return tuple(Move(f"coin {local}", (*shared, side), END if local else 1) for side in (0, 1))


def test_every_alternative_is_gone_on_from() -> None:
    model = Threads((toss,), ())
    assert counts(explore(model)) == (7, 6, 2, 4, 7)
    assert model.ends == {((one, other), (END,)) for one in (0, 1) for other in (0, 1)}


def test_two_threads_with_alternatives() -> None:
    result = explore(Threads((toss, toss), ()))
    assert result.ends == 2**4
    assert counts(result)[2:] == (4, 16, 31)


def test_a_path_names_the_alternative() -> None:
    model = Threads((toss,), (), at_the_end=lambda sides, _: BAD if sides == (1, 0) else None)
    result = explore(model)
    assert (result.violation, result.path) == (BAD, choices("0:1,0"))
    assert [step.shared for step in replay(model, result.path)] == [(1,), (1, 0)]


def test_alternatives_to_the_same_state_are_two_transitions() -> None:
    result = explore(Threads((walk({0: [1, 1], 1: []}),)))
    assert counts(result) == (2, 2, 1, 1, 1)


def test_an_alternative_that_breaks_a_promise_leaves_the_others() -> None:
    def moves(shared: int, local: int) -> Sequence[Move]:
        return (Move("bad", shared, local, BAD, fatal=True), Move("good", 1, END))

    assert explore(Threads((moves,))).path == choices("0:0")
    result = explore(Threads((moves,)), only=nothing)
    assert counts(result) == (2, 1, 1, 1, 2)


def test_alternatives_are_counted_with_those_that_were_passed_over() -> None:
    def moves(shared: int, local: int) -> Sequence[Move]:
        return (Move("bad", shared, local, BAD, fatal=True), Move("good", 1, END))

    model = Threads((moves, in_order(lambda number: WORSE if number else None)))
    result = explore(model, only=only("I-WORSE"))
    assert result.path == choices("0:1,1")
    assert replay(model, result.path)[-1].broken == WORSE


# ---- passing over ----


def test_what_is_not_searched_for_is_passed_over_and_recorded() -> None:
    """The first of each kind is kept."""
    model = Threads((in_order(same, lambda _: BAD), in_order(same, same, lambda _: Violation("I-BAD", "as well"))))
    result = explore(model, only=only("I-WORSE"))
    assert (result.passed, result.violation, result.path) == (True, None, [])
    assert result.passed_over == {"I-BAD": BAD}
    assert counts(result) == (6, 7, 3, 0, 1)


def test_a_step_that_could_not_be_finished_is_not_gone_on_from() -> None:
    """And that nothing comes after it is no deadlock."""
    model = Threads((in_order(lambda _: BAD, lambda _: WORSE),))
    result = explore(model, only=only("I-WORSE", "I-DEADLOCK"))
    assert result.passed
    assert counts(result) == (1, 0, 0, 0, 1)


def test_a_step_with_a_complaint_is_gone_on_from() -> None:
    def moves(shared: int, local: int) -> Sequence[Move]:
        return (
            (Move("complain", shared + 1, 1, BAD),)
            if local == 0
            else (Move("worse", shared, local, WORSE, fatal=True),)
        )

    model = Threads((moves,))
    assert explore(model).path == choices("0")
    result = explore(model, only=only("I-WORSE"))
    assert (result.violation, result.path, result.passed_over) == (WORSE, choices("0,0"), {"I-BAD": BAD})


@pytest.mark.parametrize("fatal", [False, True])
def test_a_state_that_a_passed_over_step_leads_to_is_looked_at(fatal: bool) -> None:
    """Also if it was a step that is not gone on from, and the state is come to another way."""

    def complain(shared: int, local: int) -> Sequence[Move]:
        return (Move("complain", 1, END, BAD, fatal=fatal),)

    def promise(shared: int) -> Violation | None:
        return WORSE if shared == 1 else None

    model = Threads((complain, in_order(same, lambda _: 1)), promise=promise)
    assert explore(model, only=only("I-WORSE")).violation == WORSE


def test_a_state_that_is_passed_over_is_gone_on_from() -> None:
    step = in_order(*[lambda number: number + 1] * 3)

    def promise(number: int) -> Violation | None:
        return {1: BAD, 3: WORSE}.get(number)

    model = Threads((step,), promise=promise)
    assert explore(model).path == choices("0")
    result = explore(model, only=only("I-WORSE"))
    assert (result.violation, result.path, result.passed_over) == (WORSE, choices("0,0,0"), {"I-BAD": BAD})


def test_the_start_the_end_waiting_and_going_round_can_be_passed_over() -> None:
    result = explore(Threads((in_order(same),), promise=lambda _: BAD, at_the_end=lambda *_: WORSE), only=nothing)
    assert (result.passed_over, counts(result)) == ({"I-BAD": BAD, "I-WORSE": WORSE}, (2, 1, 1, 1, 1))
    result = explore(Threads((in_order(wait_for_ever),)), only=nothing)
    assert (list(result.passed_over), result.passed) == (["I-DEADLOCK"], True)
    result = explore(Threads((walk({0: [0, 1], 1: []}),)), only=nothing)
    assert (list(result.passed_over), result.passed, result.path) == (["I-PROGRESS"], True, [])


# ---- giving up ----


@pytest.mark.parametrize("most", [0, 1, 3, 5, 63])
def test_a_search_that_was_cut_short_proves_nothing(most: int) -> None:
    result = explore(Threads((in_order(*[same] * 3),) * 3), most_states=most)
    assert (result.complete, result.passed, result.violation) == (False, False, None)
    assert most < result.states <= 64


def test_as_many_states_as_are_allowed_are_enough() -> None:
    assert explore(Threads((in_order(*[same] * 3),) * 3), most_states=64).passed


def test_giving_up_is_between_depths() -> None:
    """Levels of three threads of three steps have 1, 3, 6, 10, 12, ... states."""
    result = explore(Threads((in_order(*[same] * 3),) * 3), most_states=4)
    assert (result.states, result.depth) == (1 + 3 + 6, 2)


def test_a_violation_is_found_before_giving_up_or_not_at_all() -> None:
    model = Threads((in_order(*[same] * 3, lambda _: BAD),) * 2)
    assert explore(model, most_states=9).violation is None
    assert explore(model, most_states=10).violation == BAD


def test_a_search_that_was_cut_short_looks_for_no_cycle() -> None:
    model = Threads((walk({0: [0, 1], 1: []}), in_order(*[same] * 9)))
    result = explore(model, most_states=5)
    assert (result.complete, result.violation) == (False, None)
    assert explore(model).violation is not None


# ---- private steps ----


def test_private_steps_go_first() -> None:
    """Of two threads with n private steps each, only one order is left: they count once, not squared."""
    steps = in_order(*[same] * 5, private=True)
    assert counts(explore(Threads((steps, steps)))) == (36, 60, 10, 1, 1)
    assert counts(explore(Threads((steps, steps)), reduce=True)) == (11, 10, 10, 1, 1)


def test_a_step_is_private_when_all_its_alternatives_are() -> None:
    def moves(private: bool) -> Thread:
        return lambda shared, local: (Move("a", shared, END, private=True), Move("b", shared, END, private=private))

    other = in_order(same)
    assert (
        explore(Threads((moves(True), other)), reduce=True).states
        == explore(Threads((moves(False), other)), reduce=True).states - 1
        == 3
    )


def test_a_shortest_path_is_shortest_without_the_reduction_only() -> None:
    """With it there may be private steps on the way that would not have been needed."""
    model = Threads((in_order(same, same, private=True), in_order(lambda _: BAD)))
    assert explore(model).path == choices("1")
    assert explore(model, reduce=True).path == choices("0,0,1")


@given(random_models(private=True, loops=False))
def test_private_steps_change_neither_the_ends_nor_what_is_broken(model: Threads) -> None:
    full = explore(model, only=nothing)
    ends = set(model.ends)
    model.ends.clear()
    reduced = explore(model, only=nothing, reduce=True)
    assert model.ends == ends
    assert reduced.ends == full.ends
    assert reduced.states <= full.states
    assert reduced.transitions <= full.transitions
    assert reduced.passed_over.keys() == full.passed_over.keys()
    for invariant in full.passed_over:
        path = explore(model, only=only(invariant), reduce=True).path
        assert len(path) >= len(explore(model, only=only(invariant)).path)
    assert explore(model, reduce=True).passed == explore(model).passed


@given(random_models(private=True))
def test_private_steps_do_not_change_the_verdict_where_there_are_cycles(model: Threads) -> None:
    assert explore(model, reduce=True).passed == explore(model).passed


def test_steps_that_only_say_that_they_are_private_would_be_noticed() -> None:
    """Broken on purpose: a step that others see, called private, hides what they make of it."""
    model = Threads(
        (in_order(lambda _: 1, private=True), in_order(lambda number: BAD if number == 0 else number)),
    )
    assert explore(model).violation == BAD
    assert explore(model, reduce=True).passed


# ---- again ----


@given(random_models(private=True))
def test_two_runs_are_the_same_to_the_last_state(model: Threads) -> None:
    first = explore(model)
    asked = list(model.asked)
    model.asked.clear()
    second = explore(model)
    assert replace(first, seconds=0) == replace(second, seconds=0)
    assert model.asked == asked


@given(random_models(private=True), st.booleans())
def test_a_path_leads_to_what_it_was_found_for(model: Threads, reduce: bool) -> None:
    result = explore(model, reduce=reduce)
    if result.violation is None:
        return
    steps = replay(model, result.path)
    shared, locals_ = (steps[-1].shared, steps[-1].locals) if steps else model.initial()
    if result.violation.invariant == "I-DEADLOCK":
        assert not any(model.moves(shared, thread, local) for thread, local in enumerate(locals_))
    elif result.violation.invariant == "I-PROGRESS":
        assert (shared, locals_) in [model.initial(), *((step.shared, step.locals) for step in steps[:-1])]
    else:
        assert (steps[-1].broken if steps else model.broken(shared)) == result.violation
    assert all(step.broken is None for step in steps[:-1])


def test_a_path_that_is_wrong_by_one_step_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken on purpose: the path without its first step."""
    whole = explorer._Search._path_to
    monkeypatch.setattr(explorer._Search, "_path_to", lambda self, number: whole(self, number)[1:])
    model = Threads((in_order(same, lambda _: 1), in_order(lambda number: BAD if number else None)))
    assert explore(model).path == choices("0,1")
    with pytest.raises(InvalidArgument):
        replay(model, explore(model).path)


# ---- replay ----

LOCKS = Threads((takes(0, 0, 1), takes(1, 1, 0)), (-1, -1))


def test_each_step_of_a_path() -> None:
    steps = replay(LOCKS, choices("0,0,0,1"))
    assert [step.name for step in steps] == ["step 0", "step 1", "step 2", "step 0"]
    assert [step.shared for step in steps] == [(0, -1), (0, 0), (-1, -1), (-1, 1)]
    assert [step.locals for step in steps] == [(1, 0), (2, 0), (END, 0), (END, 1)]
    assert [step.choice for step in steps] == choices("0,0,0,1")
    assert not any(step.broken for step in steps)
    assert replay(LOCKS, []) == []


def test_the_end_is_looked_at_when_all_have_ended() -> None:
    model = replace(LOCKS, at_the_end=lambda *_: BAD)
    steps = replay(model, choices("0,0,0,1,1,1"))
    assert [step.broken for step in steps] == [None] * 5 + [BAD]


@pytest.mark.parametrize(
    ("path", "step", "able"),
    [
        ("2", "at step 1 (2): ", "the threads that can go on are 0, 1"),
        ("0:1", "at step 1 (0:1): ", "the threads that can go on are 0, 1"),
        ("0,0,1", "at step 3 (1): ", "the threads that can go on are 0"),
        ("0,1,1", "at step 3 (1): ", "no thread can go on"),
        ("0,0,0,0", "at step 4 (0): ", "the threads that can go on are 1"),
        ("0:-1", "at step 1 (0:-1): ", "the threads that can go on are 0, 1"),
    ],
)
def test_choices_that_do_not_fit(path: str, step: str, able: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        replay(LOCKS, choices(path))
    assert str(caught.value) == f"replay does not fit {step}{able}"
    assert caught.value.argument == "replay"


def test_there_is_no_thread_below_0() -> None:
    with pytest.raises(InvalidArgument, match=r"at step 1 \(-1\): the threads that can go on are 0, 1"):
        replay(LOCKS, [Choice(-1)])


# ---- choices as text ----


@given(st.lists(st.builds(Choice, st.integers(0, 99), st.integers(0, 9)), min_size=1))
def test_printed_choices_can_be_read(path: list[Choice]) -> None:
    assert Choice.parse(",".join(map(str, path))) == path


def test_the_first_alternative_is_not_printed() -> None:
    assert [str(Choice(2)), str(Choice(2, 0)), str(Choice(2, 1))] == ["2", "2", "2:1"]
    assert Choice.parse("0, 1:0 ,2:3") == [Choice(0), Choice(1), Choice(2, 3)]


@pytest.mark.parametrize("text", ["", ",", "0,", "a", "0;1", "0:", ":1", "0:1:2", "1.5", "0 1", "0:a"])
def test_no_choices(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^replay is .* but has to be a list such as 0,0,1:1$") as caught:
        Choice.parse(text)
    assert repr(text) in str(caught.value)


def test_models_are_what_the_protocol_says() -> None:
    model: Model = Threads((in_order(same),))
    assert explore(model).passed
