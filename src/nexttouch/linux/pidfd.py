"""Processes by descriptor: pidfd_open(2), pidfd_getfd(2), pidfd_send_signal(2).

A process id can be given to a new process at any moment after the old one is gone; a descriptor of a process cannot.
"""

from __future__ import annotations

import errno
import os
import select
import signal

from ..errors import FeatureMissing, InvalidArgument, KernelError, NexttouchError, NoSuchProcess, NotPermitted
from .syscall import try_call

__all__ = ["alive", "exists", "getfd_error", "pidfd_getfd", "pidfd_open"]


def pidfd_open(pid: int, *, thread: bool = False) -> int:
    """Return a descriptor of process `pid`, closed on exec; the caller closes it.

    Args:
        pid: a process, or with `thread` the id of any thread; positive.
        thread: make a descriptor of that thread alone (PIDFD_THREAD, Linux 6.9).

    Raises:
        InvalidArgument: `pid` names a thread that is not a process; or the kernel has no descriptors of threads.
        NoSuchProcess: there is none.
        FeatureMissing: the kernel has no pidfd_open (it came with Linux 5.3), or a seccomp filter forbids it.
        KernelError: any other failure, such as EMFILE.
    """
    descriptor, error = try_call("pidfd_open", pid, os.O_EXCL if thread else 0)
    match error:
        case 0:
            return descriptor
        case errno.ESRCH:
            raise NoSuchProcess(pid)
        case errno.EINVAL | errno.ENOENT:
            raise InvalidArgument("pid", f"is {pid}, which is a thread; name the process it belongs to")
        case errno.ENOSYS | errno.EPERM:
            raise _missing("pidfd_open", error)
    raise KernelError("pidfd_open", error)


def pidfd_getfd(pidfd: int, descriptor: int, *, pid: int) -> int:
    """Return a copy, closed on exec, of what number `descriptor` is in the process behind `pidfd`.

    Args:
        pidfd: from `pidfd_open`.
        descriptor: a number in that process.
        pid: its process id, for the message of an error.

    Raises:
        NoSuchProcess: it ended.
        NotPermitted: the caller may not trace it.
        FeatureMissing: the kernel has no pidfd_getfd (it came with Linux 5.6).
        KernelError: EBADF if it has no such descriptor, EMFILE.
    """
    copy, error = try_call("pidfd_getfd", pidfd, descriptor, 0)
    if error:
        raise getfd_error(error, pid)
    return copy


def getfd_error(error: int, pid: int) -> NexttouchError:
    """Make the typed error for a pidfd_getfd(2) of process `pid` that failed with errno `error`."""
    match error:
        case errno.ESRCH:
            return NoSuchProcess(pid, "before its descriptor could be taken")
        case errno.EPERM:
            return NotPermitted(pid, "taking one of its descriptors needs the right to trace it")
        case errno.ENOSYS:
            return _missing("pidfd_getfd", error)
    return KernelError("pidfd_getfd", error)


def alive(pidfd: int) -> bool:
    """Whether any thread of the process behind `pidfd` still runs: a zombie is not alive.

    >>> alive(pidfd_open(os.getpid()))
    True
    """
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)


def exists(pidfd: int) -> bool:
    """Whether the process behind `pidfd` has its number still: also as a zombie, until its parent has waited for it.

    >>> exists(pidfd_open(os.getpid()))
    True
    """
    try:
        signal.pidfd_send_signal(pidfd, 0)  # which looks, and sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's, and so it is there
    return True


def _missing(call: str, error: int) -> FeatureMissing:
    if error == errno.ENOSYS:
        return FeatureMissing(call, "this kernel does not have it", "use Linux 5.6 or newer")
    return FeatureMissing(call, "a seccomp filter forbids it", "allow it in the container's seccomp profile")
