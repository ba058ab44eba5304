"""Nodes that are full, and nodes that a process may not use."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nexttouch as nt
from nexttouch.linux import mempolicy, nodes
from nexttouch.linux.syscall import PAGE_SIZE

__all__ = ["cpuset", "filled"]

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@contextmanager
def filled(node: int) -> Iterator[None]:
    """Fill `node`, as far as the kernel lets a program that would take another node as well.

    Cached files go first: the kernel would drop them when a page has to move there, and the node would have room again.
    The pages are small: huge ones would go elsewhere as soon as there is no huge frame left, and much else is.
    """
    DROP_CACHES.write_text("3")
    chunk = 8 << 20
    held: list[np.ndarray[Any, Any]] = []
    last = node
    while last == node:
        piece = nt.empty(chunk, np.uint8, node=node)
        piece[::PAGE_SIZE] = 1
        held.append(piece)
        last = int(mempolicy.move_pages(0, np.array([piece.ctypes.data + chunk - PAGE_SIZE], np.uint64), None)[1][0])
    try:
        yield
    finally:
        held.clear()


@contextmanager
def cpuset(folder: Path, allowed: str) -> Iterator[Path]:
    """A control group whose processes may use the memory of the nodes `allowed` only; skips where there is none."""
    root = folder / "cgroup"
    root.mkdir()
    mounted = subprocess.run(["mount", "-t", "cgroup2", "none", root], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"control groups cannot be mounted: {mounted.stderr.decode()}")
    made = root / "nexttouch"
    try:
        try:
            (root / "cgroup.subtree_control").write_text("+cpuset")
            made.mkdir()
            (made / "cpuset.cpus").write_text(",".join(str(cpu) for node in nodes.online() for cpu in nodes.cpus(node)))
            (made / "cpuset.mems").write_text(allowed)
        except OSError as error:
            pytest.skip(f"there is no cpuset controller: {error}")
        yield made
    finally:
        with suppress(OSError):
            for pid in (made / "cgroup.procs").read_text().split():
                (root / "cgroup.procs").write_text(pid)
            made.rmdir()
        subprocess.run(["umount", root], check=True)
