"""A virtual machine with several NUMA nodes, for hosts that have one: it runs any command on them.

The guest is a stock Linux kernel under QEMU with the host's root file system, so the command, its libraries and its
files are those of the host; only the nodes are virtual. Without hardware virtualization QEMU emulates the processor:
memory behaviour and placement are then right, absolute times are not.

>>> from nexttouch import lab
>>> lab.run(["numactl", "--hardware"])                                                               # doctest: +SKIP
0
>>> lab.run(["python3", "-m", "pytest", "-m", "lab"], lab.Machine(nodes=2), timeout=600)             # doctest: +SKIP
0
"""

from __future__ import annotations

from .boot import count, run
from .counts import Counts, CpuCounts, Interval
from .install import missing, setup
from .machine import Machine
from .marks import mark
from .parts import Parts

__all__ = [
    "Counts",
    "CpuCounts",
    "Interval",
    "Machine",
    "Parts",
    "count",
    "mark",
    "missing",
    "run",
    "setup",
]
