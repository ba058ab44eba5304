"""A userfaultfd on the memory of a program that does not know of it.

Only a process itself can open a userfaultfd on its memory. So one of its threads is stopped for a moment and made to
clone itself into a process that shares its memory only, which opens one (`nexttouch.live.injection`). The descriptor is
copied out with pidfd_getfd(2), and the clone ended before the thread runs on: whichever way the migrator ends, its
descriptor is the last one, and the kernel then takes back every protection. For the same reason a child that the
migrator forks does not keep it (`nexttouch._core.receive`). The program loses about a millisecond, whatever its size.

The program has to have the right to open one: to be privileged, or allowed by the sysctl
vm.unprivileged_userfaultfd, or by the mode of /dev/userfaultfd. The migrator can lend it its own open device, but does
not do so unasked: the clone has the program's user, and while it lives any other process of that user can copy what it
has, and from then on make userfaultfds that hold up the kernel itself, which that sysctl keeps from users for a reason.
A clone that may not be traced would not help: that is a property of the memory, so the program itself can turn it back.
And a descriptor for faults of user mode only, which everyone may have, would make the program's own system calls fail
with EFAULT.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .. import _core
from ..errors import FeatureMissing, KernelError, NexttouchError, NoSuchProcess, NotPermitted, TargetRefused
from ..linux import procfs
from ..linux.process import Process, privilege
from ..linux.ptrace import INSTRUCTIONS
from ..linux.syscall import MACHINE
from ..linux.userfaultfd import Feature, Userfaultfd, available_features
from .injection import SECCOMP, TRACED, take_userfaultfd

__all__ = ["TAKEN", "Acquired", "acquire", "check"]

TAKEN = "another process (such as a virtual machine's monitor, or another migrator) handles its page faults"
"""Why a process is refused whose memory another process's userfaultfd watches."""


class Acquired(NamedTuple):
    """A descriptor of a program's memory, and what came to light when one thread of the program stood still for it.

    A pager that is started with `uffd` closes it; until then the caller of `acquire` can, with `close`. `stopped` is
    the seconds one thread of the program stood still, `exit_word` the address of the word that the kernel sets to 0 at
    the end of that thread, 0 if it is in the control block.
    """

    uffd: int
    stopped: float
    exit_word: int

    def close(self) -> None:
        """Undo whatever was done with the descriptor."""
        _core.forget(self.uffd)
        os.close(self.uffd)


def acquire(process: Process, *, features: int = 0, wanted: int = 0, lend: bool = False) -> Acquired:
    """Open a userfaultfd on the memory of `process`, with its handshake done.

    The descriptor is non-blocking and serves faults of system calls too. A child that this process forks before a pager
    has it does not keep it.

    Args:
        process: whose memory; it has a pidfd.
        features: what the descriptor has to be able to do.
        wanted: what it is to do as well, but only all of it together, where the kernel can.
        lend: let the program have this process's open /dev/userfaultfd, if it may not open one; its user can keep it.

    >>> acquired = acquire(process, features=Feature.PAGEFAULT_FLAG_WP | Feature.EVENT_UNMAP)
    >>> acquired.stopped > 0
    True
    >>> acquired.close()

    Raises:
        NoSuchProcess: it ended meanwhile.
        NotPermitted: it belongs to another user, tracing is restricted, or its user may have no userfaultfd.
        TargetRefused: attaching could harm it (see `check`); it runs on as it did.
        FeatureMissing: the kernel lacks one of `features`, or this processor is not supported.
        KernelError: any other failure, such as EMFILE.
    """
    if MACHINE not in INSTRUCTIONS:
        raise FeatureMissing("attaching", f"it is not written for {MACHINE}", f"use {' or '.join(INSTRUCTIONS)}")
    seen = check(process)
    acquired = Acquired(*take_userfaultfd(seen, _system_call_instruction(seen), lend=lend))
    try:
        _shake_hands(Userfaultfd(acquired.uffd), features, wanted)
    except BaseException:
        acquired.close()
        raise
    return acquired


def check(process: Process) -> Process:
    """Look whether `process` can be attached to, without touching it; return it through the thread to be stopped.

    Raises:
        TargetRefused: it is this process, a kernel thread, a zombie, traced already, confined by seccomp, a 32-bit
            program, or something (itself, a debugger, another migrator) handles its page faults already.
        NoSuchProcess: it ended meanwhile.
        NotPermitted: its memory is not for this user.
    """
    if process.pid == os.getpid():
        raise TargetRefused(
            process.pid, "it is this process; use nexttouch.lazy or nexttouch.next_touch for its own memory"
        )
    seen = process.through(_running_thread(process))
    status = procfs.status(seen)
    if not seen.has_memory():
        raise _without_memory(seen)
    if status.tracer:
        raise TargetRefused(seen.pid, TRACED.format(status.tracer))
    if status.seccomp:
        raise TargetRefused(seen.pid, SECCOMP)
    _check_descriptors(seen, status.uid)
    _check_program(seen)
    _check_mappings(seen)
    seen.check_number()
    return seen


