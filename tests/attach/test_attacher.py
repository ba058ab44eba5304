"""The program that attaches: with sanitizers, with each call that it makes failing once, and its parts by themselves.

`registers.c`: the pure functions on registers, of both processors.
`thread.c`: system calls in the thread of a real process.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.attacher import Injected, build, build_test
from targets.programs import descriptors
from targets.waiting import (  # noqa: F401 (fixtures)
    AS_NOBODY,
    Start,
    acquire_and_close,
    acquired,
    children,
    nothing_left_open,
    starter,
    take,
    waiting_binary,
)

from nexttouch.errors import NexttouchError, TargetRefused
from nexttouch.linux import control_block, procfs
from nexttouch.linux.process import Process
from nexttouch.linux.userfaultfd import DEVICE
from nexttouch.live import injection

SANITIZED = "address+undefined"
BUILDS = ("plain", SANITIZED)


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("part", ["registers", "thread"])
def test_each_part(part: str, name: str, tmp_path: Path) -> None:
    done = subprocess.run([build_test(part, tmp_path, name)], capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")


def test_words_that_are_none() -> None:
    for words in ((), ("take", "1"), ("interrupt", "1"), ("other", "1", "2", "3", "4", "5", "6")):
        assert subprocess.run([injection.PROGRAM, *words], check=False).returncode == 2


# ---- With sanitizers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("attacher") / "sanitized", SANITIZED)


@pytest.mark.parametrize("mode", ["read", "nanosleep", "epoll"])
@pytest.mark.usefixtures("nothing_left_open")
def test_sanitized(start: Start, sanitized: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(injection, "PROGRAM", sanitized)
    target = start(mode, "0.5") if mode == "nanosleep" else start(mode)
    acquire_and_close(target.pid)
    assert target.finish(b"x")[1] == 0


def test_sanitized_refusals(start: Start, sanitized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(injection, "PROGRAM", sanitized)
    target = start("seccomp", readies=2)
    with pytest.raises(TargetRefused, match="seccomp"):
        take(target.pid)
    assert target.finish(b"x")[:2] == (1, 0)


def test_sanitized_interruption(start: Start, sanitized: Path, monkeypatch: pytest.MonkeyPatch, dead: int) -> None:
    """Of a wait that notices, and of what is no thread of it."""
    monkeypatch.setattr(injection, "PROGRAM", sanitized)
    target = start("epoll", "240000")
    with Process.open(target.pid, needs_pidfd=True) as process:
        injection.interrupt(process, [dead, os.getpid(), target.pid])
    assert target.finish()[:2] == (-1, errno.EINTR)


@pytest.mark.skipif(not DEVICE.exists(), reason="there is nothing to lend")
def test_sanitized_lending(start: Start, sanitized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(injection, "PROGRAM", sanitized)
    target = start("read", prefix=AS_NOBODY)
    take(target.pid, lend=True)
    assert target.finish(b"x")[:2] == (1, 0)


# ---- Failures -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=BUILDS)
def injected(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Injected]:
    program = Injected(tmp_path_factory.mktemp("attacher") / "injected", request.param)
    yield program
    program.close()


FAULTS = (0, errno.EPERM, errno.EMFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSYS)
"""What happens to each call; 0 kills the clone, if there is one by then."""


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("lend", [False, True])
@pytest.mark.usefixtures("nothing_left_open")
def test_each_call_fails(
    start: Start, injected: Injected, monkeypatch: pytest.MonkeyPatch, lend: bool, fault: int
) -> None:
    """Whatever fails, it is told, or makes no difference; and the program has nothing of it."""
    if lend and not DEVICE.exists():
        pytest.skip("there is nothing to lend")
    monkeypatch.setattr(injection, "PROGRAM", injected.program)
    monkeypatch.setattr(control_block, "exists", lambda _: False)  # the exit word is asked for, too
    target = start("read", prefix=AS_NOBODY if lend else ())
    before = descriptors(target.pid), procfs.mappings(Process(target.pid)), list[str]()
    injected.failing(lambda: take(target.pid, lend=lend), 0, 0)
    told = 0
    for nth in range(1, injected.calls + 1):
        try:
            injected.failing(lambda: take(target.pid, lend=lend), nth, fault)
        except NexttouchError:
            told += 1
        assert (descriptors(target.pid), procfs.mappings(Process(target.pid)), children(target.pid)) == before
        assert procfs.status(Process(target.pid)).tracer == 0
    assert told
    assert target.finish(b"x")[:2] == (1, 0)


# ---- The word of a thread's end -------------------------------------------------------------------------------------


def test_the_exit_word_is_where_the_c_library_has_it(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_block, "exists", lambda _: False)  # or it would not be asked for
    target = start("read")
    mapped = procfs.mappings(Process(target.pid))
    with acquired(target.pid) as found:
        assert found.exit_word == control_block.head(Process(target.pid)) - control_block.TID_BEFORE_HEAD
    assert procfs.mappings(Process(target.pid)) == mapped
    assert target.finish(b"x")[:2] == (1, 0)
