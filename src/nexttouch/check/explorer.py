"""Breadth-first search of all interleavings of a few threads over one shared state.

A state is the shared part and one local part a thread. What a thread does next depends on the shared part and on its
own local part, so each such pair is computed once, however many states it occurs in: parts get small numbers, a state
is these numbers packed into one integer, and a step is a number to add to it. This loses nothing (it is no reduction:
all states are visited), and it is what makes the search fast: see docs/performance.md.

The shortest path is found first because the search goes by depth, in the order of threads and alternatives; so two runs
of one search are the same to the last state.
"""

from __future__ import annotations

import gc
import re
import time
from array import array
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ..errors import InvalidArgument
from ..model.move import Move, State
from ..model.violation import Violation

__all__ = ["Choice", "Model", "Result", "Step", "explore", "replay"]

_BITS = 24
_MASK = (1 << _BITS) - 1


class Model(Protocol):
    """What is explored: a few threads, each a sequence of atomic steps over hashable values.

    Attributes:
        marks: names of what steps have come upon: the `sometimes` properties, and costs. The model adds to it.
    """

    marks: set[str]

    def initial(self) -> tuple[Hashable, tuple[Hashable, ...]]:
        """Return the shared part at the start and each thread's local part."""

    def moves(self, shared: State, thread: int, local: State) -> Sequence[Move]:
        """Return the alternatives of the next step of `thread`; none if it waits or has ended."""

    def ended(self, thread: int, local: State) -> bool:
        """Whether `thread`, with that local part, has ended."""

    def broken(self, shared: State) -> Violation | None:
        """Return a promise about the shared part that does not hold."""

    def broken_end(self, shared: State, locals_: tuple[State, ...]) -> Violation | None:
        """Return a promise about the end that does not hold; asked when all threads have ended."""


class Choice(NamedTuple):
    """Which thread goes next, and which alternative of its step."""

    thread: int
    alternative: int = 0

    def __str__(self) -> str:
        return f"{self.thread}" if not self.alternative else f"{self.thread}:{self.alternative}"

    @classmethod
    def parse(cls, text: str) -> list[Choice]:
        """Read a list as printed: "0,0,1:2".

        Raises:
            InvalidArgument: it is no such list.
        """
        try:
            if not re.fullmatch(r"[-0-9:, ]+", text):
                raise ValueError(text)
            parts = [[int(number) for number in word.split(":")] for word in text.split(",")]
            return [cls(*part) for part in parts]
        except (ValueError, TypeError):
            raise InvalidArgument("replay", f"is {text!r}, but has to be a list such as 0,0,1:1") from None


class Step(NamedTuple):
    """One step of a path: who did what, and the state after it."""

    choice: Choice
    name: str
    shared: State
    locals: tuple[Any, ...]
    broken: Violation | None


@dataclass(slots=True)
class Result:
    """What a search has found.

    Attributes:
        states: distinct states.
        transitions: steps from one to another, or to itself.
        depth: steps of the longest shortest path to a state.
        ends: states in which every thread has ended.
        shared: distinct shared parts.
        seconds: duration.
        complete: whether every state was visited, or a violation found; a search that was cut short proves nothing.
        violation: the broken promise, on the shortest path there is.
        path: the choices that lead to it.
        marks: all marks that were come upon.
        passed_over: broken promises that the search was not to stop at, the first of each.
    """

    states: int = 0
    transitions: int = 0
    depth: int = 0
    ends: int = 0
    shared: int = 0
    seconds: float = 0.0
    complete: bool = True
    violation: Violation | None = None
    path: list[Choice] = field(default_factory=list)
    marks: frozenset[str] = frozenset()
    passed_over: dict[str, Violation] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every state was visited and kept every promise."""
        return self.complete and self.violation is None


def explore(
    model: Model,
    *,
    most_states: int = 20_000_000,
    reduce: bool = False,
    only: Callable[[Violation], bool] = lambda _: True,
) -> Result:
    """Visit every state of `model`, or stop at the first violation.

    Args:
        model: what to explore.
        most_states: give up behind so many; the result then is incomplete.
        reduce: where a thread's next step is private, let it go first and leave the other orders out. Paths are then
            not always shortest.
        only: which violations to stop at; the first of each other kind is noted in `passed_over`.

    Also a violation: a state in which a thread waits for ever (I-DEADLOCK), and a cycle of states, in which threads can
    be busy for ever without coming to an end (I-PROGRESS).
    """
    return _Search(model, most_states, reduce, only).run()


def replay(model: Model, choices: Sequence[Choice]) -> list[Step]:
    """Take `choices` from the start; return the steps, the last one with the promise that it broke, if any.

    Raises:
        InvalidArgument: a choice is not there to be taken.
    """
    shared, locals_ = model.initial()
    steps: list[Step] = []
    for number, choice in enumerate(choices):
        there = 0 <= choice.thread < len(locals_)
        moves = model.moves(shared, choice.thread, locals_[choice.thread]) if there else ()
        if not 0 <= choice.alternative < len(moves):
            able = [str(thread) for thread, local in enumerate(locals_) if model.moves(shared, thread, local)]
            which = f"the threads that can go on are {', '.join(able)}" if able else "no thread can go on"
            raise InvalidArgument("replay", f"does not fit at step {number + 1} ({choice}): {which}")
        move = moves[choice.alternative]
        shared = move.shared
        locals_ = (*locals_[: choice.thread], move.local, *locals_[choice.thread + 1 :])
        broken = move.broken or model.broken(shared)
        if broken is None and all(model.ended(thread, local) for thread, local in enumerate(locals_)):
            broken = model.broken_end(shared, locals_)
        steps.append(Step(choice, move.name, shared, locals_, broken))
    return steps


class _Found(Exception):
    """A violation while a step was computed."""

    def __init__(self, choice: Choice, violation: Violation) -> None:
        super().__init__(violation)
        self.choice = choice
        self.violation = violation


class _Numbers(dict[Hashable, int]):
    """Small numbers for hashable values, in the order in which they come."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Any] = []

    def __missing__(self, value: Hashable) -> int:
        number = self[value] = len(self)
        if number > _MASK:
            raise OverflowError("more than 16 million distinct parts of states")
        self.parts.append(value)
        return number


