"""Programs that move and unmap memory while it is migrated: small ones, as two mappings show every race known.

But for one they are free of races of their own: a thread only changes a mapping whose address it has from a call that
has returned, and where the kernel finds room is where a mapping goes.
"""

from __future__ import annotations

from dataclasses import dataclass

from .machine import EngineMachine
from .program import Operation
from .rules import Rules

__all__ = ["PROGRAMS", "Program"]

_A, _B, _C = 0, 1, 2
_OVERTAKES = "an event overtakes another thread's"


@dataclass(frozen=True, slots=True)
class Program:
    """A program.

    Attributes:
        name: what it is called.
        sentence: what it does.
        threads: the script of each thread.
        groups: the mappings that each pager migrates.
        room: addresses without a mapping.
        planned: whether the pages are still to be armed.
        sometimes: marks that have to be come upon, or the race was not entered.
    """

    name: str
    sentence: str
    threads: tuple[tuple[Operation, ...], ...]
    groups: tuple[tuple[int, ...], ...] = ((_A, _B),)
    room: int = 1
    planned: bool = False
    sometimes: tuple[str, ...] = ()

    def machine(self, rules: Rules) -> EngineMachine:
        """The program and its pagers under some rules."""
        return EngineMachine(rules, self.threads, self.groups, self.room, self.planned)


def _read(mapping: int) -> Operation:
    return Operation("read", mapping)


def _move(mapping: int, to: int = -1) -> Operation:
    return Operation("move", mapping, to=to)


_UNMAP, _IN_VAIN, _DISCARD = Operation("unmap", _A), Operation("unmap in vain", _A), Operation("discard", _A)
_FORK = Operation("fork")
_MAP = Operation("map", _C, value=20)

_ALL = (
    Program(
        "move",
        "one thread moves one mapping after the other, and a third time",
        ((_move(_A), _move(_A), _move(_B), _read(_A), _read(_B)),),
        sometimes=("due", "remapped", "moved"),
    ),
    Program(
        "move-onto",
        "a mapping is moved onto another one",
        ((_move(_B, _A), _read(_B)),),
        sometimes=("remapped", "unmapped"),
    ),
    Program(
        "move-two",
        "two threads move a mapping each: one may get the place that the other one left",
        ((_move(_A), _read(_A)), (_move(_B), _read(_B))),
        sometimes=(_OVERTAKES, "remapped", "moved"),
    ),
    Program(
        "move-late",
        "a thread moves a mapping, and another thread one twice meanwhile: an event may come two calls late",
        ((_move(_A), _read(_A)), (_move(_B), _move(_B), _read(_B))),
        sometimes=(_OVERTAKES, "remapped"),
    ),
    Program(
        "move-both",
        "two threads move a mapping twice each",
        ((_move(_A), _move(_A), _read(_A)), (_move(_B), _move(_B), _read(_B))),
        sometimes=(_OVERTAKES, "remapped"),
    ),
    Program(
        "move-unknown",
        "a thread moves what another thread is still moving there: a race of the program's own",
        ((_move(_A, 2),), (Operation("move at", start=2, to=3),)),
        room=2,
        sometimes=(_OVERTAKES, "remapped"),
    ),
    Program(
        "move-again",
        "a thread moves a mapping on whose page is back, and another one after it, while a third change is told of",
        (
            (_move(_A), _move(_A), _move(_B), _move(_B), _read(_A), _read(_B)),
            (Operation("unmap in vain", _B),),
        ),
        sometimes=(_OVERTAKES, "remapped"),
    ),
    Program(
        "move-armed",
        "two threads move a mapping each while the pages are armed",
        ((_move(_A), _read(_A)), (_move(_B), _read(_B))),
        planned=True,
        sometimes=(_OVERTAKES, "armed", "due", "remapped"),
    ),
    Program(
        "move-and-unmap",
        "a mapping is unmapped, and another one is moved to its place and on, by one thread",
        ((_UNMAP, _move(_B), _move(_B), _read(_B)),),
        sometimes=("remapped", "unmapped"),
    ),
    Program(
        "unmap",
        "a thread unmaps a mapping, and another thread moves one, maybe there",
        ((_UNMAP,), (_move(_B), _read(_B))),
        sometimes=(_OVERTAKES, "remapped", "unmapped"),
    ),
    Program(
        "unmap-late",
        "the same, and the mapping is moved on: an event may come two calls late",
        ((_UNMAP,), (_move(_B), _move(_B), _read(_B))),
        sometimes=(_OVERTAKES, "remapped", "unmapped"),
    ),
    Program(
        "unmap-armed",
        "memory is unmapped, and other memory mapped, maybe there, while the pages are armed",
        ((_UNMAP, _MAP, _read(_C)), (_move(_B), _read(_B))),
        planned=True,
        sometimes=(_OVERTAKES, "armed", "map", "unmapped"),
    ),
    Program(
        "unmap-in-vain",
        "an unmapping fails, and the memory is read",
        ((_IN_VAIN, _read(_A)), (_read(_B),)),
        sometimes=("moved", "serve"),
    ),
    Program(
        "unmap-in-vain-move",
        "an unmapping fails, then the mapping is moved, and another thread's comes to its place",
        ((_IN_VAIN, _move(_A), _read(_A)), (_move(_B), _read(_B))),
        sometimes=(_OVERTAKES, "remapped"),
    ),
    Program(
        "discard-late",
        "a page is discarded and its mapping moved, and another thread's is moved there and on",
        ((_DISCARD, _move(_A), _read(_A)), (_move(_B), _move(_B), _read(_B))),
        sometimes=(_OVERTAKES, "discarded", "remapped"),
    ),
    Program(
        "write-and-move",
        "a thread writes, moves and reads its mapping, and another thread does, too",
        (
            (Operation("write", _A, value=30), _move(_A), _read(_A)),
            (_move(_B), Operation("write", _B, value=31), _read(_B)),
        ),
        sometimes=(_OVERTAKES, "serve", "remapped", "moved"),
    ),
    Program(
        "move-and-fork",
        "two threads move a mapping each, and a third one forks",
        ((_move(_A),), (_move(_B),), (_FORK, _read(_B))),
        sometimes=(_OVERTAKES, "fork", "forked", "remapped"),
    ),
    Program(
        "two-pagers",
        "two pagers migrate a mapping each, and two threads move them",
        ((_move(_A), _read(_A)), (_move(_B), _read(_B))),
        groups=((_A,), (_B,)),
        sometimes=(_OVERTAKES, "remapped", "moved"),
    ),
)

PROGRAMS: dict[str, Program] = {program.name: program for program in _ALL}
"""Programs by name."""
