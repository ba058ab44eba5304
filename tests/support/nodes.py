"""Nodes that are full, and nodes that a process may not use."""

from __future__ import annotations

import mmap
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from nexttouch.linux import mempolicy, nodes
from nexttouch.linux.mempolicy import Mode

from .memory import PAGE_SIZE, Memory, more_hugetlb

__all__ = ["cpuset", "filled", "setting"]

HUGE_SIZE = 2 << 20
NEARLY_NONE = 16 << 20
"""Bytes; a node that is full has some more than what all nodes keep."""
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
FREE_LISTS = Path("/proc/sys/vm/percpu_pagelist_high_fraction")
"""The greater, the fewer free pages a CPU keeps to itself, where no other finds them; 0: as the kernel likes."""
RESERVE = Path("/proc/sys/vm/min_free_kbytes")
"""What all nodes together keep for those who cannot wait; what is kept for who takes no other node grows with it."""


@contextmanager
def filled(node: int, free: int = 0) -> Iterator[None]:
    """Fill `node`, as far as the kernel lets a program that would take another node as well, but for `free` pages.

    Moving pages there gets at some of what is kept for those who take no other node, so little is kept meanwhile: some
    hundred pages instead of 9,000. Cached files go first: the kernel would drop them when a page has to move there, and
    the node would have room again. Most of it is quickly taken by huge pages that nobody uses, as far as there are any,
    96 MiB or more by small ones: huge ones get at what is kept, too.
    """
    chunk, last = 64, 96 << 20
    with ExitStack() as stack:
        stack.enter_context(setting(FREE_LISTS, "1000000"))
        stack.enter_context(setting(RESERVE, "1024"))
        DROP_CACHES.write_text("3")
        total, unused = nodes.memory(node)
        stack.enter_context(more_hugetlb(max(unused - last, 0) // HUGE_SIZE, node))
        rest = stack.enter_context(Memory(total // PAGE_SIZE, fill=False))
        policy = mempolicy.get_mempolicy()
        mempolicy.set_mempolicy(Mode.PREFERRED, (node,))
        taken = 0
        try:
            while taken < rest.pages:
                rest.populate(taken, chunk)
                taken += chunk
                elsewhere = (rest.nodes(taken - chunk, chunk) != node).any()
                if elsewhere and nodes.memory(node)[1] < NEARLY_NONE:  # else another one was taken while it was busy
                    break
        finally:
            mempolicy.set_mempolicy(*policy)
        assert taken < rest.pages, "the node does not get full"
        assert taken > free, "huge pages have filled the node"
        rest.advise(mmap.MADV_DONTNEED, 0, free)
        yield


@contextmanager
def setting(file: Path, value: str) -> Iterator[None]:
    """Write `value` to one of the kernel's settings, and afterwards what it was; of a choice that is in brackets."""
    before = file.read_text()
    before = before.partition("[")[2].partition("]")[0] or before
    file.write_text(value)
    try:
        yield
    finally:
        file.write_text(before)


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
