"""A process id is taken only where /proc and the system calls of this process mean the same process by it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import nexttouch as nt
from nexttouch.errors import FeatureMissing, InvalidArgument, NoSuchProcess
from nexttouch.linux import mounts
from nexttouch.linux.mounts import check_proc
from nexttouch.linux.process import Process, find_process, process_id

ELSEWHERE = ["unshare", "--pid", "--fork"]
TIMEOUT = 120


@pytest.fixture
def elsewhere() -> list[str]:
    """Words before a command that run it in a pid namespace of its own, with the /proc of this one."""
    if subprocess.run([*ELSEWHERE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("pid namespaces cannot be made here")
    return ELSEWHERE


def shown(proc: Path, pids: str) -> Path:
    """A /proc in which this process has these numbers, one for each namespace from that of /proc on."""
    (proc / "self").mkdir()
    (proc / "self" / "status").write_text(f"Name:\tpython\nTgid:\t1\nNStgid:\t1\nNSpid:{pids}\nNSpgid:\t1\n")
    return proc


def test_the_proc_of_this_process() -> None:
    check_proc()
    assert find_process(os.getpid()) == Process(os.getpid(), os.getpid())
    assert process_id(np.int64(os.getpid())) == os.getpid()


@pytest.mark.parametrize(
    "pids",
    [f"\t{os.getpid() + 1}", f"\t7\t{os.getpid()}", f"\t{os.getpid()}\t{os.getpid()}", f"\t7\t8\t{os.getpid()}"],
    ids=["another number", "outer", "outer, by chance the same number", "two levels"],
)
def test_the_proc_of_another_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pids: str) -> None:
    monkeypatch.setattr(mounts, "PROC", shown(tmp_path, pids))
    with pytest.raises(FeatureMissing, match=r"of another pid namespace.*mount -t proc"):
        process_id(os.getpid())


def test_a_kernel_without_pid_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shown(tmp_path, "") / "self" / "status").write_text("Name:\tpython\nPid:\t1\n")
    monkeypatch.setattr(mounts, "PROC", tmp_path)
    check_proc()


def test_no_proc_and_one_without_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "PROC", tmp_path)
    with pytest.raises(FeatureMissing, match="is not mounted here; mount it"):
        check_proc()
    (tmp_path / "version").write_text("Linux version 6.18\n")
    with pytest.raises(FeatureMissing, match="of another pid namespace"):
        check_proc()


@pytest.mark.parametrize("wrong", [0, -1, True, np.True_, 1.0, "1", None, np.float64(1)])
def test_what_is_no_process_id(wrong: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^them is .*but a process id is a positive integer") as raised:
        process_id(wrong, argument="them")
    assert raised.value.argument == "them"


def test_a_process_that_is_gone(dead: int) -> None:
    with pytest.raises(NoSuchProcess):
        find_process(dead)


@pytest.mark.parametrize("call", [nt.where, lambda pid: nt.move(pid, 0), lambda pid: nt.attach(pid, 0)])
def test_every_way_in_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[int], object]) -> None:
    monkeypatch.setattr(mounts, "PROC", shown(tmp_path, f"\t{os.getppid()}\t{os.getpid()}"))
    with pytest.raises(FeatureMissing, match="another pid namespace"):
        call(os.getppid())


@pytest.mark.parametrize(
    "words", [["where"], ["where", "--json"], ["move", "--to", "0"], ["move", "--to", "0", "--dry-run"],
              ["move", "--to", "0", "--lazy"]],
)  # fmt: skip
def test_every_command_refuses(elsewhere: list[str], words: list[str]) -> None:
    command = [*elsewhere, sys.executable, "-m", "nexttouch", words[0], str(os.getpid()), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("nexttouch: information on processes is not available: /proc is of another pid name")
    assert done.stderr.count("\n") == 1


_OWN = """
import numpy as np, nexttouch as nt
array = np.ones(1 << 16)
print(nt.where(array).total.present >= 128, nt.move(array, 0, dry_run=True).pages >= 128)
with nt.lazy(array, 0, always=True, service="inline") as migration:
    array += 1
print(migration.stats.moved > 0)
"""


def test_memory_of_its_own_is_reached_without_a_number(elsewhere: list[str]) -> None:
    command = [*elsewhere, sys.executable, "-c", _OWN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert done.stdout == "True True\nTrue\n"
