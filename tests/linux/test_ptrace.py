"""Registers as pure functions for both processors, and system calls in the thread of a real process."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nexttouch.errors import NoSuchProcess, NotPermitted, TargetRefused
from nexttouch.linux import procfs
from nexttouch.linux.process import Process
from nexttouch.linux.ptrace import ARCHITECTURES, StoppedThread, restriction
from nexttouch.linux.syscall import MACHINE, NUMBERS
from nexttouch.live.descriptor import _system_call_instruction

HANG = 60.0
"""Seconds after which something that has not happened never will."""

X86, ARM = ARCHITECTURES["x86_64"], ARCHITECTURES["aarch64"]
WORD = 1 << 64

# struct user_regs_struct and struct user_pt_regs, in the kernel's order.
X86_NAMES = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
ARM_NAMES = (*(f"x{number}" for number in range(31)), "sp", "pc", "pstate")


def pack(names: tuple[str, ...], **values: int) -> bytes:
    return struct.pack(f"<{len(names)}Q", *(values.get(name, 1000 + at) % WORD for at, name in enumerate(names)))


def unpack(names: tuple[str, ...], registers: bytes) -> dict[str, int]:
    return dict(zip(names, struct.unpack(f"<{len(names)}Q", registers), strict=True))


def changed(names: tuple[str, ...], before: bytes, after: bytes) -> dict[str, int]:
    old, new = unpack(names, before), unpack(names, after)
    return {name: new[name] for name in names if old[name] != new[name]}


def test_sizes_and_instructions() -> None:
    assert (X86.size, X86.instruction, X86.alignment) == (216, bytes.fromhex("0f05"), 1)
    assert (ARM.size, ARM.instruction, ARM.alignment) == (272, bytes.fromhex("010000d4"), 4)


def test_x86_64_prepares_a_call_and_leaves_the_rest_alone() -> None:
    before = pack(X86_NAMES)
    after = X86.prepare(before, 0x7FFF1234, 9, (1, 2, 3, 4, -1, 6))
    assert changed(X86_NAMES, before, after) == {
        "rdi": 1,
        "rsi": 2,
        "rdx": 3,
        "r10": 4,
        "r8": WORD - 1,
        "r9": 6,
        "rax": 9,
        "rip": 0x7FFF1234,
        "orig_rax": WORD - 1,  # in no system call: nothing is restarted
    }


def test_x86_64_prepares_a_call_with_fewer_arguments() -> None:
    before = pack(X86_NAMES)
    assert set(changed(X86_NAMES, before, X86.prepare(before, 1, 3, (7,)))) == {"rdi", "rax", "rip", "orig_rax"}


def test_arm64_prepares_a_call_and_leaves_the_rest_alone() -> None:
    before = pack(ARM_NAMES, pstate=0x80000C00)  # after an indirect branch
    after = ARM.prepare(before, 0x7FFF1234, 222, (1, 2, 3, 4, -1, 6))
    assert changed(ARM_NAMES, before, after) == {
        "x0": 1,
        "x1": 2,
        "x2": 3,
        "x3": 4,
        "x4": WORD - 1,
        "x5": 6,
        "x8": 222,
        "pc": 0x7FFF1234,
        "pstate": 0x80000000,
    }


@pytest.mark.parametrize("value", [0, 5, -errno.EPERM, -1, 0x7F0000001000])
def test_results_are_signed(value: int) -> None:
    assert X86.result(pack(X86_NAMES, rax=value)) == value
    assert ARM.result(pack(ARM_NAMES, x0=value)) == value


def test_the_program_counter_is_read_and_set() -> None:
    for architecture, names, counter in ((X86, X86_NAMES, "rip"), (ARM, ARM_NAMES, "pc")):
        registers = pack(names)
        assert architecture.program_counter(registers) == unpack(names, registers)[counter]
        assert changed(names, registers, architecture.at(registers, 42)) == {counter: 42}


EINTR, RESTART = -errno.EINTR, (-514) % WORD


@pytest.mark.parametrize(
    ("call", "limit", "restarted"),
    [
        (232, {"r10": -1}, True),  # epoll_wait
        (232, {"r10": 0xFFFFFFFF}, True),  # as an int -1, upper half empty
        (232, {"r10": 0xDEADBEEF00000000}, False),  # as an int 0, upper half anything
        (232, {"r10": 1000}, False),
        (281, {"r10": -1}, True),  # epoll_pwait
        (281, {"r10": 7}, False),
        (441, {"r10": 0}, True),  # epoll_pwait2
        (441, {"r10": 0x7FFF0000}, False),
        (128, {"rdx": 0}, True),  # rt_sigtimedwait
        (128, {"rdx": 0x7FFF0000}, False),
        (208, {"r8": 0}, True),  # io_getevents
        (208, {"r8": 0x7FFF0000}, False),
        (220, {"r10": 0}, True),  # semtimedop
        (220, {"r10": 0x7FFF0000}, False),
        (65, {}, True),  # semop
        (426, {"r10": 1}, True),  # io_uring_enter
        (426, {"r10": 1 | 8}, False),
        (0, {}, False),  # read: its EINTR is somebody's decision
        (-1, {}, False),  # in no system call
    ],
)
def test_x86_64_restarts_endless_waits_only(call: int, limit: dict[str, int], restarted: bool) -> None:
    registers = pack(X86_NAMES, rax=EINTR, orig_rax=call, **limit)
    expected = {"rax": RESTART} if restarted else {}
    assert changed(X86_NAMES, registers, X86.resumed(registers)) == expected


def test_other_results_are_left_alone() -> None:
    for value in (0, 1, -errno.EBADF, -512, -516):
        registers = pack(X86_NAMES, rax=value, orig_rax=232, r10=-1)
        assert X86.resumed(registers) == registers
    registers = pack(ARM_NAMES, x0=EINTR, x8=22)
    assert ARM.resumed(registers) == registers


# ---- A real thread ------------------------------------------------------------------------------------------------

GETPID = {"x86_64": 39, "aarch64": 172}.get(MACHINE, 0)
GETTID = {"x86_64": 186, "aarch64": 178}.get(MACHINE, 0)
CLONE = {"x86_64": 56, "aarch64": 220}.get(MACHINE, 0)
WAIT4 = {"x86_64": 61, "aarch64": 260}.get(MACHINE, 0)
WNOHANG, WALL = 1, 0x40000000
MUNMAP = {"x86_64": 11, "aarch64": 215}.get(MACHINE, 0)
real = pytest.mark.skipif(MACHINE not in ARCHITECTURES, reason="not a processor that is supported")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + HANG
        while (now := procfs.status(Process(process.pid))).state != "S" or now.name != "cat":
            assert time.monotonic() < deadline
        yield process
        process.kill()


@pytest.fixture
def thread(child: subprocess.Popen[bytes]) -> StoppedThread:
    return StoppedThread(child.pid, child.pid, _system_call_instruction(Process(child.pid)))


@real
def test_calls_run_in_the_thread_and_it_goes_on(child: subprocess.Popen[bytes], thread: StoppedThread) -> None:
    thread.seize()
    thread.stop(HANG)
    assert thread.call(GETPID) == child.pid
    assert thread.call(GETTID) == child.pid
    assert thread.call(NUMBERS[MACHINE]["close"], 1000) == -errno.EBADF
    assert thread.call(MUNMAP, 1, 4096) == -errno.EINVAL
    thread.release()
    assert procfs.status(Process(child.pid)).tracer == 0
    assert child.communicate(b"still reading")[0] == b"still reading"
    assert child.returncode == 0


@real
def test_a_clone_is_a_process_of_its_own_and_leaves_nothing(
    child: subprocess.Popen[bytes], thread: StoppedThread
) -> None:
    thread.seize()
    thread.stop(HANG)
    os.kill(child.pid, signal.SIGSTOP)  # cannot be blocked, and is in the way of a clone
    clone, number = thread.clone(CLONE, 0)
    assert number == clone.thread != child.pid
    assert clone.call(GETPID) == number
    assert thread.call(GETPID) == child.pid
    assert thread.call(WAIT4, number, 0, WNOHANG, 0) == -errno.ECHILD  # not for whoever does not ask for clones
    assert thread.call(WAIT4, number, 0, WNOHANG | WALL, 0) == 0
    clone.kill()
    assert thread.call(WAIT4, number, 0, WALL, 0) == number
    thread.release()
    os.kill(child.pid, signal.SIGCONT)
    assert child.communicate(b"still reading", timeout=HANG)[0] == b"still reading"
    assert child.returncode == 0


@real
def test_signals_wait_for_the_release(child: subprocess.Popen[bytes], thread: StoppedThread) -> None:
    thread.seize()
    thread.stop(HANG)
    os.kill(child.pid, signal.SIGTERM)
    os.kill(child.pid, signal.SIGSTOP)
    for _ in range(3):
        assert thread.call(GETPID) == child.pid
    os.kill(child.pid, signal.SIGCONT)
    assert thread.call(GETPID) == child.pid
    thread.release()
    assert child.wait(HANG) == -signal.SIGTERM


@real
def test_a_stop_signal_in_between_has_its_effect(child: subprocess.Popen[bytes], thread: StoppedThread) -> None:
    thread.seize()
    thread.stop(HANG)
    os.kill(child.pid, signal.SIGSTOP)
    assert thread.call(GETPID) == child.pid
    thread.release()
    assert os.WSTOPSIG(os.waitpid(child.pid, os.WUNTRACED)[1]) == signal.SIGSTOP
    os.kill(child.pid, signal.SIGCONT)
    child.communicate(timeout=HANG)
    assert child.returncode == 0


@contextmanager
def opened_at_last(fifo: Path) -> Iterator[None]:
    """Whatever happens, nobody waits for somebody to open it in the end."""
    try:
        yield
    finally:
        os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))


@real
def test_a_stop_that_does_not_come(tmp_path: Path) -> None:
    # Whoever starts a program waits uninterruptibly until it runs; this one first waits for somebody to open its input.
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    code = (
        "import os, sys\n"
        "actions = [(os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)]\n"
        "child = os.posix_spawn('/bin/cat', ['cat'], {}, file_actions=actions)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    with subprocess.Popen([sys.executable, "-c", code, fifo], stdout=subprocess.PIPE) as parent, opened_at_last(fifo):
        deadline = time.monotonic() + HANG
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        while (
            not children.read_text() or procfs.status(Process(parent.pid)).state != "D"
        ):  # not for the disk, but for its child
            assert time.monotonic() < deadline
        pid = os.fork()  # a tracer that ends, because it cannot let a running thread go
        if pid == 0:
            try:
                waiting = StoppedThread(parent.pid, parent.pid, 0)
                waiting.seize()
                waiting.stop(0.05)
            except TargetRefused as error:
                os._exit(0 if "does not stop" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert procfs.status(Process(parent.pid)).tracer == 0
        fifo.write_bytes(b"it runs on")
        assert parent.communicate(timeout=HANG)[0] == b"it runs on"
        assert parent.returncode == 0


@real
def test_a_thread_that_does_not_exist() -> None:
    with pytest.raises(NoSuchProcess):
        StoppedThread(2**22 + 1, 2**22 + 1, 0).seize()


@real
def test_a_thread_of_another_user(child: subprocess.Popen[bytes]) -> None:
    pid = os.fork()
    if pid == 0:
        os.setresuid(65534, 65534, 65534)
        try:
            StoppedThread(child.pid, child.pid, 0).seize()
        except NotPermitted as error:
            os._exit(0 if "run as root" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_root_is_restricted_by_nothing() -> None:
    if os.geteuid():
        pytest.skip("not root")
    assert restriction() == ""
