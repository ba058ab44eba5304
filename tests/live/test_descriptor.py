"""Getting a userfaultfd out of programs that do not know of it: they must not notice, whatever they are doing."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.attacher import Injected
from targets.programs import HANG, descriptors, until
from targets.waiting import (  # noqa: F401 (fixtures)
    AS_NOBODY,
    Start,
    Target,
    acquire_and_close,
    acquired,
    children,
    injected_into,
    injected_program_built,
    nothing_left_open,
    starter,
    take,
    userfaultfds,
    waiting_binary,
)

import nexttouch as nt
from nexttouch.errors import (
    FeatureMissing,
    NoSuchProcess,
)
from nexttouch.linux import control_block, procfs
from nexttouch.linux.pidfd import pidfd_open
from nexttouch.linux.process import Process
from nexttouch.linux.syscall import MACHINE
from nexttouch.linux.userfaultfd import Event, Fault, FaultFlag, Feature, Mode, Userfaultfd
from nexttouch.live import injection
from nexttouch.live.descriptor import acquire, check

pytestmark = pytest.mark.usefixtures("nothing_left_open")


# ---- What a target is doing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["nanosleep", "poll", "ppoll", "select", "futex"])
def test_a_timed_wait_lasts_as_long_as_it_was_asked_to(start: Start, mode: str) -> None:
    target = start(mode, "2.5")
    began, waited = time.monotonic(), 0.0  # of the wait at least
    while waited < 1.2:
        waited = time.monotonic() - began
        acquire_and_close(target.pid)
    result, error, seconds, handled, _ = target.finish()
    assert (result, error) == ((-1, 110) if mode == "futex" else (0, 0))  # ETIMEDOUT
    assert 2.49 <= seconds < 2.5 + waited  # that and more if the wait began anew
    assert handled == 0


@pytest.mark.parametrize("mode", ["read", "epoll", "io_uring", "semop", "waitpid"])
def test_an_endless_wait_ends_with_its_event_once(start: Start, mode: str) -> None:
    target = start(mode)
    for _ in range(3):
        acquire_and_close(target.pid)
    result, error, _, handled, data = target.finish(b"x")
    expected = {"read": (1, "x"), "epoll": (1, ""), "io_uring": (0, ""), "semop": (0, ""), "waitpid": (1, "")}[mode]
    assert (result, error, handled, data) == (expected[0], 0, 0, expected[1])


def test_epoll_with_a_limit_ends_with_eintr_as_after_any_stop(start: Start) -> None:
    target = start("epoll", str(2 * HANG))
    with acquired(target.pid):
        pass
    assert target.finish()[:2] == (-1, 4)


@pytest.mark.parametrize("mode", ["pause", "sigsuspend"])
def test_a_wait_for_a_signal_ends_with_the_signal_only(start: Start, mode: str) -> None:
    target = start(mode)
    for _ in range(3):
        acquire_and_close(target.pid)
    os.kill(target.pid, signal.SIGUSR1)
    assert target.finish()[:2] == (-1, 4)


def test_sigwaitinfo_ends_with_the_signal_only(start: Start) -> None:
    target = start("sigwaitinfo")
    for _ in range(3):
        acquire_and_close(target.pid)
    os.kill(target.pid, signal.SIGUSR1)
    result, error, _, handled, _ = target.finish()
    assert (result, error, handled) == (signal.SIGUSR1, 0, 0)


def test_a_computation_is_not_disturbed(start: Start) -> None:
    expected = start("compute").finish(b"x")[0]
    target = start("compute")
    until(lambda: procfs.status(Process(target.pid)).state == "R")
    for _ in range(5):
        acquire_and_close(target.pid)
    assert target.finish(b"x")[0] == expected != 0


def test_the_other_threads_run_on(start: Start) -> None:
    expected = start("threads", wait="").finish(b"x")[0]
    target = start("threads", wait="")
    until(lambda: len(Process(target.pid).threads()) == 4)
    for _ in range(5):
        acquire_and_close(target.pid)
    assert target.finish(b"x")[0] == expected != 0


def test_another_thread_stands_in_for_a_main_thread_that_has_ended(start: Start) -> None:
    target = start("leaderless")
    until(lambda: procfs.status(Process(target.pid)).state == "Z")
    assert check(Process(target.pid)).thread != target.pid
    for _ in range(3):
        with acquired(target.pid):
            pass
    output, _ = target.process.communicate(b"y", timeout=HANG)
    assert output == b"y 0 0 0\n"


def test_the_memory_of_a_program_whose_main_thread_has_ended(start: Start) -> None:
    target = start("leaderless")
    until(lambda: procfs.status(Process(target.pid)).state == "Z")
    placement = nt.where(target.pid)
    assert placement.pid == target.pid
    assert nt.move(target.pid, 0).by_node == placement.by_node != {}
    with nt.attach(target.pid, 0, always=True) as migration:
        assert migration.wait(10)
    assert migration.stats.moved > 0
    output, _ = target.process.communicate(b"y", timeout=10)
    assert output == b"y 0 0 0\n"


def test_a_python_program_with_threads_is_not_disturbed() -> None:
    code = (
        "import sys, threading\n"
        "done, sums = threading.Event(), []\n"
        "def work():\n"
        "    while not done.is_set(): sums.append(sum(i * i for i in range(100_000)))\n"
        "threads = [threading.Thread(target=work) for _ in range(3)]\n"
        "[thread.start() for thread in threads]\n"
        "print('ready', flush=True); sys.stdin.read(1); done.set()\n"
        "[thread.join() for thread in threads]\n"
        "print(len(threads), *set(sums))\n"
    )
    target = Target([sys.executable, "-c", code])
    for _ in range(3):
        acquire_and_close(target.pid)
    output, _ = target.process.communicate(b"x", timeout=HANG)
    assert output.split() == [b"3", str(sum(i * i for i in range(100_000))).encode()]


@pytest.mark.skipif(MACHINE != "x86_64", reason="the target's assembly is x86-64's")
def test_a_restartable_sequence_is_aborted(start: Start) -> None:
    target = start("restartable", wait="R")
    flag, aborts = (int(word, 16) for word in target.said[0].split())
    with Path(f"/proc/{target.pid}/mem").open("r+b", buffering=0) as memory:

        def count() -> int:
            memory.seek(aborts)
            return int.from_bytes(memory.read(8), "little")

        for _ in range(5):
            before = count()
            acquire_and_close(target.pid)
            ran = processor_time(target.pid)
            while count() <= before:  # it is aborted before it runs on, not when another program has its turn
                assert processor_time(target.pid) < ran + 0.5
        memory.seek(flag)
        memory.write((1).to_bytes(8, "little"))
    assert target.finish()[:2] == (0, 0)


def processor_time(pid: int) -> float:
    """Seconds for which a program has run."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- Forks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [(), AS_NOBODY], ids=["root", "nobody"])
