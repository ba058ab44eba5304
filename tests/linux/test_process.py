"""A process is taken by its number only where /proc and the system calls mean the same by it, and for one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.memory import PAGE_SIZE, in_child
from targets.programs import descriptors, until

import nexttouch as nt
from nexttouch.errors import FeatureMissing, InvalidArgument, NoSuchProcess, NotPermitted
from nexttouch.linux import mempolicy, mounts, pagemap, procfs, remote
from nexttouch.linux import process as module
from nexttouch.linux.mounts import check_proc
from nexttouch.linux.pidfd import pidfd_open
from nexttouch.linux.process import SELF, Process
from nexttouch.linux.thread_exit import exit_spans
from nexttouch.live.pages import find_mapped
from nexttouch.live.plan import make_plan
from nexttouch.topology import check_target

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
    with Process.open(np.int64(os.getpid())) as process:
        assert process.pid == process.thread == process.number == os.getpid()
        assert process.there
        assert not process.own


@pytest.mark.parametrize(
    "pids",
    [f"\t{os.getpid() + 1}", f"\t7\t{os.getpid()}", f"\t{os.getpid()}\t{os.getpid()}", f"\t7\t8\t{os.getpid()}"],
    ids=["another number", "outer", "outer, by chance the same number", "two levels"],
)
def test_the_proc_of_another_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pids: str) -> None:
    monkeypatch.setattr(mounts, "PROC", shown(tmp_path, pids))
    with pytest.raises(FeatureMissing, match=r"of another pid namespace.*mount -t proc"):
        Process.open(os.getpid())


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
        Process.open(wrong, argument="them")
    assert raised.value.argument == "them"


def test_a_process_that_is_gone(dead: int) -> None:
    with pytest.raises(NoSuchProcess):
        Process.open(dead)


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


def test_this_process_is_a_forked_childs_own_in_the_child() -> None:
    assert (SELF.own, SELF.number, SELF.directory) == (True, 0, Path("/proc/self"))
    assert SELF.pid == os.getpid()
    assert in_child(lambda: int(SELF.pid == os.getpid() and SELF.threads() == [os.getpid()])) == 1


# ---- which process it is ----

PAGE = np.array([PAGE_SIZE], np.uint64)
USES: dict[str, Callable[[Process], object]] = {
    "mappings": procfs.mappings,
    "a range of them": lambda process: procfs.mappings(process, 0, PAGE_SIZE),
    "smaps": procfs.smaps,
    "numa_maps": procfs.numa_maps,
    "status": procfs.status,
    "start_time": procfs.start_time,
    "threads": Process.threads,
    "has_memory": Process.has_memory,
    "mems_allowed": mempolicy.mems_allowed,
    "check_target": lambda process: check_target(nt.topology().memory_nodes[0], process=process),
    "pagemap": lambda process: pagemap.entries(process, PAGE_SIZE, 1),
    "scan": lambda process: pagemap.scan(process, PAGE_SIZE, 2 * PAGE_SIZE),
    "nodes": lambda process: mempolicy.move_pages(process, PAGE, None),
    "move_pages": lambda process: mempolicy.move_pages(process, PAGE, 0),
    "migrate_pages": lambda process: mempolicy.migrate_pages(process, [0], [0]),
    "read": lambda process: remote.read(process, PAGE_SIZE, 1),
    "write": lambda process: remote.write(process, PAGE_SIZE, b""),
    "touch": lambda process: remote.touch(process, PAGE_SIZE),
    "exit_spans": exit_spans,
    "find_mapped": find_mapped,
    "make_plan": lambda process: make_plan(process, None, (0,)),
}
CHANGES = {"move_pages", "migrate_pages", "write", "touch"}
OF_ANY_PROGRAM = {"status", "start_time", "threads", "has_memory", "mems_allowed", "check_target"}


@pytest.fixture
def other() -> Iterator[int]:
    with subprocess.Popen(["sleep", "1000"]) as program:
        yield program.pid
        program.kill()


@pytest.fixture
def ended() -> Iterator[int]:
    """A descriptor of a process that is gone, so that its number is free."""
    with subprocess.Popen(["sleep", "1000"]) as program:
        pidfd = pidfd_open(program.pid)
        program.kill()
    yield pidfd
    os.close(pidfd)


@pytest.mark.parametrize("use", USES)
def test_of_a_process_that_got_the_number_nothing_is_told(
    other: int, ended: int, use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    USES[use](Process(other))
    if use in CHANGES:
        for calls in (mempolicy, remote):
            monkeypatch.setattr(calls, "try_call", pytest.fail)
    with pytest.raises(NoSuchProcess, match=f"process {other} ended"):
        USES[use](Process(other, pidfd=ended))


@pytest.mark.parametrize("use", ["nodes", "move_pages", "read", "write", "touch"])
def test_what_a_call_says_of_a_process_that_ended_in_it_does_not_count(
    other: int, use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Process.open(other) as process:

        def ending(*_: object) -> tuple[int, int]:
            os.kill(other, signal.SIGKILL)
            until(lambda: not process.there, "its end")
            return 1, 0

        monkeypatch.setattr(mempolicy if use in ("nodes", "move_pages") else remote, "try_call", ending)
        with pytest.raises(NoSuchProcess, match=f"process {other} ended"):
            USES[use](process)


@pytest.mark.parametrize("use", USES)
def test_of_a_program_that_it_became_nothing_is_told(use: str) -> None:
    command = [sys.executable, "-c", "import os, sys; sys.stdin.read(1); os.execvp('sleep', ['sleep', '1000'])"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as program, Process.open(program.pid) as process:
        assert program.stdin
        assert process.there
        program.stdin.write(b"x")
        program.stdin.flush()
        until(lambda: not process.there, "the other program")
        if use in OF_ANY_PROGRAM:
            USES[use](process)
        else:
            with pytest.raises(NoSuchProcess, match="became another program meanwhile"):
                USES[use](process)
        program.kill()


def test_a_zombie_has_its_number_still(zombie: int) -> None:
    with Process.open(zombie) as process:
        assert procfs.status(process).state == "Z"
        assert not process.there
        with pytest.raises(NoSuchProcess):
            process.check()


def test_a_thread_that_is_not_of_the_process(other: int) -> None:
    assert not Process(os.getpid(), other).there
    with pytest.raises(NoSuchProcess):
        procfs.mappings(Process(os.getpid(), other))


def test_the_number_of_a_thread_is_its_process_seen_through_it() -> None:
    ready, over = threading.Event(), threading.Event()

    def wait() -> None:
        ready.set()
        over.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait()
    try:
        with pytest.raises(InvalidArgument, match="which is a thread; name the process"):
            Process.open(thread.native_id, needs_pidfd=True)
        with Process.open(thread.native_id) as process:
            assert (process.pid, process.thread) == (os.getpid(), thread.native_id)
            assert process.there
            assert nt.where(thread.native_id).pid == os.getpid()
            over.set()
            thread.join()
            until(lambda: not process.there, "the end of the thread")
    finally:
        over.set()
        thread.join()


def test_without_pidfd_open_its_memory_tells(other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: int) -> int:
        raise FeatureMissing("pidfd_open", "this kernel does not have it", "use Linux 5.6 or newer")

    monkeypatch.setattr(module, "pidfd_open", missing)
    with pytest.raises(FeatureMissing, match="pidfd_open"):
        Process.open(other, needs_pidfd=True)
    with Process.open(other) as process:
        assert process.pidfd == -1
        assert procfs.mappings(process)
        os.kill(other, signal.SIGKILL)
        until(lambda: not process.there, "its end")
        for use in (procfs.mappings, procfs.status):
            with pytest.raises(NoSuchProcess):
                use(process)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's process is made by root")
def test_another_users_process_is_found_and_told_from_another(other: int) -> None:
    def look() -> int:
        os.setuid(65534)
        with Process.open(other) as process:
            assert procfs.status(process).name == "sleep"
            assert process.there
            with pytest.raises(NotPermitted):
                procfs.mappings(process)
        return 1

    assert in_child(look) == 1


def test_what_is_opened_is_closed(other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors(os.getpid())
    process = Process.open(other)
    assert len(descriptors(os.getpid())) == len(before) + 2
    process.close()
    process.close()
    with pytest.raises(NoSuchProcess):
        Process.open(2**22 + 1)
    nt.where(other)
    nt.move(other, nt.topology().memory_nodes[0], dry_run=True)

    def hidden(process: Process) -> bool:
        raise process.not_permitted()

    monkeypatch.setattr(Process, "has_memory", hidden)
    with pytest.raises(NotPermitted):
        Process.open(other)
    assert descriptors(os.getpid()) == before
