"""A plain explorer: states as tuples in a set, every step taken anew, nothing numbered, remembered or left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nexttouch.check.explorer import Model
from nexttouch.model.move import Move
from nexttouch.model.violation import Violation

State = tuple[Any, tuple[Any, ...]]
"""The shared part, and the threads' local ones."""


@dataclass
class Found:
    """What there is to know of a model: as `explorer.Result`, with the number of steps in place of the path."""

    states: int = 0
    transitions: int = 0
    depth: int = 0
    ends: int = 0
    shared: int = 0
    violation: Violation | None = None
    steps: int = 0
    passed_over: dict[str, Violation] = field(default_factory=dict)


class Stop(Exception):
    """A broken promise to stop at, so many steps from the start."""


def explore(model: Model, only: Callable[[Violation], bool] = lambda _: True) -> Found:
    """Look at all states in order of their distance from the start; what violates and is not `only` is passed over."""
    found = Found()
    try:
        _explore(model, only, found)
    except Stop as stop:
        found.violation, found.steps = stop.args
    return found


def _explore(model: Model, only: Callable[[Violation], bool], found: Found) -> None:
    def look(violation: Violation | None, steps: int) -> None:
        if violation and only(violation):
            raise Stop(violation, steps)
        if violation:
            found.passed_over.setdefault(violation.invariant, violation)

    start = model.initial()
    look(model.broken(start[0]), 0)
    level, seen = [start], {start}
    while level:
        following: list[State] = []
        for state in level:
            moves = list(_moves(model, state))
            for thread, move in moves:
                look(move.broken, found.depth + 1)
                if move.fatal:
                    continue
                look(model.broken(move.shared), found.depth + 1)
                found.transitions += 1
                after = _after(state, thread, move)
                if after not in seen:
                    seen.add(after)
                    following.append(after)
            if not moves:
                ends = all(model.ended(thread, local) for thread, local in enumerate(state[1]))
                found.ends += ends
                look(model.broken_end(*state) if ends else Violation("I-DEADLOCK", "some wait for ever"), found.depth)
        found.states += len(level)
        found.depth += bool(following)
        level = following
    found.shared = len({shared for shared, _ in seen})
    if _goes_round(model, start):
        look(Violation("I-PROGRESS", "some can go round for ever"), 0)


def _moves(model: Model, state: State) -> Iterator[tuple[int, Move]]:
    shared, locals_ = state
    for thread, local in enumerate(locals_):
        for move in model.moves(shared, thread, local):
            yield thread, move


def _after(state: State, thread: int, move: Move) -> State:
    locals_ = list(state[1])
    locals_[thread] = move.local
    return move.shared, tuple(locals_)


# Depth first: a cycle is a step to a state that is still being gone through.
def _goes_round(model: Model, start: State) -> bool:
    def following(state: State) -> Iterator[State]:
        return (_after(state, thread, move) for thread, move in _moves(model, state) if not move.fatal)

    under_way, done = {start}, set()
    way = [(start, following(start))]
    while way:
        state, rest = way[-1]
        after = next(rest, None)
        if after is None:
            under_way.remove(state)
            done.add(state)
            way.pop()
        elif after in under_way:
            return True
        elif after not in done:
            under_way.add(after)
            way.append((after, following(after)))
    return False
