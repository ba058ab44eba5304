"""The demonstration on several nodes: one subject, moved back and forth, and what it noticed.

The subject is an unmodified program in its own process. It runs on the CPUs of one node while its memory was first
touched on another, and prints how long each of its steps took. Its words are the only measure of how long it waited.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from .. import placement
from ..errors import NexttouchError
from ..linux import mempolicy
from ..linux.mempolicy import Mode
from ..linux.process import Process
from ..linux.syscall import PAGE_SIZE
from ..live.attach import attach
from ..live.eager import move
from ..live.reason import Reason, keyed
from ..topology import Topology, topology

__all__ = ["Act", "Demonstration", "Tell", "demonstrate"]

Tell = Callable[[str], None]
"""Called with a line when something that takes long begins."""

# Moves the memory of a process to a node; returns what an Act is to know of it.
_Action = Callable[[Process, int], dict[str, Any]]

_SUBJECT = Path(__file__).with_name("subject.py")
_SAMPLING = 0.4  # seconds between two looks where the pages are
_SAMPLED = 512  # pages looked at each time
_SETTLE_STEPS = 200  # what is normal is taken from so many steps


@dataclass(frozen=True, slots=True)
class Act:
    """One move of the subject's memory, as the subject saw it.

    Attributes:
        name: "migratepages", "eager" or "lazy".
        seconds: from the begin to the end of the move.
        longest_step: the longest step of the subject that had anything to do with it, in seconds.
        steps: seconds of each step that the subject completed meanwhile, in order.
        before, after: pages on each node.
        during: samples (seconds since the begin, pages on each node: those of the array as a sample of them has it, the
            others where they were before).
        left: pages that stayed, by reason; empty where the call gives none.
        stopped: seconds that the subject was held to be attached to.
        attaching: of `seconds`, those before anything could move: finding the pages, and a process that attaches.
    """

    name: str
    seconds: float
    longest_step: float
    steps: list[float]
    before: dict[int, int]
    during: list[tuple[float, dict[int, int]]]
    after: dict[int, int]
    left: dict[Reason, int]
    stopped: float = 0.0
    attaching: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the attributes; during as pairs, reasons by name, and of the steps only how many."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {"left": keyed(self.left), "steps": len(self.steps)}


@dataclass(frozen=True, slots=True)
class Demonstration:
    """All of it.

    Attributes:
        size: bytes of the subject's array.
        source, target: nodes: where the memory was, and where it went, which is where the subject runs.
        usual_step: median seconds of a step while nothing moves.
        longest_usual_step: the longest of these.
        acts: the moves.
    """

    size: int
    source: int
    target: int
    usual_step: float
    longest_usual_step: float
    acts: list[Act]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the attributes."""
        return {name: getattr(self, name) for name in self.__slots__} | {"acts": [act.to_dict() for act in self.acts]}


def demonstrate(size: int, tell: Tell) -> Demonstration:
    """Start the subject with an array of `size` bytes; move its memory as migratepages(8) does, eagerly and lazily.

    Raises:
        NexttouchError: the subject ended, or a move could not be begun.
    """
    source, target = _choose_nodes(topology())
    tell(f"starting the subject: {size >> 20} MiB first touched on node {source}, its thread on node {target}")
    with _out_of_the_way(topology(), target), _Subject(size, source, target) as subject:
        subject.wait_steps(_SETTLE_STEPS)
        usual = subject.steps_since(0)
        acts = []
        for name, action in _ACTIONS.items():
            tell(f"moving it to node {target}: {name}")
            acts.append(subject.watch(name, action, target))
            tell(f"moving it back to node {source}")
            move(subject.pid, source)
        return Demonstration(size, source, target, statistics.median(usual), max(usual), acts)


# The subject's CPUs are on the target, its memory on the nearest other node.
def _choose_nodes(machine: Topology) -> tuple[int, int]:
    for node in reversed(machine.nodes):
        if node.cpus and node.has_memory and machine.nearest(node.id):
            return machine.nearest(node.id)[0], node.id
    raise NexttouchError("this machine has no two nodes with memory, one of them with CPUs")


# The threads that move the memory, and look where it is, are to take no time from the subject.
@contextmanager
def _out_of_the_way(machine: Topology, target: int) -> Iterator[None]:
    allowed = os.sched_getaffinity(0)
    others = {cpu for node in machine.nodes if node.id != target for cpu in node.cpus} & allowed
    os.sched_setaffinity(0, others or allowed)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


class _Sample(NamedTuple):
    """Addresses of some pages of the subject's array, how many pages that has, and the other pages by node."""

    addresses: NDArray[np.uint64]
    pages: int
    others: Counter[int]


