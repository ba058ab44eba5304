"""Eager moves of real memory: of this machine, and between several nodes."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.holders import in_a_pipe, while_a_child_shares
from support.memory import HUGE, PAGE_SIZE, WORDS, Memory, accounted, on_nodes, run_threads, settled
from support.nodes import cpuset, filled
from support.swap import page_out

import nexttouch as nt
from nexttouch import Reason
from nexttouch.linux import pagecache
from nexttouch.linux.process import SELF
from nexttouch.live.mechanisms import named
from nexttouch.live.migration import Migration
from nexttouch.live.options import Options
from nexttouch.live.plan import make_plan

# ---- memory of this machine ----


@pytest.mark.parametrize("dry_run", [False, True])
def test_pages_at_home_stay(dry_run: bool) -> None:
    with Memory(100) as memory:
        memory.bind(0)
        before = memory.frames()
        result = nt.move(memory.words, 0, dry_run=dry_run)
        assert (result.pages, result.moved, result.left) == (100, 0, {Reason.AT_HOME: 100})
        assert (result.by_node, result.longest_call, result.dry_run) == ({0: 100}, 0.0, dry_run)
        assert (memory.frames() == before).all()
        memory.check()


def test_a_page_that_is_covered_in_part_counts() -> None:
    with Memory(10) as memory:
        memory.bind(0)
        part = memory.words[5 : 3 * WORDS + 1]
        assert nt.move(part, 0).left == {Reason.AT_HOME: 4}
        assert nt.move(memory.words[:1], 0).left == {Reason.AT_HOME: 1}


def test_holes_and_zero_pages_are_no_pages() -> None:
    with Memory(30, fill=False) as memory:
        memory.populate(0, 10)
        memory.populate(10, 10, read=True)
        assert nt.move(memory.words, 0).pages == 10
        assert (memory.nodes()[10:] < 0).all()  # and moving made none


# A program with memory of its own that it compares at its end.
PROGRAM = """
import mmap, sys
memory = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
words = b"".join(number.to_bytes(8, "little") for number in range(len(memory) // 8))
memory[:] = words
print("ready", flush=True)
sys.stdin.read()
print(memory[:] == words)
"""


@pytest.fixture
def program() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.parametrize("kind", [int, np.int64])
def test_a_process(program: subprocess.Popen[str], kind: type) -> None:
    result = nt.move(kind(program.pid), 0)
    assert accounted(result)
    assert result.pages > (4 << 20) // PAGE_SIZE
    assert program.communicate()[0] == "True\n"


def test_the_result_for_json() -> None:
    with Memory(10) as memory:
        memory.bind(0)
        found = json.loads(json.dumps(nt.move(memory.words, 0).to_dict()))
    assert found.pop("seconds") > 0
    assert found == {
        "pages": 10, "moved": 0, "left": {"at_home": 10}, "by_node": {"0": 10}, "longest_call": 0.0, "dry_run": False,
        "ended": "",
    }  # fmt: skip


# ---- several nodes ----


@pytest.mark.lab
def test_to_each_node_and_back() -> None:
    with Memory(300) as memory:
        memory.bind(0)
        for node in (1, 2, 3, 0):
            assert nt.move(memory.words, node, dry_run=True).moved == 300
            assert node not in on_nodes(memory)
            result = nt.move(memory.words, node)
            assert (result.pages, result.moved, result.left) == (300, 300, {})
            assert result.by_node == on_nodes(memory) == {node: 300}
            assert 0 < result.longest_call <= result.seconds
            memory.check()
            before = memory.frames()
            again = nt.move(memory.words, node)
            assert (again.moved, again.left) == (0, {Reason.AT_HOME: 300})
            assert (memory.frames() == before).all()


@pytest.mark.lab
@pytest.mark.parametrize("targets", [(2, 3), (3, 2, 1), (0, 1, 2, 3)])
def test_to_several_nodes(targets: tuple[int, ...]) -> None:
    with Memory(300) as memory:
        memory.bind(0)
        result = nt.move(memory.words, targets)
        turns = (memory.address // PAGE_SIZE + np.arange(300)) % len(targets)
        wanted = np.array(targets)[turns] if 0 not in targets else np.zeros(300)  # a page on one of them stays
        assert (memory.nodes() == wanted).all()
        assert result.by_node == on_nodes(memory)
        before = memory.frames()
        assert nt.move(memory.words, targets).left == {Reason.AT_HOME: 300}
        assert (memory.frames() == before).all()
        memory.check()


@pytest.mark.lab
def test_holes_and_zero_pages_stay_what_they_are() -> None:
    with Memory(30, fill=False) as memory:
        for page in range(0, 20, 2):
            memory.part(page, 1)[:] = memory.expected[page * WORDS : (page + 1) * WORDS]
        memory.populate(20, 5, read=True)
        nt.move(memory.words, 0)
        result = nt.move(memory.words, 1)
        assert (result.pages, result.moved, result.by_node) == (10, 10, {1: 10})
        assert np.flatnonzero(memory.nodes() == 1).tolist() == list(range(0, 20, 2))
        memory.expected.reshape(30, WORDS)[1:20:2] = 0
        memory.expected.reshape(30, WORDS)[20:] = 0
        memory.check()


@pytest.mark.lab
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_shared_pages_stay_unless_asked_for() -> None:
    with Memory(64) as memory:
        memory.bind(0)

        def meanwhile() -> None:
            memory.part(0, 10)[::WORDS] += np.uint64(0)  # copied: these are this process's own
            memory.bind(0, 0, 10)
            for dry_run in (True, False):
                result = nt.move(memory.words, 2, dry_run=dry_run)
                assert (result.moved, result.left) == (10, {Reason.SHARED: 54})
            assert on_nodes(memory) == {0: 54, 2: 10}
            result = nt.move(memory.words, 3, shared=True)
            assert (result.moved, result.left) == (64, {})
            assert on_nodes(memory) == {3: 64}

        while_a_child_shares(meanwhile, memory)
        memory.check()


@pytest.mark.lab
@pytest.mark.parametrize("targets", [(1,), (1, 2)])
def test_pages_that_somebody_holds_stay_and_nothing_else(targets: tuple[int, ...]) -> None:
    with Memory(200) as memory:
        memory.bind(0)
        with in_a_pipe(memory, 30, 5), in_a_pipe(memory, 199, 1):
            result = nt.move(memory.words, targets)
            assert (result.moved, result.left) == (194, {Reason.BUSY: 6})
            assert np.flatnonzero(memory.nodes() == 0).tolist() == [*range(30, 35), 199]
            memory.check()
        result = nt.move(memory.words, targets)
        assert (result.moved, result.left) == (6, {Reason.AT_HOME: 194})
        memory.check()


@pytest.mark.lab
def test_huge_pages_stay_huge() -> None:
    with Memory(3 * HUGE, huge=True) as memory:
        if memory.huge_pages() < 3 * HUGE:
            pytest.skip("the kernel gave no huge pages")
        nt.move(memory.words, 0)
        result = nt.move(memory.words, 2)
        assert (result.pages, result.moved, result.left) == (3 * HUGE, 3 * HUGE, {})
        assert on_nodes(memory) == {2: 3 * HUGE}
        assert memory.huge_pages() == 3 * HUGE
        assert nt.move(memory.part(HUGE, 1), 1).moved == 1  # one page of a huge one takes the others along
        assert on_nodes(memory) == {1: HUGE, 2: 2 * HUGE}
        memory.check()


@pytest.mark.lab
def test_contents_under_writers() -> None:
    """Two threads count in two words of each page while all of it goes round the nodes."""
    pages = 256
    over = threading.Event()
    written: Counter[int] = Counter()
    with Memory(pages) as memory:

        def write(column: int) -> None:
            while not over.is_set():
                memory.table[:, column] += 1
                written[column] += 1

        def migrate() -> None:
            try:
                for node in (1, 2, 3, 0, 3, 1):
                    result = nt.move(memory.words, node, latency=1e-4)
                    assert accounted(result)
                    assert set(result.left) <= {Reason.AT_HOME, Reason.BUSY}
                    assert result.by_node[node] == pages - result.left[Reason.BUSY]
            finally:
                over.set()

        run_threads(migrate, lambda: write(3), lambda: write(500))
        for column, times in written.items():
            memory.expected.reshape(pages, WORDS)[:, column] += np.uint64(times)
        memory.check()


@pytest.mark.lab
def test_all_of_another_process(program: subprocess.Popen[str]) -> None:
    for node in (2, 1):
        result = nt.move(program.pid, node)
        assert accounted(result)
        assert result.left[Reason.BUSY] + result.left[Reason.TARGET_FULL] == 0
        stays = result.pages - result.moved - result.left[Reason.AT_HOME]  # of libraries, mostly
        assert result.moved >= (4 << 20) // PAGE_SIZE
        assert result.by_node[node] >= result.pages - stays
        own = [part.counts for part in nt.where(program.pid).mappings if part.counts.present >= (4 << 20) // PAGE_SIZE]
        assert own
        assert all(set(counts.by_node) == {node} for counts in own if not counts.shared)
    again = nt.move(program.pid, 1)
    assert again.moved <= 8  # of what it shares with others there may be something new
    assert program.communicate()[0] == "True\n"


@pytest.mark.lab
def test_a_process_that_may_not_use_a_node(program: subprocess.Popen[str], tmp_path: Path) -> None:
    with cpuset(tmp_path, "0-1") as group:
        (group / "cgroup.procs").write_text(str(program.pid))
        before = nt.where(program.pid).by_node
        with pytest.raises(nt.NodeUnavailable, match=f"the cpuset of process {program.pid} allows 0-1") as caught:
            nt.move(program.pid, (1, 2))
        assert caught.value.node == 2
        assert nt.where(program.pid).by_node == before
        assert nt.move(program.pid, 1).by_node[1] >= (4 << 20) // PAGE_SIZE
        assert program.communicate()[0] == "True\n"


@pytest.mark.lab
def test_nodes_that_are_full() -> None:
    pages = 8192
    with Memory(pages) as memory, filled(3):
        memory.bind(0)
        for targets, room in (((3, 1), pages // 2), ((1, 3), pages // 2), ((3,), 0)):
            nt.move(memory.words, 0)
            result = nt.move(memory.words, targets)
            assert accounted(result)
            assert set(result.left) == {Reason.TARGET_FULL}
            assert result.left[Reason.TARGET_FULL] == on_nodes(memory)[0]
            assert on_nodes(memory).get(1, 0) == room  # all that is for another node has moved
        memory.check()


# ---- pages in swap ----


@pytest.mark.parametrize("dry_run", [False, True])
def test_pages_in_swap_are_counted_and_stay(swap: None, dry_run: bool) -> None:
    with Memory(60) as memory:
        memory.bind(0)
        page_out(memory, 10, 20)
        result = nt.move(memory.words, 0, dry_run=dry_run)
        assert (result.pages, result.left) == (60, {Reason.AT_HOME: 40, Reason.SWAPPED: 20})
        assert nt.where(memory.words).total.swapped == 20
        memory.check()


def test_pages_that_a_lazy_move_finds_in_swap(swap: None) -> None:
    with Memory(60) as memory:
        page_out(memory, 10, 20)
        with nt.lazy(memory.words, 0, always=True) as migration:
            pass
        assert migration.stats.left == {Reason.SWAPPED: 20}
        assert settled(migration.stats, 60)
        memory.check()


@pytest.mark.parametrize("first", [0, 10])
def test_shared_memory_in_swap_has_no_entries_and_is_counted(
    swap: None, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells how much of a mapping is in swap; of a part of it, what does not fit into the rest."""
    nothing = np.zeros(60, np.bool_)
    monkeypatch.setattr(pagecache, "_in_memory", lambda start, pages: nothing[:pages])  # not in the swap cache either
    with Memory(60, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) as memory:
        memory.bind(0)
        page_out(memory, 0, 40, shared=True)
        part, swapped = memory.part(first, 60 - first), 40 - first
        assert nt.where(part).total.swapped == swapped
        for dry_run in (True, False):
            result = nt.move(part, 0, dry_run=dry_run)
            assert (result.pages, result.left) == (20 + swapped, {Reason.AT_HOME: 20, Reason.SWAPPED: swapped})
        with nt.lazy(part, 0) as migration:
            pass
        assert migration.stats.left == {Reason.AT_HOME: 20, Reason.SWAPPED: swapped}
        memory.check()


@pytest.mark.parametrize("dry_run", [True, False])
def test_shared_memory_that_is_in_swap_and_in_memory_still_is_counted_once(swap: None, dry_run: bool) -> None:
    with Memory(60, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) as memory:
        memory.bind(0)
        page_out(memory, 0, 40, shared=True)
        result = nt.move(memory.words, 0, dry_run=dry_run)
        assert accounted(result)
        assert (result.pages, result.moved) == (60, 0)
        assert result.left[Reason.AT_HOME] >= 20
        memory.check()


def test_pages_that_go_to_swap_before_their_turn(swap: None) -> None:
    with Memory(60) as memory:
        span = [(memory.address, memory.at(60))]
        plan = make_plan(SELF, span, (0,), mechanism=named("write_protect"), always=True)
        page_out(memory, 10, 20)
        memory.advise(mmap.MADV_DONTNEED, 50, 2)
        with Migration(plan, Options()) as migration:
            pass
        assert migration.stats.left == {Reason.SWAPPED: 20, Reason.ABSENT: 2}
        assert settled(migration.stats, 60)
        memory.part(50, 2)[:] = memory.expected.reshape(60, WORDS)[50:52].ravel()
        memory.check()
