"""Random walks through scopes that are too large to be searched: the same promises, a seed for each walk."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..model.design import Design
from ..model.machine import Machine, Page, Worker
from ..model.move import Move, State
from ..model.thread import Operation
from ..model.violation import Violation
from .explorer import Choice

__all__ = ["THREADS", "Walk", "large_machine", "walk"]

THREADS = 4
_PAGES = 3
_OPERATIONS = 6
_MOST_STEPS = 2000


@dataclass(frozen=True, slots=True)
class Walk:
    """One walk: its seed, how many steps it took, the promise it broke, and its choices."""

    seed: int
    steps: int
    violation: Violation | None
    path: tuple[Choice, ...]


def large_machine(design: Design, seed: int) -> Machine:
    """Four threads in one address space with three anonymous pages, each with six operations drawn by `seed`."""
    chances = random.Random(seed)
    workers = tuple(
        Worker(tuple(_operation(chances, design, thread, number) for number in range(_OPERATIONS)), node=thread % 2)
        for thread in range(THREADS)
    )
    return Machine(design, Page(addresses=_PAGES, pages=_PAGES, frames=(5, 5)), workers)


def _operation(chances: random.Random, design: Design, thread: int, number: int) -> Operation:
    names = ["load", "store", "store"]
    if thread == 0:
        names += ["migrate"] * 4 * design.eager + ["mark"] * 2 * design.lazy
    if thread == 1:
        names += ["pin", "mprotect"] + ["reclaim"] * (design.slot_invariant == "I-SWAP")
    name = chances.choice(names)
    va, word = chances.randrange(_PAGES), chances.randrange(2)
    value = 100 * thread + number + 10 if name in ("store", "pin") else 1 if name == "mprotect" else None
    return Operation(name, va, word, value, node=chances.randrange(2))


def walk(machine: Machine, seed: int) -> Walk:
    """Let threads go on in the order that `seed` gives, until all have ended or a promise is broken."""
    chances = random.Random(seed)
    shared, locals_ = machine.initial()
    path: list[Choice] = []
    while len(path) < _MOST_STEPS:
        able = list(_able(machine, shared, locals_))
        if not able:
            break
        thread, moves = chances.choice(able)
        alternative = chances.randrange(len(moves))
        move = moves[alternative]
        path.append(Choice(thread, alternative))
        shared = move.shared
        locals_ = (*locals_[:thread], move.local, *locals_[thread + 1 :])
        violation = move.broken or machine.broken(shared)
        if violation and violation.invariant not in machine.design.weaknesses:
            return Walk(seed, len(path), violation, tuple(path))
    return Walk(seed, len(path), _at_the_end(machine, shared, locals_), tuple(path))


def _able(machine: Machine, shared: State, locals_: tuple[State, ...]) -> Iterator[tuple[int, Sequence[Move]]]:
    for thread, local in enumerate(locals_):
        moves = machine.moves(shared, thread, local)
        if moves:
            yield thread, moves


def _at_the_end(machine: Machine, shared: State, locals_: tuple[State, ...]) -> Violation | None:
    if all(machine.ended(thread, local) for thread, local in enumerate(locals_)):
        return machine.broken_end(shared, locals_)
    if any(True for _ in _able(machine, shared, locals_)):
        return None if machine.design.weaknesses else Violation("I-PROGRESS", f"no end after {_MOST_STEPS} steps")
    return Violation("I-DEADLOCK", "threads wait for ever")
