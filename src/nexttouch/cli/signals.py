"""Ctrl-C, SIGTERM, SIGHUP and Ctrl-Z while pages are moved: noted at once, acted on when the command looks.

A migrator that is stopped serves no faults, and the program waits at its next store. And KeyboardInterrupt can come
between any two instructions, also of what gives the pages back after the first one.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Interrupted", "Signals"]

_Handler = Callable[[int, FrameType | None], Any] | int | None

_ADVICE = (
    "not stopped: the process would wait at its next store until this command goes on; "
    "Ctrl-C gives back what is still to move"
)


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """One of the signals that end a program came, `number`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = signal.Signals(number)


class Signals:
    """While the block runs, of several signals that end a program the first counts, be it Ctrl-C, SIGTERM or SIGHUP.

    That one raises Interrupted until `hold_interrupts` is called, and is what `interrupted` says after it. If not
    `stoppable`, Ctrl-Z does not stop this process, nor is it stopped if it writes to its terminal from the background.
    Nothing helps against SIGSTOP.
    """

    def __init__(self, *, stoppable: bool = False) -> None:
        self._stoppable = stoppable
        self._before: dict[signal.Signals, _Handler] = {}
        self._holding = self._asked_to_stop = False
        self._interrupted: signal.Signals | None = None

    def __enter__(self) -> Self:
        for number in _ENDING:
            self._set(number, self._note_interrupt)
        if not self._stoppable:
            self._set(signal.SIGTSTP, self._note_stop)
            self._set(signal.SIGTTIN, signal.SIG_IGN)
            self._set(signal.SIGTTOU, signal.SIG_IGN)
        return self

    def hold_interrupts(self) -> None:
        """From here on no signal raises anything."""
        self._holding = True

    def interrupted(self) -> signal.Signals | None:
        """The signal that was to end this process; tells the user who pressed Ctrl-Z why nothing came of it."""
        if self._asked_to_stop:
            self._asked_to_stop = False
            print(_ADVICE, file=sys.stderr, flush=True)
        return self._interrupted

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._interrupted:  # at exit, too: Python puts back the default before it ends
            self._before |= dict.fromkeys(_ENDING, signal.SIG_IGN)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _set(self, number: signal.Signals, handler: _Handler) -> None:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and shells in the background leave them
            self._before[number] = signal.signal(number, handler)

    def _note_stop(self, number: int, frame: FrameType | None) -> None:
        self._asked_to_stop = True

    def _note_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted is not None:
            return
        self._interrupted = signal.Signals(number)
        if not self._holding:
            raise Interrupted(number)
