"""A thread: a script of operations, and the steps that remain of the one under way.

A step is a plain function of the VM and the thread. It does one atomic thing, names what comes after it with
`thread.then`, and returns None; or it returns WAIT, having changed nothing, because something it needs is not to be had
yet. When no step remains the operation is over and the next one of the script begins.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, NamedTuple

from .entry import NOTHING, Entry
from .vm import NO_FRAME, VM

__all__ = ["WAIT", "Operation", "Step", "Thread", "Wait"]


class Wait:
    """What a step returns that could not be taken; there is one, `WAIT`."""

    def __repr__(self) -> str:
        return "WAIT"


WAIT: Final = Wait()

Step = Callable[[VM, "Thread"], Wait | None]


class Operation(NamedTuple):
    """One operation of a script.

    Attributes:
        name: what the thread does.
        va: to which page of its address space.
        word: to which word of it.
        value: what it stores there; None: it loads.
        node: where it moves the page.
        mm: another address space that it is about: the child of a fork.
    """

    name: str
    va: int = 0
    word: int = 0
    value: int | None = None
    node: int = 1
    mm: int = 0


_LOCALS = (
    "frame",
    "new",
    "entry",
    "tries",
    "position",
    "found",
    "saved",
    "sem",
    "why",
    "lazy",
    "word",
    "trusted",
)
_locals_of = attrgetter(*_LOCALS)


class Thread:
    """A thread while it takes a step. Its fields are its locals; they are forgotten when an operation ends.

    Attributes:
        id: its number, and that of its CPU.
        mm: its address space.
        node: the node it runs on.
        script: its operations.
        at: which of them is under way.
        steps: what remains of it, the next one last.
        results: what the operations came to.
    """

    _DEFAULTS: tuple[Any, ...] = (NO_FRAME, NO_FRAME, NOTHING, 0, 0, 0, 0, -1, "", False, 0, ())

    __slots__ = ("at", "id", "mm", "node", "results", "script", "steps", *_LOCALS)

    frame: int
    new: int
    entry: Entry
    tries: int
    position: int
    found: int
    saved: int
    sem: int
    why: str
    lazy: bool
    word: int
    trusted: tuple[tuple[int, int], ...]

    def __init__(self, frozen: tuple[Any, ...], number: int, mm: int, node: int, script: tuple[Operation, ...]) -> None:
        self.id, self.mm, self.node, self.script = number, mm, node, script
        self.at, steps, self.results, values = frozen
        self.steps: list[Step] = list(steps)
        self._set(values)

    def _set(self, values: tuple[Any, ...]) -> None:
        (
            self.frame,
            self.new,
            self.entry,
            self.tries,
            self.position,
            self.found,
            self.saved,
            self.sem,
            self.why,
            self.lazy,
            self.word,
            self.trusted,
        ) = values

    def frozen(self) -> tuple[Any, ...]:
        """Return what changes of it as a value."""
        return self.at, tuple(self.steps), self.results, _locals_of(self)

    @classmethod
    def beginning(cls) -> tuple[Any, ...]:
        """Return the value of a thread that has done nothing yet."""
        return 0, (), (), cls._DEFAULTS

    @property
    def operation(self) -> Operation:
        """The operation under way."""
        operation: Operation = self.script[self.at]
        return operation

    def then(self, *steps: Step) -> None:
        """Go on with `steps`, in this order, before whatever remains."""
        self.steps.extend(reversed(steps))

    def finish(self, result: str) -> None:
        """End the operation."""
        self.at += 1
        self.results = (*self.results, result)
        self.begin_again()

    def begin_again(self) -> None:
        """Forget what was found out and what was still to be done: the next step is the first of the operation."""
        self.steps.clear()
        self._set(self._DEFAULTS)
