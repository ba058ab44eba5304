"""NUMA nodes as sysfs shows them: which there are, their CPUs, memory, distances, speed and tiers.

Sources: Documentation/ABI/stable/sysfs-devices-node, Documentation/admin-guide/mm/numaperf.rst,
Documentation/ABI/testing/sysfs-kernel-mm-memory-tiers. Every function takes the root of a sysfs tree, so that a copy
of another machine's can be read. Without a list of nodes there is no sysfs, or a masked one: FeatureMissing says so. A
file of one node that is missing raises FileNotFoundError: nodes come and go.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .mounts import no_sysfs
from .syscall import read_file

__all__ = [
    "SYSFS",
    "Access",
    "access",
    "cpus",
    "distances",
    "format_list",
    "has_cpu",
    "has_memory",
    "memory",
    "online",
    "parse_list",
    "possible",
    "tiers",
]

SYSFS = Path("/sys")
"""Where the kernel mounts sysfs."""


@dataclass(frozen=True, slots=True)
class Access:
    """How fast a node's memory answers the nodes nearest to it, as the firmware states it (ACPI HMAT).

    Latencies in seconds, bandwidths in bytes a second, each None where the firmware says nothing; `initiators` are the
    nodes the figures hold for.
    """

    initiators: tuple[int, ...]
    read_latency: float | None
    write_latency: float | None
    read_bandwidth: float | None
    write_bandwidth: float | None


def parse_list(text: str) -> tuple[int, ...]:
    """Numbers in the kernel's list format (`%*pbl`), ascending as the kernel writes them.

    >>> parse_list("0-3,8"), parse_list("")
    ((0, 1, 2, 3, 8), ())

    Raises:
        ValueError: when the text is not such a list.
    """
    numbers: list[int] = []
    for item in text.strip().split(",") if text.strip() else ():
        first, dash, last = item.partition("-")
        numbers.extend(range(int(first), int(last if dash else first) + 1))
    return tuple(numbers)


def format_list(numbers: Iterable[int]) -> str:
    """Write ascending `numbers` in the kernel's list format, so that it can be pasted into cpuset.mems or taskset.

    >>> format_list((0, 1, 2, 3, 8)), format_list(())
    ('0-3,8', 'none')
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs) or "none"


def online(root: Path = SYSFS) -> tuple[int, ...]:
    """Nodes that are there now.

    Raises:
        FeatureMissing: sysfs does not tell; so `possible`, `has_memory` and `has_cpu`.
    """
    return _list(root, "online")


def possible(root: Path = SYSFS) -> tuple[int, ...]:
    """Nodes that could come online without a reboot; on many servers more than the machine has sockets."""
    return _list(root, "possible")


def has_memory(root: Path = SYSFS) -> tuple[int, ...]:
    """Nodes with memory, thus those that can take pages."""
    return _list(root, "has_memory")


def has_cpu(root: Path = SYSFS) -> tuple[int, ...]:
    """Nodes with at least one CPU online."""
    return _list(root, "has_cpu")


def cpus(node: int, root: Path = SYSFS) -> tuple[int, ...]:
    """CPUs of `node` that are online; () for a node of memory alone."""
    return parse_list(_read(_node(root, node) / "cpulist"))


def distances(node: int, root: Path = SYSFS) -> tuple[int, ...]:
    """Relative cost of memory seen from `node`: 10 for its own; one value an online node, in the order of `online`."""
    return tuple(int(word) for word in _read(_node(root, node) / "distance").split())


def memory(node: int, root: Path = SYSFS) -> tuple[int, int]:
    """(total, free) bytes of `node`."""
    sizes = {words[2]: int(words[3]) * 1024 for words in _rows(_node(root, node) / "meminfo") if words[-1] == "kB"}
    return sizes["MemTotal:"], sizes["MemFree:"]


def access(node: int, root: Path = SYSFS) -> Access | None:
    """Speed of the memory of `node` seen from the CPUs nearest to it; None where the firmware states none.

    `access1` (CPUs only) is preferred to `access0` (devices too), which is all that kernels before 5.7 have.
    """
    for name in ("access1", "access0"):
        directory = _node(root, node) / name / "initiators"
        if directory.is_dir():
            return Access(
                tuple(sorted(int(link.name[4:]) for link in directory.glob("node[0-9]*"))),
                _number(directory / "read_latency", 1e-9),
                _number(directory / "write_latency", 1e-9),
                _number(directory / "read_bandwidth", 1024.0**2),
                _number(directory / "write_bandwidth", 1024.0**2),
            )
    return None


def tiers(root: Path = SYSFS) -> dict[int, int]:
    """Memory tier by node: the kernel demotes from a lower number to a higher. {} before Linux 6.1."""
    directories = (root / "devices/virtual/memory_tiering").glob("memory_tier[0-9]*")
    return {node: int(d.name[11:]) for d in directories for node in parse_list(_read(d / "nodelist"))}


def _nodes(root: Path) -> Path:
    return root / "devices/system/node"


def _list(root: Path, name: str) -> tuple[int, ...]:
    path = _nodes(root) / name
    try:
        found = parse_list(_read(path))
    except (OSError, ValueError):
        found = ()
    if not found:  # an empty file is one that hides another
        raise no_sysfs("the list of NUMA nodes", path)
    return found


def _node(root: Path, node: int) -> Path:
    return _nodes(root) / f"node{node}"


def _read(path: Path) -> str:
    return read_file(path).decode("ascii")


def _rows(path: Path) -> list[list[str]]:
    return [line.split() for line in _read(path).splitlines()]


def _number(path: Path, unit: float) -> float | None:
    # The kernel creates all four files once it has any figure; the ones it has none for read 0.
    value = int(_read(path)) if path.exists() else 0
    return value * unit if value else None
