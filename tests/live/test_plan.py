"""Plans: against a slow reference, page by page, over memory of every kind."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
from support.memory import HUGE, PAGE_SIZE, WORDS, Memory, libc, more_hugetlb
from support.traps import best
from test_pages import by_hand

from nexttouch import NoSuchProcess, Reason
from nexttouch.linux import mempolicy, pagemap, procfs
from nexttouch.linux.mempolicy import Mode
from nexttouch.linux.process import SELF, Process
from nexttouch.live.mechanisms import named
from nexttouch.live.plan import Part, Plan, make_plan

RESERVE = 512
SHARED = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS


# ---- the reference ----


Piece = tuple[int, int, str]
"""Whole pages [start, end) of a mapping, and the mechanism it takes."""


def reference(pieces: list[Piece], targets: tuple[int, ...], always: bool) -> dict[str, Any]:
    """What the plan of `pieces` has to be."""
    parts: dict[str, dict[str, Any]] = {}
    left, eager, count = Counter[Reason](), [], 0
    for start, end, way in pieces:
        part = parts.setdefault(way, {"runs": [], "ranges": [], "origins": []})
        run_end, range_end, run_unit = 0, 0, 0
        for address, pages, node in by_hand(start, end):
            count += pages
            if node in targets and not (always and way != "eager"):
                left[Reason.AT_HOME] += pages
            elif way == "eager":
                eager.append((address, pages, node))
            else:
                if (run_end, run_unit) == (address, pages):
                    part["runs"][-1][1] += pages
                else:
                    part["runs"].append([address, pages, pages])
                run_end, run_unit = address + pages * PAGE_SIZE, pages
                if range_end and address - range_end <= RESERVE * PAGE_SIZE:
                    part["ranges"][-1][1] = run_end - part["ranges"][-1][0]
                else:
                    part["ranges"].append([address, pages * PAGE_SIZE])
                range_end = run_end
                part["origins"] += [-1 if always else node] * pages
    return {
        "parts": {key: part for key, part in parts.items() if part["runs"]},
        "eager": eager,
        "left": {reason: number for reason, number in left.items() if number},
        "pages": count,
    }


def as_made(plan: Plan) -> dict[str, Any]:
    return {
        "parts": {part.mechanism: as_lists(part) for part in plan.parts},
        "eager": [
            row
            for pages in plan.eager
            for row in zip(pages.addresses.tolist(), pages.units.tolist(), pages.nodes.tolist(), strict=True)
        ],
        "left": dict(plan.left),
        "pages": plan.pages,
    }


def as_lists(part: Part) -> dict[str, Any]:
    return {"runs": part.runs.tolist(), "ranges": part.ranges.tolist(), "origins": part.origins.tolist()}


@contextmanager
def varied(seed: int, nodes: tuple[int, ...] = (0,)) -> Iterator[tuple[Memory, list[Piece]]]:
    """Neighbouring mappings of several kinds, randomly populated, on randomly chosen `nodes`."""
    chance = random.Random(seed)
    with Memory(6 * HUGE, fill=False, huge=True) as memory, ExitStack() as stack:
        kinds = ["relocate", "policy", "locked", "readable", "relocate", "huge"]
        chance.shuffle(kinds)
        pieces: list[Piece] = []
        for number, kind in enumerate(kinds):
            first = number * HUGE
            start, size = memory.at(first), HUGE * PAGE_SIZE
            if kind == "huge":
                memory.populate(first, HUGE)
            else:
                memory.advise(15, first, HUGE)  # MADV_NOHUGEPAGE
                mix_part(memory, chance, first)
            if kind == "policy":
                mempolicy.mbind(start, size, Mode.PREFERRED, nodes[:1])
            if kind == "locked":  # on fault: what is not there stays so
                assert libc.mlock2(ctypes.c_void_p(start), ctypes.c_size_t(size), 1) == 0
                stack.callback(libc.munlock, ctypes.c_void_p(start), ctypes.c_size_t(size))
            if kind == "readable":
                memory.protect(mmap.PROT_READ, first, HUGE)
            way = best({"locked": "write_protect", "readable": "eager"}.get(kind, "relocate"))
            if number and kind == kinds[number - 1]:  # the kernel makes one mapping of both
                start = pieces.pop()[0]
            pieces.append((start, memory.at(first + HUGE), way))
        scatter(memory, chance, nodes)
        yield memory, pieces


def mix_part(memory: Memory, chance: random.Random, first: int) -> None:
    page = first
    while page < first + HUGE:
        count = min(chance.choice([1, 2, 5, 40]), first + HUGE - page)
        if chance.random() < 0.6:
            memory.populate(page, count, read=chance.random() < 0.2)
        page += count


def scatter(memory: Memory, chance: random.Random, nodes: tuple[int, ...]) -> None:
    if len(nodes) == 1:
        return
    for address, pages, _ in by_hand(memory.address, memory.at(memory.pages)):
        if pages == 1 and chance.random() < 0.5:
            mempolicy.move_pages(SELF, np.array([address], np.uint64), chance.choice(nodes))


def compare(seed: int, nodes: tuple[int, ...], targets: tuple[int, ...], always: bool) -> None:
    with varied(seed, nodes) as (memory, pieces):
        whole = make_plan(SELF, [(memory.address, memory.at(memory.pages))], targets, always=always)
        assert as_made(whole) == reference(pieces, targets, always)
        chance = random.Random(seed)
        for _ in range(4):  # parts that begin and end at any page
            first, last = sorted(chance.sample(range(memory.pages), 2))
            cut = [(max(s, memory.at(first)), min(e, memory.at(last)), way) for s, e, way in pieces]
            inside = [piece for piece in cut if piece[0] < piece[1]]
            plan = make_plan(SELF, [(memory.at(first), memory.at(last))], targets, always=always)
            assert as_made(plan) == reference(inside, targets, always)


@pytest.mark.parametrize("always", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_random_memory_on_one_node(seed: int, always: bool) -> None:
    compare(seed, (0,), (0,), always)


@pytest.mark.parametrize("seed", range(3))
def test_the_node_of_the_toucher(seed: int) -> None:
    compare(seed, (0,), (), False)


@pytest.mark.lab
@pytest.mark.parametrize("targets", [(1,), (0, 3), ()])
def test_random_memory_on_four_nodes(targets: tuple[int, ...]) -> None:
    compare(len(targets), (0, 1, 2, 3), targets, False)


# ---- ranges ----


@pytest.mark.parametrize(("gap", "ranges"), [(RESERVE, 1), (RESERVE + 1, 2)])
def test_gaps_up_to_the_reserve_are_watched_along(gap: int, ranges: int) -> None:
    with Memory(gap + 2, fill=False) as memory:
        memory.populate(0, 1)
        memory.populate(gap + 1, 1)
        plan = make_plan(SELF, [(memory.address, memory.at(gap + 2))], (0,), always=True)
        part = plan.parts[0]
        assert part.runs.tolist() == [[memory.at(0), 1, 1], [memory.at(gap + 1), 1, 1]]
        assert len(part.ranges) == ranges
        assert part.ranges[0, 0] == memory.address
        assert part.ranges[-1].sum() == memory.at(gap + 2)


def test_ranges_are_limited_in_number() -> None:
    islands, distance = 1300, 600
    with Memory(islands * distance, fill=False) as memory:
        for island in range(islands):
            memory.words[island * distance * WORDS] = 1
        plan = make_plan(SELF, [(memory.address, memory.at(memory.pages))], (0,), always=True)
        part = plan.parts[0]
        assert plan.pages == len(part.runs) == islands
        assert 1 <= len(part.ranges) <= 1024
        for (start, count, _), within in zip(part.runs.tolist(), holders(part), strict=True):
            assert within[0] <= start < start + count * PAGE_SIZE <= within[0] + within[1]


def holders(part: Part) -> list[list[int]]:
    """The range that each run is in."""
    rows = np.searchsorted(part.ranges[:, 0], part.runs[:, 0], side="right") - 1
    found: list[list[int]] = part.ranges[rows].tolist()
    return found


# ---- kinds of memory ----


def mechanisms(memory: Memory, asked: str | None = None) -> dict[str, int]:
    """Pages by what is to become of them."""
    plan = make_plan(SELF, [(memory.address, memory.at(memory.pages))], (), mechanism=named(asked) if asked else None)
    found: dict[str, int] = {part.mechanism: int(part.runs[:, 1].sum()) for part in plan.parts}
    if plan.eager:
        found["eager"] = sum(pages.count for pages in plan.eager)
    return found | {reason.name.lower(): count for reason, count in plan.left.items()}


def file_of(pages: int) -> int:
    """A file on a disk, which /tmp may not be."""
    descriptor = os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR)
    os.write(descriptor, os.urandom(pages * PAGE_SIZE))
    return descriptor


@pytest.mark.parametrize(
    ("flags", "file", "first", "relocate", "protect"),
    [
        (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, None, "relocate", "relocate", "write_protect"),
        (SHARED, None, "write_protect", "unsuitable", "write_protect"),
        (mmap.MAP_SHARED, "memfd", "write_protect", "unsuitable", "write_protect"),
        (mmap.MAP_PRIVATE, "memfd", "eager", "unsuitable", "unsuitable"),
        (mmap.MAP_SHARED, "file", "eager", "unsuitable", "unsuitable"),
        (mmap.MAP_PRIVATE, "file", "eager", "unsuitable", "unsuitable"),
    ],
    ids=["private", "shared", "memfd", "memfd private", "file", "file private"],
)
def test_the_mechanism_of_each_kind(flags: int, file: str | None, first: str, relocate: str, protect: str) -> None:
    descriptor = -1 if file is None else file_of(8) if file == "file" else os.memfd_create("pages")
    if file == "memfd":
        os.ftruncate(descriptor, 8 * PAGE_SIZE)
    with Memory(8, flags=flags, file=descriptor) as memory:
        assert mechanisms(memory) == {first if file == "file" else best(first): 8}
        assert mechanisms(memory, "relocate") == {relocate: 8}
        assert mechanisms(memory, "write_protect") == {protect: 8}
        memory.protect(mmap.PROT_READ, 0, 8)
        assert mechanisms(memory) == {"eager" if file == "file" else best("eager"): 8}
        assert mechanisms(memory, "relocate") == mechanisms(memory, "write_protect") == {"unsuitable": 8}
    if descriptor >= 0:
        os.close(descriptor)


@pytest.mark.parametrize("flags", [SHARED, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS])
def test_the_mechanism_of_hugetlb(flags: int) -> None:
    with more_hugetlb(1) as reserved:
        if not reserved:
            pytest.skip("the kernel has no huge pages of hugetlb")
        with Memory(HUGE, fill=False, huge=True, flags=flags | 0x40000) as memory:
            memory.words[0] = 1
            assert mechanisms(memory) == {best("write_protect" if flags == SHARED else "eager"): HUGE}
            # A part of a huge page is no page.
            plan = make_plan(SELF, [(memory.at(1), memory.at(HUGE))], ())
            assert not plan.parts
            assert set(plan.left) == {Reason.PARTIAL}


@pytest.mark.parametrize("advice", [10, 16])  # MADV_DONTFORK, MADV_DONTDUMP
def test_memory_with_a_mark_that_relocate_would_have_to_bring_back(advice: int) -> None:
    with Memory(8) as memory:
        memory.advise(advice)
        assert mechanisms(memory) == {best("write_protect" if advice == 10 else "relocate"): 8}


def test_memory_that_somebody_watches_already() -> None:
    import nexttouch as nt

    with Memory(8) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0, mechanism="write_protect")
        assert mechanisms(memory) == {"unsuitable": 8}
        migration.cancel()
        assert mechanisms(memory) == {best("relocate"): 8}


def test_memory_without_access_and_holes() -> None:
    with Memory(30, fill=False) as memory:
        memory.populate(0, 20)
        memory.protect(0, 5, 5)
        assert mechanisms(memory) == {best("relocate"): 15, "eager": 5}


# ---- spans ----


@pytest.mark.parametrize(
    ("spans", "pages", "partial"),
    [
        ([(0, 10 * PAGE_SIZE)], 10, 0),
        ([(0, 3 * PAGE_SIZE), (5 * PAGE_SIZE, 6 * PAGE_SIZE)], 4, 0),
        ([(1, 10 * PAGE_SIZE - 1)], 8, 2),
        ([(100, 200)], 0, 1),
        ([(PAGE_SIZE - 1, PAGE_SIZE + 1)], 0, 2),
        ([(0, PAGE_SIZE + 1)], 1, 1),
        ([(PAGE_SIZE - 1, 2 * PAGE_SIZE)], 1, 1),
    ],
)
def test_spans_in_bytes(spans: list[tuple[int, int]], pages: int, partial: int) -> None:
    with Memory(10) as memory:
        plan = make_plan(SELF, [(memory.address + low, memory.address + high) for low, high in spans], ())
        assert sum(int(part.runs[:, 1].sum()) for part in plan.parts) == pages
        assert plan.left == ({Reason.PARTIAL: partial} if partial else {})
        assert plan.pages == pages + partial


def test_all_memory_of_a_process() -> None:
    with Memory(100, fill=False) as memory:  # behind a page without access: its upper end might be a thread's
        memory.populate(60, 40)
        plan = make_plan(Process(os.getpid()), None, (0,), always=True)
        assert plan.process.pid == os.getpid()
        assert {part.mechanism for part in plan.parts} <= {"write_protect"}  # that of another process's memory
        runs = np.concatenate([part.runs for part in plan.parts])
        assert [memory.at(60), 38, 1] in runs.tolist()
        eager = np.concatenate([pages.addresses for pages in plan.eager])
        assert {memory.at(98), memory.at(99)} <= set(eager.tolist())
        trapped = sum(len(part.origins) for part in plan.parts)
        assert plan.pages == trapped + sum(pages.count for pages in plan.eager) + sum(plan.left.values())


def test_all_mappings_are_scanned_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process can have sixty thousand, and each call costs more than the few pages of one."""
    calls: list[Any] = []
    scan = pagemap.scan

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return scan(*arguments, **options)

    with Memory(100) as memory:
        for page in range(0, 100, 2):
            memory.protect(mmap.PROT_READ, page, 1)
        within = [each for each in procfs.mappings() if memory.address <= each.start < memory.at(100)]
        assert len(within) == 100
        monkeypatch.setattr(pagemap, "scan", counted)
        assert make_plan(SELF, [(memory.address, memory.at(100))], (0,)).pages == 100
    assert len(calls) == 1


def test_a_process_that_is_gone() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(NoSuchProcess):
        make_plan(Process(child), None, (0,))


def test_planning_changes_nothing() -> None:
    with varied(7) as (memory, _):
        before = memory.frames(), mapped(memory)
        make_plan(SELF, [(memory.address, memory.at(memory.pages))], (0,), always=True)
        assert (memory.frames() == before[0]).all()
        assert mapped(memory) == before[1]


def mapped(memory: Memory) -> list[procfs.Smap]:
    return [smap for smap in procfs.smaps() if memory.at(0) <= smap.mapping.start < memory.at(memory.pages)]
