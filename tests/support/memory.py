"""Memory of which every word is known, and what the kernel says of it page by page."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import pickle
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nexttouch import placement
from nexttouch.linux import mempolicy, pagemap
from nexttouch.linux.process import SELF
from nexttouch.linux.syscall import PAGE_SIZE
from nexttouch.live.eager import MoveResult
from nexttouch.live.migration import Migration

__all__ = [
    "HANG",
    "HUGE",
    "PAGE_SIZE",
    "SERVICES",
    "WORDS",
    "Memory",
    "accounted",
    "checked",
    "in_child",
    "libc",
    "more_hugetlb",
    "on_nodes",
    "run_threads",
    "settled",
    "wait_moved",
]

HANG = 300.0
"""Seconds after which something that has not happened never will."""

WORDS = PAGE_SIZE // 8
HUGE = WORDS
"""Pages of a transparent huge page: what one page of page table entries maps."""

SERVICES: dict[str, dict[str, Any]] = {"thread": {"service": "thread"}, "inline": {"service": "inline"}}
"""Arguments of `lazy` for each service."""

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p

_MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 22, 23
_MADV_HUGEPAGE, _MADV_NOHUGEPAGE = 14, 15
_MAP_NORESERVE, _MAP_FIXED = 0x4000, 0x10
_ROOM = 64 << 20


class Memory:
    """A mapping of `pages` pages, private and anonymous unless `flags` and `file` say otherwise.

    It is `huge` pages, aligned, or else small ones. Word i holds `expected[i]` once it is filled.
    """

    def __init__(
        self,
        pages: int,
        *,
        fill: bool = True,
        huge: bool = False,
        flags: int = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
        file: int = -1,
        seed: int = 0,
    ) -> None:
        self.pages = pages
        self.size = pages * PAGE_SIZE
        self._reserve(huge, flags, file)
        if flags & mmap.MAP_ANONYMOUS and flags & mmap.MAP_PRIVATE:
            self.advise(_MADV_HUGEPAGE if huge else _MADV_NOHUGEPAGE)
        raw = (ctypes.c_uint64 * (pages * WORDS)).from_address(self.address)
        self.words: NDArray[np.uint64] = np.ctypeslib.as_array(raw)
        self.table = self.words.reshape(pages, WORDS)
        self.seed = seed
        if fill:
            self.fill()

    def _reserve(self, huge: bool, flags: int, file: int) -> None:
        alignment = HUGE * PAGE_SIZE if huge else PAGE_SIZE
        access = mmap.PROT_READ | mmap.PROT_WRITE
        # A page without access on each side: the kernel never makes one mapping of this and its neighbours. Free room
        # above: the kernel takes the highest that there is, so nothing comes to be in a hole that a test makes here.
        whole = self.size + 2 * PAGE_SIZE + alignment
        anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        base = checked(libc.mmap(None, ctypes.c_size_t(whole + _ROOM), 0, anonymous, -1, ctypes.c_long(0)))
        checked(libc.munmap(ctypes.c_void_p(base + whole), ctypes.c_size_t(_ROOM)))
        self.address = -(-(base + PAGE_SIZE) // alignment) * alignment
        self._whole = (base, whole)
        flags |= _MAP_FIXED | _MAP_NORESERVE
        where = ctypes.c_void_p(self.address)
        checked(libc.mmap(where, ctypes.c_size_t(self.size), access, flags, file, ctypes.c_long(0)))

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self.unmap()

    def unmap(self) -> None:
        """Give it all back; nothing of it may be used after this."""
        checked(libc.munmap(ctypes.c_void_p(self._whole[0]), ctypes.c_size_t(self._whole[1])))

    @cached_property
    def expected(self) -> NDArray[np.uint64]:
        """What the words are when it is filled; a test that writes others changes these too."""
        return contents(self.pages * WORDS, self.seed)

    def fill(self) -> None:
        """Write every word."""
        self.words[:] = self.expected

    def check(self) -> None:
        """Compare every word."""
        wrong = np.flatnonzero(self.words != self.expected)
        assert not len(wrong), f"{len(wrong)} words are wrong, the first is {wrong[0]} in page {wrong[0] // WORDS}"

    def at(self, page: int) -> int:
        """Address of page `page`."""
        return self.address + page * PAGE_SIZE

    def part(self, first: int, count: int) -> NDArray[np.uint64]:
        """The words of `count` pages from page `first` on."""
        return self.words[first * WORDS : (first + count) * WORDS]

    def write(self, *pages: int) -> None:
        """Store to each of these pages."""
        for page in pages:
            self.table[page, 0] = 1

    def read(self, *pages: int) -> None:
        """Load from each of these pages."""
        for page in pages:
            _ = int(self.table[page, 0])

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """All of it, byte by byte."""
        return self.words.view(np.uint8)

    @property
    def addresses(self) -> NDArray[np.uint64]:
        """Address of each page."""
        return self._addresses(0, None)

    def advise(self, advice: int, first: int = 0, count: int | None = None) -> None:
        """madvise(2) for `count` pages from page `first` on."""
        size = (self.pages - first if count is None else count) * PAGE_SIZE
        checked(libc.madvise(ctypes.c_void_p(self.at(first)), ctypes.c_size_t(size), advice))

    def protect(self, access: int, first: int, count: int) -> None:
        """mprotect(2) for `count` pages from page `first` on."""
        checked(libc.mprotect(ctypes.c_void_p(self.at(first)), ctypes.c_size_t(count * PAGE_SIZE), access))

    def populate(self, first: int = 0, count: int | None = None, *, read: bool = False) -> None:
        """Make pages present without a touch; if by `read`, they are the zero page."""
        self.advise(_MADV_POPULATE_READ if read else _MADV_POPULATE_WRITE, first, count)

    def bind(self, node: int, first: int = 0, count: int | None = None) -> None:
        """Move pages to `node`, and leave the mapping without a policy of its own."""
        result, _ = mempolicy.move_pages(SELF, self._addresses(first, count), node)
        assert result == 0

    def frames(self) -> NDArray[np.uint64]:
        """Frame of each page, 0 for a page that is not there."""
        return pagemap.frames(SELF, self.address, self.pages)

    def nodes(self, first: int = 0, count: int | None = None) -> NDArray[np.int32]:
        """Node of each of `count` pages from page `first` on, or -errno."""
        return placement.nodes_of(SELF, self._addresses(first, count))

    def _addresses(self, first: int, count: int | None) -> NDArray[np.uint64]:
        pages = np.arange(self.pages - first if count is None else count, dtype=np.uint64)
        return np.uint64(self.at(first)) + pages * np.uint64(PAGE_SIZE)

    def huge_pages(self) -> int:
        """Pages that huge ones map."""
        category = pagemap.Category.HUGE
        runs = pagemap.scan(SELF, self.address, self.at(self.pages), all_of=category, return_mask=category)
        return int((runs["end"] - runs["start"]).sum()) // PAGE_SIZE


def contents(words: int, seed: int = 0) -> NDArray[np.uint64]:
    """Words no two of which are the same, nor 0."""
    numbers: NDArray[np.uint64] = np.arange(1 + seed, words + 1 + seed, dtype=np.uint64)
    return numbers * np.uint64(0x9E3779B97F4A7C15)


def checked(result: int) -> int:
    """The result of a function of the C library, unless it is -1."""
    if result in (-1, 2**64 - 1):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def on_nodes(memory: Memory) -> dict[int, int]:
    """Pages by node."""
    nodes, counts = np.unique(memory.nodes(), return_counts=True)
    return {int(node): int(count) for node, count in zip(nodes, counts, strict=True)}


def settled(stats: Any, pages: int) -> bool:
    """Whether each of `pages` pages has come to an end."""
    return bool(stats.pages == pages == stats.moved + sum(stats.left.values()) and stats.waiting == 0)


def wait_moved(migration: Migration, pages: int) -> None:
    """Wait until so many pages have moved: whoever touches one goes on before that."""
    give_up = time.monotonic() + HANG
    while migration.stats.moved < pages:
        assert time.monotonic() < give_up, migration.stats


def accounted(result: MoveResult) -> bool:
    """Whether each page of an eager move has moved, or has a reason why not."""
    return result.pages == result.moved + sum(result.left.values())


def run_threads(*functions: Callable[[], object]) -> None:
    """Run them at once; raise what one of them raised."""
    failures: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)  # a thread that waits for the interpreter lock tests nothing
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
        assert not thread.is_alive(), "a thread hangs"
    sys.setswitchinterval(interval)
    if failures:
        raise failures[0]


def in_child(function: Callable[[], Any], meanwhile: Callable[[], Any] | None = None) -> Any:
    """Return what `function` returns in a forked child, or fail as it fails there.

    `meanwhile` is called here while the child runs. A child that hangs is killed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _answer(function, writing)
    os.close(writing)
    data = b""
    try:
        if meanwhile:
            meanwhile()
        while select.select([reading], [], [], HANG)[0] and (more := os.read(reading, 1 << 20)):
            data += more
    finally:
        os.close(reading)
        if not data:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert data, f"the child hung or died: status {status}"
    failed, value = pickle.loads(data)
    assert not failed, f"in the child: {value}"
    return value


def _answer(function: Callable[[], Any], writing: int) -> None:
    try:
        answer = pickle.dumps((False, function()))
    except BaseException:
        answer = pickle.dumps((True, traceback.format_exc()))
    with open(writing, "wb") as pipe:
        pipe.write(answer)
    os._exit(0)


@contextmanager
def more_hugetlb(pages: int, node: int | None = None) -> Iterator[int]:
    """Reserve up to `pages` more huge pages of hugetlb, of the smallest size: how many there are.

    The number is the machine's, so one process at a time changes it.
    """
    place = "/sys/kernel/mm" if node is None else f"/sys/devices/system/node/node{node}"
    sizes = Path(place, "hugepages").glob("hugepages-*kB")
    file = min(sizes, key=lambda path: int(path.name[10:-2])) / "nr_hugepages"
    with file.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = int(file.read_text())
        with suppress(OSError):  # who may not reserve any has none
            file.write_text(str(before + pages))
        try:
            yield int(file.read_text()) - before
        finally:
            with suppress(OSError):
                file.write_text(str(before))
