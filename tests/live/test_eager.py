"""`move`: every page is moved, or stays for the one reason that holds for it, and no call holds anybody up for long."""

from __future__ import annotations

import errno
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.memory import PAGE_SIZE, accounted
from targets.programs import until

import nexttouch as nt
from nexttouch import Reason, placement
from nexttouch.linux import mempolicy, occupied, pagemap
from nexttouch.linux.process import SELF, Process
from nexttouch.live import eager
from nexttouch.live.eager import MoveResult
from nexttouch.live.pages import Pages
from nexttouch.live.target import wanted_nodes

BASE = 1 << 40
FOREVER = math.inf


# ---- a kernel that fails on purpose ----


class Clock:
    """Time that passes only while the kernel works or somebody sleeps; it stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.naps.append(seconds)
        self.now += seconds


class Kernel:
    """move_pages(2) as do_pages_move of mm/migrate.c does it.

    `where` has the node, or -errno, of each page. An attempt on a page fails as often as `held` says (its status is
    EBUSY) or `stuck` (the call returns a number, and the statuses of its run stay unwritten). `refused` has a status
    that a page always gets; pages of `freed` are gone once they were tried, and in swap if `swapped` has them, too;
    `room` is how many pages a node has left.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.where: dict[int, int] = {}
        self.units: dict[int, int] = {}
        self.held: dict[int, float] = {}
        self.stuck: dict[int, float] = {}
        self.refused: dict[int, int] = {}
        self.freed: set[int] = set()
        self.swapped: set[int] = set()
        self.room: dict[int, float] = {}
        self.page_cost = 1e-6
        self.call_cost = 1e-5
        self.calls: list[list[int]] = []
        self.durations: list[float] = []

    def add(self, count: int, node: int, *, unit: int = 1) -> list[int]:
        """Make `count` units on `node`, behind those that there are; return their addresses."""
        first = max((address + self.units[address] * PAGE_SIZE for address in self.where), default=BASE)
        size = unit * PAGE_SIZE
        added = [-(-first // size) * size + number * size for number in range(count)]
        self.where |= dict.fromkeys(added, node)
        self.units |= dict.fromkeys(added, unit)
        return added

    def pages(self) -> Pages:
        """What looking for them finds now."""
        return Pages(
            np.array(list(self.where), np.uint64),
            np.array(list(self.units.values()), np.uint32),
            np.array(list(self.where.values()), np.int32),
        )

    def entries(self, _: int, start: int, pages: int) -> NDArray[np.uint64]:
        """What pagemap shows of pages that are gone."""
        words = [int(pagemap.SWAP) * (start + page * PAGE_SIZE in self.swapped) for page in range(pages)]
        return np.array(words, np.uint64)

    def move_pages(
        self, _: Process, addresses: NDArray[np.uint64], nodes: NDArray[np.int32] | None, flags: int = mempolicy.MOVE
    ) -> tuple[int, NDArray[np.int32]]:
        pages = addresses.tolist()
        if nodes is None:
            return 0, np.array([self.where[page] for page in pages], np.int32)
        began = self.clock.now
        self.calls.append(pages)
        self.clock.now += self.call_cost + self.page_cost * sum(self.units[page] for page in pages)
        self.durations.append(self.clock.now - began)
        status = np.full(len(pages), mempolicy.UNWRITTEN, np.int32)
        return self._moved(pages, nodes.tolist(), status), status

    def failing(self, error: Exception, calls: int) -> Callable[..., Any]:
        """move_pages that fails as a whole after so many calls that move."""

        def move_pages(*arguments: Any) -> Any:
            if arguments[2] is not None and len(self.calls) == calls:
                raise error
            return self.move_pages(*arguments)

        return move_pages

    # Pages of one node in a row are queued and moved together; a page that is not queued ends the run.
    def _moved(self, pages: list[int], nodes: list[int], status: NDArray[np.int32]) -> int:
        queue: list[int] = []
        start, current = 0, -1
        for index, (page, node) in enumerate(zip(pages, nodes, strict=True)):
            if current >= 0 and node != current:
                if failed := self._flush(queue, current, status[start:index]):
                    return failed + len(pages) - index
                start, current = index, node
            elif current < 0:
                start, current = index, node
            if answer := self._isolated(page):
                status[index] = answer
                if failed := self._flush(queue, current, status[start:index]):
                    return failed + len(pages) - index - 1
                current = -1
            else:
                queue.append(page)
        return self._flush(queue, current, status[start:]) if queue else 0

    def _isolated(self, page: int) -> int:
        if self.held.get(page, 0) > 0:
            self.held[page] -= 1
            return -errno.EBUSY
        return self.refused.get(page, 0)

    def _flush(self, queue: list[int], node: int, status: NDArray[np.int32]) -> int:
        failed = 0
        for page in queue:
            if page in self.freed:
                self.where[page] = -errno.ENOENT
                failed += 1
            elif self.stuck.get(page, 0) > 0:
                self.stuck[page] -= 1
                failed += 1
            elif self.room.get(node, FOREVER) < self.units[page]:
                raise nt.KernelError("move_pages", errno.ENOMEM, "a target node is full")
            else:
                self.room[node] = self.room.get(node, FOREVER) - self.units[page]
                self.where[page] = node
        queue.clear()
        if not failed:
            status[:] = node
        return failed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(eager, "time", clock)
    return clock


@pytest.fixture
def kernel(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(clock)
    monkeypatch.setattr(mempolicy, "move_pages", kernel.move_pages)
    monkeypatch.setattr(pagemap, "entries", kernel.entries)
    monkeypatch.setattr(occupied, "_in_swapped_mapping", lambda pid, addresses: np.ones(len(addresses), np.bool_))
    return kernel


def moved(kernel: Kernel, *targets: int, **options: Any) -> MoveResult:
    before = len(kernel.calls)
    process = options.pop("process", SELF)
    pages = kernel.pages()
    result = eager.move_pages(process, pages, wanted_nodes(pages, targets), **options)
    assert accounted(result)
    assert result.pages == sum(kernel.units.values())
    assert result.longest_call == pytest.approx(max(kernel.durations[before:], default=0.0))
    return result


# ---- which pages, and why not ----


def test_every_page_in_one_go(kernel: Kernel) -> None:
    pages = kernel.add(64, 0)
    result = moved(kernel, 1)
    assert (result.moved, result.left) == (64, {})
    assert kernel.calls == [pages]
    assert set(kernel.where.values()) == {1}


def test_what_is_at_home_is_not_touched(kernel: Kernel) -> None:
    kernel.add(10, 1)
    away = kernel.add(3, 0)
    result = moved(kernel, 1)
    assert (result.moved, result.left) == (3, {Reason.AT_HOME: 10})
    assert kernel.calls == [away]
    assert moved(kernel, 1).left == {Reason.AT_HOME: 13}
    assert len(kernel.calls) == 1


def test_nothing_at_all(kernel: Kernel) -> None:
    assert moved(kernel, 1) == MoveResult()
    assert kernel.calls == []


@pytest.mark.parametrize("flags", [mempolicy.MOVE, mempolicy.MOVE_ALL])
def test_a_dry_run_only_counts(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, flags: int) -> None:
    kernel.add(10, 1)
    kernel.add(2, 0, unit=512)
    kernel.add(3, -errno.ENOENT)
    often = {*list(kernel.where)[8:10], *kernel.add(4, 0)}
    monkeypatch.setattr(
        placement, "mapped_often", lambda _, addresses: np.array([page in often for page in addresses.tolist()])
    )
    result = moved(kernel, 1, dry_run=True, flags=flags)
    shared = {Reason.SHARED: 4} if flags == mempolicy.MOVE else {}
    expected = {Reason.AT_HOME: 10, Reason.ABSENT: 3, **shared}
    assert (result.moved, result.left, result.dry_run) == (1028 - sum(shared.values()), expected, True)
    assert kernel.calls == []


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (-errno.EACCES, Reason.SHARED),
        (-errno.ENOENT, Reason.ABSENT),
        (-errno.ENOMEM, Reason.TARGET_FULL),
        (-errno.EFAULT, Reason.UNSUITABLE),
        (-errno.EIO, Reason.UNSUITABLE),
    ],
    ids=lambda value: errno.errorcode[-value] if isinstance(value, int) and value < 0 else "",
)
def test_the_reason_of_each_status(kernel: Kernel, status: int, reason: Reason) -> None:
    pages = kernel.add(64, 0)
    kernel.refused[pages[20]] = status
    result = moved(kernel, 1)
    assert (result.moved, result.left) == (63, {reason: 1})
    assert len(kernel.calls) == 1  # a status is an answer: nothing to ask again


@pytest.mark.parametrize("failures", ["held", "stuck"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_page_that_is_busy_for_a_moment_is_moved(kernel: Kernel, failures: str, times: int) -> None:
    pages = kernel.add(64, 0)
    getattr(kernel, failures)[pages[20]] = times
    result = moved(kernel, 1)
    assert (result.moved, result.left) == (64, {})


@pytest.mark.parametrize("failures", ["held", "stuck"])
def test_a_page_that_stays_busy_stays_alone(kernel: Kernel, failures: str) -> None:
    """Also when a kernel stops at it, and says nothing of the pages behind it."""
    pages = kernel.add(64, 0)
    getattr(kernel, failures)[pages[20]] = FOREVER
    result = moved(kernel, 1)
    assert (result.moved, result.left) == (63, {Reason.BUSY: 1})
    assert kernel.where[pages[20]] == 0
    assert kernel.calls.count([pages[20]]) == 3


def test_a_page_that_goes_while_it_is_tried(kernel: Kernel) -> None:
    pages = kernel.add(64, 0)
    kernel.freed.add(pages[20])
    result = moved(kernel, 1)
    assert (result.moved, result.left) == (63, {Reason.ABSENT: 1})


@pytest.mark.parametrize("failures", ["held", "stuck"])
def test_a_huge_page_that_is_busy_counts_in_full(kernel: Kernel, failures: str) -> None:
    pages = kernel.add(3, 0, unit=512)
    getattr(kernel, failures)[pages[1]] = FOREVER
    result = moved(kernel, 1)
    assert (result.moved, result.left) == (1024, {Reason.BUSY: 512})


@pytest.mark.parametrize("room", [0, 1, 63, 64, 65, 500, 999])
def test_a_node_that_is_full(kernel: Kernel, room: int) -> None:
    """Each frame that it had is used, and finding that out takes few calls."""
    kernel.add(1000, 0)
    kernel.room[1] = room
    result = moved(kernel, 1)
    assert (result.moved, result.left) == (room, {Reason.TARGET_FULL: 1000 - room})
    assert Counter(kernel.where.values()) == +Counter({0: 1000 - room, 1: room})
    assert len(kernel.calls) <= 16 + 2 * 10


@pytest.mark.parametrize("targets", [(1, 2), (2, 1), (3, 1, 2)])
def test_of_several_nodes_one_that_is_full(kernel: Kernel, targets: tuple[int, ...]) -> None:
    """The pages that are for the others move."""
    pages = kernel.add(300, 0)
    kernel.room[1] = 10
    wanted = Counter(targets[page // PAGE_SIZE % len(targets)] for page in pages)
    result = moved(kernel, *targets)
    assert result.left == {Reason.TARGET_FULL: wanted[1] - 10}
    assert Counter(kernel.where.values()) == Counter(wanted) - Counter({1: wanted[1] - 10}) + Counter(
        {0: wanted[1] - 10}
    )
    assert len(kernel.calls) <= 40


def test_where_no_huge_page_fits_small_ones_may(kernel: Kernel) -> None:
    kernel.add(200, 0)  # so that batches are large by then
    kernel.add(1, 0, unit=16)
    kernel.add(10, 0)
    kernel.add(2, 0, unit=16)
    kernel.room[1] = 200 + 15
    result = moved(kernel, 1)
    assert (result.moved, result.left) == (210, {Reason.TARGET_FULL: 48})


@pytest.mark.parametrize("seed", range(150))
def test_random_failures(kernel: Kernel, seed: int) -> None:
    """Against the plain truth: what becomes of a page depends on nothing but the page."""
    chance = random.Random(seed)
    targets = tuple(chance.sample(range(4), chance.randint(1, 3)))
    trouble = chance.choice([0.0, 0.01, 0.1, 0.5, 1.0])
    left: Counter[Reason] = Counter()
    places: dict[int, int] = {}
    failing = 0
    for _ in range(chance.randint(1, 60)):
        origin = chance.choice([0, 1, 2, 3, 0, 1, 2, 3, -errno.ENOENT, -errno.EFAULT])
        unit = chance.choice([1, 1, 1, 1, 32])
        for page in kernel.add(chance.randint(1, 20), origin, unit=unit):
            kind = chance.choice(TROUBLES) if chance.random() < trouble else "none"
            reason = make_trouble(kernel, page, kind, chance)
            failing += kind in ("held", "stuck", "freed")
            if origin < 0:
                reason = Reason.ABSENT if origin == -errno.ENOENT else Reason.UNSUITABLE
            elif origin in targets:
                reason = Reason.AT_HOME
            wanted = targets[page // (unit * PAGE_SIZE) % len(targets)]
            places[page] = wanted if reason is None else kernel.where[page]
            if kind == "freed" and reason is Reason.ABSENT:
                places[page] = -errno.ENOENT
            if reason is not None:
                left[reason] += unit
    result = moved(kernel, *targets)
    assert result.left == left
    assert kernel.where == places
    batches = sum(kernel.units.values()) / (64 - 31) + 1  # 64 pages at least, but for a huge one that did not fit
    halvings = math.ceil(math.log2(max(map(len, kernel.calls), default=1)))
    assert len(kernel.calls) <= batches + failing * 2 * (halvings + 1)


TROUBLES = ("held", "stuck", "freed", "refused")


def make_trouble(kernel: Kernel, page: int, kind: str, chance: random.Random) -> Reason | None:
    """Prepare trouble with a page that is to move; return the reason for which it then stays, None if it moves."""
    times = chance.choice([1, 2, FOREVER])
    if kind == "held":
        kernel.held[page] = times
    elif kind == "stuck":
        kernel.stuck[page] = times
    elif kind == "freed":
        kernel.freed.add(page)
        return Reason.ABSENT
    elif kind == "refused":
        kernel.refused[page] = chance.choice([-errno.EACCES, -errno.EFAULT])
        return Reason.SHARED if kernel.refused[page] == -errno.EACCES else Reason.UNSUITABLE
    else:
        return None
    return Reason.BUSY if times == FOREVER else None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (nt.NoSuchProcess(4711), Reason.UNMAPPED),
        (nt.NodeUnavailable(1, "it left the cpuset"), Reason.UNREACHED),
        (nt.KernelError("move_pages", errno.EINVAL), Reason.UNREACHED),
    ],
)
@pytest.mark.parametrize("calls", [0, 2])
def test_an_error_of_the_whole_call_ends_it(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, error: nt.NexttouchError, reason: Reason, calls: int
) -> None:
    """What had moved by then has moved, and counts."""
    kernel.add(5, 1)
    kernel.add(500, 0)
    monkeypatch.setattr(mempolicy, "move_pages", kernel.failing(error, calls))
    result = moved(kernel, 1)
    done = sum(sizes(kernel))
    assert (result.moved, result.left) == (done, {Reason.AT_HOME: 5, reason: 500 - done})
    assert result.ended is error
    assert (done > 0) == (calls > 0)


_BECOMES_ANOTHER = "import os, sys; sys.stdin.read(1); os.execvp('cat', ['cat'])"


@pytest.mark.parametrize("moment", ["before a call", "in a call"])
@pytest.mark.parametrize("end", ["ends", "becomes another"])
def test_a_process_that_is_no_more(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, moment: str, end: str) -> None:
    """From then on its number, or its addresses, are another's: what a call says of those does not count."""
    kernel.add(500, 0)
    command = [sys.executable, "-c", _BECOMES_ANOTHER]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as program:
        assert program.stdin
        process = Process.open(program.pid)
        assert process.there

        def change() -> None:
            if end == "ends":
                program.kill()
                program.wait()
            else:
                program.stdin.write(b"x")  # type: ignore[union-attr]
                program.stdin.flush()  # type: ignore[union-attr]
                until(lambda: Path(f"/proc/{program.pid}/exe").readlink().name == "cat", "the other program")

        def calls(process: Process, *arguments: Any) -> Any:
            process.check()  # before and after, as mempolicy's does
            if len(kernel.calls) == 2 and moment == "in a call":
                change()
            answer = kernel.move_pages(process, *arguments)
            process.check()
            return answer

        def progress(*_: int) -> None:
            if len(kernel.calls) == 2 and moment == "before a call":
                change()

        monkeypatch.setattr(mempolicy, "move_pages", calls)
        result = moved(kernel, 1, process=process, progress=progress)
        process.close()
        program.kill()
    assert len(kernel.calls) == (3 if moment == "in a call" else 2)
    done = sum(sizes(kernel)[:2])
    assert (result.moved, result.left) == (done, {Reason.UNMAPPED: 500 - done})
    assert isinstance(result.ended, nt.NoSuchProcess)


def test_an_error_before_anything_has_moved_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        if arguments[2] is not None:
            raise nt.NodeUnavailable(0, "it left the cpuset")
        return 0, np.full(len(arguments[1]), 1, np.int32)

    monkeypatch.setattr(mempolicy, "move_pages", refuse)
    with pytest.raises(nt.NodeUnavailable, match="it left the cpuset"):
        nt.move(np.ones(PAGE_SIZE), 0)


# ---- how long, and how fast ----


def sizes(kernel: Kernel) -> list[int]:
    """Pages of each call."""
    return [sum(kernel.units[page] for page in call) for call in kernel.calls]


def test_batches_grow_until_a_call_takes_the_latency(kernel: Kernel) -> None:
    kernel.add(10_000, 0)
    result = moved(kernel, 1, latency=0.002)
    assert sizes(kernel)[:5] == [64, 128, 256, 512, 1024]
    assert all(0.0018 < duration <= 0.00201 for duration in kernel.durations[5:-1])
    assert result.longest_call <= 0.00201


def test_batches_shrink_as_soon_as_calls_take_longer(kernel: Kernel) -> None:
    kernel.add(20_000, 0)

    def slower(done: int, _: int) -> None:
        kernel.page_cost = 1e-5 if done > 10_000 else 1e-6

    moved(kernel, 1, latency=0.002, progress=slower)
    (first,) = [number for number, duration in enumerate(kernel.durations) if duration > 0.0021]
    assert sizes(kernel)[first] > 1500
    assert all(150 < size <= 200 for size in sizes(kernel)[first + 1 : -1])


def test_batches_have_a_least_size(kernel: Kernel) -> None:
    kernel.add(1000, 0)
    moved(kernel, 1, latency=1e-9)
    assert sizes(kernel) == [64] * 15 + [40]


@pytest.mark.parametrize("latency", [math.inf, 1e6])
@pytest.mark.parametrize("free", [False, True])
def test_batches_have_a_largest_size(kernel: Kernel, latency: float, free: bool) -> None:
    kernel.add(200_000, 0)
    if free:
        kernel.page_cost = kernel.call_cost = 0.0
    moved(kernel, 1, latency=latency)
    assert sizes(kernel)[:11] == [64 << number for number in range(11)]
    assert max(sizes(kernel)) == 65536


@pytest.mark.parametrize("seed", range(10))
def test_huge_pages_count_in_full(kernel: Kernel, seed: int) -> None:
    """However small and huge pages follow each other, only one huge page by itself takes longer than it should."""
    chance = random.Random(seed)
    for _ in range(60):
        kernel.add(chance.randint(1, 300), 0)
        kernel.add(chance.randint(1, 5), 0, unit=512)
    moved(kernel, 1, latency=0.0002)
    for call, pages in zip(kernel.calls, sizes(kernel), strict=True):
        assert len(call) == 1 or pages <= 200
    assert max(sizes(kernel)) == 512


def test_progress(kernel: Kernel) -> None:
    kernel.add(7, 1)  # at home: nothing of the work
    pages = kernel.add(1000, 0)
    kernel.add(2, 0, unit=512)
    kernel.held[pages[500]] = FOREVER
    steps: list[tuple[int, int]] = []
    moved(kernel, 1, latency=1e-4, progress=lambda done, total: steps.append((done, total)))
    assert {total for _, total in steps} == {2024}
    done = [done for done, _ in steps]
    assert done == sorted(set(done))
    assert (done[0], done[-1]) == (64, 2024)


def test_progress_of_nothing(kernel: Kernel) -> None:
    kernel.add(7, 1)
    moved(kernel, 1, progress=lambda done, total: pytest.fail(f"{done} of {total}"))


@pytest.mark.parametrize("rate", [1 << 20, 3e8])
def test_no_batch_begins_before_its_time(kernel: Kernel, clock: Clock, rate: float) -> None:
    kernel.add(4000, 0)
    began, ends = clock.now, [(clock.now, 0)]

    def note(done: int, _: int) -> None:
        ends.append((clock.now, done))

    moved(kernel, 1, rate=rate, latency=0.001, progress=note)
    begins = [end - duration for (end, _), duration in zip(ends[1:], kernel.durations, strict=True)]
    dues = [began + done * PAGE_SIZE / rate for _, done in ends[:-1]]
    assert all(begin >= due - 1e-9 for begin, due in zip(begins, dues, strict=True))
    assert clock.now == pytest.approx(max(dues[-1], ends[-2][0]) + kernel.durations[-1])  # no nap at the end
    assert len(clock.naps) == len(kernel.calls) - 1


@pytest.mark.parametrize("rate", [None, math.inf, 1e18])
def test_without_a_limit_nobody_waits(kernel: Kernel, clock: Clock, rate: float | None) -> None:
    kernel.add(4000, 0)
    moved(kernel, 1, rate=rate)
    assert sum(clock.naps) == 0


# ---- arguments ----


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"latency": 0}, "latency"),
        ({"latency": -1.0}, "latency"),
        ({"latency": float("nan")}, "latency"),
        ({"latency": "20ms"}, "latency"),
        ({"latency": None}, "latency"),
        ({"latency": True}, "latency"),
        ({"rate": 0}, "rate"),
        ({"rate": -1}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": "1GiB/s"}, "rate"),
        ({"rate": True}, "rate"),
        ({"to": "0"}, "to"),
        ({"to": True}, "to"),
        ({"to": 0.0}, "to"),
        ({"to": None}, "to"),
        ({"to": []}, "to"),
        ({"to": [0, 0]}, "to"),
        ({"to": -1}, "to"),
        ({"to": 5000}, "to"),
        ({"x": True}, "x"),
        ({"x": np.True_}, "x"),
        ({"x": 0}, "x"),
        ({"x": -5}, "x"),
        ({"x": np.int32(-5)}, "x"),
        ({"x": np.float64(1.5)}, "x"),
        ({"x": 1.5}, "x"),
        ({"x": None}, "x"),
        ({"x": "text"}, "x"),
        ({"x": [1, 2, 3]}, "x"),
        ({"x": np.empty(0)}, "x"),
        ({"x": b""}, "x"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], name: str) -> None:
    call: dict[str, Any] = {"x": bytearray(8192), "to": 0} | arguments
    with pytest.raises(nt.InvalidArgument, match=rf"^{name} ") as wrong:
        nt.move(**call)
    assert wrong.value.argument == name


@pytest.mark.parametrize("latency", [np.float32(0.5), np.int64(1), math.inf])
@pytest.mark.parametrize("rate", [np.float32(2**30), 1 << 40, math.inf])
def test_numbers_of_numpy_are_numbers(latency: Any, rate: Any) -> None:
    assert accounted(nt.move(bytearray(8192), np.int32(0), latency=latency, rate=rate))


def test_a_process_that_is_gone() -> None:
    with pytest.raises(nt.NoSuchProcess):
        nt.move(2**22 + 1, 0)
