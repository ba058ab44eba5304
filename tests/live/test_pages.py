"""Finding the pages of a range: against a loop over the words of pagemap, page by page."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from support.memory import HUGE, PAGE_SIZE, Memory, libc, more_hugetlb

import nexttouch as nt
from nexttouch.linux import mempolicy, pagemap, procfs
from nexttouch.linux.process import SELF, Process
from nexttouch.live.pages import HUGE_PAGES, Pages, explained, find, find_each, find_mapped, reasons
from nexttouch.live.plan import make_plan

MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS = 1, 2, 0x20
MADV_DONTNEED, MADV_NOHUGEPAGE = 4, 15


def of_zeros() -> int:
    """Frame of the kernel's page of zeros."""
    with Memory(1, fill=False) as memory:
        memory.populate(read=True)
        return int(memory.frames()[0])


def by_hand(start: int, end: int) -> list[tuple[int, int, int]]:
    """Address, pages and node of each unit in [start, end), from one word of pagemap at a time."""
    zero, found, address = of_zeros(), [], start
    while address < end:
        pages = 1
        word = int(pagemap.entries(SELF, address, 1)[0])
        if word & int(pagemap.PRESENT) and word & int(pagemap.PFN) != zero:
            if address % (HUGE * PAGE_SIZE) == 0 and address + HUGE * PAGE_SIZE <= end and is_huge(address):
                pages = HUGE
            found.append((address, pages, node_of(address)))
        address += pages * PAGE_SIZE
    return found


def is_huge(address: int) -> bool:
    one = address + HUGE * PAGE_SIZE
    runs = pagemap.scan(SELF, address, one, all_of=pagemap.Category.HUGE, return_mask=pagemap.Category.HUGE)
    return bool(len(runs) == 1 and (runs[0]["start"], runs[0]["end"]) == (address, one))


def node_of(address: int) -> int:
    return int(mempolicy.move_pages(SELF, np.array([address], np.uint64), None)[1][0])


def as_list(pages: Pages) -> list[tuple[int, int, int]]:
    return list(zip(pages.addresses.tolist(), pages.units.tolist(), pages.nodes.tolist(), strict=True))


def mix(memory: Memory, seed: int) -> None:
    """Populate stretches of random length: written, read (zero pages), discarded, or not at all."""
    chance, page = random.Random(seed), 0
    while page < memory.pages:
        count = min(chance.choice([1, 2, 3, 17, 64]), memory.pages - page)
        kind = chance.choice(["hole", "written", "written", "zero", "discarded"])
        if kind in ("written", "discarded"):
            memory.populate(page, count)
        if kind == "zero":
            memory.populate(page, count, read=True)
        if kind == "discarded":
            memory.advise(MADV_DONTNEED, page, count)
        page += count


@pytest.mark.parametrize("seed", range(8))
def test_random_mixes(seed: int) -> None:
    with Memory(1000, fill=False) as memory:
        mix(memory, seed)
        expected = by_hand(memory.address, memory.at(1000))
        found = find(SELF, memory.address, memory.at(1000))
        assert as_list(found) == expected
        assert 0 < found.count == len(found) == len(expected) < 1000
        assert found.addresses.dtype == np.uint64
        assert found.units.dtype == np.uint32
        assert found.nodes.dtype == np.int32
        assert as_list(find(Process(os.getpid()), memory.address, memory.at(1000))) == expected


def test_parts_of_a_range() -> None:
    with Memory(50, fill=False) as memory:
        mix(memory, 4)
        for first, last in [(0, 1), (7, 20), (30, 50), (50, 50), (20, 20)]:
            assert as_list(find(SELF, memory.at(first), memory.at(last))) == by_hand(memory.at(first), memory.at(last))


