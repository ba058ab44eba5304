"""ptrace(2), as far as Python asks for it: whether this process may trace, and where a program makes a system call.

What traces is a program of its own (src/nexttouch/_attach/thread.c).
"""

from __future__ import annotations

import ctypes
import errno
from pathlib import Path
from typing import NamedTuple

from .capabilities import SYS_PTRACE, capable

__all__ = ["INSTRUCTIONS", "Instruction", "restriction"]


class Instruction(NamedTuple):
    """The machine code that makes a system call, and what its addresses are multiples of."""

    code: bytes
    alignment: int

    def find(self, code: bytes) -> int:
        """Return where in `code`, which begins at a multiple of the alignment, it is first; -1 if it is not.

        >>> INSTRUCTIONS["x86_64"].find(bytes.fromhex("90 0f 05 c3"))
        1
        """
        at = code.find(self.code)
        while at >= 0 and at % self.alignment:
            at = code.find(self.code, at + 1)
        return at


INSTRUCTIONS = {"x86_64": Instruction(b"\x0f\x05", 1), "aarch64": Instruction(b"\x01\x00\x00\xd4", 4)}
"""For the processors on which threads can be made to run system calls, by machine name as `uname -m` prints it."""

_SEIZE = 0x4206  # include/uapi/linux/ptrace.h

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def restriction() -> str:
    """Say why this process may not trace the other processes of its user; "" if it may.

    >>> restriction()                                                                                # doctest: +SKIP
    'kernel.yama.ptrace_scope is 1, so a process may only be traced by its parent; run as root or with CAP_SYS_PTRACE'
    """
    ctypes.set_errno(0)
    _ptrace(_SEIZE, 0, None, None)  # there is no thread 0: ESRCH, unless the call itself is forbidden
    if ctypes.get_errno() != errno.ESRCH:
        return "a seccomp filter forbids ptrace(2); allow it in the container's profile (docker: --cap-add SYS_PTRACE)"
    try:
        scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or masked
        scope = 0
    if scope == 3:
        return "kernel.yama.ptrace_scope is 3, so no process may trace until the next boot; boot with a lower one"
    if scope and not capable(SYS_PTRACE):
        whom = "its parent" if scope == 1 else "root"
        reason = f"kernel.yama.ptrace_scope is {scope}, so a process may only be traced by {whom}"
        return f"{reason}; run as root or with CAP_SYS_PTRACE"
    return ""
