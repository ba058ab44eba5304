from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import json
import mmap
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.memory import Memory

import nexttouch as nt
from nexttouch.errors import InvalidArgument, NoSuchProcess, NotPermitted
from nexttouch.linux import mempolicy, nodes, pagemap, procfs
from nexttouch.linux.mempolicy import Mode
from nexttouch.linux.process import SELF, Process
from nexttouch.linux.syscall import PAGE_SIZE
from nexttouch.placement import Counts, Placement, span, where

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
NORESERVE = 0x4000
COLLAPSE = 25
HUGE = 2 << 20
NODE = nodes.has_memory()[0]


@pytest.fixture(autouse=True)
def on_one_node() -> Iterator[None]:
    """New pages come from NODE."""
    before = mempolicy.get_mempolicy()
    mempolicy.set_mempolicy(Mode.BIND, [NODE])
    yield
    mempolicy.set_mempolicy(*before)


def addresses(memory: Memory, *pages: int) -> list[int]:
    return [memory.at(page) for page in pages]


def counts(pages: int, **others: object) -> Counts:
    empty: dict[str, object] = {
        "by_node": {},
        "unknown": 0,
        "zero": 0,
        "swapped": 0,
        "holes": 0,
        "huge": 0,
        "shared": 0,
    }
    return Counts(pages=pages, **(empty | {"unmovable": 0} | others))  # type: ignore[arg-type]


def plain_counts(memory: Memory) -> Counter[str]:
    """One page at a time, by pagemap words and one query a page."""
    found: Counter[str] = Counter()
    for address in range(memory.address, memory.at(memory.pages), PAGE_SIZE):
        word = int(pagemap.entries(SELF, address, 1)[0])
        status = int(mempolicy.move_pages(SELF, np.array([address], dtype=np.uint64), None)[1][0])
        if not word & int(pagemap.PRESENT):
            found["holes"] += 1
        elif status == -errno.EFAULT:
            found["zero"] += 1
        else:
            found[f"node {status}"] += 1
            found["shared"] += not word & int(pagemap.EXCLUSIVE)
    return found


def touch_or_not(chance: random.Random, memory: Memory, page: int) -> None:
    match chance.randrange(4):
        case 0:
            memory.write(page)
        case 1:
            memory.read(page)


