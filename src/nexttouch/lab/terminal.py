"""The caller's terminal while a command in the guest has it: keys go on as they are, to the terminal of the guest."""

from __future__ import annotations

import os
import signal
import socket
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Terminal"]


@dataclass(frozen=True)
class Terminal:
    """The terminal behind `descriptor`."""

    descriptor: int

    @property
    def size(self) -> tuple[int, int]:
        """Its rows and columns; 24 and 80 if it does not say."""
        columns, rows = os.get_terminal_size(self.descriptor)
        return rows or 24, columns or 80

    @contextmanager
    def lent(self, state: socket.socket) -> Iterator[None]:
        """Pass keys on as they are; tell the guest by its port `state` when the size changes."""
        before = termios.tcgetattr(self.descriptor)
        tty.setraw(self.descriptor, termios.TCSADRAIN)  # what has been typed already is not dropped
        try:
            with self._watched(state):
                yield
        finally:
            termios.tcsetattr(self.descriptor, termios.TCSADRAIN, before)

    @contextmanager
    def _watched(self, state: socket.socket) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals
            return

        def tell(*_: object) -> None:
            rows, columns = self.size
            state.send(f"{rows} {columns}\n".encode())

        before = signal.signal(signal.SIGWINCH, tell)
        try:
            yield
        finally:
            signal.signal(signal.SIGWINCH, before)
