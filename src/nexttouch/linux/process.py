"""A process: made once, where a caller names it by its number, and asked by everything that reads or moves its memory.

A number can be another process's as soon as its process has ended; a descriptor of the process (pidfd_open(2)) cannot.
A program that becomes another (execve) keeps number and descriptor, but not its memory: an open /proc/PID/pagemap is
that memory's, and says nothing more when it is gone. The kernel takes numbers all the same, in /proc and in
move_pages(2). So each use of a number here is followed by a question to both, and what was read is given to the caller
only if it was of this process; and each use that changes something is preceded by one, too.
"""

from __future__ import annotations

import operator
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Self, SupportsIndex

from ..errors import FeatureMissing, InvalidArgument, KernelError, NoSuchProcess, NotPermitted
from .capabilities import SYS_PTRACE, capable
from .mounts import check_proc, no_proc
from .pidfd import alive, exists, pidfd_open
from .syscall import read_file

__all__ = ["SELF", "Process", "privilege"]

_OF_OTHERS = "its memory is another user's or protected"
_OF_ITS_OWN = (
    "it is protected from itself (not dumpable), as processes are that have changed their user; call "
    "prctl(PR_SET_DUMPABLE, 1), or run as root or with CAP_SYS_PTRACE"
)
_TGID = re.compile(rb"^Tgid:\t(\d+)$", re.MULTILINE)


