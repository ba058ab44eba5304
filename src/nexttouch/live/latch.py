"""Something that happens once, and can be waited for, whatever signal handlers do meanwhile.

threading.Event is no such thing: it holds a lock of its own between two bytecodes of the waiting thread. A signal
handler that runs there and waits for the same event waits for ever, and one that raises leaves the lock in a state that
makes the next use fail ("release unlocked lock").
"""

from __future__ import annotations

import math
import threading
import time

__all__ = ["Latch"]

_LONGEST = 1.0  # seconds: see `wait`


class Latch:
    """Set once and for ever.

    Attributes:
        is_set: whether it has happened.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._closed = threading.Lock()
        self._closed.acquire()

    def set(self) -> None:
        """It has happened: let every thread go that waits. To be called once."""
        self.is_set = True
        self._closed.release()

    def wait(self, timeout: float = math.inf) -> bool:
        """Wait until it happens, at most `timeout` seconds; return whether it has."""
        until = time.monotonic() + timeout
        while not self.is_set and (rest := until - time.monotonic()) > 0:
            # An exception out of a signal handler can come between these two, which would keep the others waiting: so
            # no thread waits for long without looking again.
            if self._closed.acquire(timeout=min(rest, _LONGEST)):
                self._closed.release()
        return self.is_set