def test_a_child_forked_meanwhile_has_what_the_program_has(
    start: Start, injected: Injected, prefix: tuple[str, ...]
) -> None:
    """Another thread forks while the descriptor is open and not closed again."""
    target = start("forker", prefix=prefix)
    before, forked = descriptors(target.pid), []

    def fork(clone: int) -> None:
        assert userfaultfds(clone)
        assert target.process.stdin
        assert target.process.stdout
        target.process.stdin.write(b"f")
        target.process.stdin.flush()
        forked.append(int(target.process.stdout.readline()))

    injected.during(lambda: take(target.pid, lend=bool(prefix)), fork)
    assert children(target.pid) == list(map(str, forked)) != []
    inherited = [descriptors(child) for child in forked]
    for child in forked:
        os.kill(child, signal.SIGKILL)
    assert inherited == [before] * len(forked)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("fork", [os.fork, ctypes.CDLL(None).fork], ids=["Python's", "the C library's"])
def test_a_child_of_the_migrator_has_no_descriptor_that_is_on_its_way(start: Start, fork: Callable[[], int]) -> None:
    target = start("read")
    with acquired(target.pid) as found:
        assert userfaultfds(os.getpid()) == [str(found.uffd)]
        assert exit_status(fork, lambda: not userfaultfds(os.getpid())) == 0
    with Path("/dev/null").open("rb") as other:  # the next one with the number
        number = other.fileno() if other.fileno() == found.uffd else os.dup2(other.fileno(), found.uffd)
        assert exit_status(fork, lambda: bool(os.fstat(number))) == 0
        if number != other.fileno():
            os.close(number)
    assert target.finish(b"x")[:2] == (1, 0)


def exit_status(fork: Callable[[], int], holds: Callable[[], bool]) -> int:
    child = fork()
    if not child:
        with suppress(BaseException):
            os._exit(0 if holds() else 1)
        os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# ---- Signals ------------------------------------------------------------------------------------------------------


