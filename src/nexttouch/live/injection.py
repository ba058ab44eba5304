"""The short-lived process that makes another one open a userfaultfd; `descriptor.acquire` starts it.

The descriptor is never among the program's own. Where it was even for a moment, a fork in another thread would take a
copy along, which keeps the traps alive when the migrator is gone. So the stopped thread is made to clone itself into a
process that shares its memory and none of its descriptors; the clone opens the userfaultfd, which works on the memory
they share, only this process makes it do anything, and it is gone before the thread goes on.

A process of its own, because an injector that is killed half-way leaves a thread behind that runs on with
registers which are not its own. This one ignores every signal, is in a session of its own, is the last that the
kernel kills when memory runs out, and stays for milliseconds. When its starter is gone, it finishes, and then
closes the descriptor. What remains is SIGKILL aimed at this process between the first injected call and
the release, a fraction of a millisecond: then the target crashes.

Imported by an interpreter that has neither site-packages nor the environment of its starter: standard library
and nexttouch.linux only.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import KernelError, NexttouchError, NoSuchProcess, NotPermitted, TargetRefused
from ..linux import control_block, procfs, remote
from ..linux.pidfd import pidfd_getfd, pidfd_open
from ..linux.process import Process
from ..linux.ptrace import ARCHITECTURES, StoppedThread
from ..linux.syscall import MACHINE, NUMBERS
from ..linux.userfaultfd import DEVICE, DEVICE_NEW

__all__ = ["ERROR_ARGUMENTS", "SECCOMP", "TRACED", "interrupt", "main", "take_userfaultfd"]

STOP_TIMEOUT = 2.0  # seconds; a thread stops within microseconds unless it is frozen or waits for a device

SECCOMP = "it is confined by seccomp, whose filter could kill it for the injected system call; move its pages eagerly"
"""Why a process with a seccomp filter is refused."""

TRACED = "process {} traces it (a debugger, strace or another migrator); end that first"
"""Why a process that is traced already is refused; by whom is filled in."""

ERROR_ARGUMENTS = {
    "FeatureMissing": ("feature", "reason", "remedy"),
    "KernelError": ("call", "errno"),
    "NoSuchProcess": ("pid",),
    "NotPermitted": ("pid", "reason"),
    "TargetRefused": ("pid", "reason"),
}
"""The errors that travel, and the attributes from which each is made again."""

_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
_MORE_NUMBERS = {
    "x86_64": {
        "mmap": 9,
        "munmap": 11,
        "ioctl": 16,
        "openat": 257,
        "recvmsg": 47,
        "socketpair": 53,
        "clone": 56,
        "wait4": 61,
        "prctl": 157,
        "unshare": 272,
        "close_range": 436,
    },
    "aarch64": {
        "ioctl": 29,
        "openat": 56,
        "unshare": 97,
        "prctl": 167,
        "socketpair": 199,
        "recvmsg": 212,
        "munmap": 215,
        "clone": 220,
        "mmap": 222,
        "wait4": 260,
        "close_range": 436,
    },
}
_CLONE_VM, _CLONE_FILES, _CLOSE_RANGE_UNSHARE, _WALL = 0x100, 0x400, 1 << 1, 0x40000000
_AT_FDCWD = -100
_SCRATCH = 4096  # bytes of the target's scratch mapping: the kernel rounds up
_READ_WRITE, _PRIVATE_ANONYMOUS = 0x1 | 0x2, 0x02 | 0x20
_PR_GET_TID_ADDRESS = 40


def main(arguments: list[str]) -> None:
    """Run the process: pid, thread and pidfd, the other numbers of `take_userfaultfd`, the socket to answer on."""
    pid, thread, pidfd, instruction, lend, channel = map(int, arguments)
    _shield()
    descriptors = []
    try:
        process = Process(pid, thread, pidfd=pidfd)
        descriptor, stopped, exit_word = take_userfaultfd(process, instruction, lend=bool(lend))
        answer: dict[str, object] = {"stopped": stopped, "exit_word": exit_word}
        descriptors.append(descriptor)
    except NexttouchError as error:
        name = type(error).__name__
        answer = {"error": name, "arguments": [getattr(error, field) for field in ERROR_ARGUMENTS[name]]}
    with suppress(OSError):  # its starter has ended
        socket.send_fds(socket.socket(fileno=channel), [json.dumps(answer).encode()], descriptors)
    os._exit(0)


def interrupt(arguments: list[str]) -> None:
    """Run the process: the numbers of a process, a descriptor of it, and those of its threads that are interrupted."""
    pid, pidfd, *numbers = map(int, arguments)
    process = Process(pid, pidfd=pidfd)
    _shield()
    for number in numbers:
        thread = StoppedThread(pid, number, 0)
        with suppress(NexttouchError):  # it has ended, or it is traced, and looks again for that
            thread.seize()
            if process.through(number).there:
                thread.nudge(STOP_TIMEOUT)
    os._exit(0)


def take_userfaultfd(process: Process, instruction: int, *, lend: bool = False) -> tuple[int, float, int]:
    """Make the thread of `process` open a userfaultfd; return it, the seconds the thread stood still, its exit word.

    The word is asked for where the thread has no control block as glibc's, and is 0 else.

    Args:
        process: through the thread that is to stand still.
        instruction: address, in that process, of an instruction that makes a system call.
        lend: give it this process's open /dev/userfaultfd where it may not have its own.

    Raises:
        NoSuchProcess, NotPermitted, TargetRefused, KernelError: the target runs on as it did, if it still exists.
    """
    target = StoppedThread(process.pid, process.thread, instruction)
    try:
        target.seize()
    except NotPermitted:
        _check_since(process)
        raise
    # A seized thread keeps its id. With the process alive and the thread in it, no other one was mistaken for it.
    process.check()
    _warm_up()
    ask = not control_block.exists(process)
    with _device(lend) as device:
        begin = time.perf_counter()
        target.stop(STOP_TIMEOUT)
        try:
            descriptor = _userfaultfd_of(target, process, device)
            exit_word = _exit_word(target, process) if ask else 0
        finally:
            target.release()
        return descriptor, time.perf_counter() - begin, exit_word


def _check_since(process: Process) -> None:
    """Say what has happened since `descriptor.check`: a thread that has ended or is traced cannot be seized either."""
    status = procfs.status(process)
    process.check()
    if status.state in "ZX":
        raise NoSuchProcess(process.pid)
    if status.tracer:
        raise TargetRefused(process.pid, TRACED.format(status.tracer))


def _shield() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    with suppress(OSError):  # without CAP_SYS_RESOURCE: as likely a victim as its parent
        Path("/proc/self/oom_score_adj").write_text("-1000", encoding="ascii")
    gc.disable()


def _warm_up() -> None:
    """Do once, outside the stop, what takes Python long the first time."""
    architecture = ARCHITECTURES[MACHINE]
    registers = architecture.prepare(bytes(architecture.size), 0, 0, (0,))
    architecture.result(architecture.resumed(registers))
    procfs.status()


@contextmanager
def _device(lend: bool) -> Iterator[int]:
    """Open /dev/userfaultfd; -1 if it is not to be lent, or this user may not."""
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC) if lend else -1
    except OSError:
        device = -1
    try:
        yield device
    finally:
        if device >= 0:
            os.close(device)


def _userfaultfd_of(target: StoppedThread, process: Process, device: int) -> int:
    pid = process.pid
    if procfs.status(process).seccomp:  # since it was looked at
        raise TargetRefused(pid, SECCOMP)
    if _begins_a_namespace(process):
        raise TargetRefused(
            pid, "its next child begins a pid namespace (unshare), and has to be its own; try again later"
        )
    with _clone(target) as clone, _opened(clone) as pidfd:
        number = clone.call(_number("userfaultfd"), _FLAGS)
        if number == -errno.EPERM:
            number = _through_device(clone, pid, pidfd, device)
        _check_descriptor(number, pid)
        return pidfd_getfd(pidfd, number, pid=pid)


def _begins_a_namespace(process: Process) -> bool:
    own, next_one = (process.directory / "ns" / name for name in ("pid", "pid_for_children"))
    return own.exists() and not (
        next_one.exists() and own.samefile(next_one)
    )  # it does not exist before its first process


@contextmanager
def _clone(target: StoppedThread) -> Iterator[StoppedThread]:
    """Make `target` a process that shares its memory and has no descriptors."""
    clone, number = target.clone(_number("clone"), _CLONE_VM | _CLONE_FILES)
    try:
        # Shared first and emptied then: a copy of the table would hold the program's files open, and flush them when it
        # is closed.
        if clone.call(_number("close_range"), 0, 0xFFFFFFFF, _CLOSE_RANGE_UNSHARE) < 0:  # before Linux 5.9
            _call(clone, "unshare", _CLONE_FILES)
        yield clone
    finally:
        clone.kill()
        target.call(_number("wait4"), number, 0, _WALL, 0)


@contextmanager
def _opened(clone: StoppedThread) -> Iterator[int]:
    pidfd = pidfd_open(clone.thread)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def _check_descriptor(number: int, pid: int) -> None:
    match -number:
        case errno.EPERM:
            raise NotPermitted(
                pid,
                "its user may not have a userfaultfd; set the sysctl vm.unprivileged_userfaultfd=1, let that user open "
                "/dev/userfaultfd, or, as root, lend it yours, which it can keep (lend_device=True, "
                "--lend-userfaultfd)",
            )
        case errno.EMFILE | errno.ENFILE:
            raise TargetRefused(pid, "it has no file descriptor left; raise its limit (prlimit --nofile)")
        case error if error > 0:
            raise KernelError("userfaultfd", error, f"called in process {pid}")


def _exit_word(target: StoppedThread, process: Process) -> int:
    """Return the address at which the kernel stores 0 when `target` ends (set_tid_address(2)).

    0 if there is none, or none can be found out: the program can map nothing more, or the kernel is one without
    CONFIG_CHECKPOINT_RESTORE.
    """
    scratch = target.call(_number("mmap"), 0, _SCRATCH, _READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0)
    if scratch < 0:
        return 0
    try:
        target.call(_number("prctl"), _PR_GET_TID_ADDRESS, scratch)
        return int.from_bytes(remote.read(process, scratch, 8), "little")
    finally:
        target.call(_number("munmap"), scratch, _SCRATCH)


def _through_device(clone: StoppedThread, pid: int, pidfd: int, device: int) -> int:
    """Have the clone make a userfaultfd from /dev/userfaultfd; return its number, or -EPERM if it may not.

    It opens the device by itself: then whatever it has, its user could have had as well. For a clone has its program's
    user, and while it lives any process of that user can take what it has (pidfd_getfd), and keep it. Only if `device`,
    one of ours that is meant to be lent, is one does it get that.
    """
    with ExitStack() as undo:
        scratch = _call(clone, "mmap", 0, _SCRATCH, _READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0)
        undo.callback(_call, clone, "munmap", scratch, _SCRATCH)
        memory = os.open(Process(clone.thread).directory / "mem", os.O_RDWR | os.O_CLOEXEC)
        undo.callback(os.close, memory)
        os.pwrite(memory, os.fsencode(DEVICE) + b"\0", scratch)
        number = clone.call(_number("openat"), _AT_FDCWD, scratch, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        if number < 0 and device >= 0:
            _call(clone, "socketpair", socket.AF_UNIX, socket.SOCK_DGRAM, 0, scratch)
            ours, theirs = struct.unpack("<2i", os.pread(memory, 8, scratch))
            with socket.socket(fileno=pidfd_getfd(pidfd, ours, pid=pid)) as end:
                socket.send_fds(end, [b"\0"], [device])
            number = _receive(clone, memory, scratch, theirs)
        return clone.call(_number("ioctl"), number, DEVICE_NEW, _FLAGS) if number >= 0 else -errno.EPERM


def _receive(target: StoppedThread, memory: int, scratch: int, end: int) -> int:
    """Make the target receive one descriptor from its socket `end`; return the number it gets."""
    vector, data, control = scratch + 64, scratch + 80, scratch + 96
    header = struct.pack("<QI4xQQQQi4x", 0, 0, vector, 1, control, 24, 0)  # struct msghdr
    os.pwrite(memory, header.ljust(64, b"\0") + struct.pack("<QQ", data, 1), scratch)  # and struct iovec
    _call(target, "recvmsg", end, scratch, socket.MSG_CMSG_CLOEXEC)
    (copy,) = struct.unpack("<i", os.pread(memory, 4, control + 16))  # behind struct cmsghdr
    return int(copy)


def _call(target: StoppedThread, name: str, *arguments: int) -> int:
    result = target.call(_number(name), *arguments)
    if result < 0:
        raise KernelError(name, -result, "called in the process to attach to")
    return result


def _number(name: str) -> int:
    return (NUMBERS[MACHINE] | _MORE_NUMBERS[MACHINE])[name]
