"""What this process is privileged to do: capget(2). Numbers: include/uapi/linux/capability.h."""

from __future__ import annotations

import ctypes

from .syscall import try_call

__all__ = ["SYS_PTRACE", "capable"]

SYS_PTRACE = 19
"""Trace any process, and see its memory."""

_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_EFFECTIVE = (0, 3)  # words of two struct __user_cap_data_struct: effective, permitted, inheritable


def capable(capability: int) -> bool:
    """Whether `capability`, a number, is in effect for the calling thread.

    >>> capable(SYS_PTRACE) in (True, False)
    True
    """
    data = (ctypes.c_uint32 * 6)()
    try_call("capget", (ctypes.c_uint32 * 2)(_VERSION, 0), data)
    return bool(data[_EFFECTIVE[capability // 32]] >> capability % 32 & 1)
