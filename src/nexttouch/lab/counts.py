"""How often each CPU of the machine has accessed memory, and which nodes it went to when its cache missed.

The processor is an emulated one that has no cache, so one is modelled (count.c): 1 MiB for each CPU, lines of 64 bytes,
direct-mapped by physical address, which nothing but the CPU's own accesses change. It stands for how local and remote
memory are told apart, not for how fast a certain processor is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..errors import LabError
from .machine import Machine

__all__ = ["Counts", "CpuCounts", "Interval", "parse"]


@dataclass(frozen=True)
class CpuCounts:
    """Loads and stores of CPU `cpu`, which is on `node`: all `accesses`, and `misses[n]` of its cache on node n."""

    cpu: int
    node: int
    accesses: int
    misses: tuple[int, ...]

    @property
    def local(self) -> int:
        """Misses on the CPU's own node."""
        return self.misses[self.node]

    @property
    def remote(self) -> int:
        """Misses on all other nodes."""
        return sum(self.misses) - self.local


@dataclass(frozen=True)
class Interval:
    """What each CPU did from the mark `begin` to the mark `end`."""

    begin: str
    end: str
    cpus: tuple[CpuCounts, ...]


@dataclass(frozen=True)
class Counts:
    """What a command did: its exit `status`, and one interval after the other.

    The first begins at "start", right before the command, the last ends at "end", right after it. What the kernel and
    other programs do meanwhile is part of it.
    """

    status: int
    intervals: tuple[Interval, ...]

    @property
    def whole(self) -> Interval:
        """All intervals in one."""
        cpus = zip(*(interval.cpus for interval in self.intervals), strict=True)
        return Interval(self.intervals[0].begin, self.intervals[-1].end, tuple(map(_sum, cpus)))


def parse(text: str, machine: Machine) -> tuple[Interval, ...]:
    """Read what the plugin wrote: for each mark a line `mark NAME`, then a line for each CPU, counted from the boot on.

    Raises:
        LabError: it is not complete: the guest has not come to the end.
    """
    marks = list(_marks(text.splitlines(), machine))
    if len(marks) < 2:
        raise LabError(f"the guest has set {len(marks)} marks, not one at its start and one at its end: no counts")
    return tuple(
        Interval(begin, end, tuple(map(_difference, before, after)))
        for (begin, before), (end, after) in pairwise(marks)
    )


def _marks(lines: Sequence[str], machine: Machine) -> Iterator[tuple[str, list[CpuCounts]]]:
    size = machine.cpu_nodes + 1
    for start in range(0, len(lines), size):
        head, *cpus = lines[start : start + size]
        numbers = [list(map(int, line.split())) for line in cpus]
        yield head.removeprefix("mark "), [CpuCounts(n, n, row[0], tuple(row[1:])) for n, row in enumerate(numbers)]


def _difference(before: CpuCounts, after: CpuCounts) -> CpuCounts:
    misses = tuple(b - a for a, b in zip(before.misses, after.misses, strict=True))
    return CpuCounts(after.cpu, after.node, after.accesses - before.accesses, misses)


def _sum(counts: Sequence[CpuCounts]) -> CpuCounts:
    misses = tuple(map(sum, zip(*(one.misses for one in counts), strict=True)))
    return CpuCounts(counts[0].cpu, counts[0].node, sum(one.accesses for one in counts), misses)
