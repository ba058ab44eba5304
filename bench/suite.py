"""The measurements by name, and running them: here, or those that need several nodes in the virtual machine."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nexttouch
from nexttouch import lab
from nexttouch.errors import LabError

from . import checker, one_node, several_nodes
from .figures import Figure
from .machine import describe
from .native import PopulatedMemory

__all__ = ["SUITE", "Measurement", "Results", "needs_lab", "run", "run_in_lab"]

_LAB_SECONDS = 300.0
_LAB_MEMORY = 2 << 30


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement: `take(repetitions)` makes figures; `nodes` is how many nodes it needs."""

    take: Callable[[int], list[Figure]]
    repetitions: int
    nodes: int = 1

    @property
    def summary(self) -> str:
        """What it measures, in a line."""
        return (self.take.__doc__ or "").partition("\n")[0]


SUITE = {
    "touch": Measurement(one_node.touch, 11),
    "sweep": Measurement(one_node.sweep, 9),
    "arm": Measurement(one_node.arm, 11),
    "attach": Measurement(one_node.attach, 9),
    "states": Measurement(checker.states, 5),
    "total": Measurement(several_nodes.total, 5, nodes=2),
    "pause": Measurement(several_nodes.pause, 5, nodes=2),
}
"""In the order in which they are run."""


@dataclass(slots=True)
class Results:
    """Figures, and the machines on which they were measured by `Figure.where`."""

    machines: dict[str, dict[str, Any]]
    figures: list[Figure]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: machines and figures; `from_dict` reads it again."""
        return {"machines": self.machines, "figures": [figure.to_dict() for figure in self.figures]}

    @classmethod
    def from_dict(cls, written: dict[str, Any]) -> Results:
        """Read what `to_dict` wrote."""
        return cls(written["machines"], [Figure.from_dict(figure) for figure in written["figures"]])


def run(names: Sequence[str], repetitions: int | None, where: str, tell: Callable[[str], None]) -> Results:
    """Take the measurements `names` on this machine, which figures call `where`.

    Raises:
        NexttouchError: one of them could not be made.
    """
    machine = describe()
    _warm_up()
    figures = []
    for name in names:
        measurement = SUITE[name]
        times = repetitions or measurement.repetitions
        tell(f"{name}: {measurement.summary} {times} times")
        figures += [figure.at(where) for figure in measurement.take(times)]
    machine["load_after"] = describe()["load"]
    return Results({where: machine}, figures)


def run_in_lab(names: Sequence[str], repetitions: int | None, tell: Callable[[str], None]) -> Results:
    """Take the measurements `names` in the virtual machine with several nodes.

    Raises:
        LabError: it cannot be had, or a measurement failed in it.
    """
    lab.setup(tell)
    with tempfile.TemporaryDirectory(prefix="nexttouch-bench-") as directory:
        file = Path(directory) / "figures.json"
        command = [sys.executable, "-m", "bench", *names, "--where", "lab", "--json", str(file)]
        command += [] if repetitions is None else ["--repetitions", str(repetitions)]
        machine = lab.Machine(nodes=2, memory=_LAB_MEMORY)
        with Path(os.devnull).open("wb") as nowhere:
            status = lab.run(command, machine, timeout=_LAB_SECONDS, stdout=nowhere)
        if status or not file.exists():
            raise LabError(f"the measurements in the virtual machine ended with status {status}; see above")
        return Results.from_dict(json.loads(file.read_text()))


# Modules are loaded when they are first used, which in the virtual machine takes a second.
def _warm_up() -> None:
    with (
        PopulatedMemory(1 << 20) as memory,
        nexttouch.lazy(memory.buffer, nexttouch.topology().memory_nodes[0], always=True),
    ):
        memory.touch()


def needs_lab(name: str) -> bool:
    """Whether this machine has too few nodes for the measurement `name`."""
    return SUITE[name].nodes > len(nexttouch.topology().memory_nodes)