@contextlib.contextmanager
def forked() -> Iterator[int]:
    """A child that shares all memory with this process and waits."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)  # until the parent closes its end
        os._exit(0)
    os.close(reading)
    try:
        yield child
    finally:
        os.close(writing)
        os.waitpid(child, 0)


def test_counts_of_private_memory() -> None:
    with Memory(10, fill=False) as memory:
        memory.write(0, 1, 5)
        memory.read(2, 9)
        found = where(memory.bytes)
        assert found.total == counts(10, by_node={NODE: 3}, zero=2, holes=5)
        assert (found.pid, found.by_node, found.total.present) == (os.getpid(), {NODE: 3}, 3)


@pytest.mark.parametrize("kind", ["private", "shared", "memfd"])
def test_random_pages_against_a_loop_over_pages(kind: str) -> None:
    chance = random.Random(kind)
    descriptor = os.memfd_create("random") if kind == "memfd" else -1
    if kind == "memfd":
        os.ftruncate(descriptor, 1500 * PAGE_SIZE)
    flags = (mmap.MAP_PRIVATE if kind == "private" else mmap.MAP_SHARED) | (mmap.MAP_ANONYMOUS if descriptor < 0 else 0)
    with Memory(1500, flags=flags, file=descriptor, fill=False) as memory:
        for page in range(1500):
            touch_or_not(chance, memory, page)
        for _ in range(20):  # longer stretches of the same
            first = chance.randrange(1400)
            touch = memory.write if chance.random() < 0.5 else memory.read
            touch(*range(first, first + chance.randrange(100)))
        with forked():
            memory.write(*range(0, 1500, 7))
            found, plain = where(memory.bytes).total, plain_counts(memory)
        assert found.by_node == {NODE: plain[f"node {NODE}"]}
        assert (found.zero, found.holes, found.shared) == (plain["zero"], plain["holes"], plain["shared"])
        assert found.pages == 1500 == found.present + found.zero + found.swapped + found.holes
        assert (found.unknown, found.huge, found.unmovable) == (0, 0, 0)


def test_pages_shared_with_a_child() -> None:
    with Memory(8, fill=False) as memory:
        memory.write(*range(8))
        assert where(memory.bytes).total.shared == 0
        with forked():
            assert where(memory.bytes).total == counts(8, by_node={NODE: 8}, shared=8)
            memory.write(0, 3)  # copies of its own now
            assert where(memory.bytes).total == counts(8, by_node={NODE: 8}, shared=6)
        assert where(memory.bytes).total.shared == 0


def test_memory_mapped_twice_by_one_process() -> None:
    descriptor = os.memfd_create("twice")
    os.ftruncate(descriptor, 4 * PAGE_SIZE)
    with (
        Memory(4, flags=mmap.MAP_SHARED, file=descriptor, fill=False) as first,
        Memory(4, flags=mmap.MAP_SHARED, file=descriptor, fill=False) as second,
    ):
        first.write(0, 1, 2)
        second.write(2)
        assert where(first.bytes).total == counts(4, by_node={NODE: 3}, holes=1, shared=1)
        assert where(second.bytes).total == counts(4, by_node={NODE: 1}, holes=3, shared=1)
        os.close(descriptor)


def test_locked_memory_is_movable() -> None:
    with Memory(3, fill=False) as memory:
        assert ctypes.CDLL(None).mlock(ctypes.c_void_p(memory.address), ctypes.c_size_t(2 * PAGE_SIZE)) == 0
        assert where(memory.bytes).total == counts(3, by_node={NODE: 2}, holes=1)


def test_file_mapping(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 4 * PAGE_SIZE)
    with file.open("r+b") as stream, mmap.mmap(stream.fileno(), 0, flags=mmap.MAP_PRIVATE) as memory:
        memory.madvise(mmap.MADV_RANDOM)
        memory[0] = 1
        total = where(memory).total
        (part,) = where(memory).mappings
    assert total.by_node.keys() <= set(nodes.has_memory())
    assert 1 <= total.present <= 4
    assert part.mapping.path == str(file)


def huge_memory() -> tuple[mmap.mmap, int]:
    """Memory with one transparent huge page, and its offset there."""
    memory = mmap.mmap(-1, 3 * HUGE, flags=PRIVATE)
    offset = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory.madvise(mmap.MADV_HUGEPAGE, offset, HUGE)
    memory[offset : offset + HUGE] = b"x" * HUGE
    try:
        memory.madvise(COLLAPSE, offset, HUGE)
    except OSError as error:
        pytest.skip(f"no transparent huge page to be had: {error}")
    return memory, offset


def test_transparent_huge_pages() -> None:
    memory, offset = huge_memory()
    each = HUGE // PAGE_SIZE
    memory[offset + HUGE] = 1
    view = np.frombuffer(memory, dtype=np.uint8)
    total = where(view[offset : offset + 2 * HUGE]).total
    assert (total.pages, total.present, total.huge, total.holes) == (2 * each, each + 1, each, each - 1)
    # A part of a huge page: its pages are counted one by one.
    part = where(view[offset + 3 * PAGE_SIZE : offset + 10 * PAGE_SIZE]).total
    assert (part.pages, part.present, part.huge) == (7, 7, 7)


def test_huge_zero_page_is_no_memory() -> None:
    memory = mmap.mmap(-1, 2 * HUGE, flags=PRIVATE)
    offset = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE
    memory.madvise(mmap.MADV_HUGEPAGE)
    _ = memory[offset]
    total = where(np.frombuffer(memory, dtype=np.uint8)[offset : offset + HUGE]).total
    assert (total.present, total.huge) == (0, 0)
    assert total.zero in {1, HUGE // PAGE_SIZE}  # one where huge pages or their zero page are switched off
    assert total.zero + total.holes == total.pages


@pytest.fixture
def two_hugetlb_pages() -> Iterator[mmap.mmap]:
    reserve = Path("/proc/sys/vm/nr_hugepages")
    before = reserve.read_text()
    try:
        reserve.write_text(str(int(before) + 2))
    except OSError as error:
        pytest.skip(f"huge pages cannot be reserved: {error}")
    descriptor = os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    os.ftruncate(descriptor, 2 * HUGE)
    try:
        try:
            memory = mmap.mmap(descriptor, 2 * HUGE)
        except OSError as error:
            pytest.skip(f"huge pages cannot be had: {error}")
        yield memory
    finally:
        os.close(descriptor)
        with contextlib.suppress(UnboundLocalError, BufferError):
            memory.close()
        reserve.write_text(before)


def test_hugetlb_pages(two_hugetlb_pages: mmap.mmap) -> None:
    two_hugetlb_pages[0] = 1
    placed = where(two_hugetlb_pages)
    each = HUGE // PAGE_SIZE
    assert (placed.total.pages, placed.total.present, placed.total.huge, placed.total.holes) == (2 * each, *[each] * 3)
    assert placed.mappings[0].mapping.kind is procfs.Kind.HUGETLB


def test_mappings_are_counted_apart() -> None:
    with Memory(9, fill=False) as memory:
        memory.write(0, 1, 2, 3, 4)
        memory.read(5)
        libc = ctypes.CDLL(None)
        assert libc.mprotect(ctypes.c_void_p(memory.address + 2 * PAGE_SIZE), ctypes.c_size_t(2 * PAGE_SIZE), 1) == 0
        found = where(memory.bytes)
        assert [(part.start, part.end) for part in found.mappings] == [
            tuple(addresses(memory, *bounds)) for bounds in ((0, 2), (2, 4), (4, 9))
        ]
        assert [part.counts for part in found.mappings] == [
            counts(2, by_node={NODE: 2}),
            counts(2, by_node={NODE: 2}),
            counts(5, by_node={NODE: 1}, zero=1, holes=3),
        ]
        assert [part.mapping.writable for part in found.mappings] == [True, False, True]
        assert found.total == counts(9, by_node={NODE: 5}, zero=1, holes=3)


def test_part_of_a_mapping() -> None:
    with Memory(9, fill=False) as memory:
        memory.write(0, 4)
        found = where(memory.bytes[3 * PAGE_SIZE : 6 * PAGE_SIZE])
        assert found.total == counts(3, by_node={NODE: 1}, holes=2)
        (part,) = found.mappings
        assert (part.start, part.end) == tuple(addresses(memory, 3, 6))
        assert part.mapping.start <= memory.address


def test_pages_covered_in_part_count_as_a_whole() -> None:
    with Memory(4, fill=False) as memory:
        memory.write(0, 1, 2, 3)
        assert where(memory.bytes[PAGE_SIZE - 1 : 2 * PAGE_SIZE + 1]).total.pages == 3
        assert where(memory.bytes[5:6]).total.pages == 1


def test_sparse_memory_of_a_hundred_million_pages() -> None:
    with Memory(10**8, fill=False) as memory:
        touched = range(0, 10**8, 99_991)  # 1,001 pages: more than the kernel's own buffer of runs holds
        memory.write(*touched)
        assert where(memory.bytes).total == counts(10**8, by_node={NODE: len(touched)}, holes=10**8 - len(touched))


def test_more_pages_than_one_batch() -> None:
    pages = 300_000  # of the zero page, but for every hundredth
    with Memory(pages, fill=False) as memory:
        memory.advise(22)
        memory.write(*range(0, pages, 100))
        total = where(memory.bytes).total
        assert total == counts(pages, by_node={NODE: 3000}, zero=pages - 3000)


@pytest.mark.parametrize(
    ("buffer", "size"),
    [
        (b"x" * 100, 100),
        (bytearray(100), 100),
        (memoryview(bytes(100))[10:30], 20),
        (array.array("d", [1.0] * 10), 80),
        ((ctypes.c_int * 5)(), 20),
        (np.zeros((3, 4)), 96),
        (np.asfortranarray(np.zeros((3, 4))), 96),
        (np.zeros((3, 4)).T, 96),
        (np.zeros(10, dtype=np.int16)[::3], 20),
        (np.zeros(10, dtype=np.int16)[::-3], 20),
        (np.zeros((4, 6), dtype=np.uint8)[1:3, ::-2], 11),
        (np.zeros(5, dtype="datetime64[s]"), 40),
        (np.array(3.0), 8),
        (np.broadcast_to(np.float32(1), (1000, 1000)), 4),
    ],
)
def test_span(buffer: object, size: int) -> None:
    start, end = span(buffer)
    assert end - start == size
    assert where(buffer).total.pages == (end - 1) // PAGE_SIZE - start // PAGE_SIZE + 1


def test_span_of_a_view_that_runs_backwards() -> None:
    forward = np.arange(10, dtype=np.int64)
    assert span(forward[::-1]) == span(forward) == (forward.ctypes.data, forward.ctypes.data + 80)
    assert span(forward[7:3:-2]) == (forward.ctypes.data + 5 * 8, forward.ctypes.data + 8 * 8)


def test_read_only_buffers_are_fine_and_stay_untouched() -> None:
    with Memory(3, fill=False) as memory:
        memory.bytes.setflags(write=False)
        assert where(memory.bytes).total == counts(3, holes=3)
        assert where(memory.bytes).total == counts(3, holes=3)


@pytest.mark.parametrize("empty", [b"", np.empty(0), np.empty((3, 0, 2)), np.empty(3, dtype="V0"), memoryview(b"")])
def test_nothing_is_nowhere(empty: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^x has no bytes"):
        where(empty)


@pytest.mark.parametrize("wrong", [None, "text", 1.5, [1, 2], object(), {1: 2}])
def test_what_has_no_memory_to_show(wrong: object) -> None:
    with pytest.raises(InvalidArgument, match=rf"^x is an? {type(wrong).__name__}, but has to be an array"):
        where(wrong)


@pytest.mark.parametrize("wrong", [True, False, 0, -1, np.int32(-5), np.float64(3), np.True_])
def test_what_is_no_process_id(wrong: object) -> None:
    with pytest.raises(InvalidArgument, match="but a process id is a positive integer"):
        where(wrong)


@pytest.fixture
def program() -> Iterator[int]:
    """A program with 5 pages written, 3 read and 2 never touched, in a mapping named after a memfd."""
    code = (
        "import mmap, os, sys\n"
        "fd = os.memfd_create('marked'); os.ftruncate(fd, 10 * mmap.PAGESIZE)\n"
        "m = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE)\n"
        "for i in range(5): m[i * mmap.PAGESIZE] = 1\n"
        "print(flush=True); sys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], bufsize=0, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.read(1)
        while procfs.status(Process(process.pid)).state != "S":  # until it reads it touches pages
            os.sched_yield()
        yield process.pid
        process.kill()


@pytest.mark.parametrize("kind", [int, np.int64])
def test_another_process(program: int, kind: type) -> None:
    found = where(kind(program))
    marked = [part for part in found.mappings if part.mapping.path.startswith("/memfd:marked")]
    assert [part.counts.present for part in marked] == [5]
    assert found.pid == program
    assert found.total.pages == sum(part.counts.pages for part in found.mappings)
    assert found.total.present == sum(part.counts.present for part in found.mappings) > 500
    assert [part.mapping for part in found.mappings] == procfs.mappings(Process(program))


def test_a_process_agrees_with_its_resident_set(program: int) -> None:
    found = where(program)
    mapped = {s.mapping.start: s.rss // PAGE_SIZE for s in procfs.smaps(Process(program))}
    assert {p.start: p.counts.present for p in found.mappings if p.mapping.kind.movable} == {
        p.start: mapped[p.start] for p in found.mappings if p.mapping.kind.movable
    }
    by_node: Counter[int] = Counter()
    for numa in procfs.numa_maps(Process(program)):
        by_node.update(numa.pages)
    movable = [p.counts for p in found.mappings if p.mapping.kind.movable]
    assert sum(c.present for c in movable) == sum(by_node.values())


def test_the_kernels_own_pages_cannot_move(program: int) -> None:
    found = where(program)
    special = {p.mapping.path: p.counts for p in found.mappings if not p.mapping.kind.movable}
    assert special["[vdso]"].unmovable == special["[vdso]"].present
    assert found.total.unmovable == sum(c.present for c in special.values())
    if "[vsyscall]" in special:
        assert special["[vsyscall]"] == counts(1, holes=1)


def test_processes_that_are_not_there() -> None:
    for pid in (2**30, 2**22 + 1):
        with pytest.raises(NoSuchProcess):
            where(pid)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    with pytest.raises(NoSuchProcess):
        where(child)
    os.waitpid(child, 0)


def test_a_process_that_dies_meanwhile(program: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pagemap.scan

    def scan_then_kill(process: Process, *arguments: int, **options: int) -> object:
        runs = real(process, *arguments, **options)
        os.kill(process.pid, 9)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return runs

    monkeypatch.setattr(pagemap, "scan", scan_then_kill)
    with pytest.raises(NoSuchProcess, match=f"process {program}"):
        where(program)


def test_the_memory_of_another_user() -> None:
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            where(parent)
        except NotPermitted:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_daemon_that_has_changed_its_user() -> None:
    """The kernel protects it from its new user, and so from itself: it is told what to do, and that helps."""
    where(np.ones(1))  # loads what another user could not
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            where(np.ones(1))
        except NotPermitted as error:
            os.write(writer, str(error).encode())
        assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0
        os.write(writer, str(where(np.ones(1)).total.pages).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert said.startswith("this process may not be touched: it is protected from itself (not dumpable)")
    assert said.endswith("call prctl(PR_SET_DUMPABLE, 1), or run as root or with CAP_SYS_PTRACE1")


def test_the_way_of_old_kernels_agrees_with_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(4)
    with Memory(2000, fill=False) as memory:
        for page in range(2000):
            touch_or_not(chance, memory, page)
        total = where(memory.bytes).total

        def missing(*_: object, **__: object) -> None:
            raise nt.FeatureMissing("PAGEMAP_SCAN", "", "")

        monkeypatch.setattr(pagemap, "scan", missing)
        old = where(memory.bytes).total
        assert old.to_dict() == total.to_dict() | {"huge": None}
        assert where(b"x").total.huge is None


def test_json_has_its_documented_keys() -> None:
    with Memory(3, fill=False) as memory:
        memory.write(0)
        found = json.loads(json.dumps(where(memory.bytes).to_dict()))
        expected = {
            "pages": 3, "present": 1, "by_node": {str(NODE): 1}, "unknown": 0, "zero": 0, "swapped": 0, "holes": 2,
            "huge": 0, "shared": 0, "unmovable": 0,
        }  # fmt: skip
        (part,) = found.pop("mappings")
        assert found == {"pid": os.getpid(), "page_size": PAGE_SIZE} | expected
        assert part == {"start": memory.address, "end": memory.at(3), "kind": "anonymous", "path": ""} | expected


def test_the_table() -> None:
    total = Counts(
        pages=1_003_071, by_node={2: 250_000, 0: 750_000}, unknown=1, zero=70, swapped=1000, holes=2000, huge=512,
        shared=3, unmovable=0,
    )  # fmt: skip
    assert str(Placement(5, total, ())).split("\n") == [
        "                     pages        size  of present",
        "node 0             750,000     2.9 GiB       75.0%",
        "node 2             250,000   976.6 MiB       25.0%",
        "no node                  1       4 KiB",
        "zero page               70     280 KiB",
        "swapped              1,000     3.9 MiB",
        "untouched            2,000     7.8 MiB",
        "of present: huge 2 MiB, shared 12 KiB",
    ]


def test_the_table_of_nothing() -> None:
    assert str(Placement(5, counts(0), ())) == "                     pages        size  of present"


@pytest.mark.lab
def test_an_array_on_two_nodes() -> None:
    with Memory(100, fill=False) as memory:
        mempolicy.mbind(memory.address, 30 * PAGE_SIZE, Mode.BIND, [0])
        mempolicy.mbind(memory.address + 30 * PAGE_SIZE, 70 * PAGE_SIZE, Mode.BIND, [1])
        memory.write(*range(90))
        assert where(memory.bytes).total == counts(100, by_node={0: 30, 1: 60}, holes=10)
        assert where(memory.bytes[20 * PAGE_SIZE : 40 * PAGE_SIZE]).by_node == {0: 10, 1: 10}
        assert [part.counts.by_node for part in where(memory.bytes).mappings] == [{0: 30}, {1: 60}]
