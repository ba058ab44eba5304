"""What a program that is attached to could take from the migrator: nothing, unless it is lent to it."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.attacher import Injected
from targets.programs import HANG, compiled
from targets.waiting import (  # noqa: F401 (fixtures)
    AS_NOBODY,
    Start,
    injected_into,
    injected_program_built,
    starter,
    take,
    waiting_binary,
)

import nexttouch as nt
from nexttouch.linux.userfaultfd import DEVICE

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
def stolen() -> set[str]:
    """What another process of the program's user gets of the clone, when the clone has all that it ever has."""
    return set()


@pytest.fixture
def rob(thief: Path, stolen: set[str]) -> Callable[[int], None]:
    def robbed(clone: int) -> None:
        command = [*AS_NOBODY, str(thief), str(clone)]
        stolen.update(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1])

    return robbed


def test_nothing_of_the_migrators_is_there_to_be_taken(
    start: Start, injected: Injected, rob: Callable[[int], None], stolen: set[str]
) -> None:
    target = start("read", prefix=AS_NOBODY)
    with pytest.raises(nt.NotPermitted, match="lend_device=True, --lend-userfaultfd"):
        injected.during(lambda: take(target.pid), rob)
    assert stolen == set()
    assert target.finish(b"x")[:2] == (1, 0)


@pytest.mark.skipif(setting("kernel/yama/ptrace_scope", "0") != "0", reason="no user may trace")
def test_what_is_lent_can_be_taken(
    start: Start, injected: Injected, rob: Callable[[int], None], stolen: set[str]
) -> None:
    """Else the test above would pass for whatever the clone has."""
    target = start("read", prefix=AS_NOBODY)
    injected.during(lambda: take(target.pid, lend=True), rob)
    assert {str(DEVICE), USERFAULTFD} <= stolen
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_program_that_may_open_the_device_does(
    start: Start, injected: Injected, rob: Callable[[int], None], stolen: set[str], tmp_path: Path
) -> None:
    """In its own name: here it has another one in that place, in a mount namespace of its own."""
    device = tmp_path / "userfaultfd"
    os.mknod(device, stat.S_IFCHR | 0o600, DEVICE.stat().st_rdev)
    device.chmod(0o666)
    replaced = f'mount --bind "$0" {DEVICE} && exec "$@"'
    target = start("read", prefix=("unshare", "--mount", "sh", "-c", replaced, str(device), *AS_NOBODY))
    injected.during(lambda: take(target.pid), rob)
    assert USERFAULTFD in stolen
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
