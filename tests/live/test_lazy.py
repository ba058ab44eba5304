"""`lazy`: every word stays what it was, whoever touches it and when, and every page is accounted for."""

from __future__ import annotations

import array
import ctypes
import mmap
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from support.mechanisms import service, way
from support.memory import HANG, PAGE_SIZE, WORDS, Memory, libc, on_nodes, run_threads, settled

import nexttouch as nt
from nexttouch import Reason, placement
from nexttouch.linux import procfs

# ---- contents ----


@way
@pytest.mark.parametrize("window", [1, 64])
def test_contents_under_readers_and_writers(options: dict[str, Any], window: int) -> None:
    """Three threads write a word of every page each, two compare the rest and one copies pages while all migrates."""
    pages, rounds = 512, 6
    over = threading.Event()
    written = Counter[int]()

    with Memory(pages) as memory:
        page_copy = (ctypes.c_uint64 * WORDS)()

        def write(column: int) -> None:
            while not over.is_set():
                memory.table[:, column] += 1  # without the interpreter lock, as 512 elements are enough to give it up
                written[column] += 1

        def compare(first: int) -> None:
            table = memory.expected.reshape(pages, WORDS)[:, first::64]
            while not over.is_set():
                assert (memory.table[:, first::64] == table).all()

        def copy() -> None:
            while not over.is_set():
                for page in range(0, pages, 7):
                    ctypes.memmove(page_copy, memory.at(page), PAGE_SIZE)
                    assert page_copy[9] == memory.expected[page * WORDS + 9]

        def migrate() -> None:
            try:
                for number in range(rounds):
                    with nt.lazy(memory.words, 0, always=True, window=window, **options) as migration:
                        pass
                    assert settled(migration.stats, pages), (number, migration)
                    assert migration.stats.moved == pages, migration.stats.left
            finally:
                over.set()

        writers = [lambda column=column: write(column) for column in range(3)]
        run_threads(migrate, copy, lambda: compare(8), lambda: compare(16), *writers)
        for column, times in written.items():
            memory.expected.reshape(pages, WORDS)[:, column] += np.uint64(times)
        memory.check()


@way
def test_two_threads_fault_on_one_page(options: dict[str, Any]) -> None:
    pages = 128
    together = threading.Barrier(2, timeout=HANG)
    with Memory(pages) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0, window=1, **options)
        assert migration.wait_armed(HANG)

        def write(word: int) -> None:
            value = (ctypes.c_uint64 * 1)(word + 77)
            for page in range(pages):
                together.wait()
                ctypes.memmove(memory.at(page) + word * 8, value, 8)

        run_threads(lambda: write(0), lambda: write(511))
        assert migration.wait(HANG)
        stats = migration.stats
        assert (stats.pages, stats.moved_by_touch, stats.windows, stats.left) == (pages, pages, pages, {})
        memory.expected.reshape(pages, WORDS)[:, [0, 511]] = [77, 77 + 511]
        memory.check()


@way
def test_each_page_moves_at_its_first_touch(options: dict[str, Any]) -> None:
    pages = 64
    with Memory(pages) as memory:
        before = memory.frames()
        migration = nt.lazy(memory.words, 0, always=True, rate=0, window=1, **options)
        assert migration.wait_armed(HANG)
        assert migration.stats.waiting == pages
        for page in range(pages):
            memory.table[page, 5] += 1
        assert migration.wait(HANG)
        stats = migration.stats
        assert (stats.faults, stats.windows, stats.moved_by_touch) == (pages, pages, pages)
        assert (stats.hole_faults, stats.sweeps, stats.events, stats.moved) == (0, 0, 0, pages)
        if options["mechanism"] == "relocate":  # move_pages to the node it is on moves nothing
            assert (memory.frames() != before).all()
        memory.expected.reshape(pages, WORDS)[:, 5] += np.uint64(1)
        memory.check()


@service
def test_reading_is_a_touch(options: dict[str, Any]) -> None:
    with Memory(32) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0, window=1, **options)
        assert migration.wait_armed(HANG)
        memory.check()
        assert migration.wait(HANG)
        assert migration.stats.moved_by_touch == 32