class Process:
    """Process `pid`, seen through one of its threads: the main one has no memory any more once it has ended.

    `open` makes one that can tell itself from another process; one that is made of numbers alone trusts them, which is
    for a child that its parent has not waited for.

    Args:
        pid: its number.
        thread: the thread through which it is seen, None for the main one.
        pidfd: a descriptor of it, -1 for none.
        memory: an open /proc/PID/pagemap, -1 for none. Both are closed by `close`.
    """

    def __init__(self, pid: int, thread: int | None = None, *, pidfd: int = -1, memory: int = -1) -> None:
        self._pid = pid
        self._thread = pid if thread is None else thread
        self._pidfd = pidfd
        self._memory = memory

    @classmethod
    def open(cls, pid: object, *, argument: str = "pid", needs_pidfd: bool = False) -> Self:
        """Find process `pid`, which the caller closes.

        Without pidfd_open(2) (before Linux 5.3, or where a seccomp filter forbids it) its memory alone tells it from
        another process: that is enough unless another one shares that memory and lives longer (vfork(2)). The number of
        a thread is as good as that of its process, which is then seen through that thread.

        >>> with Process.open(os.getpid()) as process:
        ...     process.there
        True

        Args:
            pid: its number.
            argument: what the caller calls that.
            needs_pidfd: refuse what has no descriptor.

        Raises:
            InvalidArgument: naming `argument`; it is no positive integer, or, with `needs_pidfd`, that of a thread.
            FeatureMissing: /proc is not mounted, or is of another pid namespace; or there is no pidfd_open(2), and it
                is needed.
            NoSuchProcess: there is none.
            NotPermitted: it is hidden from this user.
            KernelError: this process has no descriptor left.
        """
        number = _number(pid, argument)
        check_proc()
        try:
            found = cls(number, pidfd=pidfd_open(number))
        except (FeatureMissing, InvalidArgument):
            if needs_pidfd:
                raise
            found = cls._of_thread(number)
        try:
            found._find_memory()
        except BaseException:
            found.close()
            raise
        return found

    @property
    def pid(self) -> int:
        """Its number."""
        return self._pid

    @property
    def own(self) -> bool:
        """Whether it is this process, named by no number."""
        return False

    @property
    def number(self) -> int:
        """What move_pages(2) and its like take for it."""
        return self._thread

    @property
    def pidfd(self) -> int:
        """Its descriptor, -1 if it has none."""
        return self._pidfd

    @property
    def thread(self) -> int:
        """The thread through which it is seen."""
        return self._thread

    @property
    def directory(self) -> Path:
        """Its folder in /proc, in which files of its memory can be read."""
        folder = Path("/proc", str(self._pid))
        return folder if self._thread == self._pid else folder / "task" / str(self._thread)

    @property
    def there(self) -> bool:
        """Whether it lives, and has the memory still that it had when it was opened."""
        if self._pidfd >= 0 and not alive(self._pidfd):
            return False
        if self._memory >= 0 and os.pread(self._memory, 8, 0) == b"":
            return False
        return self._thread == self._pid or self.directory.exists()

    def check(self) -> None:
        """Raise NoSuchProcess if it is not there any more."""
        if not self.there:
            raise NoSuchProcess(self._pid, "or became another program meanwhile")

    def check_number(self) -> None:
        """Raise NoSuchProcess if its number can be another process's by now; not so of a zombie."""
        if self._pidfd < 0:
            self.check()
        elif not alive(self._pidfd) and not exists(self._pidfd):
            raise NoSuchProcess(self._pid, "meanwhile")

    def through(self, thread: int) -> Process:
        """See it through its thread `thread`; the caller does not close what is returned, and uses it no longer."""
        return Process(self.pid, thread, pidfd=self._pidfd, memory=self._memory)

    def read(self, name: str) -> bytes:
        """Return what file `name` of its folder in /proc holds; of a zombie, too.

        Raises:
            NoSuchProcess, NotPermitted, FeatureMissing, KernelError: see `access_error`.
        """
        try:
            text = read_file(self.directory / name)
        except OSError as error:
            raise self.access_error(error) from None
        self.check_number()
        return text

    def threads(self) -> list[int]:
        """Return the ids of its threads, ascending.

        Raises:
            NoSuchProcess, NotPermitted: about it.
        """
        try:
            found = sorted(int(task.name) for task in self._tasks.iterdir())
        except OSError as error:
            raise self.access_error(error) from None
        self.check_number()
        return found

    def has_memory(self) -> bool:
        """Whether it has an address space: false for zombies and kernel threads.

        Raises:
            NoSuchProcess, NotPermitted: about it.
        """
        return self.read("statm").split()[0] != b"0"

    def access_error(self, error: OSError) -> FeatureMissing | NoSuchProcess | NotPermitted | KernelError:
        """Make the typed error for `error`, which an access to a file of its folder in /proc has raised."""
        if isinstance(error, FileNotFoundError) and self.directory.exists():
            remedy = "use a kernel with CONFIG_PROC_PAGE_MONITOR and CONFIG_NUMA"
            return FeatureMissing(str(error.filename), "this kernel does not have it", remedy)
        if isinstance(error, FileNotFoundError):
            return self._not_found()
        if isinstance(error, ProcessLookupError):
            return NoSuchProcess(self.pid, "and has no memory any more")
        if isinstance(error, PermissionError):
            return self.not_permitted()
        return KernelError(f"access to {error.filename or self.directory}", error.errno or 0)

    def not_permitted(self) -> NotPermitted:
        """Make the error for memory that the kernel does not let this process see."""
        return NotPermitted(self._pid, _OF_ITS_OWN if self._pid == os.getpid() else f"{_OF_OTHERS}; {privilege()}")

    def close(self) -> None:
        """Let go of its descriptors; may be called twice."""
        descriptors = self._pidfd, self._memory
        self._pidfd = self._memory = -1
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def _of_thread(cls, number: int) -> Self:
        """Find the process of thread `number`; without a descriptor where there is none to be had."""
        group = _TGID.search(cls(number).read("status"))
        pid = int(group[1]) if group else number
        try:
            return cls(pid, number, pidfd=pidfd_open(pid))
        except FeatureMissing:
            return cls(pid, number)

    def _find_memory(self) -> None:
        if not self.has_memory() and self._thread == self._pid:
            self._thread = next((thread for thread in self.threads() if self._lends_memory(thread)), self._pid)
        try:
            self._memory = os.open(self.directory / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except (PermissionError, ProcessLookupError):  # which the caller is told as soon as it asks for memory
            pass
        except OSError as error:
            raise self.access_error(error) from None

    def _lends_memory(self, thread: int) -> bool:
        with suppress(NoSuchProcess):  # the thread has ended
            return self.through(thread).has_memory()
        return False

    @property
    def _tasks(self) -> Path:
        return Path("/proc", str(self._pid), "task")

    def _not_found(self) -> NoSuchProcess | FeatureMissing:
        return NoSuchProcess(self._pid, "meanwhile" if self._pidfd >= 0 else "")


class _Self(Process):
    """This process, which no number is needed for: so it is a forked child's own process in the child."""

    def __init__(self) -> None:
        super().__init__(0)

    @property
    def pid(self) -> int:
        return os.getpid()

    @property
    def own(self) -> bool:
        return True

    @property
    def directory(self) -> Path:
        return Path("/proc/self")

    @property
    def there(self) -> bool:
        return True

    def check_number(self) -> None:
        pass

    def not_permitted(self) -> NotPermitted:
        return NotPermitted(0, _OF_ITS_OWN)

    @property
    def _tasks(self) -> Path:
        return Path("/proc/self/task")

    def _not_found(self) -> FeatureMissing:
        return no_proc()


SELF = _Self()
"""This process; system calls take 0 for it, and /proc shows it as /proc/self."""


def privilege() -> str:
    """What would let this process see the memory of others; or, if it has that, what else stands in the way."""
    if capable(SYS_PTRACE):
        return "CAP_SYS_PTRACE is not enough: a security module or a user namespace forbids it"
    return "run as root or with CAP_SYS_PTRACE"


def _number(pid: object, argument: str) -> int:
    number = -1
    if not isinstance(pid, bool) and isinstance(pid, SupportsIndex):
        with suppress(TypeError):  # an array
            number = operator.index(pid)
    if number <= 0:
        raise InvalidArgument(argument, f"is {pid!r}, but a process id is a positive integer")
    return number
