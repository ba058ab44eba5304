"""The machine's NUMA nodes, read fresh at every call: nodes come and go, and so does what a process may use.

Imports no NumPy: the command line asks for the topology before anything else.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

from .errors import InvalidArgument, NodeUnavailable, NoSuchNode
from .linux import mempolicy, nodes
from .linux.mounts import no_sysfs
from .linux.process import SELF, Process

__all__ = ["Node", "Topology", "check_target", "topology"]


@dataclass(frozen=True, slots=True)
class Node:
    """One NUMA node that is online.

    Sizes in bytes, latencies in seconds, bandwidths in bytes a second. `tier` is the kernel's memory tier (a lower
    number is faster memory); it and the speeds are None where kernel or firmware do not say.
    """

    id: int
    cpus: tuple[int, ...]
    has_memory: bool
    memory_total: int
    memory_free: int
    tier: int | None = None
    read_latency: float | None = None
    write_latency: float | None = None
    read_bandwidth: float | None = None
    write_bandwidth: float | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """The nodes online at one moment, ascending by id, and how far they are from each other.

    `distances[i][j]` is the relative cost, 10 being local, for CPUs of `nodes[i]` to reach memory of `nodes[j]`:
    positions, not ids, since ids may have gaps; `distance()` takes ids.
    """

    nodes: tuple[Node, ...]
    distances: tuple[tuple[int, ...], ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of all nodes."""
        return tuple(node.id for node in self.nodes)

    @property
    def memory_nodes(self) -> tuple[int, ...]:
        """Ids of the nodes that have memory, thus can be a target."""
        return tuple(node.id for node in self.nodes if node.has_memory)

    def node(self, node: int) -> Node:
        """Return the node with id `node`.

        Raises:
            NoSuchNode: no node online has this id.
        """
        return self.nodes[self._position(node)]

    def distance(self, source: int, target: int) -> int:
        """Relative cost for CPUs of node `source` to reach memory of node `target`; 10 is local.

        Raises:
            NoSuchNode: no node online has one of these ids.
        """
        return self.distances[self._position(source)][self._position(target)]

    def nearest(self, node: int) -> tuple[int, ...]:
        """Ids of the other nodes with memory, nearest to `node` first; of two equally near the lower id first.

        Raises:
            NoSuchNode: no node online has this id.
        """
        row = dict(zip(self.ids, self.distances[self._position(node)], strict=True))
        return tuple(sorted((other for other in self.memory_nodes if other != node), key=lambda other: row[other]))

    def node_of_cpu(self, cpu: int) -> int:
        """Id of the node that CPU `cpu` belongs to.

        Raises:
            InvalidArgument: no such CPU is online.
        """
        for node in self.nodes:
            if cpu in node.cpus:
                return node.id
        raise InvalidArgument("cpu", f"is {cpu}, but the CPUs online are {nodes.format_list(self._cpus())}")

    def cpu_nodes(self) -> list[int]:
        """Node id of each CPU, indexed by CPU number; -1 for a number without a CPU online."""
        table = [-1] * (max(self._cpus(), default=-1) + 1)
        for node in self.nodes:
            for cpu in node.cpus:
                table[cpu] = node.id
        return table

    def _cpus(self) -> tuple[int, ...]:
        return tuple(sorted(cpu for node in self.nodes for cpu in node.cpus))

    def _position(self, node: int) -> int:
        try:
            return self.ids.index(node)
        except ValueError:
            raise NoSuchNode(node, self.ids, argument="node") from None


def topology(root: Path = nodes.SYSFS) -> Topology:
    """Read the nodes of this machine, or of the machine whose sysfs tree was copied to `root`, as they are now.

    >>> nt.topology().ids
    (0, 1, 2, 3)

    Raises:
        FeatureMissing: the kernel has no NUMA support, or sysfs is not visible here.
    """
    while True:
        ids = nodes.online(root)
        try:
            return _read(root, ids)
        except (OSError, ValueError, KeyError) as error:
            # A node came or went between two files: begin again. If none did, a part of the tree is masked or broken.
            if nodes.online(root) == ids:
                told = getattr(error, "filename", None) or f"{root} ({error})"
                raise no_sysfs("the description of NUMA nodes", told) from error


def check_target(
    to: SupportsIndex | Iterable[SupportsIndex], *, argument: str = "to", process: Process = SELF
) -> tuple[int, ...]:
    """Return the nodes named by `to`, one id or several, if `process` can use them all.

    The order of `to` is kept: it is the order of interleaving.

    >>> check_target(0), check_target([0])
    ((0,), (0,))

    Raises:
        InvalidArgument: `to` is no integer and no collection of them, is empty, or names a node twice.
        NoSuchNode: the machine has no such node.
        NodeUnavailable: the node is offline, has no memory, or is outside the cpuset of the process.
        NoSuchProcess, NotPermitted: about `process`.
    """
    targets = _integers(to, argument)
    online, possible, with_memory = nodes.online(), nodes.possible(), nodes.has_memory()
    allowed = mempolicy.mems_allowed(process)
    for node in targets:
        if node not in possible:
            raise NoSuchNode(node, online, argument=argument)
        if node not in online:
            raise NodeUnavailable(node, "it is offline; bring its memory online or name another")
        if node not in with_memory:
            raise NodeUnavailable(node, f"it has no memory; nodes with memory: {nodes.format_list(with_memory)}")
        if node not in allowed:
            whose = "this process" if process.own else f"process {process.pid}"
            raise NodeUnavailable(
                node,
                f"the cpuset of {whose} allows {nodes.format_list(allowed)}; "
                "add it to cpuset.mems of the control group",
            )
    return targets


def _integers(to: SupportsIndex | Iterable[SupportsIndex], argument: str) -> tuple[int, ...]:
    if isinstance(to, str | bytes):
        raise InvalidArgument(argument, f"is {to!r}, but has to be a node number or several of them")
    items = tuple(to) if isinstance(to, Iterable) and getattr(to, "shape", None) != () else (to,)
    found = tuple(_integer(item, argument) for item in items)
    if not found:
        raise InvalidArgument(argument, "is empty, but has to name at least one node")
    if len(set(found)) < len(found):
        raise InvalidArgument(argument, f"names a node twice: {found}")
    return found


def _integer(item: object, argument: str) -> int:
    # bool (and NumPy's) count as integers to Python: a True that reached this place is a mistake, not node 1.
    if type(item).__name__ not in {"bool", "bool_"} and isinstance(item, SupportsIndex):
        try:
            return operator.index(item)
        except TypeError:
            pass
    raise InvalidArgument(argument, f"contains {item!r}, but nodes are integers")


def _read(root: Path, ids: tuple[int, ...]) -> Topology:
    with_memory, tiers = nodes.has_memory(root), nodes.tiers(root)
    rows = tuple(nodes.distances(node, root) for node in ids)
    if any(len(row) != len(ids) for row in rows):
        raise ValueError(f"distances of nodes {ids} are not a square: {rows}")
    return Topology(tuple(_node(root, node, node in with_memory, tiers.get(node)) for node in ids), rows)


def _node(root: Path, node: int, has_memory: bool, tier: int | None) -> Node:
    total, free = nodes.memory(node, root)
    speed = nodes.access(node, root)
    figures = (
        (speed.read_latency, speed.write_latency, speed.read_bandwidth, speed.write_bandwidth)
        if speed
        else (None, None, None, None)
    )
    return Node(node, nodes.cpus(node, root), has_memory, total, free, tier, *figures)
