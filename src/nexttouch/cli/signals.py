"""Ctrl-C and Ctrl-Z while a migration is under way: noted at once, acted on when the command looks.

A migrator that is stopped serves no faults, and the program waits at its next store. And KeyboardInterrupt can come
between any two instructions, also of what gives the pages back after the first one.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Signals"]

_Handler = Callable[[int, FrameType | None], Any] | int | None

_ADVICE = (
    "not stopped: the process would wait at its next store until this command goes on; "
    "Ctrl-C gives back what is still to move"
)


class Signals:
    """While the block runs, Ctrl-Z does not stop this process, and of several Ctrl-C the first counts.

    That one raises KeyboardInterrupt until `hold_interrupts` is called, and is what `interrupted` says after it. A
    background process that writes to its terminal is not stopped either. Nothing helps against SIGSTOP.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, _Handler] = {}
        self._holding = self._interrupted = self._asked_to_stop = False

    def __enter__(self) -> Self:
        self._set(signal.SIGINT, self._note_interrupt)
        self._set(signal.SIGTSTP, self._note_stop)
        self._set(signal.SIGTTIN, signal.SIG_IGN)
        self._set(signal.SIGTTOU, signal.SIG_IGN)
        return self

    def hold_interrupts(self) -> None:
        """From here on Ctrl-C raises nothing."""
        self._holding = True

    def interrupted(self) -> bool:
        """Whether Ctrl-C was pressed; tells whoever pressed Ctrl-Z why nothing came of it."""
        if self._asked_to_stop:
            self._asked_to_stop = False
            print(_ADVICE, file=sys.stderr, flush=True)
        return self._interrupted

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._interrupted:  # at exit, too: Python puts back the default before it ends
            self._before[signal.SIGINT] = signal.SIG_IGN
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _set(self, number: signal.Signals, handler: _Handler) -> None:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and shells in the background leave them
            self._before[number] = signal.signal(number, handler)

    def _note_stop(self, number: int, frame: FrameType | None) -> None:
        self._asked_to_stop = True

    def _note_interrupt(self, number: int, frame: FrameType | None) -> None:
        again, self._interrupted = self._interrupted, True
        if not self._holding and not again:
            raise KeyboardInterrupt
