"""What a program that is attached to could take from the migrator: nothing, unless it is lent to it."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from targets.programs import HANG, compiled
from targets.waiting import AS_NOBODY, Start, starter, waiting_binary  # noqa: F401 (fixtures)

import nexttouch as nt
from nexttouch.linux.process import Process
from nexttouch.linux.ptrace import StoppedThread
from nexttouch.linux.userfaultfd import DEVICE
from nexttouch.live import descriptor, injection

USERFAULTFD = "anon_inode:[userfaultfd]"


def setting(path: str, without: str) -> str:
    file = Path("/proc/sys", path)
    return file.read_text().strip() if file.exists() else without


pytestmark = [
    pytest.mark.skipif(setting("vm/unprivileged_userfaultfd", "1") != "0", reason="any user may have a userfaultfd"),
    pytest.mark.skipif(os.geteuid() != 0 or not DEVICE.exists(), reason="there is nothing to lend"),
]


@pytest.fixture(scope="module")
def thief(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("targets")
    for parent in (folder, folder.parent, folder.parent.parent):  # another user runs it
        parent.chmod(parent.stat().st_mode | 0o055)
    return compiled("thief", folder)


@pytest.fixture
def stolen(thief: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What another process of the program's user gets of the clone, when the clone has all that it ever has."""
    found: list[str] = []
    kill = StoppedThread.kill

    def robbed(clone: StoppedThread) -> None:
        command = [*AS_NOBODY, str(thief), str(clone.thread)]
        found.extend(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1])
        kill(clone)

    monkeypatch.setattr(StoppedThread, "kill", robbed)
    return found


def take(pid: int, *, lend: bool = False) -> None:
    with Process.open(pid) as process:
        instruction = descriptor._system_call_instruction(process)
        os.close(injection.take_userfaultfd(process, instruction, lend=lend)[0])


def test_nothing_of_the_migrators_is_there_to_be_taken(start: Start, stolen: list[str]) -> None:
    target = start("read", prefix=AS_NOBODY)
    with pytest.raises(nt.NotPermitted, match="lend_device=True, --lend-userfaultfd"):
        take(target.pid)
    assert stolen == []
    assert target.finish(b"x")[:2] == (1, 0)


@pytest.mark.skipif(setting("kernel/yama/ptrace_scope", "0") != "0", reason="no user may trace")
def test_what_is_lent_can_be_taken(start: Start, stolen: list[str]) -> None:
    """Else the test above would pass for whatever the clone has."""
    target = start("read", prefix=AS_NOBODY)
    take(target.pid, lend=True)
    assert {str(DEVICE), USERFAULTFD} <= set(stolen)
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_program_that_may_open_the_device_does(
    start: Start, stolen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for parent in (tmp_path, *list(tmp_path.parents)[:2]):
        parent.chmod(parent.stat().st_mode | 0o055)
    device = tmp_path / "userfaultfd"
    os.mknod(device, stat.S_IFCHR | 0o600, DEVICE.stat().st_rdev)
    device.chmod(0o666)
    monkeypatch.setattr(injection, "DEVICE", device)
    target = start("read", prefix=AS_NOBODY)
    take(target.pid)
    assert set(stolen) <= {str(device), USERFAULTFD}
    assert target.finish(b"x")[:2] == (1, 0)


@pytest.mark.parametrize("lend", [False, True])
def test_an_attached_program_of_another_user(start: Start, lend: bool) -> None:
    target = start("read", prefix=AS_NOBODY)
    if lend:
        assert nt.attach(target.pid, 0, always=True, lend_device=True).wait(HANG)
    else:
        with pytest.raises(nt.NotPermitted, match="its user may not have a userfaultfd"):
            nt.attach(target.pid, 0, always=True)
    assert target.finish(b"x")[:2] == (1, 0)
