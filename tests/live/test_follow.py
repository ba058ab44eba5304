"""Memory that follows its users: what a round counts and moves, by a kernel that is made up, and then by this one."""

from __future__ import annotations

import math
import mmap
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.memory import HANG, PAGE_SIZE
from targets.programs import compiled, descriptors, leftovers, steady

import nexttouch as nt
from nexttouch.errors import InvalidArgument, KernelError, NexttouchError, NoSuchProcess
from nexttouch.linux import procfs
from nexttouch.linux.process import Process
from nexttouch.linux.procfs import Kind, Mapping
from nexttouch.live import attach, eager, follow
from nexttouch.live.eager import MoveResult
from nexttouch.live.follow import MOST_MOVES, Follower, Round
from nexttouch.live.pages import Pages
from nexttouch.live.reason import Reason
from nexttouch.policy import STAY

BASE = 1 << 40


# ---- a kernel that is made up ----


class World:
    """The pages of a program: on which node each is, how large, by the threads of which node it is touched.

    Those of `stuck` cannot be moved; if `error` is set, none can.
    """

    def __init__(self) -> None:
        self.nodes: dict[int, int] = {}
        self.units: dict[int, int] = {}
        self.touches: dict[int, int] = {}
        self.stuck: set[int] = set()
        self.error: NexttouchError | None = None
        self.moved: dict[int, int] = {}

    def add(self, count: int, node: int, *, unit: int = 1) -> list[int]:
        """Make `count` pages of `unit` small ones each, behind those that there are; return their addresses."""
        first = max((address + self.units[address] * PAGE_SIZE for address in self.nodes), default=BASE)
        added = [first + number * unit * PAGE_SIZE for number in range(count)]
        self.nodes |= dict.fromkeys(added, node)
        self.units |= dict.fromkeys(added, unit)
        return added

    def observe(self, process: Process, *, window: int, mechanism: str | None) -> Any:
        """What a round sees: where pages were as it began, and who has touched them by its end."""
        places = dict(sorted(self.nodes.items()))
        pages = Pages(
            np.array(list(places), np.uint64),
            np.array([self.units[address] for address in places], np.uint32),
            np.array(list(places.values()), np.int32),
        )

        def touches() -> tuple[Pages, NDArray[np.int16]]:
            return pages, np.array([self.touches.get(address, STAY) for address in places], np.int16)

        return SimpleNamespace(
            wait_armed=lambda: True,
            cancel=process.close,
            stats=SimpleNamespace(stopped=0.5),
            _running=SimpleNamespace(touches=touches),
        )

    def move_pages(self, _: Process, pages: Pages, wanted: NDArray[np.int16]) -> MoveResult:
        if self.error:
            return MoveResult(pages.count, left=Counter({Reason.UNREACHED: pages.count}), ended=self.error)
        result = MoveResult(pages.count)
        for address, node in zip(pages.addresses.tolist(), wanted.tolist(), strict=True):
            if address in self.stuck:
                result.left[Reason.BUSY] += self.units[address]
            else:
                self.moved[address] = self.nodes[address] = node
                result.moved += self.units[address]
        return result


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(follow, "observe", made.observe)
    monkeypatch.setattr(eager, "move_pages", made.move_pages)
    return made


@pytest.fixture
def follower(world: World) -> Iterator[Follower]:
    with Follower(os.getpid()) as made:
        yield made


def after(world: World, follower: Follower, touches: dict[int, int]) -> Round:
    """A round in which this was touched from these nodes."""
    follower.arm()
    world.touches, world.moved = touches, {}
    return follower.move()


def test_what_a_round_counts(world: World, follower: Follower) -> None:
    here, there, large = world.add(10, 0), world.add(10, 1), world.add(2, 2, unit=512)
    found = after(world, follower, dict.fromkeys([*here[:3], *there[:2]], 0) | {there[2]: 1, large[0]: 3})
    assert found == Round(
        number=1,
        pages=20 + 2 * 512,
        touched=3 + 2 + 1 + 512,
        by_node={0: 5, 1: 1, 3: 512},
        remote=2 + 512,
        stopped=0.5,
    )
    assert after(world, follower, {}) == Round(number=2, pages=20 + 2 * 512, stopped=0.5)


