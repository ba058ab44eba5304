"""Whether /proc and /sys are what this process takes them for: there at all, and of its own pid namespace.

A container, a chroot or `unshare` can leave either out, mask parts of them, or keep a /proc of another pid namespace
(proc(5), pid_namespaces(7)). In such a /proc the number N is one process, and to every system call another one: what is
read there belongs to the first, what is moved to the second.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import FeatureMissing
from .syscall import read_file

__all__ = ["PROC", "check_proc", "foreign_proc", "no_proc", "no_sysfs"]

PROC = Path("/proc")
"""Where the kernel mounts procfs."""

_FEATURE = "information on processes"
_PIDS = re.compile(rb"^NSpid:((?:\t\d+)+)$", re.MULTILINE)


def check_proc() -> None:
    """Look whether a process id means the same to /proc and to the system calls of this process.

    >>> check_proc()

    Raises:
        FeatureMissing: /proc is not mounted, or is of another pid namespace.
    """
    try:
        text = read_file(PROC / "self" / "status")
    except OSError:
        raise no_proc() from None
    pids = _PIDS.search(text)
    # One number a namespace, from that of /proc to that of the process. A kernel without namespaces has no such line.
    if pids and pids[1].split() != [b"%d" % os.getpid()]:
        raise foreign_proc()


def no_proc() -> FeatureMissing:
    """Make the error for a /proc that does not show this process."""
    if (PROC / "version").exists():  # procfs, but this process is not in it
        return foreign_proc()
    return FeatureMissing(_FEATURE, "/proc is not mounted here", "mount it (mount -t proc proc /proc)")


def foreign_proc() -> FeatureMissing:
    """Make the error for a /proc of another pid namespace than this process's."""
    return FeatureMissing(
        _FEATURE,
        "/proc is of another pid namespace than this process, and the same numbers mean other processes there",
        "mount one of its own (mount -t proc proc /proc, or unshare --mount-proc), or enter the other namespace "
        "(nsenter --pid)",
    )


def no_sysfs(feature: str, path: object) -> FeatureMissing:
    """Make the error for `feature`, which file `path` below /sys would tell if it could be read."""
    return FeatureMissing(
        feature,
        f"{path} cannot be read",
        "mount sysfs (mount -t sysfs sysfs /sys) if it is not there or masked, as in containers; "
        "else use a kernel with CONFIG_NUMA",
    )
