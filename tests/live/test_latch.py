"""A latch: it opens once, and no signal handler can close it again or hang in it."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import pytest
from support.memory import HANG, run_threads

from nexttouch.live.latch import Latch


def test_it_opens_once_and_for_ever() -> None:
    latch = Latch()
    assert not latch.is_set
    assert not latch.wait(0)
    assert not latch.wait(-1)
    assert not latch.wait(0.01)
    latch.set()
    assert latch.is_set
    assert latch.wait()
    assert latch.wait(0)


def test_everybody_who_waits_is_let_go() -> None:
    latch, here = Latch(), threading.Barrier(5, timeout=HANG)

    def wait() -> None:
        here.wait()
        assert latch.wait(HANG)

    def open_it() -> None:
        here.wait()
        latch.set()

    run_threads(wait, wait, wait, wait, open_it)


def test_a_signal_handler_waits_where_its_thread_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the events of the standard library it can find the lock taken by what it has interrupted."""
    latch, waited = Latch(), []

    def handler(number: int, frame: FrameType | None) -> None:
        waited.append(latch.wait(0.01))
        latch.set()
        waited.append(latch.wait(HANG))

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        assert latch.wait(HANG)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert waited == [False, True]


def test_who_is_thrown_out_of_waiting_does_not_hold_up_the_others() -> None:
    """An exception right after the lock was taken, so that it is never given back."""
    latch, here = Latch(), threading.Barrier(2, timeout=HANG)

    def wait() -> None:
        here.wait()
        assert latch.wait(HANG)

    def open_it() -> None:
        here.wait()
        latch.set()
        latch._closed.acquire(blocking=False)

    for _ in range(3):
        run_threads(wait, open_it)
        assert latch.wait()
        latch = Latch()
