"""Carries bytes between the lab's own streams and the guest's ports, and reads what the guest says of its state.

Everything is done by one loop over poll(2): no thread is left behind that would swallow the caller's next input.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterable

from .guest import HELLO

__all__ = ["Console", "Input", "Keyboard", "Output", "State", "carry"]

_CHUNK = 65536
_ROOM = select.PIPE_BUF  # what poll(2) promises a blocking pipe takes at once
_ESCAPE = 0x1D  # Ctrl-]
_ESCAPES = 3


class _Flow:
    """Bytes from descriptor `source` to descriptor `sink`; either is waited for, never both."""

    def __init__(self, source: int, sink: int, pending: bytes = b"") -> None:
        self.source = source
        self.sink = sink
        self.pending = pending
        self.ended = False

    def waits_for(self) -> tuple[int, int] | None:
        """Return the descriptor and the poll event that let this flow go on; None when it is done."""
        if self.pending:
            return self.sink, select.POLLOUT
        return None if self.ended else (self.source, select.POLLIN)

    def go_on(self) -> None:
        """Do what was waited for; raises BrokenPipeError when nobody reads the sink any more."""
        try:
            if self.pending:
                self.pending = self.pending[os.write(self.sink, self.pending[:_ROOM]) :]
            else:
                self.take(os.read(self.source, _CHUNK))
        except BlockingIOError:
            return  # somebody else's non-blocking descriptor: wait again
        except ConnectionResetError:
            self.take(b"")  # QEMU died with bytes for it unread

    def take(self, data: bytes) -> None:
        """Accept what was read; b"" is the end."""
        self.pending = data
        self.ended = not data


class Input(_Flow):
    """From the descriptor `source` to the guest's standard input `port`."""

    def __init__(self, source: int, port: socket.socket) -> None:
        super().__init__(source, port.fileno(), pending=HELLO)
        self._port = port

    def go_on(self) -> None:
        """Do what was waited for; a source that cannot be read is an empty one, a guest that is gone wants nothing."""
        try:
            super().go_on()
        except BrokenPipeError:
            self.ended, self.pending = True, b""
        except OSError:
            self.take(b"")

    def take(self, data: bytes) -> None:
        """Accept what was read, and pass the end on."""
        super().take(data)
        if self.ended:
            self._port.shutdown(socket.SHUT_WR)  # closing it whole would lose what QEMU has not read yet


class Keyboard(Input):
    """Input from a terminal, from when the guest is `up`; Ctrl-] three times in a row is an interrupt of the lab."""

    def __init__(self, source: int, port: socket.socket) -> None:
        super().__init__(source, port)
        self.up = False
        self._escapes = 0

    def waits_for(self) -> tuple[int, int] | None:
        """Return what lets this flow go on; what is typed before the guest is up stays the terminal's."""
        return super().waits_for() if self.pending or self.up else None

    def take(self, data: bytes) -> None:
        """Accept what was read."""
        super().take(data)
        for key in data:
            self._escapes = self._escapes + 1 if key == _ESCAPE else 0
            if self._escapes == _ESCAPES:
                raise KeyboardInterrupt


class Output(_Flow):
    """From a guest's `port` to the descriptor `sink`, up to the `mark` that ends it."""

    def __init__(self, port: socket.socket, sink: int, mark: bytes) -> None:
        super().__init__(port.fileno(), sink)
        self._mark = mark
        self._held = b""  # what may be the beginning of the mark
        self.complete = False

    def take(self, data: bytes) -> None:
        """Accept what was read, without the mark."""
        self._held += data
        found = self._held.find(self._mark)
        if found >= 0:
            self.pending, self._held = self._held[:found], b""
            self.complete = self.ended = True
            return
        keep = next(n for n in range(len(self._mark), -1, -1) if self._held.endswith(self._mark[:n])) if data else 0
        cut = len(self._held) - keep
        self.pending, self._held = self._held[:cut], self._held[cut:]
        self.ended = not data


class Console(_Flow):
    """The guest's console and QEMU's messages from descriptor `source`: the last of them kept, shown on `sink` >= 0."""

    def __init__(self, source: int, sink: int = -1) -> None:
        super().__init__(source, sink)
        self._tail = b""

    def take(self, data: bytes) -> None:
        """Accept what was read."""
        self._tail = (self._tail + data)[-_CHUNK:]
        super().take(data)
        if self.sink < 0:
            self.pending = b""

    def tail(self, lines: int = 60) -> str:
        """Return the last `lines` lines, indented."""
        text = self._tail.decode(errors="replace").replace("\r", "")
        return "".join(f"\n    {line}" for line in text.splitlines()[-lines:])


class State(_Flow):
    """The guest's state from its `port`: `up` once the command runs, then `status`, its exit status."""

    def __init__(self, port: socket.socket) -> None:
        super().__init__(port.fileno(), -1)
        self.port = port
        self._lines = b""
        self.up = False
        self.status: int | None = None

    def take(self, data: bytes) -> None:
        """Accept what was read."""
        self._lines += data
        self.ended = not data
        *lines, self._lines = self._lines.split(b"\n")
        for line in lines:
            word, _, number = line.partition(b" ")
            self.up = True
            if word == b"exit":
                self.status = int(number)
                self.ended = True


def carry(flows: Iterable[_Flow], seconds: float) -> None:
    """Let `flows` go on as soon as they can, for `seconds` at most: returns when one has gone on or time is up."""
    poll = select.poll()
    waiting: dict[int, list[_Flow]] = {}
    events: dict[int, int] = {}
    for flow in flows:
        wanted = flow.waits_for()
        if wanted:
            waiting.setdefault(wanted[0], []).append(flow)
            events[wanted[0]] = events.get(wanted[0], 0) | wanted[1]
    for descriptor, mask in events.items():
        poll.register(descriptor, mask)
    for descriptor, _ in poll.poll(max(seconds, 0) * 1000):
        for flow in waiting[descriptor]:
            flow.go_on()
