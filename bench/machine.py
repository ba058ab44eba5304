"""The machine and the state it was in: what a figure means nothing without."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import nexttouch

__all__ = ["commit", "describe"]

_ROOT = Path(__file__).parents[1]


def describe() -> dict[str, Any]:
    """Say what this machine is and runs; None for what it does not tell.

    Keys: cpu, cpus, hypervisor (whether it is a virtual machine), memory (bytes), nodes (with memory), kernel,
    architecture, page_size, transparent_huge_pages, numa_balancing, load (over 1, 5 and 15 minutes), python, nexttouch,
    commit.
    """
    cpuinfo = _read("/proc/cpuinfo") or ""
    return {
        "cpu": _field(cpuinfo, "model name"),
        "cpus": os.cpu_count(),
        "hypervisor": "hypervisor" in (_field(cpuinfo, "flags") or "").split(),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "nodes": len(nexttouch.topology().memory_nodes),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "page_size": os.sysconf("SC_PAGE_SIZE"),
        "transparent_huge_pages": _chosen(_read("/sys/kernel/mm/transparent_hugepage/enabled")),
        "numa_balancing": _read("/proc/sys/kernel/numa_balancing"),
        "load": list(os.getloadavg()),
        "python": platform.python_version(),
        "nexttouch": nexttouch.__version__,
        "commit": commit(_ROOT),
    }


def commit(root: Path) -> str | None:
    """Return the commit that is checked out in `root`; None if it is no repository."""
    head = _read(root / ".git/HEAD")
    if head is None or not head.startswith("ref: "):
        return head
    name = head.removeprefix("ref: ")
    packed = (_read(root / ".git/packed-refs") or "").splitlines()
    return _read(root / ".git" / name) or next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _field(cpuinfo: str, name: str) -> str | None:
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), None)


# "always [madvise] never" -> "madvise"
def _chosen(alternatives: str | None) -> str | None:
    return alternatives.partition("[")[2].partition("]")[0] if alternatives else None
