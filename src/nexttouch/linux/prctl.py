"""What a process asks of the kernel for itself: prctl(2). Constants: include/uapi/linux/prctl.h."""

from __future__ import annotations

import ctypes
import os
import signal

__all__ = ["end_with"]

_SET_PDEATHSIG = 1

_prctl = ctypes.CDLL(None, use_errno=True).prctl


def end_with(parent: int) -> None:
    """Let the kernel kill this process when `parent`, which has forked it, has ended; at once if it has already.

    What counts as the parent is the thread that has forked (PR_SET_PDEATHSIG).
    """
    _prctl(_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)