def test_pending_signals_stay_pending(start: Start) -> None:
    target = start("pending")
    os.kill(target.pid, signal.SIGUSR1)
    for _ in range(3):
        os.kill(target.pid, signal.SIGRTMIN)
    acquire_and_close(target.pid)
    assert target.finish(b"x")[3] == 4


def test_no_signal_is_lost_or_doubled(start: Start) -> None:
    target = start("count")
    sent = 0
    for _ in range(4):
        before = descriptors(target.pid)
        with subprocess.Popen([sys.executable, "-c", _ACQUIRE.format(target.pid)], stdout=subprocess.PIPE) as attacher:
            while attacher.poll() is None:
                os.kill(target.pid, signal.SIGRTMIN)
                sent += 1
                time.sleep(0.0001)
        assert attacher.returncode == 0
        assert descriptors(target.pid) == before
    result, error, _, handled, data = target.finish(b"x")
    assert (result, error, data) == (1, 0, "x")
    assert handled == sent


_ACQUIRE = """
from nexttouch.linux.process import Process
from nexttouch.live.descriptor import acquire
acquire(Process.open({}))
"""


def test_a_stopped_target_stays_stopped(start: Start) -> None:
    target = start("read")
    os.kill(target.pid, signal.SIGSTOP)
    until(lambda: procfs.status(Process(target.pid)).state == "T")
    for _ in range(3):
        acquire_and_close(target.pid)
        until(lambda: procfs.status(Process(target.pid)).state == "T")
    os.kill(target.pid, signal.SIGCONT)
    until(lambda: procfs.status(Process(target.pid)).state == "S")
    acquire_and_close(target.pid)
    assert target.finish(b"x")[:2] == (1, 0)


def test_stops_and_continues_in_between_have_their_effect(start: Start) -> None:
    target = start("read")
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", _ACQUIRE.format(target.pid)]) as attacher:
            while attacher.poll() is None:
                os.kill(target.pid, signal.SIGSTOP)
                os.kill(target.pid, signal.SIGCONT)
                time.sleep(0.0002)
        assert attacher.returncode == 0
        os.kill(target.pid, signal.SIGSTOP)
        until(lambda: procfs.status(Process(target.pid)).state == "T")
        os.kill(target.pid, signal.SIGCONT)
        until(lambda: procfs.status(Process(target.pid)).state == "S")
    assert target.finish(b"x")[:2] == (1, 0)


# ---- What is acquired ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [(), AS_NOBODY], ids=["root", "nobody"])
def test_stores_of_system_calls_are_caught_and_closing_undoes_all(start: Start, prefix: tuple[str, ...]) -> None:
    target = start("page", prefix=prefix)
    address = int(target.said[0], 16)
    features = Feature.PAGEFAULT_FLAG_WP | Feature.THREAD_ID
    assert target.process.stdin
    with acquired(target.pid, features=features, lend=bool(prefix)) as found:
        memory = Userfaultfd(found.uffd)
        memory.register(address, 65536, Mode.WP)
        memory.write_protect(address, 65536)
        target.process.stdin.write(b"xz")  # read(2) of the second byte goes into the protected page
        target.process.stdin.flush()
        events: list[Event] = []
        while not events:
            events = memory.read_events()
        assert events == [Fault(FaultFlag.WRITE | FaultFlag.WP, address, target.pid)]
    # The protection went with the last close.
    result, error, _, _, data = target.finish()
    assert (result, error, data) == (1, 0, "za")


def test_a_program_without_a_free_descriptor_needs_none(start: Start) -> None:
    target = start("full", readies=2, prefix=("prlimit", "--nofile=32"))
    acquire_and_close(target.pid)
    assert target.finish(b"x")[:2] == (1, 0)


def test_features_that_are_only_wanted_are_done_without(start: Start) -> None:
    target = start("page")
    with acquired(target.pid, features=Feature.PAGEFAULT_FLAG_WP, wanted=1 << 30) as found:
        memory = Userfaultfd(found.uffd)
        memory.register(int(target.said[0], 16), 65536, Mode.WP)
    assert target.finish(b"xy")[:2] == (1, 0)


def test_the_time_the_target_stands_still_is_short_and_does_not_grow(start: Start) -> None:
    """Of as many times as it takes the shortest: what else runs on the machine only ever lengthens one."""
    small, large = (start("memory", mebibytes, readies=2) for mebibytes in ("64", "1024"))
    shortest = [math.inf, math.inf]

    def short() -> bool:
        for number, target in enumerate((small, large)):
            shortest[number] = min(shortest[number], acquire_and_close(target.pid))
        return max(shortest) < 0.005 and shortest[1] < 2 * shortest[0] + 0.0005

    until(short)