@pytest.mark.parametrize("scans", [True, False])
def test_many_pieces_at_one_go(scans: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order, overlapping, without pages: each has what it would have alone. One scan does for all."""
    rng, calls = random.Random(3), []
    scan = pagemap.scan

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if not scans:
            raise nt.FeatureMissing("PAGEMAP_SCAN", "this kernel does not know it", "use Linux 6.7 or later")
        return scan(*arguments, **options)

    with Memory(4 * HUGE, fill=False, huge=True) as memory:
        mix(memory, 3)
        memory.advise(MADV_NOHUGEPAGE)  # khugepaged would fill its holes
        ends = [sorted(rng.sample(range(4 * HUGE + 1), 2)) for _ in range(40)]
        pieces = [(memory.at(first), memory.at(last), 1) for first, last in ends]
        monkeypatch.setattr(pagemap, "scan", counted)
        found = find_each(SELF, pieces)
        assert not scans or len(calls) == 1
        assert [as_list(pages) for pages in found] == [as_list(find(SELF, start, end)) for start, end, _ in pieces]
        assert any(len(pages) for pages in found)


def test_no_pieces() -> None:
    assert find_each(SELF, []) == []


def test_huge_pages_are_one_unit_only_as_a_whole() -> None:
    with Memory(4 * HUGE, fill=False, huge=True) as memory:
        memory.populate()
        if memory.huge_pages() < 4 * HUGE:
            pytest.skip("the kernel gave no huge pages")
        memory.advise(MADV_DONTNEED, HUGE + 7, 1)  # splits the second in the page table
        memory.advise(MADV_NOHUGEPAGE)  # which khugepaged would mend
        pages = as_list(find(SELF, memory.address, memory.at(4 * HUGE)))
        assert pages == by_hand(memory.address, memory.at(4 * HUGE))
        assert [unit for _, unit, _ in pages] == [HUGE, *[1] * (HUGE - 1), HUGE, HUGE]
        # From the middle of the third to the middle of the fourth: each page by itself.
        half = find(SELF, memory.at(2 * HUGE + 8), memory.at(3 * HUGE + 8))
        assert half.count == HUGE
        assert set(half.units.tolist()) == {1}
        assert as_list(half) == by_hand(memory.at(2 * HUGE + 8), memory.at(3 * HUGE + 8))
        assert HUGE_PAGES == HUGE


def test_the_huge_page_of_zeros_is_none() -> None:
    with Memory(HUGE, fill=False, huge=True) as memory:
        _ = ctypes.c_char.from_address(memory.address).value  # a read of huge memory may map it
        assert len(find(SELF, memory.address, memory.at(HUGE))) == 0


@pytest.mark.parametrize("flags", [MAP_SHARED | MAP_ANONYMOUS, MAP_PRIVATE | MAP_ANONYMOUS])
def test_pages_of_hugetlb_are_units(flags: int) -> None:
    with more_hugetlb(2) as reserved:
        if reserved < 2:
            pytest.skip("the kernel has no huge pages of hugetlb")
        with Memory(2 * HUGE, fill=False, huge=True, flags=flags | 0x40000) as memory:
            memory.words[HUGE * PAGE_SIZE // 8] = 1
            found = find(SELF, memory.address, memory.at(2 * HUGE), unit=HUGE)
            assert as_list(found) == [(memory.at(HUGE), HUGE, node_of(memory.at(HUGE)))]


def test_joined_those_and_by_node() -> None:
    def pages(*rows: tuple[int, int, int]) -> Pages:
        columns: Any = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        return Pages(columns[0].astype(np.uint64), columns[1].astype(np.uint32), columns[2].astype(np.int32))

    one, two = pages((0, 512, 1), (1 << 21, 1, 0)), pages((1 << 30, 1, 1), (1 << 31, 512, -2))
    both = Pages.joined([one, pages(), two])
    assert as_list(both) == [(0, 512, 1), (1 << 21, 1, 0), (1 << 30, 1, 1), (1 << 31, 512, -2)]
    assert (len(both), both.count) == (4, 1026)
    assert both.by_node() == {0: 1, 1: 513}
    assert as_list(both.those(both.nodes == 1)) == [(0, 512, 1), (1 << 30, 1, 1)]
    assert (len(Pages.joined([])), Pages.joined([]).count, Pages.joined([]).by_node()) == (0, 0, {})


def test_another_process() -> None:
    program = "import ctypes, sys; b = bytearray(b'x' * 10**6); print(ctypes.addressof(ctypes.c_char.from_buffer(b)))"
    child = subprocess.Popen(
        [sys.executable, "-c", program + "; sys.stdout.flush(); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout
        start = int(child.stdout.readline()) // PAGE_SIZE * PAGE_SIZE
        found = find(Process(child.pid), start, start + 200 * PAGE_SIZE)
        assert found.addresses.tolist() == list(range(start, start + 200 * PAGE_SIZE, PAGE_SIZE))
    finally:
        child.communicate()
    with pytest.raises(nt.NoSuchProcess):
        find(Process(child.pid), start, start + 200 * PAGE_SIZE)


@pytest.mark.lab
def test_nodes_page_by_page() -> None:
    with Memory(120) as memory:
        for page in range(120):
            memory.bind(page * 7 % 4, page, 1)
        found = find(SELF, memory.address, memory.at(120))
        assert found.nodes.tolist() == [page * 7 % 4 for page in range(120)]
        assert found.by_node() == dict.fromkeys(range(4), 30)
        memory.check()


# ---- what the kernel never migrates ----


@contextmanager
def secret(pages: int) -> Iterator[np.ndarray[Any, Any]]:
    """Memory of memfd_secret(2), filled."""
    descriptor = libc.syscall(447, 0)  # memfd_secret, on every architecture
    if descriptor < 0:
        pytest.skip("a kernel without memfd_secret")
    os.ftruncate(descriptor, pages * PAGE_SIZE)
    memory = mmap.mmap(descriptor, pages * PAGE_SIZE)
    os.close(descriptor)
    memory[:] = b"secret!!" * (len(memory) // 8)
    yield np.frombuffer(memory, np.uint8)


def test_secret_memory_is_not_movable_and_that_is_known_at_once() -> None:
    with secret(8) as array:
        address = array.ctypes.data
        assert [mapping.kind for mapping in procfs.mappings(SELF, address, address + 1)] == [procfs.Kind.SECRET]
        assert nt.where(array).total.unmovable == 8
        movable, fixed, _ = find_mapped(SELF, address, address + 8 * PAGE_SIZE)
        assert (movable.count, fixed.count) == (0, 8)
        assert make_plan(SELF, [(address, address + 8 * PAGE_SIZE)], (), always=True).left == {nt.Reason.UNSUITABLE: 8}


@pytest.mark.lab
@pytest.mark.parametrize("dry_run", [True, False])
def test_secret_memory_stays(dry_run: bool) -> None:
    with secret(8) as array:
        other = (find(SELF, array.ctypes.data, array.ctypes.data + PAGE_SIZE).nodes[0] + 1) % 4
        result = nt.move(array, other, dry_run=dry_run)
        assert (result.moved, result.left, result.longest_call) == (0, {nt.Reason.UNSUITABLE: 8}, 0.0)
        assert sum(result.by_node.values()) == 8


def test_the_code_of_the_kernel_is_fixed() -> None:
    (vdso,) = (mapping for mapping in procfs.mappings() if mapping.path == "[vdso]")
    movable, fixed, _ = find_mapped(SELF, vdso.start, vdso.end)
    assert (movable.count, fixed.count) == (0, find(SELF, vdso.start, vdso.end).count)
    everything = find_mapped(Process(os.getpid()))
    assert vdso.start in everything[1].addresses
    assert vdso.start not in everything[0].addresses


def test_only_what_is_asked_for_is_found() -> None:
    with Memory(20) as memory:
        memory.protect(mmap.PROT_READ, 5, 5)  # three mappings
        movable, fixed, _ = find_mapped(SELF, memory.at(3), memory.at(12))
        assert movable.addresses.tolist() == [memory.at(page) for page in range(3, 12)]
        assert not len(fixed)


def test_a_page_of_hugetlb_that_is_covered_in_part() -> None:
    with more_hugetlb(2) as reserved:
        if reserved < 2:
            pytest.skip("the kernel has no huge pages of hugetlb")
        with Memory(2 * HUGE, fill=False, huge=True, flags=MAP_SHARED | MAP_ANONYMOUS | 0x40000) as memory:
            memory.words[:: HUGE * PAGE_SIZE // 8] = 1
            movable, _, _ = find_mapped(SELF, memory.at(7), memory.at(9))
            assert as_list(movable) == [(memory.at(0), HUGE, node_of(memory.at(0)))]


def test_an_entry_without_a_page_of_memory_is_told_from_a_page_that_has_gone() -> None:
    with Memory(3) as memory:
        addresses = np.array([memory.at(2), memory.at(0), memory.at(1)], np.uint64)
        memory.advise(MADV_DONTNEED, 1, 1)
        status = np.array([-errno.ENOENT, 3, -errno.ENOENT], np.int32)
        assert explained(SELF, addresses, status).tolist() == [-errno.EFAULT, 3, -errno.ENOENT]
        assert reasons(explained(SELF, addresses, status)[[0, 2]], np.array([1, 512], np.uint32)) == {
            nt.Reason.UNSUITABLE: 1,
            nt.Reason.ABSENT: 512,
        }
