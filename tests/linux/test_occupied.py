"""What is behind addresses: pages, the zero page, swap, markers; with PAGEMAP_SCAN and without."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.memory import PAGE_SIZE, Memory, checked, in_child, libc
from support.swap import page_out

import nexttouch as nt
from nexttouch.errors import NoSuchProcess
from nexttouch.linux import occupied as module
from nexttouch.linux import pagemap
from nexttouch.linux.occupied import Occupied, in_swap, nodes_of, occupied, words_at
from nexttouch.linux.pagemap import Category
from nexttouch.linux.process import SELF, Process
from nexttouch.linux.userfaultfd import Feature, Mode, Userfaultfd

NOBODY = 65534
PRESENT, ZERO = int(Category.PRESENT), int(Category.PRESENT | Category.PFNZERO)
MADV_GUARD_INSTALL = 102


def found(memory: Memory, *spans: tuple[int, int], process: Process = SELF) -> Occupied:
    pages = spans or ((0, memory.pages),)
    return occupied(process, np.array([(memory.at(a), memory.at(b)) for a, b in pages], dtype=np.uint64).reshape(-1, 2))


def runs(memory: Memory, *spans: tuple[int, int], process: Process = SELF) -> list[tuple[int, int, int]]:
    """Runs by page number."""
    rows = found(memory, *spans, process=process).runs.tolist()
    return [((s - memory.address) // PAGE_SIZE, (e - memory.address) // PAGE_SIZE, int(c)) for s, e, c in rows]


def write(memory: Memory, *pages: int) -> None:
    for page in pages:
        memory.table[page, 0] = 1


def read(memory: Memory, *pages: int) -> None:
    for page in pages:
        _ = int(memory.table[page, 0])


def without_scan(patch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise nt.FeatureMissing("PAGEMAP_SCAN", "", "")

    patch.setattr(pagemap, "scan", missing)


@pytest.fixture(params=["scan", "words"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "words":
        without_scan(monkeypatch)
    return str(request.param)


def test_pages_zero_pages_and_holes(way: str) -> None:
    with Memory(12, fill=False) as memory:
        write(memory, 1, 2, 3, 5, 8, 11)
        read(memory, 4, 9)
        expected = [(1, 4, PRESENT), (4, 5, ZERO), (5, 6, PRESENT), (8, 9, PRESENT), (9, 10, ZERO), (11, 12, PRESENT)]
        assert runs(memory) == runs(memory, process=Process(os.getpid())) == expected
        assert runs(memory, (2, 5)) == [(2, 4, PRESENT), (4, 5, ZERO)]
        assert runs(memory, (6, 8)) == runs(memory, (3, 3)) == []
        assert found(memory).knows_huge == (way == "scan")


def test_several_spans_in_any_order_and_none(way: str) -> None:
    with Memory(12, fill=False) as memory:
        write(memory, 1, 2, 5, 11)
        within = runs(memory, (10, 12), (0, 2), (1, 6))
        assert within == [(1, 3, PRESENT), (5, 6, PRESENT), (11, 12, PRESENT)]
    assert len(occupied(SELF, np.empty((0, 2), np.uint64)).runs) == 0


def test_sparse_memory_of_a_hundred_million_pages() -> None:
    with Memory(10**8, fill=False) as memory:
        touched = range(0, 10**8, 99_991)  # 1,001 pages: more than the kernel's own buffer of runs holds
        write(memory, *touched)
        assert [first for first, _, _ in runs(memory)] == list(touched)


def test_the_way_of_old_kernels_agrees_with_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(4)
    with Memory(2000, fill=False) as memory:
        for page in range(2000):
            chance.choice([write, read, lambda *_: None, lambda *_: None])(memory, page)
        scanned = runs(memory)
        without_scan(monkeypatch)
        assert runs(memory) == scanned
        # Pages that are shared look like the zero page to pagemap.
        assert in_child(lambda: runs(memory)) == scanned


def test_the_way_of_old_kernels_over_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    without_scan(monkeypatch)
    with Memory(600_000, fill=False) as memory:
        write(memory, 0, 262_143, 262_144, 599_999)
        assert runs(memory) == [(0, 1, PRESENT), (262_143, 262_145, PRESENT), (599_999, 600_000, PRESENT)]


def test_nodes_of() -> None:
    with Memory(4, fill=False) as memory:
        write(memory, 0)
        read(memory, 2)
        node = int(memory.nodes(0, 1)[0])
        assert memory.nodes().tolist() == [node, -errno.ENOENT, -errno.EFAULT, -errno.ENOENT]
        assert nodes_of(SELF, np.empty(0, np.uint64)).tolist() == []
        both = np.repeat(np.array([memory.at(0), memory.at(1)], np.uint64), 200_000)  # more than one batch
        assert nodes_of(Process(os.getpid()), both).tolist() == [node] * 200_000 + [-errno.ENOENT] * 200_000


def test_words_over_gaps_of_every_kind() -> None:
    with Memory(100_000, fill=False) as memory:
        pages = [0, 1, 100, 228, 357, 50_000, 50_001, 99_999]
        write(memory, *pages)
        addresses = np.array([memory.at(page) for page in pages], np.uint64)
        assert words_at(SELF, addresses).tolist() == [int(pagemap.entries(SELF, at, 1)[0]) for at in addresses.tolist()]


# ---- markers ----


def install_guards(memory: Memory, first: int, count: int) -> None:
    try:
        memory.advise(MADV_GUARD_INSTALL, first, count)
    except OSError:
        pytest.skip("a kernel without guards")


def poison(memory: Memory, first: int, count: int) -> Userfaultfd:
    uffd = Userfaultfd.open(user_mode_only=True)
    uffd.api(Feature.POISON | Feature.WP_UNPOPULATED | Feature.PAGEFAULT_FLAG_WP)
    uffd.register(memory.at(first), count * PAGE_SIZE, Mode.MISSING | Mode.WP)
    argument = (ctypes.c_uint64 * 4)(memory.at(first), count * PAGE_SIZE, 0, 0)
    checked(libc.ioctl(uffd.fileno(), ctypes.c_ulong(0xC020AA08), argument))  # UFFDIO_POISON
    return uffd


def marked(memory: Memory) -> Userfaultfd:
    """Pages 0 to 9 written, 20 to 29 guards, 40 to 44 poisoned, 50 to 54 protected without a page."""
    write(memory, *range(10))
    install_guards(memory, 20, 10)
    uffd = poison(memory, 40, 20)
    memory.advise(mmap.MADV_DONTNEED, 45, 15)
    uffd.write_protect(memory.at(50), 5 * PAGE_SIZE)
    return uffd


def test_markers_are_holes(way: str) -> None:
    with Memory(100, fill=False) as memory, marked(memory):
        words = pagemap.entries(SELF, memory.address, 100)
        assert np.flatnonzero(words & pagemap.SWAP).tolist() == [*range(20, 30), *range(40, 45), *range(50, 55)]
        assert runs(memory) == [(0, 10, PRESENT)]
        assert nt.where(memory.words).total.to_dict() | {"huge": 0} == {
            "pages": 100, "present": 10, "by_node": {str(int(memory.nodes(0, 1)[0])): 10}, "unknown": 0, "zero": 0,
            "swapped": 0, "holes": 90, "huge": 0, "shared": 0, "unmovable": 0,
        }  # fmt: skip


def as_nobody(function: Callable[[], Any]) -> Any:
    """What `function` returns in a child without privileges, to which the kernel blanks frame numbers."""

    def work() -> Any:
        os.setuid(NOBODY)
        assert libc.prctl(4, 1, 0, 0, 0) == 0  # PR_SET_DUMPABLE
        return function()

    function()  # loads what another user could not
    return in_child(work)


def test_markers_are_holes_without_privileges_too() -> None:
    with Memory(100, fill=False) as memory:
        write(memory, *range(10))
        install_guards(memory, 20, 10)
        assert as_nobody(lambda: runs(memory)) == [(0, 10, PRESENT)]
        if os.geteuid() == 0:  # else nothing is to be read by which it could be told
            words = as_nobody(lambda: pagemap.entries(SELF, memory.at(20), 1).tolist())
            assert not words[0] & int(pagemap.PFN)


def test_what_the_kernel_blanks_is_told_by_the_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Markers of userfaultfd have no bit of their own: to whoever sees no frames they look like pages in swap."""
    with Memory(100, fill=False) as memory, poison(memory, 40, 5):
        write(memory, 0)
        real = pagemap.entries
        hidden = ~pagemap.PFN
        monkeypatch.setattr(pagemap, "entries", lambda *arguments: real(*arguments) & hidden)
        assert pagemap.swapped(words_at(SELF, np.array([memory.at(40)], np.uint64))).all()
        assert runs(memory) == [(0, 1, PRESENT)]
        swapped = [(memory.at(0), memory.at(100))]
        monkeypatch.setattr(module, "_in_swapped_mapping", lambda pid, addresses: addresses >= swapped[0][0])
        assert runs(memory) == [(0, 1, PRESENT), (40, 45, int(Category.SWAPPED))]


