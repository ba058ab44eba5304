"""`next_touch`: one thread fills an array, others work on it, and each page ends where it is worked on."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.mechanisms import service, way
from support.memory import (
    HANG,
    HUGE,
    PAGE_SIZE,
    WORDS,
    Memory,
    in_child,
    on_nodes,
    run_threads,
    settled,
    wait_moved,
)

import nexttouch as nt
from nexttouch import Reason

lab = pytest.mark.lab

SHARED = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
WINDOW = 64
KEPT = 0.01
"""Seconds for which the node of a thread is not asked again (_core/touchers.c)."""


def workers() -> tuple[int, int]:
    """Two nodes with CPUs and memory."""
    machine = nt.topology()
    first, second = [node.id for node in machine.nodes if node.cpus and node.has_memory][:2]
    return first, second


def go_to(node: int) -> None:
    """Keep the calling thread on the CPUs of `node`."""
    os.sched_setaffinity(0, nt.topology().node(node).cpus)


def on_node(node: int, work: Callable[[], object]) -> Callable[[], object]:
    """`work`, by a thread that runs on the CPUs of `node`."""

    def pinned() -> None:
        go_to(node)
        work()

    return pinned


def middle(memory: Memory) -> int:
    """A page near the middle where a window ends: windows are aligned by address, and none goes across."""
    number = memory.address // PAGE_SIZE
    return (number + memory.pages // 2) // WINDOW * WINDOW - number


def halves(memory: Memory) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    split = middle(memory)
    return memory.part(0, split), memory.part(split, memory.pages - split)


def increase(words: NDArray[np.uint64]) -> Callable[[], object]:
    """Add 1 to every word, page by page."""

    def work() -> None:
        for first in range(0, len(words), WORDS):
            words[first : first + WORDS] += np.uint64(1)

    return work


# ---- on two nodes ----


@lab
@way
@pytest.mark.parametrize("origin", [0, 1, 3])
def test_each_half_goes_to_its_worker(options: dict[str, Any], origin: int) -> None:
    """Wherever it was; what is on the right node already stays in its frames."""
    first, second = workers()
    with Memory(300) as memory:
        memory.bind(origin)
        before, split = memory.frames(), middle(memory)
        one, other = halves(memory)
        with nt.next_touch(memory.words, window=WINDOW, **options) as migration:
            assert migration.wait_armed(HANG)
            run_threads(on_node(first, increase(one)), on_node(second, increase(other)))
        assert memory.nodes().tolist() == [first] * split + [second] * (300 - split)
        home = {first: split, second: 300 - split}.get(origin, 0)
        stats = migration.stats
        assert (stats.moved_by_touch, stats.moved) == (300 - home, 300 - home)
        assert stats.left == ({Reason.AT_HOME: home} if home else {})
        stays = memory.frames() == before
        assert int(stays.sum()) == home
        memory.expected[:] += np.uint64(1)
        memory.check()


@lab
@service
def test_rows_of_an_array(options: dict[str, Any]) -> None:
    """As in the README: the first pass over the rows places them, but for a page in the middle, maybe a huge one."""
    first, second = workers()
    array = np.ones((1024, 1024))
    nt.move(array, 3)
    sums: dict[int, float] = {}

    def work(rows: NDArray[np.float64], node: int) -> Callable[[], object]:
        def add() -> None:
            sums[node] = float(rows.sum())  # reading is a touch

        return on_node(node, add)

    pages = nt.where(array).total.present
    assert nt.where(array).by_node == {3: pages}
    with nt.next_touch(array, **options) as migration:
        assert migration.wait_armed(HANG)
        run_threads(work(array[:512], first), work(array[512:], second))
    assert sums == {first: 512 * 1024.0, second: 512 * 1024.0}
    stats = migration.stats
    assert settled(stats, pages)
    assert stats.moved == pages - stats.left.get(Reason.PARTIAL, 0) >= pages - 2
    for rows, node in ((array[:512], first), (array[512:], second)):
        assert nt.where(rows).by_node[node] >= pages // 2 - HUGE
    assert sum(nt.where(array).by_node.get(node, 0) for node in (first, second)) == stats.moved


@lab
@service
def test_a_thread_that_changes_its_node(options: dict[str, Any]) -> None:
    first, second = workers()
    with Memory(120) as memory:
        memory.bind(2)

        def work() -> None:
            for part, node in enumerate((first, second, first)):
                go_to(node)
                until = time.monotonic() + 2 * KEPT
                while time.monotonic() < until:
                    pass
                increase(memory.part(part * 40, 40))()

        with nt.next_touch(memory.words, window=1, **options) as migration:
            assert migration.wait_armed(HANG)
            run_threads(work)
        assert memory.nodes().tolist() == [first] * 40 + [second] * 40 + [first] * 40
        assert migration.stats.moved_by_touch == 120
        memory.expected[:] += np.uint64(1)
        memory.check()


@lab
@service
def test_threads_that_take_turns_on_every_page(options: dict[str, Any]) -> None:
    """The first to touch a page decides; nobody moves it again."""
    first, second = workers()
    with Memory(128) as memory:
        memory.bind(2)
        even, odd = memory.table[::2], memory.table[1::2]

        def touch(rows: NDArray[np.uint64]) -> Callable[[], object]:
            def work() -> None:
                for page in range(len(rows)):
                    rows[page] += np.uint64(1)

            return work

        with nt.next_touch(memory.words, window=1, **options) as migration:
            assert migration.wait_armed(HANG)
            run_threads(on_node(first, touch(even)), on_node(second, touch(odd)))
            run_threads(on_node(second, touch(even)))
        assert memory.nodes().tolist() == [first, second] * 64
        assert migration.stats.moved_by_touch == 128
        memory.table[::2] -= np.uint64(1)
        memory.expected[:] += np.uint64(1)
        memory.check()


# ---- pages that nobody touches ----


@lab
@way
def test_what_nobody_touches_stays_when_the_block_ends(options: dict[str, Any]) -> None:
    first, _ = workers()
    with Memory(300) as memory:
        memory.bind(3)
        before, split = memory.frames(), middle(memory)
        with nt.next_touch(memory.words, window=WINDOW, **options) as migration:
            assert migration.wait_armed(HANG)
            run_threads(on_node(first, increase(memory.part(0, split))))
            wait_moved(migration, split)
            assert migration.stats.waiting == 300 - split
        assert migration.stats.left == {Reason.CANCELLED: 300 - split}
        assert on_nodes(memory) == {first: split, 3: 300 - split}
        assert (memory.frames() == before)[split:].all()
        memory.expected[: split * WORDS] += np.uint64(1)
        memory.check()


@way
def test_what_nobody_touches_until_the_deadline_stays(options: dict[str, Any]) -> None:
    with Memory(300) as memory:
        before = memory.frames()
        migration = nt.next_touch(memory.words, deadline=0, **options)
        assert migration.wait(HANG)
        assert (migration.stats.moved, migration.stats.left) == (0, {Reason.UNTOUCHED: 300})
        assert (memory.frames() == before).all()
        memory.check()


@lab
def test_what_has_no_trap_stays() -> None:
    """Nobody could see who touches it, and there is no node to send it to."""
    with Memory(30) as memory:
        memory.bind(3)
        memory.protect(mmap.PROT_READ, 10, 10)
        first, _ = workers()
        with nt.next_touch(memory.words, window=1) as migration:
            assert migration.wait_armed(HANG)
            run_threads(on_node(first, increase(memory.part(0, 10))))
        assert migration.stats.left == {Reason.CANCELLED: 20}
        assert on_nodes(memory) == {first: 10, 3: 20}


@way
def test_on_one_node_everything_is_at_home(options: dict[str, Any]) -> None:
    node, *_ = [node.id for node in nt.topology().nodes if node.cpus and node.has_memory]
    with Memory(100) as memory:
        memory.bind(node)
        before = memory.frames()
        with nt.next_touch(memory.words, **options) as migration:
            assert migration.wait_armed(HANG)
            run_threads(on_node(node, increase(memory.words)))
            assert migration.wait(HANG)
        assert (migration.stats.moved, migration.stats.left) == (0, {Reason.AT_HOME: 100})
        assert (memory.frames() == before).all()
        memory.expected[:] += np.uint64(1)
        memory.check()


# ---- memory that processes share ----


@lab
def test_shared_memory_goes_to_the_writers_of_this_process() -> None:
    """It is write-protected where only stores can be caught, so that a reader moves nothing there."""
    first, second = workers()
    block = SharedMemory(create=True, size=256 * PAGE_SIZE)
    try:
        assert block.buf
        words: NDArray[np.uint64] = np.frombuffer(block.buf, np.uint64)
        words[:] = np.arange(len(words), dtype=np.uint64)
        nt.move(words, 3)
        half = len(words) // 2
        with nt.next_touch(words, window=1, mechanism="write_protect") as migration:
            assert migration.wait_armed(HANG)
            run_threads(on_node(second, words.sum))
            assert migration.stats.faults == 0
            run_threads(on_node(first, increase(words[:half])), on_node(second, increase(words[half:])))
        assert migration.stats.moved_by_touch == 256
        assert nt.where(words[:half]).by_node == {first: 128}
        assert nt.where(words[half:]).by_node == {second: 128}
        assert (words == np.arange(1, len(words) + 1, dtype=np.uint64)).all()
        del words, migration
    finally:
        block.close()
        block.unlink()


@lab
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_pages_that_another_process_maps_too_stay() -> None:
    """What the other process writes meanwhile is no touch, and is seen here all the same."""
    first, _ = workers()
    with Memory(64, flags=SHARED) as memory:
        memory.bind(3)
        to_child, to_parent = os.pipe(), os.pipe()

        def child() -> bool:
            memory.table[:, 7] += np.uint64(1)  # maps every page here too
            os.write(to_parent[1], b"x")
            assert os.read(to_child[0], 1) == b"x"
            memory.table[:, 7] += np.uint64(1)
            os.write(to_parent[1], b"x")
            assert os.read(to_child[0], 1) == b"x"
            return True

        def meanwhile() -> None:
            assert os.read(to_parent[0], 1) == b"x"
            with nt.next_touch(memory.words, window=1) as migration:
                assert migration.wait_armed(HANG)
                os.write(to_child[1], b"x")
                assert os.read(to_parent[0], 1) == b"x"
                assert migration.stats.faults == 0
                run_threads(on_node(first, increase(memory.words)))
            os.write(to_child[1], b"x")
            assert (migration.stats.moved, migration.stats.left) == (0, {Reason.SHARED: 64})
            assert on_nodes(memory) == {3: 64}

        assert in_child(child, meanwhile)
        for end in (*to_child, *to_parent):
            os.close(end)
        memory.expected[:] += np.uint64(1)
        memory.expected.reshape(64, WORDS)[:, 7] += np.uint64(2)
        memory.check()


# ---- arguments ----


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"deadline": -0.5}, "deadline"),
        ({"deadline": "1s"}, "deadline"),
        ({"window": 0}, "window"),
        ({"window": 1.5}, "window"),
        ({"service": "fast"}, "service"),
        ({"mechanism": "eager"}, "mechanism"),
        ({"x": -1}, "pid"),
        ({"x": 1, "service": "inline"}, "service"),
        ({"x": True}, "x"),
        ({"x": np.empty(0)}, "x"),
        ({"x": None}, "x"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], name: str) -> None:
    call: dict[str, Any] = {"x": bytearray(8192)} | arguments
    with pytest.raises(nt.InvalidArgument, match=rf"^{name} ") as wrong:
        nt.next_touch(**call)
    assert wrong.value.argument == name


def test_an_integer_is_a_process(dead: int) -> None:
    with pytest.raises(nt.NoSuchProcess):
        nt.next_touch(dead)


_ELSEWHERE = """
import nexttouch as nt
array = nt.zeros(4 * 512)
array[:] = 1
try:
    nt.next_touch(array)
except nt.FeatureMissing as error:
    print(error)
with nt.next_touch(array, service="inline", deadline=0) as migration:
    pass
print(migration.stats.pages)
"""


def test_threads_that_cannot_be_found() -> None:
    """In a new pid namespace /proc still numbers threads as outside: another's CPU would be taken for theirs."""
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", _ELSEWHERE]
    if subprocess.run(["unshare", "--pid", "--fork", "true"], check=False, capture_output=True).returncode:
        pytest.skip("pid namespaces cannot be made here")
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True)
    assert done.stdout == (
        "the node of a thread that touches is not available: "
        "/proc is of another pid namespace than this process, and the same numbers mean other processes there; "
        "mount one of its own (mount -t proc proc /proc, or unshare --mount-proc), or enter the other namespace "
        "(nsenter --pid), or use service='inline' for private anonymous memory\n4\n"
    )
