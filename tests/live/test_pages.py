"""Finding the pages of a range: against a loop over the words of pagemap, page by page."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from support.memory import HUGE, PAGE_SIZE, Memory, more_hugetlb

import nexttouch as nt
from nexttouch.linux import mempolicy, pagemap
from nexttouch.live.pages import HUGE_PAGES, Pages, find, find_each

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
        word = int(pagemap.entries(0, address, 1)[0])
        if word & int(pagemap.PRESENT) and word & int(pagemap.PFN) != zero:
            if address % (HUGE * PAGE_SIZE) == 0 and address + HUGE * PAGE_SIZE <= end and is_huge(address):
                pages = HUGE
            found.append((address, pages, node_of(address)))
        address += pages * PAGE_SIZE
    return found


def is_huge(address: int) -> bool:
    one = address + HUGE * PAGE_SIZE
    runs = pagemap.scan(0, address, one, all_of=pagemap.Category.HUGE, return_mask=pagemap.Category.HUGE)
    return bool(len(runs) == 1 and (runs[0]["start"], runs[0]["end"]) == (address, one))


def node_of(address: int) -> int:
    return int(mempolicy.move_pages(0, np.array([address], np.uint64), None)[1][0])


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
        found = find(0, memory.address, memory.at(1000))
        assert as_list(found) == expected
        assert 0 < found.count == len(found) == len(expected) < 1000
        assert found.addresses.dtype == np.uint64
        assert found.units.dtype == np.uint32
        assert found.nodes.dtype == np.int32
        assert as_list(find(os.getpid(), memory.address, memory.at(1000))) == expected


def test_parts_of_a_range() -> None:
    with Memory(50, fill=False) as memory:
        mix(memory, 4)
        for first, last in [(0, 1), (7, 20), (30, 50), (50, 50), (20, 20)]:
            assert as_list(find(0, memory.at(first), memory.at(last))) == by_hand(memory.at(first), memory.at(last))


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
        found = find_each(0, pieces)
        assert not scans or len(calls) == 1
        assert [as_list(pages) for pages in found] == [as_list(find(0, start, end)) for start, end, _ in pieces]
        assert any(len(pages) for pages in found)


def test_no_pieces() -> None:
    assert find_each(0, []) == []


def test_huge_pages_are_one_unit_only_as_a_whole() -> None:
    with Memory(4 * HUGE, fill=False, huge=True) as memory:
        memory.populate()
        if memory.huge_pages() < 4 * HUGE:
            pytest.skip("the kernel gave no huge pages")
        memory.advise(MADV_DONTNEED, HUGE + 7, 1)  # splits the second in the page table
        memory.advise(MADV_NOHUGEPAGE)  # which khugepaged would mend
        pages = as_list(find(0, memory.address, memory.at(4 * HUGE)))
        assert pages == by_hand(memory.address, memory.at(4 * HUGE))
        assert [unit for _, unit, _ in pages] == [HUGE, *[1] * (HUGE - 1), HUGE, HUGE]
        # From the middle of the third to the middle of the fourth: each page by itself.
        half = find(0, memory.at(2 * HUGE + 8), memory.at(3 * HUGE + 8))
        assert half.count == HUGE
        assert set(half.units.tolist()) == {1}
        assert as_list(half) == by_hand(memory.at(2 * HUGE + 8), memory.at(3 * HUGE + 8))
        assert HUGE_PAGES == HUGE


def test_the_huge_page_of_zeros_is_none() -> None:
    with Memory(HUGE, fill=False, huge=True) as memory:
        _ = ctypes.c_char.from_address(memory.address).value  # a read of huge memory may map it
        assert len(find(0, memory.address, memory.at(HUGE))) == 0


@pytest.mark.parametrize("flags", [MAP_SHARED | MAP_ANONYMOUS, MAP_PRIVATE | MAP_ANONYMOUS])
def test_pages_of_hugetlb_are_units(flags: int) -> None:
    with more_hugetlb(2) as reserved:
        if reserved < 2:
            pytest.skip("the kernel has no huge pages of hugetlb")
        with Memory(2 * HUGE, fill=False, huge=True, flags=flags | 0x40000) as memory:
            memory.words[HUGE * PAGE_SIZE // 8] = 1
            found = find(0, memory.address, memory.at(2 * HUGE), unit=HUGE)
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
        found = find(child.pid, start, start + 200 * PAGE_SIZE)
        assert found.addresses.tolist() == list(range(start, start + 200 * PAGE_SIZE, PAGE_SIZE))
    finally:
        child.communicate()
    with pytest.raises(nt.NoSuchProcess):
        find(child.pid, start, start + 200 * PAGE_SIZE)


@pytest.mark.lab
def test_nodes_page_by_page() -> None:
    with Memory(120) as memory:
        for page in range(120):
            memory.bind(page * 7 % 4, page, 1)
        found = find(0, memory.address, memory.at(120))
        assert found.nodes.tolist() == [page * 7 % 4 for page in range(120)]
        assert found.by_node() == dict.fromkeys(range(4), 30)
        memory.check()
