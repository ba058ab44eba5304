"""Programs that wait, compute, fork or hide something (waiting.c), and a look at what attaching to them leaves."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.attacher import Injected

from nexttouch.linux import procfs
from nexttouch.linux.process import Process
from nexttouch.live import descriptor, injection
from nexttouch.live.descriptor import Acquired, acquire

from .programs import HANG, compiled, descriptors, until

__all__ = [
    "AS_NOBODY",
    "Start",
    "Target",
    "acquire_and_close",
    "acquired",
    "children",
    "injected_into",
    "injected_program_built",
    "nothing_left_open",
    "release",
    "seize",
    "starter",
    "take",
    "userfaultfds",
    "waiting_binary",
]


class Target:
    """One that runs, and what it says at its end."""

    def __init__(self, command: list[str | Path], readies: int = 1) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = self.process.pid
        assert self.process.stdout
        self.said: list[str] = []
        while readies:
            line = self.process.stdout.readline().decode().strip()
            assert line, f"{command} has ended"
            self.said.append(line)
            readies -= line == "ready"

    def finish(self, data: bytes = b"") -> tuple[int, int, float, int, str]:
        """Give it its input; return result, errno, seconds, signals handled, and the bytes it has read."""
        output, _ = self.process.communicate(data, timeout=HANG)
        assert self.process.returncode == 0
        result, error, seconds, handled, *rest = output.decode().split()
        return int(result), int(error), float(seconds), int(handled), "".join(rest)


Start = Callable[..., Target]
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def children(pid: int) -> list[str]:
    """Its children, whichever thread forked them."""
    return [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def userfaultfds(pid: int) -> list[str]:
    """Which of its descriptors are userfaultfds."""
    return [number for number, link in descriptors(pid).items() if "userfaultfd" in link]


def take(pid: int, *, lend: bool = False) -> None:
    """Have it open a userfaultfd, whatever it is, and close that."""
    with Process.open(pid, needs_pidfd=True) as process:
        instruction = descriptor._system_call_instruction(process)
        Acquired(*injection.take_userfaultfd(process, instruction, lend=lend)).close()


@contextmanager
def acquired(pid: int, **options: Any) -> Iterator[Acquired]:
    """A userfaultfd on the memory of the program, closed at the end."""
    with Process.open(pid, needs_pidfd=True) as process, closing(acquire(process, **options)) as found:
        yield found


def acquire_and_close(pid: int, features: int = 0) -> float:
    """Attach, let go, see that nothing is left of it; return how long the program stood still."""
    before = descriptors(pid) if Path(f"/proc/{pid}/fd/0").exists() else None
    family, mapped = children(pid), procfs.mappings(Process(pid))
    with acquired(pid, features=features) as found:
        pass
    if before is not None:
        assert descriptors(pid) == before
    assert (children(pid), procfs.mappings(Process(pid))) == (family, mapped)
    assert procfs.status(Process(pid)).tracer == 0
    return found.stopped


def seize(pid: int) -> None:
    """Become its tracer, until `release`."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.ptrace(0x4206, pid, None, None) == 0


def release(pid: int) -> None:
    """Let go what was seized but not stopped: only for tests that seize from this process, which does not end."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.ptrace(0x4207, pid, None, None) == 0
    os.waitpid(pid, 0x40000000)
    assert libc.ptrace(17, pid, None, None) == 0


@pytest.fixture(scope="session", name="waiting")
def waiting_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, compiled."""
    folder = tmp_path_factory.mktemp("targets")
    for parent in (folder, folder.parent, folder.parent.parent):  # another user runs it too
        parent.chmod(parent.stat().st_mode | 0o055)
    return compiled("waiting", folder)


@pytest.fixture(name="start")
def starter(waiting: Path) -> Iterator[Start]:
    """Start it with the words given, `prefix` before them, and wait until it has said so often that it is ready."""
    targets = []

    def started(*words: str, prefix: tuple[str, ...] = (), readies: int = 1, wait: str = "S") -> Target:
        target = Target([*prefix, waiting, *words], readies)
        targets.append(target)
        if wait:
            until(lambda: procfs.status(Process(Process(target.pid).threads()[-1])).state == wait)
        return target

    yield started
    for target in targets:
        target.process.kill()
        target.process.communicate()


@pytest.fixture(scope="session", name="injected_program")
def injected_program_built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Injected]:
    """The program that attaches, which lets a test do something meanwhile, or fails; made once."""
    program = Injected(tmp_path_factory.mktemp("attacher") / "injected")
    yield program
    program.close()


@pytest.fixture(name="injected")
def injected_into(injected_program: Injected, monkeypatch: pytest.MonkeyPatch) -> Injected:
    """It is the one that is started; each start has to be accompanied."""
    monkeypatch.setattr(injection, "PROGRAM", injected_program.program)
    return injected_program


@pytest.fixture
def nothing_left_open() -> Iterator[None]:
    """This process has the descriptors afterwards that it had before."""
    before = descriptors(os.getpid())
    yield
    # The target's pipes are closed by the fixture that made them, later than this.
    now = {number: link for number, link in descriptors(os.getpid()).items() if not link.startswith("pipe:")}
    assert now == {number: link for number, link in before.items() if not link.startswith("pipe:")}
