"""Everything nexttouch raises: one root, typed children, each carrying what a program needs to react.

A message names the cause first and the remedy after it. `exit_code` is what the command line exits with.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import Any

__all__ = [
    "FeatureMissing",
    "InvalidArgument",
    "KernelError",
    "LabError",
    "NexttouchError",
    "NoSuchNode",
    "NoSuchProcess",
    "NodeUnavailable",
    "NotPermitted",
    "TargetRefused",
]


class NexttouchError(Exception):
    """Root of all errors raised on purpose; `except nt.NexttouchError` catches every one."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes whatever arguments their classes take."""
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(
    kind: type[NexttouchError], arguments: tuple[object, ...], attributes: dict[str, object]
) -> NexttouchError:
    error = kind.__new__(kind)
    error.args = arguments
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


class InvalidArgument(NexttouchError, ValueError):
    """An argument of the caller is wrong; `argument` is its name.

    >>> str(InvalidArgument("rate", "is -1, but has to be positive"))
    'rate is -1, but has to be positive'
    """

    exit_code = 2

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument} {problem}")
        self.argument = argument


class NoSuchNode(InvalidArgument):
    """The machine has no node `node`; `nodes` are those it has."""

    def __init__(self, node: int, nodes: tuple[int, ...], *, argument: str = "to") -> None:
        have = ", ".join(map(str, nodes))
        super().__init__(argument, f"names node {node}, but this machine has node{'s' * (len(nodes) != 1)} {have}")
        self.node = node
        self.nodes = nodes


class NodeUnavailable(NexttouchError):
    """Node `node` exists but may not be used: offline, without memory, or outside the cpuset."""

    def __init__(self, node: int, reason: str) -> None:
        super().__init__(f"node {node} cannot take pages: {reason}")
        self.node = node
        self.reason = reason


class FeatureMissing(NexttouchError):
    """The kernel, or the permission to use it, lacks `feature`; `remedy` says what would give it."""

    def __init__(self, feature: str, reason: str, remedy: str) -> None:
        super().__init__(f"{feature} is not available: {reason}; {remedy}")
        self.feature = feature
        self.reason = reason
        self.remedy = remedy


class NoSuchProcess(NexttouchError):
    """Process `pid` does not exist, or ended while it was worked on."""

    def __init__(self, pid: int, when: str = "") -> None:
        super().__init__(f"process {pid} does not exist" if not when else f"process {pid} ended {when}")
        self.pid = pid


class NotPermitted(NexttouchError):
    """The memory of process `pid` (0: of this one) is not for the caller: the kernel refuses, or it has none."""

    def __init__(self, pid: int, reason: str) -> None:
        super().__init__(f"{f'process {pid}' if pid else 'this process'} may not be touched: {reason}")
        self.pid = pid
        self.reason = reason


class TargetRefused(NexttouchError):
    """Process `pid` is in a state in which attaching could harm it; it was left as it was."""

    def __init__(self, pid: int, reason: str) -> None:
        super().__init__(f"process {pid} cannot be attached to: {reason}")
        self.pid = pid
        self.reason = reason


class KernelError(NexttouchError, OSError):
    """System call `call` failed in a way that has no type of its own; `errno` as in OSError."""

    def __init__(self, call: str, errno: int, detail: str = "") -> None:
        name = _errno.errorcode.get(errno, str(errno))
        NexttouchError.__init__(self, f"{call}: {os.strerror(errno)} ({name})" + (f"; {detail}" if detail else ""))
        self.call = call
        self.errno = errno

    def __reduce__(self) -> tuple[Any, ...]:
        """OSError keeps its number outside of the attributes."""
        return _rebuilt, (type(self), self.args, self.__dict__ | {"errno": self.errno})

    def __str__(self) -> str:
        return str(self.args[0])


class LabError(NexttouchError):
    """The virtual NUMA machine could not be built or started; the message says what is missing."""