class _Subject:
    """The program, its process id, and the steps that it has told of."""

    def __init__(self, size: int, source: int, target: int) -> None:
        # It writes to memory, not to a pipe: no reader has to keep up with it, and nothing it waits for is ours.
        self._output = os.memfd_create("nexttouch-demo")
        cpus = topology().node(target).cpus

        def place() -> None:
            os.sched_setaffinity(0, cpus)
            mempolicy.set_mempolicy(Mode.PREFERRED, [source])

        command = [sys.executable, str(_SUBJECT), str(size)]
        self._process = subprocess.Popen(command, stdout=self._output, preexec_fn=place)  # noqa: PLW1509 (one thread)
        self.pid = self._process.pid
        self._source = source

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._output)

    @property
    def told(self) -> int:
        """Bytes that it has printed."""
        return os.fstat(self._output).st_size

    def steps_since(self, begin: int) -> list[float]:
        """Seconds of each step told of behind byte `begin`."""
        text = os.pread(self._output, self.told - begin, begin).decode()
        whole = text[text.find("step") : text.rfind("\n")]
        return [float(line.split()[1]) / 1e3 for line in whole.splitlines() if line.startswith("step ")]

    def wait_steps(self, count: int, begin: int = 0) -> None:
        """Return when it has told of `count` steps behind byte `begin`."""
        while len(self.steps_since(begin)) < count:
            if self._process.poll() is not None:
                raise NexttouchError(f"the subject ended by itself (status {self._process.returncode})")
            time.sleep(0.05)

    def watch(self, name: str, action: _Action, target: int) -> Act:
        """Do `action`, looking where the pages are meanwhile, and how long the subject's steps take."""
        placed = placement.where(self.pid)
        before, sample = placed.by_node, self.sample(placed)
        begin, began = self.told, time.monotonic()
        outcome: dict[str, Any] = {}
        failure: list[NexttouchError] = []

        with Process.open(self.pid) as process:

            def act() -> None:
                try:
                    outcome.update(action(process, target))
                except NexttouchError as error:
                    failure.append(error)

            thread = threading.Thread(target=act)
            thread.start()
            during = []
            while thread.is_alive():
                thread.join(_SAMPLING)
                during.append((time.monotonic() - began, _by_node(process, sample)))
        seconds, end = time.monotonic() - began, self.told
        if failure:
            raise failure[0]
        self.wait_steps(2, end)  # the step that was under way at the end, and one more
        steps = self.steps_since(begin)
        return Act(name, seconds, max(steps), steps, before, during[:-1], self.by_node(), **outcome)

    def by_node(self) -> dict[int, int]:
        """Pages of the process on each node."""
        return placement.where(self.pid).by_node

    def sample(self, placed: placement.Placement) -> _Sample:
        """Take a sample of the pages of its array, evenly spaced; `placed` is where all of it is."""
        array = max(placed.mappings, key=lambda mapping: mapping.counts.present)
        pages = (array.end - array.start) // PAGE_SIZE
        numbers: NDArray[np.uint64] = np.linspace(0, pages - 1, min(_SAMPLED, pages)).astype(np.uint64)
        addresses = np.uint64(array.start) + numbers * np.uint64(PAGE_SIZE)
        others = Counter(placed.by_node)
        others.subtract(array.counts.by_node)
        return _Sample(addresses, array.counts.present, others)


def _by_node(process: Process, sample: _Sample) -> dict[int, int]:
    """Pages of `process` on each node: of the array as the sample has it, and the others where they were.

    To look at all pages takes the lock of the memory map for so long that the subject would wait for it.
    """
    nodes = placement.nodes_of(process, sample.addresses)
    found, counts = np.unique(nodes[nodes >= 0], return_counts=True)
    array = {int(node): round(sample.pages * count / counts.sum()) for node, count in zip(found, counts, strict=True)}
    return dict(sorted((+(sample.others + Counter(array))).items()))


def _migratepages(process: Process, target: int) -> dict[str, Any]:
    mempolicy.migrate_pages(process, [node for node in topology().memory_nodes if node != target], [target])
    return {"left": {}}


def _eagerly(process: Process, target: int) -> dict[str, Any]:
    return {"left": dict(move(process.pid, target).left)}


def _lazily(process: Process, target: int) -> dict[str, Any]:
    began = time.monotonic()
    migration = attach(process.pid, target)
    attaching = time.monotonic() - began
    migration.wait()
    stats = migration.stats
    return {"left": stats.left, "stopped": stats.stopped, "attaching": attaching}


_ACTIONS: dict[str, _Action] = {"migratepages": _migratepages, "eager": _eagerly, "lazy": _lazily}
