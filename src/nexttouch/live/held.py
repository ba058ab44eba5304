"""A process that is worked on for a while: neither its number nor its memory is taken for another one's."""

from __future__ import annotations

import os
from contextlib import suppress

from ..errors import NoSuchProcess
from ..linux import procfs
from ..linux.pidfd import alive

__all__ = ["Held"]


class Held:
    """Process `pid` (0: this one) with the memory that it has now; whoever makes it calls `close`.

    A number can be another process's once its process has ended; `pidfd` cannot, and is closed with this (-1 where
    there is none). A program that becomes another (execve) keeps its number, but not its memory: an open
    /proc/PID/pagemap is that memory's, and says nothing more when it is gone.
    """

    def __init__(self, pid: int, pidfd: int = -1) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._pagemap = -1
        if pid:
            with suppress(OSError):  # it has ended, or will not be worked on
                self._pagemap = os.open(procfs.directory(pid) / "pagemap", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def there(self) -> bool:
        """Whether the process lives and has its memory still; of this process always."""
        if not self.pid:
            return True
        if self.pidfd >= 0 and not alive(self.pidfd):
            return False
        return self._pagemap >= 0 and os.pread(self._pagemap, 8, 0) != b""

    def check(self) -> None:
        """Raise NoSuchProcess if it is not there any more."""
        if not self.there:
            raise NoSuchProcess(self.pid, "or became another program meanwhile")

    def close(self) -> None:
        """Let go of it; may be called twice."""
        descriptors = self.pidfd, self._pagemap
        self.pidfd = self._pagemap = -1
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)