class _Search:
    """One search: the numbers, the steps computed so far, the states seen."""

    def __init__(self, model: Model, most_states: int, reduce: bool, only: Callable[[Violation], bool]) -> None:
        self.model = model
        self.most_states = most_states
        self.reduce = reduce
        self.only = only
        self.shared = _Numbers()
        shared, locals_ = model.initial()
        self.locals = [_Numbers() for _ in locals_]
        self.private: list[set[int]] = [set() for _ in locals_]
        self.stopped: list[set[int]] = [set() for _ in locals_]  # whose step broke a promise that is passed over
        self.shifts = [_BITS * thread for thread in range(1, len(locals_) + 1)]
        self.masks = [_MASK | _MASK << shift for shift in self.shifts]  # what of a state one thread's step depends on
        self.steps: list[dict[int, tuple[int, ...]]] = [{} for _ in locals_]  # by that: what a step adds to the state
        self.lanes = list(zip(self.steps, self.masks, range(len(locals_)), strict=True))
        start = self.shared[shared]
        for numbers, shift, local in zip(self.locals, self.shifts, locals_, strict=True):
            start |= numbers[local] << shift
        self.keys = [start]
        self.seen = {start: 0}
        self.parents = array("q", [-1])
        self.targets = array("q")  # where the steps of state n lead: targets[offsets[n] : offsets[n + 1]]
        self.offsets = array("q", [0])
        self.result = Result()

    def run(self) -> Result:
        began = time.perf_counter()
        broken = self.model.broken(self.shared.parts[0])
        if broken and self._stops_at(broken):
            self.result.violation = broken
        else:
            self._search_without_collecting()
        result = self.result
        result.transitions = len(self.targets)
        result.states, result.shared = len(self.keys), len(self.shared.parts)
        result.marks = frozenset(self.model.marks)
        result.seconds = time.perf_counter() - began
        return result

    # There are millions of values and no cycles among them: looking for garbage would be in vain, and takes a tenth.
    def _search_without_collecting(self) -> None:
        collects = gc.isenabled()
        gc.disable()
        try:
            self._search()
        finally:
            if collects:
                gc.enable()

    def _search(self) -> None:
        backward = False  # whether a step led to a state of the same depth or less: without one there is no cycle
        first = 0
        while first < len(self.keys):
            after = len(self.keys)
            if after > self.most_states:
                self.result.complete = False
                return
            try:
                backward |= self._expand(first, after)
            except _Found as found:
                self._report(found.violation, len(self.offsets) - 1, found.choice)
                return
            if len(self.keys) > after:
                self.result.depth += 1
            first = after
        if backward:
            self._look_for_cycle()

    # Take every step from the states of one depth, `first` to `after`; return whether one led no deeper.
    def _expand(self, first: int, after: int) -> bool:
        keys, seen, parents, targets, offsets = self.keys, self.seen, self.parents, self.targets, self.offsets
        lanes, reduce = self.lanes, self.reduce
        backward, count = False, len(keys)
        for number in range(first, after):
            key = keys[number]
            before = len(targets)
            for steps, mask, thread in self._private_lane(key) if reduce else lanes:
                deltas = steps.get(key & mask)
                if deltas is None:
                    deltas = self._compute(thread, key & mask)
                for delta in deltas:
                    following = key + delta
                    known = seen.setdefault(following, count)
                    targets.append(known)
                    if known == count:
                        count += 1
                        keys.append(following)
                        parents.append(number)
                    elif known < after:
                        backward = True
            if len(targets) == before:
                self._end(key)
            offsets.append(len(targets))
        return backward

    # The first thread whose next step is private, if there is one; else all.
    def _private_lane(self, key: int) -> list[tuple[dict[int, tuple[int, ...]], int, int]]:
        for lane in self.lanes:
            steps, mask, thread = lane
            if key & mask not in steps:
                self._compute(thread, key & mask)
            if key & mask in self.private[thread] and steps[key & mask]:
                return [lane]
        return self.lanes

    def _compute(self, thread: int, key: int) -> tuple[int, ...]:
        shared, locals_, shift = self.shared, self.locals[thread], self.shifts[thread]
        moves = self.model.moves(shared.parts[key & _MASK], thread, locals_.parts[key >> shift])
        deltas = []
        for alternative, move in enumerate(moves):
            if move.broken and self._stops_at(move.broken):
                raise _Found(Choice(thread, alternative), move.broken)
            if move.fatal:
                self.stopped[thread].add(key)
                continue
            known = len(shared)
            number = shared[move.shared]
            if number == known:
                broken = self.model.broken(move.shared)
                if broken and self._stops_at(broken):
                    raise _Found(Choice(thread, alternative), broken)
            deltas.append(number + (locals_[move.local] << shift) - key)
        if self.reduce and moves and all(move.private for move in moves):
            self.private[thread].add(key)
        found = self.steps[thread][key] = tuple(deltas)
        return found

    # No thread can go on.
    def _end(self, key: int) -> None:
        shared, locals_ = self._parts_of(key)
        waiting = [thread for thread, local in enumerate(locals_) if not self.model.ended(thread, local)]
        if any(key & self.masks[thread] in self.stopped[thread] for thread in waiting):
            return
        if waiting:
            who = " and ".join(f"thread {thread}" for thread in waiting)
            broken: Violation | None = Violation("I-DEADLOCK", f"{who} wait{'s' * (len(waiting) == 1)} for ever")
        else:
            self.result.ends += 1
            broken = self.model.broken_end(shared, locals_)
        if broken and self._stops_at(broken):
            raise _Found(Choice(-1), broken)

    def _parts_of(self, key: int) -> tuple[State, tuple[State, ...]]:
        locals_ = (numbers.parts[key >> shift & _MASK] for numbers, shift in zip(self.locals, self.shifts, strict=True))
        return self.shared.parts[key & _MASK], tuple(locals_)

    def _stops_at(self, violation: Violation) -> bool:
        if self.only(violation):
            return True
        self.result.passed_over.setdefault(violation.invariant, violation)
        return False

    # ---- paths ----

    def _report(self, violation: Violation, number: int, choice: Choice) -> None:
        self.result.violation = violation
        self.result.path = self._path_to(number)
        if choice.thread >= 0:
            self.result.path.append(choice)

    def _path_to(self, number: int) -> list[Choice]:
        choices = []
        while self.parents[number] >= 0:
            choices.append(self._choice(self.keys[self.parents[number]], self.keys[number]))
            number = self.parents[number]
        return choices[::-1]

    def _choice(self, key: int, following: int) -> Choice:
        shared, locals_ = self._parts_of(key)
        after = self._parts_of(following)
        for thread, local in enumerate(locals_):
            for alternative, move in enumerate(self.model.moves(shared, thread, local)):
                if not move.fatal and after == (move.shared, (*locals_[:thread], move.local, *locals_[thread + 1 :])):
                    return Choice(thread, alternative)
        raise AssertionError("a state without the step that led to it")

    # ---- cycles ----

    def _look_for_cycle(self) -> None:
        """Take states away that no other leads to until none is left, or only cycles and what follows them."""
        import numpy as np  # noqa: PLC0415 (needed here alone, and half of the start-up)

        targets, offsets = np.asarray(self.targets), np.asarray(self.offsets)
        degrees = np.bincount(targets, minlength=len(self.keys))
        free = np.flatnonzero(degrees == 0)
        while len(free):
            counts = offsets[free + 1] - offsets[free]
            steps = np.arange(counts.sum()) + np.repeat(offsets[free] + counts - counts.cumsum(), counts)
            following, times = np.unique(targets[steps], return_counts=True)
            degrees[following] -= times
            free = following[degrees[following] == 0]
        left = np.flatnonzero(degrees).tolist()
        if left:
            self._report_cycle(left)

    def _following(self, number: int) -> array[int]:
        return self.targets[self.offsets[number] : self.offsets[number + 1]]

    # Each of `left` has one of them before it: going back leads into a cycle.
    def _report_cycle(self, left: list[int]) -> None:
        before = {following: number for number in left for following in self._following(number)}
        number, passed = left[0], set()
        while number not in passed:
            passed.add(number)
            number = before[number]
        cycle = [number]
        while before[cycle[-1]] != number:
            cycle.append(before[cycle[-1]])
        around = cycle[::-1]
        turn = [self._choice(self.keys[a], self.keys[b]) for a, b in zip([number, *around], around, strict=False)]
        busy = " and ".join(f"thread {thread}" for thread in sorted({choice.thread for choice in turn}))
        violation = Violation("I-PROGRESS", f"{busy} can go round {len(turn)} steps for ever")
        if self._stops_at(violation):
            self.result.violation = violation
            self.result.path = self._path_to(number) + turn