def test_a_page_moves_when_the_same_node_has_touched_it_in_two_rounds(world: World, follower: Follower) -> None:
    pages = world.add(4, 0)
    assert after(world, follower, dict.fromkeys(pages[:3], 1)).moved == 0
    assert after(world, follower, {pages[0]: 1, pages[1]: 2, pages[3]: 1}).moved == 1
    assert world.moved == {pages[0]: 1}
    assert after(world, follower, {pages[0]: 1, pages[1]: 2, pages[2]: 1}).moved == 2
    assert world.moved == {pages[1]: 2, pages[2]: 1}, "the rounds in which a page is not touched do not count"


def test_a_page_that_was_not_there_in_a_round_is_a_new_one(world: World, follower: Follower) -> None:
    (page,) = world.add(1, 0)
    after(world, follower, {page: 1})
    world.nodes.clear()
    after(world, follower, {})
    world.nodes[page] = 0
    assert after(world, follower, {page: 1}).moved == 0
    assert after(world, follower, {page: 1}).moved == 1


@pytest.mark.parametrize(
    ("most", "moved"), [(1, 1), (PAGE_SIZE, 1), (3.5 * PAGE_SIZE, 3), (8 * PAGE_SIZE, 8), (math.inf, 8)]
)
def test_a_round_moves_no_more_than_it_may(world: World, most: float, moved: int) -> None:
    pages = world.add(8, 0)
    with Follower(os.getpid(), most=most) as follower:
        after(world, follower, dict.fromkeys(pages, 1))
        found = after(world, follower, dict.fromkeys(pages, 1))
        assert (found.moved, found.held_back) == (moved, 8 - moved)
        assert sorted(world.moved) == pages[:moved]
        found = after(world, follower, dict.fromkeys(pages, 1))
        assert sorted(world.moved) == pages[moved : 2 * moved], "the next round goes on where the last one ended"


def test_a_huge_page_that_is_more_than_a_round_may_move_moves_alone(world: World) -> None:
    pages = [*world.add(2, 0, unit=512), *world.add(3, 0)]
    with Follower(os.getpid(), most=4 * PAGE_SIZE) as follower:
        after(world, follower, dict.fromkeys(pages, 1))
        rounds = [after(world, follower, dict.fromkeys(pages, 1)) for _ in range(4)]
    assert [(found.moved, found.held_back) for found in rounds] == [(512, 515), (512, 3), (3, 0), (0, 0)]


