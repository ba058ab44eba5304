"""Threads of another program that ended while its pages were being armed: what the kernel could not tell is told.

What a thread leaves at its end is kept from being armed (`nexttouch.linux.threads.exit_spans`). But between that look
and the arming a thread can begin whose words are elsewhere. It writes to them as it begins, so once all is armed no
other can: a look then finds all threads whose words are on armed pages, and has these moved at once. The word of one
that has ended in between is written as the kernel would have. Whoever waits for it hears nothing of that; but a wait
that is interrupted and restarted looks again first (futex(2)), so such threads are interrupted, which no one notices.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ..linux import procfs, remote, threads
from ..linux.syscall import PAGE_SIZE, read_file
from ..linux.threads import LastWord
from . import descriptor
from .held import Held

__all__ = ["heal", "look_again"]


def look_again(process: Held, runs: NDArray[np.uint64]) -> None:
    """Have the pages of `runs`, shape (n, 3), which are armed, moved if a thread leaves its last words there; and heal.

    Raises:
        NexttouchError: the process has ended, or cannot be reached any more.
    """
    words = threads.last_words(process.pid)
    process.check()
    for page in sorted({word.address // PAGE_SIZE * PAGE_SIZE for word in words}):
        if _holds(runs, page):
            remote.touch(process.pid, page)
    heal(process, words)


def heal(process: Held, words: Iterable[LastWord] | None = None) -> list[LastWord]:
    """Write those of `words` (None: of all that there are) whose thread has ended and could not; return them.

    Raises:
        NexttouchError: the process has ended, or cannot be reached any more.
    """
    lost = threads.lost(process.pid, threads.last_words(process.pid) if words is None else words)
    process.check()  # else this is another one's
    for word in lost:
        remote.write(process.pid, word.address, word.final.to_bytes(4, "little"))
    waiting = _waiting(process.pid, {word.address for word in lost}) if lost else []
    if waiting:
        descriptor.interrupt(process.pid, process.pidfd, waiting)
    return lost


def _holds(runs: NDArray[np.uint64], address: int) -> bool:
    ends = runs[:, 0] + runs[:, 1] * np.uint64(PAGE_SIZE)
    return bool(((runs[:, 0] <= address) & (address < ends)).any())


# Threads that are in a system call whose first argument is one of `addresses`, as that of futex(2) is.
def _waiting(pid: int, addresses: set[int]) -> list[int]:
    found = []
    for thread in procfs.threads(pid):
        try:
            words = read_file(procfs.directory(pid) / "task" / str(thread) / "syscall").split()
        except OSError:
            continue  # it has ended
        if len(words) > 1 and int(words[1], 16) in addresses:
            found.append(thread)
    return found
