"""The parts in C: compiled with the system's compiler into a directory of their own, when they are first needed."""

from __future__ import annotations

import atexit
import ctypes
import functools
import mmap
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from nexttouch.errors import FeatureMissing, NexttouchError
from nexttouch.linux.syscall import PAGE_SIZE

__all__ = ["PopulatedMemory", "Toucher", "compiled", "copy", "library"]

_SOURCES = Path(__file__).parent


class PopulatedMemory:
    """Private anonymous memory, `size` bytes, all populated: `buffer` for nexttouch, `address` for C.

    With base pages, or with transparent huge pages as far as the kernel has any.
    """

    def __init__(self, size: int, *, huge: bool = False) -> None:
        self.size = size
        self.pages = size // PAGE_SIZE
        self.buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.buffer.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        self._view = ctypes.c_char.from_buffer(self.buffer)
        self.address = ctypes.addressof(self._view)
        self.touch()

    def touch(self) -> float:
        """Write one byte of each page; return the seconds it took."""
        return float(library().touch(self.address, self.pages, PAGE_SIZE))

    def protect(self) -> float:
        """Forbid all access with one mprotect(2) call; return the seconds it took. Nothing can be done with it then."""
        seconds = float(library().protect(self.address, self.size))
        if seconds < 0:
            raise NexttouchError("mprotect failed: the measurement cannot be made")
        return seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        del self._view  # else the buffer cannot be closed
        self.buffer.close()


class Toucher:
    """A thread in C that writes to random pages of `memory` without a pause, from `with` to its end."""

    def __init__(self, memory: PopulatedMemory) -> None:
        self._memory = memory
        self._handle = 0

    @property
    def touches(self) -> int:
        """How many times it has written."""
        return int(library().toucher_touches(self._handle))

    def longest(self) -> float:
        """Seconds of the longest write since this was last asked."""
        return float(library().toucher_longest(self._handle))

    def __enter__(self) -> Self:
        self._handle = library().toucher_start(self._memory.address, self._memory.pages, PAGE_SIZE)
        if not self._handle:
            raise NexttouchError("no thread could be started: the measurement cannot be made")
        return self

    def __exit__(self, *_: object) -> None:
        library().toucher_stop(self._handle)


def copy(to: PopulatedMemory, source: PopulatedMemory) -> float:
    """Copy the contents of `source`, with memcpy(3); return the seconds it took."""
    return float(library().copy(to.address, source.address, source.size))


@functools.cache
def library() -> ctypes.CDLL:
    """native.c, loaded."""
    loaded = ctypes.CDLL(str(compiled("native.c", "-shared", "-fPIC")))
    word, pointer, seconds = ctypes.c_uint64, ctypes.c_void_p, ctypes.c_double
    signatures: dict[str, tuple[type | None, list[type]]] = {
        "touch": (seconds, [pointer, word, word]),
        "copy": (seconds, [pointer, pointer, word]),
        "protect": (seconds, [pointer, word]),
        "toucher_start": (pointer, [pointer, word, word]),
        "toucher_touches": (word, [pointer]),
        "toucher_longest": (seconds, [pointer]),
        "toucher_stop": (None, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def compiled(source: str, *flags: str) -> Path:
    """Compile `source` of this directory, and return the file; it is gone when the interpreter ends.

    Raises:
        FeatureMissing: there is no C compiler, or it fails.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise FeatureMissing("a C compiler", "there is no cc on the path", "install gcc, or name one in CC")
    result = _directory() / Path(source).stem
    command = [
        compiler,
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-pthread",
        *flags,
        "-o",
        str(result),
        str(_SOURCES / source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FeatureMissing("a C compiler", f"{compiler} failed on {source}: {done.stderr.strip()}", "install gcc")
    return result


@functools.cache
def _directory() -> Path:
    directory = tempfile.mkdtemp(prefix="nexttouch-bench-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)