def test_pages_that_go_to_and_fro_stay_and_are_named(
    world: World, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, nameless, gone = world.add(3, 0), world.add(2, 0), world.add(1, 0)
    mappings = [mapping(named, "/dev/shm/queue"), mapping(nameless, "")]
    monkeypatch.setattr(procfs, "mappings", lambda _: mappings)
    pages = [*named, *nameless, *gone]
    after(world, follower, dict.fromkeys(pages, 1))
    for number in range(MOST_MOVES):
        node = 1 - number % 2
        assert after(world, follower, dict.fromkeys(pages, node)).moved == 6
        found = after(world, follower, dict.fromkeys(pages, 1 - node))
        assert found.moved == 0
    assert found.ping_pong == {"/dev/shm/queue": 3, "anonymous": 2}
    found = after(world, follower, dict.fromkeys(pages, 1 - node))
    assert (found.moved, found.ping_pong) == (0, {"/dev/shm/queue": 3, "anonymous": 2})


def mapping(pages: list[int], path: str) -> Mapping:
    return Mapping(pages[0], pages[-1] + PAGE_SIZE, True, True, False, False, 0, 0, 0, path, Kind.ANONYMOUS)


def test_a_page_that_cannot_move_has_a_reason_and_does_not_go_to_and_fro(world: World, follower: Follower) -> None:
    pages = world.add(2, 0)
    world.stuck = set(pages[:1])
    after(world, follower, dict.fromkeys(pages, 1))
    found = after(world, follower, dict.fromkeys(pages, 1))
    assert (found.moved, found.left) == (1, {Reason.BUSY: 1})
    for _ in range(MOST_MOVES):
        found = after(world, follower, dict.fromkeys(pages, 1))
        assert (found.left, found.ping_pong) == ({Reason.BUSY: 1}, {})
    world.stuck.clear()
    assert after(world, follower, dict.fromkeys(pages, 1)).moved == 1


def test_what_keeps_all_pages_from_moving_is_raised(world: World, follower: Follower) -> None:
    pages = world.add(2, 0)
    after(world, follower, dict.fromkeys(pages, 1))
    world.error = KernelError("move_pages", 1)
    with pytest.raises(KernelError):
        after(world, follower, dict.fromkeys(pages, 1))
    world.error = NoSuchProcess(1)
    found = after(world, follower, dict.fromkeys(pages, 1))
    assert (found.moved, found.left) == (0, {Reason.UNREACHED: 2})


class Plain:
    """A follower as a loop over pages."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.pages: dict[int, tuple[int, int, int]] = {}  # on which node, last touched from which, moved how often

    def round(self, world: World) -> tuple[dict[int, int], int, int]:
        """What moves where, how many are held back, and how many stay as they went to and fro; counts of pages."""
        pages: dict[int, tuple[int, int, int]] = {}
        moved: dict[int, int] = {}
        taken = held_back = often = 0
        for page, node in sorted(world.nodes.items()):
            was, last, moves = self.pages.get(page, (node, STAY, 0))
            moves += was != node
            now = world.touches.get(page, STAY)
            pages[page] = (node, last if now == STAY else now, moves)
            often += world.units[page] * (moves >= MOST_MOVES)
            if now == last != STAY and now != node and moves < MOST_MOVES:
                taken += world.units[page]
                if taken <= self.most or not moved:
                    moved[page] = now
                else:
                    held_back += world.units[page]
        self.pages = pages
        return moved, held_back, often


@pytest.mark.parametrize("seed", range(20))
def test_against_a_loop_over_pages(world: World, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    everything = [Mapping(BASE, 1 << 46, True, True, False, False, 0, 0, 0, "heap", Kind.HEAP)]
    monkeypatch.setattr(procfs, "mappings", lambda _: everything)
    most = chance.choice([4, 600, 1 << 30])
    plain = Plain(most)
    with Follower(os.getpid(), most=most * PAGE_SIZE) as follower:
        for number in range(1, 30):
            for page in chance.sample(sorted(world.nodes), len(world.nodes) // 10):
                del world.nodes[page]
            world.add(chance.randrange(20), chance.randrange(3), unit=chance.choice([1, 1, 512]))
            habits = chance.choice([1, 3])
            touches = {
                page: (page // PAGE_SIZE + number // 4) % habits for page in world.nodes if chance.random() < 0.8
            }
            world.stuck = {page for page in world.nodes if page // PAGE_SIZE % 11 == 0}
            follower.arm()
            world.touches, world.moved = touches, {}
            to_move, held_back, often = plain.round(world)
            found = follower.move()
            assert world.moved == {page: node for page, node in to_move.items() if page not in world.stuck}
            assert found.number == number
            assert found.moved == sum(world.units[page] for page in world.moved)
            assert found.held_back == held_back
            assert sum(found.ping_pong.values()) == often


def test_as_json() -> None:
    names = {"[heap]": 2, "/dev/shm/\x1bq": 1}
    made = Round(2, pages=3, by_node={0: 1}, left=Counter({Reason.BUSY: 1}), ping_pong=names)
    assert made.to_dict() == {
        "number": 2,
        "pages": 3,
        "touched": 0,
        "by_node": {0: 1},
        "remote": 0,
        "moved": 0,
        "held_back": 0,
        "left": {"busy": 1},
        "ping_pong": {"[heap]": 2, r"/dev/shm/\x1bq": 1},
        "stopped": 0.0,
    }


# ---- this kernel ----

PAGES = 64

PROGRAM = f"""
import ctypes, mmap, sys
memory = mmap.mmap(-1, {PAGES * PAGE_SIZE}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise({mmap.MADV_NOHUGEPAGE})
memory[:] = b"\\1" * len(memory)
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
for line in sys.stdin:
    for page in map(int, line.split()):
        memory[page * {PAGE_SIZE}] = 2
    print("done", flush=True)
"""


class Storing:
    """A program that stores to those of its pages that it is told, on one CPU."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self.start = int(self._line())
        cpu = min(os.sched_getaffinity(0))
        os.sched_setaffinity(self.pid, {cpu})
        self.node = int(nt.topology().cpu_nodes()[cpu])

    def store(self, *pages: int) -> None:
        assert self.process.stdin
        self.process.stdin.write(" ".join(map(str, pages)) + "\n")
        self.process.stdin.flush()
        assert self._line() == "done\n"

    def end(self) -> None:
        self.process.kill()
        self.process.wait(HANG)

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()


@pytest.fixture
def program() -> Iterator[Storing]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=pipe, stdout=pipe, text=True) as process:
        yield Storing(process)
        process.kill()


@pytest.mark.parametrize("stored", [[], [0], [0, 5, 6, 63], [*range(PAGES)]], ids=len)
def test_which_pages_were_touched_is_known_page_by_page(program: Storing, stored: list[int]) -> None:
    migration = attach.observe(Process.open(program.pid, needs_pidfd=True), window=1)
    assert migration.wait_armed(HANG)
    program.store(*stored)
    migration.cancel()
    pages, touched = migration._running.touches()
    inside = (pages.addresses >= program.start) & (pages.addresses < program.start + PAGES * PAGE_SIZE)
    assert pages.addresses[inside].tolist() == [program.start + page * PAGE_SIZE for page in range(PAGES)]
    assert touched[inside].tolist() == [program.node if page in stored else STAY for page in range(PAGES)]
    assert migration.stats.left[Reason.TOUCHED] == (touched != STAY).sum()
    assert migration.stats.moved == 0
    assert leftovers(program.pid) == []


def test_a_touch_speaks_for_its_window(program: Storing) -> None:
    migration = attach.observe(Process.open(program.pid, needs_pidfd=True), window=16)
    assert migration.wait_armed(HANG)
    program.store(0, 40)
    migration.cancel()
    pages, touched = migration._running.touches()
    inside = (pages.addresses >= program.start) & (pages.addresses < program.start + PAGES * PAGE_SIZE)
    seen = np.flatnonzero(touched[inside] != STAY).tolist()
    assert {0, 40} <= set(seen)
    assert len(seen) <= 2 * 16
    assert set(touched[inside].tolist()) <= {program.node, STAY}


def test_rounds_of_a_program(program: Storing) -> None:
    """Whose memory is where its threads are."""
    before = descriptors(program.pid)
    with Follower(program.pid, window=1) as follower:
        for number in (1, 2):
            follower.arm()
            assert leftovers(program.pid) != []
            program.store(*range(PAGES))
            found = follower.move()
            assert leftovers(program.pid) == []
            assert found.number == number
            assert found.pages >= found.touched >= found.by_node[program.node] >= PAGES
            assert found.stopped > 0
        assert not follower.process_ended
    assert descriptors(program.pid) == before


def test_a_program_that_works_on_meanwhile(tmp_path: Path) -> None:
    with steady(compiled("steady", tmp_path)) as (busy, _), Follower(busy.pid) as follower:
        for _ in range(3):
            follower.arm()
            busy.advance()
            assert follower.move().touched > 0
            busy.check()


def test_the_end_of_a_follower_ends_its_round(program: Storing) -> None:
    before = descriptors(program.pid)
    with Follower(program.pid) as follower:
        follower.arm()
    assert leftovers(program.pid) == []
    assert descriptors(program.pid) == before
    follower.close()


@pytest.mark.parametrize("reaped", [True, False])
def test_a_program_that_ends(program: Storing, reaped: bool) -> None:
    with Follower(program.pid) as follower:
        follower.arm()
        program.process.kill()
        if reaped:
            program.process.wait(HANG)
        else:
            os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        assert follower.process_ended
        found = follower.move()
        assert (found.number, found.moved) == (1, 0)
        with pytest.raises(NoSuchProcess):
            follower.arm()


def test_a_round_that_is_not_under_way(program: Storing) -> None:
    with Follower(program.pid) as follower:
        with pytest.raises(InvalidArgument, match="call `arm` first"):
            follower.move()
        follower.arm()
        follower.move()
        with pytest.raises(InvalidArgument, match="call `arm` first"):
            follower.move()


@pytest.mark.parametrize("most", [0, -1, "64KiB", True, float("nan")])
def test_a_wrong_cap(most: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^most ") as wrong:
        Follower(os.getpid(), most=most)
    assert wrong.value.argument == "most"


def test_no_process(dead: int) -> None:
    with pytest.raises(NoSuchProcess):
        Follower(dead)


@pytest.mark.parametrize(("options", "name"), [({"window": 0}, "window"), ({"mechanism": "relocate"}, "mechanism")])
def test_what_a_round_is_refused_for_is_named_and_leaves_nothing(
    program: Storing, options: dict[str, Any], name: str
) -> None:
    mine = descriptors(os.getpid())
    with Follower(program.pid, **options) as follower, pytest.raises(InvalidArgument, match=rf"^{name} "):
        follower.arm()
    assert descriptors(os.getpid()) == mine
