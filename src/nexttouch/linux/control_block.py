"""The control block of a thread, as glibc has it: known by the head of its robust list, get_robust_list(2).

The thread is that through which a process is seen.
"""

from __future__ import annotations

import ctypes
import re

from . import remote
from .process import Process
from .syscall import try_call

__all__ = ["TID_BEFORE_HEAD", "exists", "head", "own_id"]

TID_BEFORE_HEAD = 16
"""Bytes from the word with the thread's id, which the kernel sets to 0 at its end, to the head (struct pthread)."""

_ROOM = 64  # bytes of the block before and behind the head
_USER = 1 << 63  # addresses from here on are the kernel's


def head(process: Process) -> int:
    """Return the address of the head of the thread's robust list; 0 if there is none, or it cannot be one.

    It is what the program says, which need not be true; and by then the thread can have ended, and its number be
    another one's.

    >>> head(Process(os.getpid())) > 0
    True
    """
    address, size = ctypes.c_uint64(), ctypes.c_uint64()
    _, error = try_call("get_robust_list", process.thread, ctypes.byref(address), ctypes.byref(size))
    return address.value if not error and _ROOM <= address.value < _USER - _ROOM else 0


def own_id(process: Process) -> int:
    """Return the id by which the other threads of `process` know the thread.

    >>> own_id(Process(os.getpid())) == os.getpid()
    True

    Raises:
        NoSuchProcess: it has ended.
    """
    ids = re.search(rb"^NSpid:.*?(\d+)$", process.read("status"), re.MULTILINE)
    return int(ids[1]) if ids else process.thread


def exists(process: Process) -> bool:
    """Return whether the thread has a control block as glibc's.

    >>> exists(Process(os.getpid()))
    True

    Raises:
        NoSuchProcess: it has ended.
        NotPermitted: its memory is not for this user.
    """
    at = head(process)
    return bool(at) and remote.read(process, at - TID_BEFORE_HEAD, 4) == own_id(process).to_bytes(4, "little")
