"""Programs to attach to that know nothing of it: compiled, started, watched, searched for what a migration leaves."""

from __future__ import annotations

import mmap
import os
import re
import select
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from nexttouch.linux import procfs
from nexttouch.linux.process import Process
from nexttouch.linux.syscall import PAGE_SIZE

__all__ = ["HANG", "Program", "compiled", "descriptors", "leftovers", "steady", "unruly", "until"]

HANG = 300.0
"""Seconds after which something that has not happened never will."""

_SOURCES = Path(__file__).parent
_UFFD_WP = np.uint64(1 << 57)


def compiled(name: str, folder: Path, *more: str) -> Path:
    """Compile the program `name` of this folder into `folder`, with `more` options."""
    binary = folder / name
    options = ["-O2", "-Wall", "-Wextra", "-Werror", "-std=gnu11", "-pthread", *more]
    subprocess.run(["gcc", *options, "-o", str(binary), str(_SOURCES / f"{name}.c")], check=True, timeout=120)
    return binary


def until(condition: Callable[[], object], what: str = "it") -> None:
    """Wait until `condition` is true."""
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, f"{what} never happened"
        select.select([], [], [], 0.001)


class Program:
    """A running target, and its status page (status.h)."""

    def __init__(self, binary: Path, *words: str | int, threads: int, prefix: tuple[str, ...] = ()) -> None:
        self.threads = threads
        self.finished = False
        status = os.memfd_create("status")
        os.ftruncate(status, PAGE_SIZE)
        self._status = mmap.mmap(status, PAGE_SIZE)
        descriptors = (status, *(word for word in words[:1] if isinstance(word, int)))
        command = [*prefix, *map(str, (binary, status, *words))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=descriptors)
        os.close(status)
        self.pid = self.process.pid
        try:
            self.ready()
        except BaseException:
            self.kill()
            raise

    def _words(self, first: int, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{count}Q", self._status, first * 8)

    @property
    def failures(self) -> int:
        """Words that were not what the program had written."""
        return self._words(0, 1)[0]

    @property
    def generation(self) -> int:
        """Programs that have run in this process."""
        return self._words(5, 1)[0]

    @property
    def children(self) -> int:
        """Children that have ended well."""
        return self._words(8, 1)[0]

    @property
    def refused(self) -> int:
        """Calls of mremap that failed as they would for two mappings."""
        return self._words(9, 1)[0]

    @property
    def counters(self) -> tuple[int, ...]:
        """Rounds of each thread."""
        return self._words(10, self.threads)

    def ready(self) -> None:
        """Wait until it has run every thread at least once."""
        until(lambda: self.process.poll() is not None or min(self.counters, default=1), "the start of the program")
        self.check()

    def advance(self, rounds: int = 1) -> None:
        """Wait until every thread has gone on: none of them hangs."""
        before = self.counters
        until(
            lambda: (
                self.process.poll() is not None
                or all(now >= then + rounds for now, then in zip(self.counters, before, strict=True))
            ),
            "progress of every thread",
        )
        self.check()

    def check(self) -> None:
        """See that it runs and has found nothing wrong."""
        assert self.failures == 0, f"address, word, expected, found: {[hex(word) for word in self._words(1, 4)]}"
        assert self.process.poll() is None, f"the program ended with status {self.process.returncode}"

    def command(self, letter: bytes, *, counter: str = "") -> None:
        """Make it do something, see unruly.c, and wait until it has, if there is a `counter` of that."""
        assert self.process.stdin
        before = getattr(self, counter) if counter else 0
        self.process.stdin.write(letter)
        self.process.stdin.flush()
        if counter:
            until(lambda: self.process.poll() is not None or getattr(self, counter) > before, counter)
            self.check()

    def finish(self) -> None:
        """Make it verify all its memory, and end; does nothing if it has been told before."""
        if self.finished:
            return
        self.finished = True
        self.check()
        struct.pack_into("<Q", self._status, 7 * 8, 1)
        self.process.communicate(timeout=HANG)
        assert (self.process.returncode, self.failures) == (0, 0), [hex(word) for word in self._words(1, 4)]

    def kill(self) -> None:
        """End it, however it is."""
        self.process.kill()
        self.process.wait(HANG)
        if self.process.stdin:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        self._status.close()


@contextmanager
def steady(binary: Path, *, threads: int = 3, pages: int = 512, hugetlb: int = 0) -> Iterator[tuple[Program, Program]]:
    """A program of steady.c, and another one that shares its memfd."""
    shared = os.memfd_create("shared")
    os.ftruncate(shared, pages * PAGE_SIZE)
    programs: list[Program] = []
    try:
        for half, many, huge in ((0, threads, hugetlb), (1, 1, 0)):
            programs.append(Program(binary, shared, half, many, pages, huge, threads=many))
        yield programs[0], programs[1]
        for program in programs:
            program.finish()
    finally:
        for program in programs:
            program.kill()
        os.close(shared)


@contextmanager
def unruly(binary: Path, seed: int, *, threads: int = 3) -> Iterator[Program]:
    """A program of unruly.c."""
    program = Program(binary, str(seed), threads, threads=threads)
    try:
        yield program
    finally:
        program.kill()


def descriptors(pid: int) -> dict[str, str]:
    """What each open descriptor of a process is."""
    found = {}
    for link in list(Path(f"/proc/{pid}/fd").iterdir()):
        with suppress(FileNotFoundError):
            found[link.name] = str(link.readlink())
    return found


def leftovers(pid: int) -> list[str]:
    """What a migration has left of itself in process `pid`: armed pages, watched mappings, a tracer, stuck threads."""
    found = []
    flags = re.findall(rb"^([0-9a-f]+-\S+).*?^VmFlags:([^\n]*)", Path(f"/proc/{pid}/smaps").read_bytes(), re.M | re.S)
    assert len(flags) == len(procfs.mappings(Process(pid))) or _changes(pid)
    for span, words in flags:
        if {b"um", b"uw", b"ui", b"ur"} & set(words.split()):
            found.append(f"{span.decode()} is watched")
    found += [f"{count} pages of {span} are armed" for span, count in _armed(pid)]
    if procfs.status(Process(pid)).tracer:
        found.append(f"process {procfs.status(Process(pid)).tracer} traces it")
    return found


# The mappings of a program that changes them may differ from one file to the next.
def _changes(pid: int) -> bool:
    return Path(f"/proc/{pid}/exe").readlink().name in ("joining", "unruly")


def _armed(pid: int) -> Iterator[tuple[str, int]]:
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        for mapping in procfs.mappings(Process(pid)):
            if mapping.path == "[vsyscall]":
                continue
            pagemap.seek(mapping.start // PAGE_SIZE * 8)
            entries = np.frombuffer(pagemap.read(mapping.pages * 8), np.uint64)
            count = int(np.count_nonzero(entries & _UFFD_WP))
            if count:
                yield f"{mapping.start:x}-{mapping.end:x}", count
