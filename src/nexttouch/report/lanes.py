"""A path through the states of the model as text: its cause, then a lane a thread with what each step changes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..check.counterexample import Change, Path

__all__ = ["lanes_of", "sentences", "steps_of", "text"]

_NARROWEST = 22  # columns of a lane: three of them fit into 80


def text(path: Path, width: int, promises: Mapping[str, str]) -> str:
    """Return `path` as plain text of at most `width` columns, but 40 at least; the `--replay` list is on one line.

    Threads that take no step have no lane. If the lanes would get too narrow, they are one column.

    Args:
        path: what to show.
        width: columns of the terminal.
        promises: what each invariant promises, by name.

    Example of a table's beginning::

        step | thread 0                | thread 1
        -----+-------------------------+------------------------
           1 | migrate: lock           |
             |   frame 0 page lock:    |
             |     - -> thread 0       |
           2 |                         | store
    """
    width = max(width, 40)
    parts = [*_cause(path, promises, width), "", *_scripts(path, width), ""]
    if path.steps:
        parts += [*_table(path, width), ""]
    return "\n".join([*parts, f"--replay {path.choices}" if path.steps else "No step was taken.", ""])


def _cause(path: Path, promises: Mapping[str, str], width: int) -> list[str]:
    said = (path.cause, *sentences(path, promises))
    return [line for sentence in said for line in _wrapped(sentence, width, "", "")]


def sentences(path: Path, promises: Mapping[str, str]) -> tuple[str, str]:
    """What was seen, and which promise that breaks; empty if none."""
    if path.violation is None:
        return "No step of this path breaks a promise.", ""
    name, seen = path.violation.invariant, path.violation.sentence
    promised = promises.get(name)
    return f"{seen[:1].upper()}{seen[1:]}.", f"This breaks {name}{f': {promised}' if promised else ''}."


def _scripts(path: Path, width: int) -> Iterator[str]:
    yield from _wrapped(f"{path.title}, {steps_of(path)}", width, "", "")
    for number, script in enumerate(path.threads):
        idle = "" if number in lanes_of(path) else " (takes no step)"
        yield from _wrapped(script + idle, width, "  ", "    ")


def steps_of(path: Path) -> str:
    """How many steps it has, in words."""
    return f"{len(path.steps)} step{'s' * (len(path.steps) != 1)}"


def lanes_of(path: Path) -> list[int]:
    """The threads that take a step."""
    return sorted({step.choice.thread for step in path.steps})


def _table(path: Path, width: int) -> Iterator[str]:
    lanes = lanes_of(path)
    room = (width - len("step")) // len(lanes) - len(" | ")
    columns = [f"thread {number}" for number in lanes]
    if room < _NARROWEST:
        columns, room = ["what changes"], width - len("step | ")
    yield _row("step", columns, room)
    yield "-----" + "+".join(["", *["-" * (room + 2)] * (len(columns) - 1), "-" * (room + 1)])
    for number, step in enumerate(path.steps, 1):
        lane = lanes.index(step.choice.thread) if len(columns) == len(lanes) else 0
        name = step.name if len(columns) == len(lanes) else f"thread {step.choice.thread}: {step.name}"
        lines = [*_wrapped(name, room, "", "  "), *(line for change in step.changes for line in _change(change, room))]
        if path.violation and number == len(path.steps):
            lines += _wrapped(f"^ breaks {path.violation.invariant}", room, "", "  ")
        for label, line in zip_longest([f"{number:4}"], lines, fillvalue=""):
            yield _row(label, [line if column == lane else "" for column in range(len(columns))], room)


def _row(label: str, cells: Sequence[str], room: int) -> str:
    return f"{label:4} " + " ".join(f"| {cell:{room}}" for cell in cells).rstrip()


# On one line, or the field on its own line, or before and after on their own lines too: the arrow never ends a line.
def _change(change: Change, room: int) -> list[str]:
    values = f"{change.before} -> {change.after}"
    if len(change.field) + len(values) + 4 <= room:
        return [f"  {change.field}: {values}"]
    lines = _wrapped(f"{change.field}:", room, "  ", "  ")
    if len(values) + 4 <= room:
        return [*lines, f"    {values}"]
    return [
        *lines,
        *_wrapped(change.before, room, "    ", "    "),
        *_wrapped(f"-> {change.after}", room, "    ", " " * 7),
    ]


def _wrapped(words: str, width: int, first: str, rest: str) -> list[str]:
    return textwrap.wrap(words, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
