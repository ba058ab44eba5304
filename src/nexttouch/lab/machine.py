"""The shape of the virtual machine: nodes, which of them have a CPU, memory, distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import InvalidArgument
from ..quantities import format_size

__all__ = ["CLOCKS", "Clock", "Machine"]

Clock = Literal["host", "instructions"]
CLOCKS: tuple[Clock, ...] = ("host", "instructions")
"""What the guest's time is: that of the host, or 1 ns for each instruction that one of its CPUs has run."""

_BLOCK = 128 * 2**20  # Linux on x86-64 gives memory to nodes in sections of 128 MiB (SECTION_SIZE_BITS)
_LEAST = 2 * _BLOCK  # a node 0 with less does not boot a distribution's kernel
_MOST_NODES = 8
_LOCAL = 10  # ACPI SLIT: a node's distance to itself
_FARTHEST = 254  # 255 means unreachable


@dataclass(frozen=True)
class Machine:
    """A machine of `nodes` NUMA nodes, numbered from 0; the first `cpu_nodes` have a CPU each, the rest memory only.

    A node without CPUs has the shape of a CXL memory expander. `memory` is the bytes of each node, a multiple of
    128 MiB. `distances[i][j]` is how far node j is from node i in the units of ACPI's SLIT, where a node is 10 from
    itself; empty, which is the default, stands for two sockets with expanders behind them:

    >>> for row in Machine().distances:
    ...     print(row)
    (10, 21, 28, 38)
    (21, 10, 38, 28)
    (28, 38, 10, 48)
    (38, 28, 48, 10)

    Raises:
        InvalidArgument: nodes outside 1 to 8, CPU nodes outside 1 to `nodes`, memory that is no multiple of 128 MiB
            or below 256 MiB, distances that are not a symmetric table of 11 to 254 with 10 on its diagonal.
    """

    nodes: int = 4
    cpu_nodes: int = 2
    memory: int = 2**30
    distances: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= _MOST_NODES:
            raise InvalidArgument("nodes", f"is {self.nodes}, but the lab makes machines of 1 to {_MOST_NODES} nodes")
        if not 1 <= self.cpu_nodes <= self.nodes:
            raise InvalidArgument("cpu_nodes", f"is {self.cpu_nodes}, but has to be 1 to {self.nodes}, the nodes")
        if self.memory < _LEAST or self.memory % _BLOCK:
            raise InvalidArgument(
                "memory",
                f"is {format_size(self.memory)} a node, but has to be a multiple of {format_size(_BLOCK)} "
                f"and at least {format_size(_LEAST)}",
            )
        if self.distances:
            _check_distances(self.distances, self.nodes)
        else:
            object.__setattr__(self, "distances", _usual_distances(self.nodes, self.cpu_nodes))

    @classmethod
    def with_room(cls, size: int) -> Machine:
        """Return the usual machine, with at least `size` bytes more in each node.

        >>> Machine.with_room(1).memory - Machine().memory
        134217728
        """
        return cls(memory=cls.memory + -(-size // _BLOCK) * _BLOCK)


def _usual_distances(nodes: int, cpu_nodes: int) -> tuple[tuple[int, ...], ...]:
    def distance(a: int, b: int) -> int:
        if a == b:
            return _LOCAL
        expanders = (a >= cpu_nodes) + (b >= cpu_nodes)
        same_socket = a % cpu_nodes == b % cpu_nodes
        return {0: 21, 1: 28 if same_socket else 38, 2: 38 if same_socket else 48}[expanders]

    return tuple(tuple(distance(a, b) for b in range(nodes)) for a in range(nodes))


def _check_distances(table: tuple[tuple[int, ...], ...], nodes: int) -> None:
    if len(table) != nodes or any(len(row) != nodes for row in table):
        raise InvalidArgument("distances", f"is not a table of {nodes} rows and columns, one a node")
    for a in range(nodes):
        for b in range(nodes):
            allowed = table[a][b] == _LOCAL if a == b else _LOCAL < table[a][b] <= _FARTHEST
            if not allowed or table[a][b] != table[b][a]:
                raise InvalidArgument(
                    "distances",
                    f"has {table[a][b]} from node {a} to node {b}; it has to be {_LOCAL} from a node to itself, "
                    f"{_LOCAL + 1} to {_FARTHEST} to another and the same both ways",
                )