def _running_thread(process: Process) -> int:
    """Return the main thread unless it has ended or does not react to anything, else another one."""
    states = {}
    for thread in sorted(process.threads(), key=lambda thread: thread != process.pid):
        with suppress(NoSuchProcess):
            states[thread] = procfs.status(process.through(thread)).state
        if states.get(thread, "Z") not in "ZXD":
            return thread
    for thread, state in states.items():
        if state == "D":
            return thread
    raise TargetRefused(process.pid, "it has ended already (a zombie); its parent has yet to take notice")


def _without_memory(seen: Process) -> NexttouchError:
    fields = seen.read("stat").rpartition(b")")[2].split()
    if int(fields[9 - 3]) & _PF_KTHREAD:
        return TargetRefused(seen.pid, "it is a kernel thread, which has no memory of its own")
    return NoSuchProcess(seen.pid, "meanwhile")


_PF_KTHREAD = 0x200000  # include/linux/sched.h


# From here on the thread is asked, not the process: a main thread that has ended has neither descriptors nor memory.


def _check_descriptors(seen: Process, uid: int) -> None:
    try:
        links = list((seen.directory / "fd").iterdir())
        taken = next((link.name for link in links if _target(link) == "anon_inode:[userfaultfd]"), None)
    except PermissionError:  # of the folder, or of what is in it
        raise NotPermitted(seen.pid, _why_closed(uid)) from None
    except OSError as error:
        raise seen.access_error(error) from None
    if taken:
        raise TargetRefused(seen.pid, f"it handles its own page faults (its descriptor {taken} is a userfaultfd)")


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:  # closed since
        return ""


def _why_closed(uid: int) -> str:
    if uid != os.geteuid():
        return f"it belongs to user {uid}; {privilege()}"
    return f"it is protected from its own user, as programs with set-uid or file capabilities are; {privilege()}"


def _check_program(seen: Process) -> None:
    try:
        with (seen.directory / "exe").open("rb") as program:
            head = program.read(5)
    except OSError as error:
        raise seen.access_error(error) from None
    if head != b"\x7fELF\x02":
        raise TargetRefused(seen.pid, "it is a 32-bit program; only 64-bit ones can be attached to")


def _check_mappings(seen: Process) -> None:
    # The descriptor may be another process's, as with a virtual machine's fault handler: only the mappings tell then.
    try:
        with (seen.directory / "smaps").open("rb") as lines:
            taken = any(line.startswith(b"VmFlags") and _REGISTERED.search(line) for line in lines)
    except OSError as error:
        raise seen.access_error(error) from None
    if taken:
        raise TargetRefused(seen.pid, TAKEN)


_REGISTERED = re.compile(rb" u[mwir] ")  # missing, write-protect, minor, read-write-protect


def _system_call_instruction(seen: Process) -> int:
    """Return the address of an instruction of the kernel's own code in `seen` (vdso) that makes a system call."""
    for mapping in procfs.mappings(seen):
        if mapping.path == "[vdso]":
            at = INSTRUCTIONS[MACHINE].find(_read_memory(seen, mapping.start, mapping.end - mapping.start))
            if at >= 0:
                return mapping.start + at
    raise TargetRefused(seen.pid, "it has no vdso, from where its system calls could be made; move its pages eagerly")


def _read_memory(seen: Process, start: int, length: int) -> bytes:
    try:
        with (seen.directory / "mem").open("rb", buffering=0) as memory:
            memory.seek(start)
            return memory.read(length)
    except OSError as error:
        raise seen.access_error(error) from None


def _shake_hands(uffd: Userfaultfd, features: int, wanted: int) -> None:
    if wanted:
        with suppress(KernelError):  # after a handshake that failed there may be another one
            uffd.api(features | wanted)
            return
    try:
        uffd.api(features)
    except KernelError as error:
        missing = int(features) & ~int(available_features())
        if missing:
            name = f"userfaultfd {Feature(missing).name or hex(missing)}"
            raise FeatureMissing(name, "this kernel lacks it", "nexttouch doctor says which one has it") from None
        if error.errno == errno.EPERM:
            remedy = "run as root or with CAP_SYS_PTRACE"
            raise FeatureMissing("following a program's forks", "this user may not", remedy) from None
        raise