def test_a_feature_that_the_kernel_lacks_is_named(start: Start) -> None:
    target = start("read")
    before = descriptors(target.pid)
    with pytest.raises(FeatureMissing, match="userfaultfd 0x40000000 is not available"):
        acquire_and_close(target.pid, features=1 << 30)
    assert descriptors(target.pid) == before
    assert target.finish(b"x")[:2] == (1, 0)


# ---- Deaths -------------------------------------------------------------------------------------------------------


def test_the_migrator_may_be_killed_at_any_moment(start: Start) -> None:
    target = start("read")
    before = descriptors(target.pid)
    for step in range(25):
        migrator = subprocess.Popen([sys.executable, "-c", _ACQUIRE.format(target.pid)])
        time.sleep(0.05 + step * 0.004)  # moments over the end of its start, and the whole life of the helper
        migrator.kill()
        migrator.wait()
        until(lambda: not _helpers_of(target.pid))
        assert procfs.status(Process(target.pid)).tracer == 0
        assert descriptors(target.pid) == before
    assert target.finish(b"x")[:2] == (1, 0)


def _helpers_of(pid: int) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[1:3] == [b"take", str(pid).encode()]:
            found.append(process.parent.name)
    return found


@contextmanager
def another_migrator(pid: int, program: Path) -> Iterator[subprocess.Popen[bytes]]:
    set_up = (
        f"from nexttouch.live import injection; from pathlib import Path; injection.PROGRAM = Path({str(program)!r})"
    )
    with subprocess.Popen([sys.executable, "-c", set_up + _ACQUIRE.format(pid)]) as migrator:
        yield migrator


def test_the_migrator_is_killed_while_the_target_stands_still(start: Start, injected: Injected) -> None:
    target = start("read")
    before = descriptors(target.pid)
    with another_migrator(target.pid, injected.program) as migrator:

        def kill(clone: int, _: socket.socket) -> None:
            migrator.kill()
            migrator.wait()
            assert userfaultfds(clone)

        injected.accompany(meanwhile=kill)
    until(lambda: not _helpers_of(target.pid))
    assert (procfs.status(Process(target.pid)).tracer, children(target.pid)) == (0, [])
    assert descriptors(target.pid) == before
    assert target.finish(b"x")[:2] == (1, 0)


def test_the_helper_ignores_signals(start: Start, injected: Injected) -> None:
    target = start("read")
    with another_migrator(target.pid, injected.program) as migrator:

        def signal_it(_: int, helper: socket.socket) -> None:
            pid, _, _ = struct.unpack("3i", helper.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            assert os.getsid(pid) == pid
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                os.kill(pid, number)

        injected.accompany(meanwhile=signal_it)
        assert migrator.wait(HANG) == 0
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_target_that_is_gone_is_said_to_be(start: Start) -> None:
    target = start("read")
    with Process.open(target.pid) as process:
        target.process.kill()
        target.process.wait()
        with pytest.raises(NoSuchProcess):
            acquire(process)
        with pytest.raises(NoSuchProcess):
            injection.take_userfaultfd(process, 0)


def test_a_process_that_got_the_number_of_another_is_left_alone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_block, "exists", lambda _: True)  # which would see it, before the program does
    gone, other = start("read"), start("read")
    pidfd = pidfd_open(gone.pid)
    gone.process.kill()
    gone.process.wait()
    try:
        with pytest.raises(NoSuchProcess):
            injection.take_userfaultfd(Process(other.pid, pidfd=pidfd), 0)
    finally:
        os.close(pidfd)
    assert procfs.status(Process(other.pid)).tracer == 0
    assert other.finish(b"x")[:2] == (1, 0)


def test_a_target_killed_while_it_is_stopped(start: Start, injected: Injected) -> None:
    target = start("read")

    def kill(_: int) -> None:
        target.process.kill()
        until(lambda: procfs.status(Process(target.pid)).state == "Z")

    with pytest.raises(NoSuchProcess, match="while it was attached"):
        injected.during(lambda: take(target.pid), kill)


def test_a_clone_that_is_killed_is_missed(start: Start, injected: Injected) -> None:
    """Where it has all that it ever has, that is harmless: the descriptor is ours."""
    target = start("read")
    injected.during(lambda: take(target.pid), lambda clone: os.kill(clone, signal.SIGKILL))
    assert (procfs.status(Process(target.pid)).tracer, children(target.pid)) == (0, [])
    assert target.finish(b"x")[:2] == (1, 0)
