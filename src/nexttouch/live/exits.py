"""Threads of another program that ended while its pages were being armed: what the kernel could not tell is told.

What a thread leaves at its end is kept from being armed (`nexttouch.linux.thread_exit.exit_spans`). But between that
look and the arming a thread can begin whose words are elsewhere. It writes to them as it begins, so once all is armed
no other can: a look then finds all threads whose words are on armed pages, and has these moved at once. The word of one
that has ended in between is written as the kernel would have. A thread that waits for it hears nothing of that; but a
wait that is interrupted and restarted looks again first (futex(2)), so such threads are interrupted, which they do not
notice.

Where any touch is trapped that look must not be one itself: it reads the control blocks of the threads that live, and
of others what is on pages that are no traps. What is left of a thread that began behind the first look and had ended
by the second is found when nothing is armed any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from ..errors import NexttouchError
from ..linux import remote, thread_exit
from ..linux.process import Process
from ..linux.syscall import PAGE_SIZE
from ..linux.thread_exit import LastWord
from . import injection

__all__ = ["heal", "look_again"]


def look_again(process: Process, runs: NDArray[np.uint64], *, by_touch: bool) -> None:
    """Have the pages of `runs`, shape (n, 3), which are armed, moved if a thread leaves its last words there; and heal.

    If they move `by_touch`, be it a load, none is looked at but for a thread that lives.

    Raises:
        NexttouchError: the process has ended, or cannot be reached any more.
    """
    words = thread_exit.last_words(process, armed=not by_touch)
    for page in sorted({word.address // PAGE_SIZE * PAGE_SIZE for word in words}):
        if _holds(runs, page):
            remote.touch(process, page)
    heal(process, words)


def heal(process: Process, words: Iterable[LastWord] | None = None) -> list[LastWord]:
    """Write those of `words` (None: of all that there are) whose thread has ended and could not; return them.

    Raises:
        NexttouchError: the process has ended, or cannot be reached any more.
    """
    lost = thread_exit.lost(process, thread_exit.last_words(process) if words is None else words)
    for word in lost:
        remote.write(process, word.address, word.final.to_bytes(4, "little"))
    waiting = _waiting(process, {word.address for word in lost}) if lost else []
    if waiting:
        injection.interrupt(process, waiting)
    return lost


def _holds(runs: NDArray[np.uint64], address: int) -> bool:
    ends = runs[:, 0] + runs[:, 1] * np.uint64(PAGE_SIZE)
    return bool(((runs[:, 0] <= address) & (address < ends)).any())


# Threads that are in a system call whose first argument is one of `addresses`, as that of futex(2) is.
def _waiting(process: Process, addresses: set[int]) -> list[int]:
    found = []
    for thread in process.threads():
        words: list[bytes] = []
        with suppress(NexttouchError):  # it has ended
            words = process.through(thread).read("syscall").split()
        if len(words) > 1 and int(words[1], 16) in addresses:
            found.append(thread)
    return found
