"""One thread plans and begins a migration at a time, and forks are between those.

A child that forks off while another thread plans must find neither a lock taken nor a migration half begun. So a fork
waits for the plan. But signal handlers fork, too, and raise, in the middle of that wait or of any other. So nothing
here waits without looking again, and a child makes a lock of its own: its parent's may be held by a thread that it does
not have.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["planning"]

_SLICE = 0.05  # seconds after which a wait looks whether it is another process's by now

_lock = threading.RLock()
_forking: list[threading.RLock] = []
"""The lock that each fork under way has taken, the innermost last."""


@contextmanager
def planning() -> Iterator[None]:
    """While this lasts no other thread plans; a signal handler that interrupts it may."""
    taken = _take()
    try:
        yield
    finally:
        taken.release()


def _take() -> threading.RLock:
    while True:
        lock = _lock
        if lock.acquire(timeout=_SLICE):
            return lock


def _before_fork() -> None:
    _forking.append(_take())


def _after_fork() -> None:
    if _forking:  # not if a signal handler raised while it was waited for
        _forking.pop().release()


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603 (of the process, as the fork is)
    if _forking:
        _forking.pop()
    _lock = threading.RLock()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
