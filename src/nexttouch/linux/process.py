"""A process that a caller names by its number: every command and call that takes a process id goes through here."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import SupportsIndex

from ..errors import InvalidArgument
from . import procfs
from .mounts import check_proc

__all__ = ["Process", "find_process", "process_id"]


@dataclass(frozen=True, slots=True)
class Process:
    """Process `pid`, and the thread by which the kernel shows its memory: the main one, unless that has ended."""

    pid: int
    thread: int


def process_id(pid: object, *, argument: str = "pid") -> int:
    """Return `pid` as a number, if it means the same to /proc, which is read, and to the system calls that move pages.

    >>> process_id(os.getpid()) == os.getpid()
    True

    Raises:
        InvalidArgument: naming `argument`; it is no positive integer.
        FeatureMissing: /proc is not mounted, or is of another pid namespace.
    """
    number = -1
    if not isinstance(pid, bool) and isinstance(pid, SupportsIndex):
        try:
            number = operator.index(pid)
        except TypeError:
            number = -1
    if number <= 0:
        raise InvalidArgument(argument, f"is {pid!r}, but a process id is a positive integer")
    check_proc()
    return number


def find_process(pid: object, *, argument: str = "pid") -> Process:
    """Find process `pid`, and how its memory is to be looked at.

    >>> find_process(os.getpid()).thread == os.getpid()
    True

    Raises:
        InvalidArgument, FeatureMissing: as `process_id`.
        NoSuchProcess: there is none.
        NotPermitted: it is hidden from this user.
    """
    number = process_id(pid, argument=argument)
    return Process(number, procfs.with_memory(number))
