"""Another process is made to open a userfaultfd, by the program of nexttouch._attach: here it is started and heard.

That the thread stands still for a moment only, and the migrator can be killed at any moment, needs a process that is
small, and is not the migrator. It is executed, not forked: a fork would give back all that relocating pagers hold.
"""

from __future__ import annotations

import errno
import select
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .. import _core
from ..errors import KernelError, NexttouchError, NoSuchProcess, NotPermitted, TargetRefused
from ..linux import control_block
from ..linux.pidfd import getfd_error
from ..linux.process import Process
from ..linux.ptrace import restriction

__all__ = ["PROGRAM", "SECCOMP", "TRACED", "interrupt", "take_userfaultfd"]

PROGRAM = Path(_core.__file__).with_name("attacher")
"""What does it; its head (src/nexttouch/_attach/main.c) says what it takes and answers."""

SECCOMP = "it is confined by seccomp, whose filter could kill it for the injected system call; move its pages eagerly"
"""Why a process with a seccomp filter is refused."""

TRACED = "process {} traces it (a debugger, strace or another migrator); end that first"
"""Why a process that is traced already is refused; by whom is filled in."""


def take_userfaultfd(process: Process, instruction: int, *, lend: bool = False) -> tuple[int, float, int]:
    """Make the thread of `process` open a userfaultfd; return it, the seconds the thread stood still, its exit word.

    The word is asked for where the thread has no control block as glibc's, and is 0 else. A child that this process
    forks does not keep the descriptor, until `_core.forget` is told of it.

    Args:
        process: through the thread that is to stand still.
        instruction: address, in that process, of an instruction that makes a system call.
        lend: give it this process's open /dev/userfaultfd where it may not have its own.

    Raises:
        NoSuchProcess, NotPermitted, TargetRefused, FeatureMissing, KernelError: the target runs on as it did, if it
            still exists.
    """
    options = ["lend"] * lend + ["exit-word"] * (not control_block.exists(process))
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise KernelError("socketpair", error.errno or 0, _REMEDIES.get(error.errno or 0, "")) from None
    with ours, theirs:
        numbers = (process.pid, process.thread, process.pidfd, instruction, theirs.fileno())
        helper = _start(["take", *map(str, numbers), *options], (process.pidfd, theirs.fileno()))
        with helper:
            theirs.close()
            answer, descriptor = _receive(ours)
    if not answer:
        detail = (
            f"the process that attaches ended with status {helper.returncode} before it was done; look at process "
            f"{process.pid}"
        )
        raise KernelError("attach", errno.ECHILD, detail)
    return _read_answer(answer, descriptor, process.pid)


def interrupt(process: Process, threads: Iterable[int]) -> None:
    """Interrupt what `threads` of `process` wait for, which they do not notice but for EINTR.

    Raises:
        KernelError: no process could be started for it.
    """
    with _start(["interrupt", *map(str, (process.pid, process.pidfd, *threads))], (process.pidfd,)):
        pass


def _start(words: list[str], descriptors: tuple[int, ...]) -> subprocess.Popen[bytes]:
    # Nothing of the environment gets into a process that may be root's.
    none = subprocess.DEVNULL
    command = [str(PROGRAM), *words]
    try:
        return subprocess.Popen(
            command, stdin=none, stdout=none, stderr=none, env={}, pass_fds=descriptors, start_new_session=True
        )
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, f"{str(PROGRAM)!r} has to be a program; install nexttouch again")
        raise KernelError("execve", error.errno or 0, remedy) from None


def _receive(channel: socket.socket) -> tuple[bytes, int]:
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.poll()
    return _core.receive(channel.fileno())


def _read_answer(answer: bytes, descriptor: int, pid: int) -> tuple[int, float, int]:
    match answer.decode().split():
        case ["taken", stopped, exit_word] if descriptor >= 0:
            return descriptor, int(stopped) / 1e9, int(exit_word)
        case ["taken", *_]:
            raise KernelError("recvmsg", errno.EMFILE, _NO_DESCRIPTOR)
        case ["call", name, number]:
            raise getfd_error(int(number), pid) if name == "pidfd_getfd" else KernelError(name, int(number))
        case [word, number]:
            raise _refusal(word, int(number), pid)
    raise AssertionError(answer)


def _refusal(word: str, number: int, pid: int) -> NexttouchError:
    match word:
        case "ended":
            return NoSuchProcess(pid, "while it was attached to")
        case "forbidden":
            reason = "the kernel forbids tracing it; run as root or with CAP_SYS_PTRACE"
            return NotPermitted(pid, restriction() or reason)
        case "userfaultfd":
            return NotPermitted(pid, _NO_USERFAULTFD)
    return TargetRefused(pid, _REFUSALS[word].format(number))


_REFUSALS = {
    "traced": TRACED,
    "seccomp": SECCOMP,
    "unstopped": "it does not stop: it is frozen or in an uninterruptible wait; try again later",
    "not-64-bit": "it runs 32-bit code; only 64-bit programs can be attached to",
    "replaced": "it has just replaced its program (execve); try again",
    "dispatches": (
        "it catches its own system calls (PR_SET_SYSCALL_USER_DISPATCH), as Wine does; move its pages eagerly"
    ),
    "namespace": "its next child begins a pid namespace (unshare), and has to be its own; try again later",
    "processes": "it may have no more processes; raise its limit (prlimit --nproc, pids.max)",
    "descriptors": "it has no file descriptor left; raise its limit (prlimit --nofile)",
}
_NO_USERFAULTFD = (
    "its user may not have a userfaultfd; set the sysctl vm.unprivileged_userfaultfd=1, let that user open "
    "/dev/userfaultfd, or, as root, lend it yours, which it can keep (lend_device=True, --lend-userfaultfd)"
)
_NO_DESCRIPTOR = "this process has no file descriptor left; raise its limit (ulimit -n)"
_NO_PROCESS = "this user may have no more processes; raise the limit (ulimit -u, pids.max)"
_REMEDIES = {errno.EMFILE: _NO_DESCRIPTOR, errno.ENFILE: _NO_DESCRIPTOR, errno.EAGAIN: _NO_PROCESS}