# ---- swap ----


@pytest.mark.parametrize(
    ("word", "swapped"),
    [
        (0, False),
        (1 << 63 | 1 << 56 | 0x1234, False),  # present
        (1 << 63 | 31, False),
        (1 << 62, True),  # its place is blanked
        (1 << 62 | 5 << 5, True),  # in the first area
        (1 << 62 | 1 << 61 | 1 << 57 | 9 << 5 | 3, True),
        (1 << 62 | 7 << 5 | 27, True),  # being migrated
        (0x440000000000009F, False),  # a guard (6.18)
        (0x400000000000005F, False),  # poisoned
        (0x420000000000003F, False),  # protected without a page
        (1 << 62 | 1 << 58, False),  # a guard whose place is blanked
    ],
)
def test_what_a_word_says(word: int, swapped: bool) -> None:
    assert pagemap.swapped(np.array([word], np.uint64)).tolist() == [swapped]


@pytest.mark.usefixtures("swap")
def test_pages_in_swap(way: str) -> None:
    with Memory(60) as memory:
        page_out(memory, 10, 20)
        page_out(memory, 40, 1)
        swapped = int(Category.SWAPPED)
        assert runs(memory) == [
            (0, 10, PRESENT), (10, 30, swapped), (30, 40, PRESENT), (40, 41, swapped), (41, 60, PRESENT)
        ]  # fmt: skip
        addresses = np.array([memory.at(page) for page in (9, 10, 29, 30, 40)], np.uint64)
        assert in_swap(SELF, addresses).tolist() == [False, True, True, False, True]
        assert as_nobody(lambda: in_swap(SELF, addresses).tolist()) == [False, True, True, False, True]
        total = nt.where(memory.words).total
        assert (total.swapped, total.present, total.holes) == (21, 39, 0)
        memory.check()


def test_a_process_that_is_gone(dead: int, zombie: int) -> None:
    for pid in (dead, zombie):
        with pytest.raises(NoSuchProcess):
            occupied(Process(pid), np.array([[0, PAGE_SIZE]], np.uint64))
        with pytest.raises(NoSuchProcess):
            nodes_of(Process(pid), np.zeros(1, np.uint64))
