"""A command of the lab at a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nexttouch import cli

LIMIT = 300.0
AGAIN = 5.0


class Session:
    """`nexttouch lab` on a pseudo terminal of 30 rows and 99 columns, of which this is the user's side."""

    def __init__(self, words: list[str]) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", 30, 99, 0, 0))
            os.environ.update(PS1="next> ", TERM="dumb", LC_ALL="C")
            os._exit(cli.main(["lab", "--nodes", "1", "--timeout", "5min", "--", *words]))
        self.shown = b""
        self.seen = 0

    def wait_for(self, text: str) -> str:
        """Wait until it shows `text`, after what was waited for before; return what it shows up to there."""
        wanted, deadline = text.encode(), time.monotonic() + LIMIT
        while (found := self.shown.find(wanted, self.seen)) < 0:
            assert time.monotonic() < deadline, self.shown
            assert self.read(), self.shown
        before, self.seen = self.seen, found + len(wanted)
        return self.shown[before : self.seen].decode()

    def insist(self, keys: str, text: str) -> None:
        """Type `keys` until it shows `text`: a shell that starts a command just then can miss a Ctrl-C for it."""
        while self.shown.find(text.encode(), self.seen) < 0:
            self.type(keys)
            while select.select([self.terminal], [], [], AGAIN)[0] and self.read():
                pass
        self.wait_for(text)

    def read(self) -> bool:
        """Read what it shows; False at the end."""
        select.select([self.terminal], [], [], LIMIT)
        try:
            data = os.read(self.terminal, 65536)
        except OSError:
            return False  # the other side is closed
        self.shown += data
        return bool(data)

    def type(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def end(self) -> int:
        """Wait for its end; return its exit status."""
        while self.read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextmanager
def session(*words: str) -> Iterator[Session]:
    found = Session([*words])
    try:
        yield found
    finally:
        os.close(found.terminal)


@pytest.mark.usefixtures("boots")
def test_a_shell_has_job_control_and_the_size_of_the_terminal() -> None:
    with session("bash", "--norc", "--noediting") as shell:
        shell.wait_for("next> ")
        shell.type("tty; stty size; sleep 1000\n")
        assert "/dev/pts/0\r\n30 99\r\n" in shell.wait_for("30 99\r\n")
        shell.insist("\x03", "next> ")
        shell.type("echo status $?\n")
        shell.wait_for("status 130")
        shell.wait_for("next> ")

        fcntl.ioctl(shell.terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, 111, 0, 0))
        shell.type("until [ \"$(stty size)\" = '40 111' ]; do :; done; echo res''ized\n")
        shell.wait_for("resized")
        shell.wait_for("next> ")

        shell.type("cat\n")
        shell.type("line\n")
        shell.wait_for("line\r\nline\r\n")
        shell.type("\x1a")
        shell.wait_for("Stopped")
        shell.wait_for("next> ")
        shell.type("fg\n")
        shell.type("\x04")
        shell.wait_for("next> ")
        shell.type("seq 20000; exit 7\n")
        assert shell.end() == 7
        numbers = shell.shown[shell.seen :].decode().split("\r\n")
        assert numbers[1:] == [*map(str, range(1, 20001)), "exit", ""], "all of it, though the shell ends at once"


@pytest.mark.usefixtures("boots")
def test_ctrl_c_is_the_commands_and_three_escapes_are_the_labs() -> None:
    with session("sh", "-c", "trap 'echo trapped' INT; echo begun; while :; do sleep 1000; done") as command:
        command.wait_for("begun")
        command.insist("\x03", "trapped")
        command.type("\x1d\x1d\x1d")
        assert command.end() == 128 + signal.SIGINT