def test_reading_is_no_touch_of_protected_memory() -> None:
    with Memory(32) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0, mechanism="write_protect")
        assert migration.wait_armed(HANG)
        memory.check()
        assert (migration.stats.waiting, migration.stats.faults) == (32, 0)
        migration.cancel()
        assert migration.stats.left == {Reason.CANCELLED: 32}
        memory.fill()


@way
def test_the_sweep_takes_what_nobody_touches(options: dict[str, Any]) -> None:
    with Memory(1000) as memory:
        before = memory.frames()
        with nt.lazy(memory.words, 0, always=True, **options) as migration:
            pass
        stats = migration.stats
        assert (stats.moved_by_sweep, stats.moved_by_touch, stats.faults, stats.left) == (1000, 0, 0, {})
        assert stats.sweeps == -(-1000 // 64)
        if options["mechanism"] == "relocate":
            assert (memory.frames() != before).all()
        memory.check()


def test_pages_at_home_stay() -> None:
    with Memory(100) as memory:
        before = memory.frames()
        home = int(memory.nodes()[0])
        with nt.lazy(memory.words, home) as migration:
            pass
        assert migration.stats.left == {Reason.AT_HOME: 100}
        assert (memory.frames() == before).all()
        memory.check()


# ---- windows ----


def model_of_windows(touches: list[int], number: int, pages: int, most: int) -> tuple[int, set[int]]:
    """Windows and the pages that move when `touches` are touched one after the other; page 0 has page number `number`.

    The rule: begin with 8, double beside the last window, halve elsewhere, keep to the aligned block.
    """
    window, low, high, windows = 0, 0, 0, 0
    moved: set[int] = set()
    for page in touches:
        if page in moved:
            continue
        beside = window and low - window <= page < high + window
        window = min(most, max(1, 8 if not window else window * 2 if beside else window // 2))
        block = (number + page) // window * window - number
        begin = max(block, 0)
        first = last = page
        while first > begin and first - 1 not in moved:
            first -= 1
        while last < min(begin + window, pages) and last not in moved:
            last += 1
        moved |= set(range(first, last))
        low, high, windows = first, last, windows + 1
    return windows, moved


def sizes_of_windows(touches: list[int]) -> list[int]:
    sums = [len(model_of_windows(touches[:count], 0, 1000, 64)[1]) for count in range(len(touches) + 1)]
    return [size for before, after in pairwise(sums) if (size := after - before)]


def test_the_model_of_windows() -> None:
    assert sizes_of_windows(list(range(300))) == [8, 8, 16, 32, 64, 64, 64, 64]
    assert sizes_of_windows([page * 100 for page in range(6)]) == [8, 4, 2, 1, 1, 1]


@service
@pytest.mark.parametrize("window", [1, 2, 3, 64, 4096])
@pytest.mark.parametrize("order", ["forward", "backward", "random"])
def test_windows(options: dict[str, Any], window: int, order: str) -> None:
    pages = 300
    touches = list(range(pages))
    if order == "backward":
        touches.reverse()
    if order == "random":
        touches = np.random.default_rng(20060405).permutation(pages).tolist()
    touches = touches[:200]
    with Memory(pages) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0, window=window, **options)
        assert migration.wait_armed(HANG)
        before = memory.frames()
        assert not before.any()  # parked

        def touch() -> None:
            for page in touches:
                assert memory.table[page, 3] == memory.expected[page * WORDS + 3]

        run_threads(touch)  # a thread that has not faulted before
        migration.cancel()
        windows, moved = model_of_windows(touches, memory.address // PAGE_SIZE, pages, window)
        stats = migration.stats
        assert (stats.windows, stats.moved_by_touch) == (windows, len(moved))
        assert stats.left == ({Reason.CANCELLED: pages - len(moved)} if len(moved) < pages else {})
        memory.check()


# ---- edges ----


@way
@pytest.mark.parametrize(
    ("first", "last", "whole", "partial"),
    [
        (100, 8 * PAGE_SIZE + 100, 7, 2),  # begins and ends inside a page
        (0, 8 * PAGE_SIZE, 8, 0),
        (8, 8 * PAGE_SIZE, 7, 1),
        (0, 8 * PAGE_SIZE - 8, 7, 1),
        (PAGE_SIZE, 2 * PAGE_SIZE, 1, 0),
        (16, 32, 0, 1),  # inside one page
        (16, PAGE_SIZE, 0, 1),
        (0, 1, 0, 1),
        (PAGE_SIZE - 8, PAGE_SIZE + 8, 0, 2),  # a bit of two
        (PAGE_SIZE - 8, 2 * PAGE_SIZE + 8, 1, 2),
    ],
)
def test_arrays_that_begin_or_end_inside_a_page(
    options: dict[str, Any], first: int, last: int, whole: int, partial: int
) -> None:
    with Memory(10) as memory:
        before = memory.frames()
        part = memory.words.view(np.uint8)[first:last]
        with nt.lazy(part, 0, always=True, window=4, **options) as migration:
            part[:] = part.copy()
        stats = migration.stats
        assert stats.moved == whole
        assert stats.left == ({Reason.PARTIAL: partial} if partial else {})
        if options["mechanism"] == "relocate":
            moved = np.zeros(10, dtype=bool)
            moved[-(-first // PAGE_SIZE) : last // PAGE_SIZE] = True
            assert ((memory.frames() != before) == moved).all()
        memory.check()


def test_a_partial_page_that_is_not_there_does_not_count() -> None:
    with Memory(4, fill=False) as memory:
        with nt.lazy(memory.words[5:-5], 0, always=True) as migration:
            pass
        assert settled(migration.stats, 0)


def fresh_pages(address: int, size: int) -> int:
    """Whole pages of [address, address + size)."""
    return max(0, (address + size) // PAGE_SIZE - -(-address // PAGE_SIZE))


def bytearray_of(data: bytes) -> tuple[Any, int]:
    made = bytearray(data)
    return made, ctypes.addressof(ctypes.c_char.from_buffer(made))


def array_of(data: bytes) -> tuple[Any, int]:
    made = array.array("B", data)
    return made, made.buffer_info()[0]


def mmap_of(data: bytes) -> tuple[Any, int]:
    made = mmap.mmap(-1, len(data), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    made[:] = data
    return made, ctypes.addressof(ctypes.c_char.from_buffer(made))


def memoryview_of(data: bytes) -> tuple[Any, int]:
    made = memoryview(bytearray(data))
    return made, ctypes.addressof(ctypes.c_char.from_buffer(made))


def ctypes_of(data: bytes) -> tuple[Any, int]:
    made = (ctypes.c_char * len(data)).from_buffer_copy(data)
    return made, ctypes.addressof(made)


@way
@pytest.mark.parametrize("size", [100_000, 3_000_001], ids=["heap", "mapping"])
@pytest.mark.parametrize("make", [bytearray_of, array_of, mmap_of, memoryview_of, ctypes_of])
def test_everything_with_a_writable_buffer(
    options: dict[str, Any], make: Callable[[bytes], tuple[Any, int]], size: int
) -> None:
    data = np.random.default_rng(size).bytes(size)
    buffer, address = make(data)
    with nt.lazy(buffer, 0, always=True, **options) as migration:
        assert bytes(buffer) == data
    stats = migration.stats
    assert stats.moved == fresh_pages(address, size)
    assert set(stats.left) <= {Reason.PARTIAL}
    assert settled(stats, stats.moved + stats.left.get(Reason.PARTIAL, 0))
    assert bytes(buffer) == data


@pytest.mark.parametrize(
    ("view", "first", "last"),
    [
        (lambda table: table[::3], 0, 28),  # rows 0, 3, ... 27: from the first byte to the last
        (lambda table: table[:, 7], 0, 28),  # from the middle of page 0 to the middle of page 29
        (lambda table: table[::-1], 0, 30),
        (lambda table: table.T, 0, 30),
        (lambda table: table[4:9, ::2], 4, 9),
        (lambda table: np.lib.stride_tricks.as_strided(table, (40,), (0,)), 0, 1),
        (lambda table: table[10:11].reshape(8, 64)[::2], 10, 11),
    ],
    ids=["rows", "column", "reversed", "transposed", "both", "stride 0", "inside a page"],
)
def test_views_with_gaps_move_from_their_first_byte_to_their_last(view: Any, first: int, last: int) -> None:
    with Memory(30) as memory:
        array = view(memory.table)
        low, high = placement.span(array)
        before = memory.frames()
        with nt.lazy(array, 0, always=True) as migration:
            pass
        whole = fresh_pages(low, high - low)
        assert migration.stats.moved == whole
        moved = np.flatnonzero(memory.frames() != before)
        assert moved.tolist() == [p for p in range(first, last + 1) if low <= memory.at(p) and memory.at(p + 1) <= high]
        memory.check()


# ---- the buffer is kept ----


def test_an_array_that_nobody_else_holds_is_kept_until_the_end() -> None:
    kept = np.arange(1 << 20)
    gone = weakref.ref(kept)
    migration = nt.lazy(kept, 0, always=True, rate=0)
    del kept
    assert gone() is not None
    migration.cancel()
    assert gone() is None
    assert migration.stats.left[Reason.CANCELLED] > 2000


def test_a_bytearray_cannot_be_resized_meanwhile() -> None:
    buffer = bytearray(1 << 20)
    migration = nt.lazy(buffer, 0, always=True, rate=0)
    with pytest.raises(BufferError):
        buffer.extend(b"more")
    migration.cancel()
    buffer.extend(b"more")


# ---- several at once ----


@way
def test_many_migrations_at_once(options: dict[str, Any]) -> None:
    number, pages = 40, 8
    with Memory(number * pages) as memory:
        migrations = [
            nt.lazy(memory.part(first, pages), 0, always=True, rate=0, window=1, **options)
            for first in range(0, number * pages, pages)
        ]
        assert all(migration.wait_armed(HANG) for migration in migrations)
        run_threads(*(lambda first=first: memory.table[first::3].__iadd__(np.uint64(1)) for first in range(3)))
        for migration in migrations:
            assert migration.wait(HANG)
            assert (migration.stats.moved_by_touch, migration.stats.left) == (pages, {})
        memory.expected += np.uint64(1)
        memory.check()


def test_more_migrations_than_the_core_can_hold() -> None:
    """The list of the core holds 256 mechanisms at work: what is too much is refused and harms nothing.

    Each migration takes two here, as every other page is locked.
    """
    with Memory(300) as memory:
        for page in range(1, 300, 2):
            assert libc.mlock(ctypes.c_void_p(memory.at(page)), ctypes.c_size_t(PAGE_SIZE)) == 0
        migrations = [nt.lazy(memory.part(page, 2), 0, always=True, rate=0) for page in range(0, 254, 2)]
        migrations.append(nt.lazy(memory.part(254, 1), 0, always=True, rate=0))
        for page in range(256, 300, 11):  # there is room for one mechanism of the two
            with pytest.raises(nt.KernelError, match="256 migrations are running already"):
                nt.lazy(memory.part(page, 2), 0, always=True, rate=0)
        migrations[7].cancel()
        migrations.append(nt.lazy(memory.part(298, 2), 0, always=True, rate=0))
        memory.words[:] += np.uint64(1)
        for migration in migrations:
            assert migration.wait(HANG)
        assert sum(migration.stats.moved_by_touch for migration in migrations) == 255
        memory.expected += np.uint64(1)
        memory.check()


@pytest.mark.parametrize(("first", "count"), [(10, 10), (0, 11), (19, 5), (12, 3), (0, 30)])
def test_arrays_that_overlap_are_refused(first: int, count: int) -> None:
    with Memory(30) as memory:
        migration = nt.lazy(memory.part(10, 10), 0, always=True, rate=0)
        for begin in (lambda part: nt.lazy(part, 0, always=True), lambda part: nt.move(part, 0)):
            with pytest.raises(nt.InvalidArgument, match="another migration") as refused:
                begin(memory.part(first, count))
            assert refused.value.argument == "x"
        assert nt.move(memory.part(0, 10), 0).pages == nt.move(memory.part(20, 10), 0).pages == 10
        with nt.lazy(memory.part(0, 10), 0, always=True) as left, nt.lazy(memory.part(20, 10), 0, always=True) as right:
            pass
        assert (left.stats.moved, right.stats.moved) == (10, 10)
        migration.cancel()
        with nt.lazy(memory.part(first, count), 0, always=True) as again:
            pass
        assert again.stats.moved == nt.move(memory.part(first, count), 0).pages == count
        memory.check()


def test_two_arrays_within_one_page_do_not_disturb_each_other() -> None:
    with Memory(1) as memory:
        with nt.lazy(memory.words[:10], 0) as one, nt.lazy(memory.words[10:], 0) as other:
            pass
        assert one.stats.left == other.stats.left == {Reason.PARTIAL: 1}
        memory.check()


@service
def test_memory_of_the_heap(options: dict[str, Any]) -> None:
    """The program goes on to take and release memory around pages that migrate."""
    data = [np.random.default_rng(seed).bytes(20_000) for seed in range(100)]
    buffers = [bytearray(each) for each in data]
    heaps = [mapping for mapping in procfs.mappings() if mapping.kind is procfs.Kind.HEAP]
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in buffers]
    assert sum(any(heap.start <= address < heap.end for heap in heaps) for address in addresses) > 50
    for rate in (0, None):
        migrations = [nt.lazy(each, 0, always=True, rate=rate, **options) for each in buffers]
        for number in range(200):
            waste = [bytes(seed) for seed in range(number, 20_000, 997)]
            del waste
        assert [bytes(each) for each in buffers] == data
        for migration in migrations:
            migration.cancel()
            assert migration.stats.waiting == 0
    assert [bytes(each) for each in buffers] == data


# ---- arguments ----


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"rate": -1}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": "1GiB/s"}, "rate"),
        ({"rate": True}, "rate"),
        ({"deadline": -0.5}, "deadline"),
        ({"deadline": float("nan")}, "deadline"),
        ({"deadline": "1s"}, "deadline"),
        ({"window": 0}, "window"),
        ({"window": -1}, "window"),
        ({"window": (1 << 20) + 1}, "window"),
        ({"window": 1.5}, "window"),
        ({"window": "64"}, "window"),
        ({"window": True}, "window"),
        ({"service": "fast"}, "service"),
        ({"service": None}, "service"),
        ({"service": ["thread"]}, "service"),
        ({"mechanism": "eager"}, "mechanism"),
        ({"mechanism": "teleport"}, "mechanism"),
        ({"mechanism": 1}, "mechanism"),
        ({"to": "0"}, "to"),
        ({"to": True}, "to"),
        ({"to": np.True_}, "to"),
        ({"to": 0.0}, "to"),
        ({"to": None}, "to"),
        ({"to": []}, "to"),
        ({"to": [0, 0]}, "to"),
        ({"to": -1}, "to"),
        ({"to": 5000}, "to"),
        ({"to": [0, 1 << 70]}, "to"),
        ({"x": 4711}, "x"),
        ({"x": np.int64(4711)}, "x"),
        ({"x": True}, "x"),
        ({"x": None}, "x"),
        ({"x": "text"}, "x"),
        ({"x": [1, 2, 3]}, "x"),
        ({"x": np.empty(0)}, "x"),
        ({"x": bytearray()}, "x"),
        ({"x": np.empty((5, 0))}, "x"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], name: str) -> None:
    call: dict[str, Any] = {"x": bytearray(8192), "to": 0} | arguments
    with pytest.raises(nt.InvalidArgument, match=rf"^{name} ") as wrong:
        nt.lazy(**call)
    assert wrong.value.argument == name
    assert wrong.value.exit_code == 2


@pytest.mark.parametrize("node", [-1, 4711])
def test_a_node_that_does_not_exist(node: int) -> None:
    with pytest.raises(nt.NoSuchNode, match=f"^to names node {node}, but this machine has node") as wrong:
        nt.lazy(bytearray(8192), node)
    assert wrong.value.node == node
    assert wrong.value.nodes == nt.topology().ids


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    view = array.view()
    view.flags.writeable = False
    return view


@pytest.mark.parametrize(
    "view",
    [
        read_only,
        lambda array: memoryview(array).toreadonly(),
        lambda array: np.broadcast_to(array, (3, len(array))),
        lambda array: np.frombuffer(memoryview(array).toreadonly(), array.dtype),
    ],
    ids=["flag", "memoryview", "broadcast", "buffer"],
)
def test_a_read_only_view_of_writable_memory_is_moved(view: Callable[[Any], Any]) -> None:
    with Memory(20) as memory:
        with nt.lazy(view(memory.words), 0, always=True) as migration:
            pass
        assert migration.stats.moved == 20
        memory.check()


def test_memory_that_is_read_only_points_to_move() -> None:
    with Memory(20) as memory:
        memory.protect(mmap.PROT_READ, 0, 20)
        with pytest.raises(nt.InvalidArgument, match=r"^x is in read-only memory.*use `move`"):
            nt.lazy(read_only(memory.words), 0)
        assert nt.move(memory.words, 0).pages == 20
        memory.protect(mmap.PROT_READ | mmap.PROT_WRITE, 19, 1)  # where a part can be written, it can be trapped
        with nt.lazy(read_only(memory.words), 0, always=True) as migration:
            pass
        assert (migration.stats.moved_by_sweep, migration.stats.left) == (1, {Reason.AT_HOME: 19})


@pytest.mark.parametrize("window", [np.int64(4), np.uint8(4)])
@pytest.mark.parametrize("rate", [np.float32(2**30), 1 << 40, float("inf")])
def test_numbers_of_numpy_are_numbers(window: Any, rate: Any) -> None:
    with Memory(20) as memory:
        with nt.lazy(memory.words, np.int32(0), window=window, rate=rate, deadline=np.float64(9), always=True) as done:
            pass
        assert done.stats.moved == 20


# ---- several nodes ----


@pytest.mark.lab
@way
def test_to_each_node_and_back(options: dict[str, Any]) -> None:
    with Memory(100) as memory:
        memory.bind(0)
        for node in (1, 2, 3, 0):
            with nt.lazy(memory.words, node, rate=0, window=16, **options) as migration:
                assert migration.wait_armed(HANG)
                memory.words[: 60 * WORDS : 64] += np.uint64(1)
                assert not migration.wait(0)
            stats = migration.stats
            # Windows are aligned by address: how many of the other pages they took along depends on it.
            assert 60 <= stats.moved_by_touch < 60 + 16
            assert stats.left == {Reason.CANCELLED: 100 - stats.moved_by_touch}
            assert on_nodes(memory).get(node) == stats.moved
            with nt.lazy(memory.words, node, **options) as migration:
                pass
            assert migration.stats.left == {Reason.AT_HOME: stats.moved}
            assert on_nodes(memory) == {node: 100}
            memory.expected[: 60 * WORDS : 64] += np.uint64(1)
            memory.check()


@pytest.mark.lab
@way
@pytest.mark.parametrize("targets", [(2, 3), (1, 2, 3)])
def test_to_several_nodes(options: dict[str, Any], targets: tuple[int, ...]) -> None:
    with Memory(300) as memory:
        memory.bind(0)
        with nt.lazy(memory.words, targets, **options) as migration:
            assert (memory.words[::WORDS] == memory.expected[::WORDS]).all()
        assert migration.stats.moved == 300, migration.stats
        placed = on_nodes(memory)
        assert set(placed) == set(targets)
        assert max(placed.values()) - min(placed.values()) <= 1, placed
        memory.check()
