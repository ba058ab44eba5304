from __future__ import annotations

import ctypes
import mmap
import os
import random

import numpy as np
import pytest
from support.memory import Memory

from nexttouch.errors import FeatureMissing, KernelError, NoSuchProcess, NotPermitted
from nexttouch.linux import pagemap
from nexttouch.linux.pagemap import Category
from nexttouch.linux.process import SELF, Process
from nexttouch.linux.syscall import PAGE_SIZE

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
NORESERVE = 0x4000
POPULATE_READ = 22  # MADV_POPULATE_READ: the zero page in private memory
COLLAPSE = 25  # MADV_COLLAPSE
HUGE = 2 << 20
ALL = Category.FILE | Category.PRESENT | Category.SWAPPED | Category.PFNZERO | Category.HUGE


def runs_of(marks: list[int]) -> list[tuple[int, int, int]]:
    """Runs (first page, end page, mark) of equal non-zero marks: the plain way."""
    runs: list[tuple[int, int, int]] = []
    for page, mark in enumerate(marks):
        if runs and runs[-1][1:] == (page, mark):
            runs[-1] = (runs[-1][0], page + 1, mark)
        elif mark:
            runs.append((page, page + 1, mark))
    return runs


def in_pages(runs: np.ndarray[tuple[int], np.dtype[np.void]], memory: Memory) -> list[tuple[int, int, int]]:
    return [((s - memory.address) // PAGE_SIZE, (e - memory.address) // PAGE_SIZE, c) for s, e, c in runs.tolist()]


def test_entries_of_holes_zero_pages_and_private_pages() -> None:
    with Memory(4, fill=False) as memory:
        memory.write(1)
        memory.read(2)
        words = pagemap.entries(SELF, memory.address, 4)
        assert words.dtype == np.uint64
        assert (words & pagemap.PRESENT != 0).tolist() == [False, True, True, False]
        assert (words & pagemap.EXCLUSIVE != 0).tolist() == [False, True, False, False]
        assert not (words & (pagemap.FILE | pagemap.SWAP | pagemap.UFFD_WP)).any()


def test_entries_of_shared_memory_and_of_another_process() -> None:
    memory = mmap.mmap(-1, 2 * PAGE_SIZE)
    memory[0] = 1
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for process in (SELF, Process(os.getpid())):
        words = pagemap.entries(process, start, 2)
        assert (words & (pagemap.PRESENT | pagemap.FILE)).tolist() == [int(pagemap.PRESENT | pagemap.FILE), 0]


def test_entries_beyond_the_address_space_are_zero() -> None:
    assert pagemap.entries(SELF, 2**47 - PAGE_SIZE, 3).tolist() == [0, 0, 0]
    assert pagemap.entries(SELF, 0xFFFFFFFFFF600000, 1).tolist() == [0]
    assert pagemap.entries(SELF, PAGE_SIZE, 0).tolist() == []


def test_frames_name_the_same_frame_for_the_same_page() -> None:
    descriptor = os.memfd_create("frames")
    os.ftruncate(descriptor, 2 * PAGE_SIZE)
    views = [mmap.mmap(descriptor, 2 * PAGE_SIZE) for _ in range(2)]
    numbers = []
    for view in views:
        view[:] = b"x" * 2 * PAGE_SIZE
        numbers.append(pagemap.frames(SELF, ctypes.addressof(ctypes.c_char.from_buffer(view)), 2).tolist())
    assert numbers[0] == numbers[1]
    assert len(set(numbers[0])) == 2
    assert 0 not in numbers[0]
    os.close(descriptor)


def test_frames_of_pages_that_are_not_there_are_zero() -> None:
    with Memory(3, fill=False) as memory:
        assert pagemap.frames(SELF, memory.address, 3).tolist() == [0, 0, 0]
        memory.write(1)
        assert [number > 0 for number in pagemap.frames(SELF, memory.address, 3).tolist()] == [False, True, False]


def as_nobody(memory: Memory) -> str:
    """What reading the frames of `memory` raises in a child without any capability."""
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: else not even its own pagemap is readable
        try:
            pagemap.frames(SELF, memory.address, 1)
        except FeatureMissing:
            os._exit(7)
        os._exit(1)
    return {7: "FeatureMissing"}.get(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "nothing")


def test_frames_without_privilege() -> None:
    with Memory(1, fill=False) as memory:
        memory.write(0)
        assert as_nobody(memory) == "FeatureMissing"


def test_scan_against_a_loop_over_entries() -> None:
    chance = random.Random(1)
    with Memory(3000, fill=False) as memory:
        marks = [chance.choice([0, 0, Category.PRESENT, Category.PRESENT | Category.PFNZERO]) for _ in range(3000)]
        for page, mark in enumerate(marks):
            if mark == Category.PRESENT:
                memory.write(page)
            elif mark:
                memory.read(page)
        found = pagemap.scan(SELF, memory.address, memory.at(memory.pages), any_of=Category.PRESENT, return_mask=ALL)
        assert in_pages(found, memory) == runs_of([int(mark) for mark in marks])
        words = pagemap.entries(SELF, memory.address, 3000)
        assert [bool(word & pagemap.PRESENT) for word in words] == [bool(mark) for mark in marks]


def test_scan_selects() -> None:
    with Memory(6, fill=False) as memory:
        memory.write(1)
        memory.read(2)
        memory.write(3)
        present, zero = int(Category.PRESENT), int(Category.PRESENT | Category.PFNZERO)

        def scan(**options: int) -> list[tuple[int, int, int]]:
            return in_pages(pagemap.scan(SELF, memory.address, memory.at(memory.pages), **options), memory)

        assert scan(all_of=Category.PRESENT) == [(1, 4, present)]
        assert scan(all_of=Category.PRESENT, return_mask=ALL) == [(1, 2, present), (2, 3, zero), (3, 4, present)]
        assert scan(all_of=Category.PFNZERO) == [(2, 3, present)]
        assert scan(all_of=Category.PRESENT | Category.PFNZERO, inverted=Category.PFNZERO, return_mask=ALL) == [
            (1, 2, present),
            (3, 4, present),
        ]
        assert scan(any_of=Category.SWAPPED | Category.PFNZERO) == [(2, 3, present)]
        assert scan(all_of=Category.PRESENT | Category.FILE) == []


def test_scan_starts_and_ends_where_it_was_told() -> None:
    with Memory(10, fill=False) as memory:
        for page in range(10):
            memory.write(page)
        found = pagemap.scan(SELF, memory.at(3), memory.at(7), all_of=Category.PRESENT)
        assert in_pages(found, memory) == [(3, 7, int(Category.PRESENT))]
        assert len(pagemap.scan(SELF, memory.address, memory.address, all_of=Category.PRESENT)) == 0


@pytest.mark.parametrize("runs", [511, 512, 513, 1001, 2048])
def test_scan_reports_each_page_once_when_the_kernels_buffer_fills(runs: int) -> None:
    # 512 runs fill a buffer inside the kernel, after which walk_end may be left behind.
    with Memory(3 * runs + 5000, fill=False) as memory:
        for page in range(0, 3 * runs, 3):
            memory.read(page)
        found = pagemap.scan(SELF, memory.address, memory.at(memory.pages), all_of=Category.PRESENT)
        assert [first for first, _, _ in in_pages(found, memory)] == list(range(0, 3 * runs, 3))


def test_scan_with_more_runs_than_one_call_takes() -> None:
    runs = pagemap._RUNS_A_CALL + 1000
    with Memory(2 * runs, fill=False) as memory:
        for page in range(0, 2 * runs, 2):
            memory.read(page)
        found = pagemap.scan(SELF, memory.address, memory.at(memory.pages), all_of=Category.PRESENT)
        assert np.array_equal(found["start"], memory.address + np.arange(0, 2 * runs, 2, dtype=np.uint64) * PAGE_SIZE)
        assert np.array_equal(found["end"], found["start"] + np.uint64(PAGE_SIZE))


def test_scan_joins_a_run_longer_than_one_call_takes() -> None:
    pages = 2 * pagemap._PAGES_A_CALL + 77
    with Memory(pages, fill=False) as memory:
        memory.advise(POPULATE_READ)
        found = pagemap.scan(SELF, memory.address, memory.at(memory.pages), all_of=Category.PRESENT)
        assert in_pages(found, memory) == [(0, pages, int(Category.PRESENT))]


def test_scan_of_a_hundred_million_holes_ends_at_once() -> None:
    with Memory(10**8, fill=False) as memory:
        memory.write(10**8 - 1)
        assert in_pages(
            pagemap.scan(SELF, memory.address, memory.at(memory.pages), all_of=Category.PRESENT), memory
        ) == [(10**8 - 1, 10**8, int(Category.PRESENT))]


def test_scan_of_huge_pages() -> None:
    memory = mmap.mmap(-1, 3 * HUGE, flags=PRIVATE)
    start = -(-ctypes.addressof(ctypes.c_char.from_buffer(memory)) // HUGE) * HUGE
    offset = start - ctypes.addressof(ctypes.c_char.from_buffer(memory))
    memory[offset : offset + HUGE] = b"x" * HUGE
    try:
        memory.madvise(COLLAPSE, offset, HUGE)
    except OSError as error:
        pytest.skip(f"no transparent huge page to be had: {error}")
    found = pagemap.scan(SELF, start, start + HUGE, all_of=Category.PRESENT, return_mask=ALL)
    assert found.tolist() == [(start, start + HUGE, Category.PRESENT | Category.HUGE)]


def test_scan_of_files() -> None:
    memory = mmap.mmap(-1, PAGE_SIZE)
    memory[0] = 1
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    found = pagemap.scan(SELF, start, start + PAGE_SIZE, all_of=Category.FILE, return_mask=ALL)
    assert found.tolist() == [(start, start + PAGE_SIZE, Category.PRESENT | Category.FILE)]


def test_scan_refuses_what_the_kernel_refuses() -> None:
    with Memory(1, fill=False) as memory:
        with pytest.raises(KernelError, match="PAGEMAP_SCAN: Invalid argument") as raised:
            pagemap.scan(SELF, memory.address, memory.at(memory.pages), all_of=1 << 40)
        assert raised.value.errno == 22
        with pytest.raises(KernelError, match="EFAULT"):
            pagemap.scan(SELF, 2**63, 2**63 + PAGE_SIZE, all_of=Category.PRESENT)


@pytest.mark.parametrize("pid", [-1, 2**30])
def test_no_such_process(pid: int) -> None:
    with pytest.raises(NoSuchProcess):
        pagemap.entries(Process(pid), PAGE_SIZE, 1)
    with pytest.raises(NoSuchProcess):
        pagemap.scan(Process(pid), PAGE_SIZE, 2 * PAGE_SIZE)


def test_dead_processes_and_zombies(dead: int, zombie: int) -> None:
    for pid in (dead, zombie):
        with pytest.raises(NoSuchProcess):
            pagemap.entries(Process(pid), PAGE_SIZE, 1)
        with pytest.raises(NoSuchProcess):
            pagemap.scan(Process(pid), PAGE_SIZE, 2 * PAGE_SIZE)


def test_memory_of_another_user() -> None:
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            pagemap.entries(Process(parent), PAGE_SIZE, 1)
        except NotPermitted:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_no_descriptor_is_left_open() -> None:
    with Memory(1, fill=False) as memory:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (pathlib opens the folder itself)
        for _ in range(5):
            pagemap.entries(SELF, memory.address, 1)
            with pytest.raises(KernelError):
                pagemap.scan(SELF, memory.address, memory.at(memory.pages), all_of=1 << 40)
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
