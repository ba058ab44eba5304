"""A path through the states, as data: who does what, and which fields it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..model.move import State
from ..model.violation import Violation
from .explorer import Choice, Model, replay

__all__ = ["Change", "Path", "PathStep", "Readable", "trace"]


class Readable(Model, Protocol):
    """A model that can say in words what it is about."""

    def fields(self, shared: State) -> dict[str, str]:
        """Return a state in words, field by field."""

    def about(self, number: int, local: State) -> str:
        """What a thread is about to do."""

    def scripts(self) -> tuple[str, ...]:
        """What each thread is to do."""


@dataclass(frozen=True, slots=True)
class Change:
    """A field that a step changes: its name, and its text before and after."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class PathStep:
    """One step.

    Attributes:
        choice: which thread, which alternative.
        name: what the step is called.
        changes: the fields that it changes.
        state: every field after it.
        threads: what each thread is about after it.
    """

    choice: Choice
    name: str
    changes: tuple[Change, ...]
    state: dict[str, str]
    threads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Path:
    """A path, and what it shows.

    Attributes:
        title: design, scenario and kind of page.
        threads: what each thread is to do.
        start: every field at the start.
        steps: the steps.
        violation: the promise that the last step breaks, if any.
        cause: why, where it is known: the rule that a mutation breaks.
    """

    title: str
    threads: tuple[str, ...]
    start: dict[str, str]
    steps: tuple[PathStep, ...]
    violation: Violation | None
    cause: str = ""

    @property
    def choices(self) -> str:
        """The path as `--replay` reads it."""
        return ",".join(str(step.choice) for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: title, cause, threads, start, violation, choices, steps (thread, alternative, name, changes)."""
        violation = self.violation and {"invariant": self.violation.invariant, "sentence": self.violation.sentence}
        return {
            "title": self.title,
            "cause": self.cause,
            "threads": list(self.threads),
            "violation": violation,
            "choices": self.choices,
            "start": self.start,
            "steps": [
                {
                    "thread": step.choice.thread,
                    "alternative": step.choice.alternative,
                    "name": step.name,
                    "changes": [[change.field, change.before, change.after] for change in step.changes],
                }
                for step in self.steps
            ],
        }


def trace(
    machine: Readable, choices: Sequence[Choice], title: str, violation: Violation | None = None, *, cause: str = ""
) -> Path:
    """Follow `choices` through `machine`, and note what each step changes.

    `violation` is what the path is known to show, such as a deadlock, which no single step breaks; without it, what the
    last step breaks.

    Raises:
        InvalidArgument: a choice cannot be taken.
    """
    before = start = machine.fields(machine.initial()[0])
    steps, broken = [], None
    for step in replay(machine, choices):
        after = machine.fields(step.shared)
        changes = tuple(Change(name, before[name], after[name]) for name in after if before[name] != after[name])
        threads = tuple(machine.about(number, local) for number, local in enumerate(step.locals))
        steps.append(PathStep(step.choice, step.name, changes, after, threads))
        before, broken = after, step.broken
    return Path(title, machine.scripts(), start, tuple(steps), violation or broken, cause)
