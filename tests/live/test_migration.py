"""The life of a migration: what its figures say at any moment, and how it ends, or is ended."""

from __future__ import annotations

import errno
import gc
import itertools
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.mechanisms import WAYS, service, way
from support.memory import HANG, PAGE_SIZE, SERVICES, WORDS, Memory, run_threads, settled

import nexttouch as nt
from nexttouch import Reason, Stats
from nexttouch.live import registry
from nexttouch.live.running import Running


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, f"{what} never happened"


def adds_up(stats: Stats) -> bool:
    return stats.pages == stats.waiting + stats.moved + sum(stats.left.values())


# ---- figures ----


@way
def test_every_page_is_counted_once_at_any_moment(options: dict[str, Any]) -> None:
    """One thread asks all the time, while others touch, and while migrations end, or are cancelled."""
    pages, rounds = 400, 20
    over = threading.Event()
    latest: list[nt.Migration] = []
    with Memory(pages) as memory:

        def watch() -> None:
            while not over.is_set():
                for migration in latest[-1:]:
                    stats = migration.stats
                    assert adds_up(stats), stats
                    assert stats.pages == pages
                    assert stats.windows <= stats.faults

        def touch() -> None:
            while not over.is_set():
                memory.table[:, 3] += 1
                memory.table[:, 3] -= 1

        def migrate() -> None:
            try:
                for number in range(rounds):
                    migration = nt.lazy(memory.words, 0, always=True, window=number % 7 + 1, **options)
                    latest.append(migration)
                    if number % 2:
                        migration.cancel()
                    assert migration.wait(HANG)
            finally:
                over.set()

        run_threads(watch, touch, migrate)
        assert all(settled(migration.stats, pages) for migration in latest)
        memory.check()


def test_pages_without_a_trap_are_counted_once_at_any_moment() -> None:
    """Read-only pages are moved at the end, by another way."""
    with Memory(2000) as memory:
        memory.protect(1, 1000, 1000)
        for number in range(20):
            migration = nt.next_touch(memory.words, deadline=0)
            assert adds_up(migration.stats)
            if number % 2:
                migration.cancel()
            while not migration.done:
                assert adds_up(migration.stats), migration.stats
            stats = migration.stats
            assert settled(stats, 2000)
            assert set(stats.left) <= {Reason.UNTRAPPED, Reason.UNTOUCHED, Reason.CANCELLED}
        memory.check()


@way
def test_each_fault_has_its_place_in_the_histogram(options: dict[str, Any]) -> None:
    with Memory(300) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0, window=1, **options)
        assert migration.wait_armed(HANG)
        memory.table[:, 9] += np.uint64(0)
        assert migration.wait(HANG)
        stats = migration.stats
        assert sum(stats.latency.values()) == stats.faults == stats.moved_by_touch == 300
        assert list(stats.latency) == sorted(stats.latency)
        assert 0 < stats.longest_service <= max(stats.latency)
        limits, counts = list(stats.latency), stats.latency.values()
        lower = sum(count * limit for limit, count in zip([0, *limits[:-1]], counts, strict=True))
        assert lower <= stats.service_seconds <= sum(bound * count for bound, count in stats.latency.items())
        assert stats.longest_service <= stats.service_seconds
        assert stats.arm_seconds > 0
        assert stats.sweep_seconds == stats.sweeps == stats.moved_by_sweep == stats.moved_eagerly == stats.stopped == 0


def test_phases() -> None:
    with Memory(4000) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0)
        order = [migration.stats.phase]
        while order[-1] != "serving":
            order.append(migration.stats.phase)
        assert migration.wait_armed(0)
        assert migration.stats.waiting == 4000
        assert repr(migration) == "<Migration serving: 0 of 4000 pages moved, 4000 waiting>"
        migration.cancel()
        order.append(migration.stats.phase)
        assert [phase for phase, _ in itertools.groupby(order)] in (["arming", "serving", "done"], ["serving", "done"])
        assert migration.wait_armed(0)
        assert repr(migration) == "<Migration done: 0 of 4000 pages moved, 0 waiting>"


def test_stats_for_json() -> None:
    with Memory(50) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0, window=1)
        assert migration.wait_armed(HANG)
        memory.words[0] += np.uint64(0)
        migration.cancel()
        stats = migration.stats
        found = json.loads(json.dumps(stats.to_dict()))
        assert set(found) == {*Stats.__slots__, "moved"}
        assert (found["pages"], found["moved"], found["moved_by_touch"], found["waiting"]) == (50, 1, 1, 0)
        assert found["left"] == {"cancelled": 49}
        assert found["latency"] == [[bound, 1] for bound in stats.latency]
        assert found["phase"] == "done"


def test_nothing_to_do() -> None:
    with Memory(10, fill=False) as memory:
        migration = nt.lazy(memory.words, 0, rate=0)
        assert migration.wait(HANG)
        assert migration.wait_armed()
        assert settled(migration.stats, 0)
        migration.cancel()


@pytest.mark.parametrize("timeout", [1e10, 1e300, float("inf"), None])
def test_waiting_for_ever(timeout: float | None) -> None:
    with Memory(10) as memory:
        migration = nt.lazy(memory.words, 0, always=True)
        assert migration.wait_armed(timeout)
        assert migration.wait(timeout)
        memory.check()


@pytest.mark.parametrize("timeout", ["3", True, float("nan"), [1]])
def test_waiting_for_what_is_no_time(timeout: Any) -> None:
    with Memory(10) as memory, nt.lazy(memory.words, 0, always=True) as migration:
        for wait in (migration.wait, migration.wait_armed):
            with pytest.raises(nt.InvalidArgument, match=r"^timeout is .*, but has to be a number of seconds"):
                wait(timeout)


def test_a_migration_that_is_done_is_not_kept() -> None:
    with Memory(10) as memory:
        migration = nt.lazy(memory.words, 0, always=True)
        assert migration.wait(HANG)
        gone = weakref.ref(migration)
        del migration
        until(lambda: gone() is None, "the end of the thread that had watched it")


def test_pages_whose_touch_nobody_sees_have_a_reason_of_their_own(tmp_path: Path) -> None:
    """`next_touch` can do nothing for a file; with a node its pages do move, or are there already."""
    (tmp_path / "file").write_bytes(b"page" * PAGE_SIZE)
    with (tmp_path / "file").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        words = np.frombuffer(memory, np.uint8)
        assert words.sum() > 0
        with nt.next_touch(words, deadline=0) as migration:
            pass
        assert migration.stats.left == {Reason.UNTRAPPED: 4}
        assert nt.lazy(words, 0).wait(HANG)
        del words


# ---- sweeps ----


def test_a_sweep_keeps_to_its_rate() -> None:
    """Runs of 64 pages, a pause after each: five of them take four pauses at least."""
    with Memory(320) as memory:
        began = time.monotonic()
        with nt.lazy(memory.words, 0, always=True, rate=64 * PAGE_SIZE / 0.05) as migration:
            pass
        assert time.monotonic() - began > 4 * 0.05 * 0.999
        assert (migration.stats.sweeps, migration.stats.moved_by_sweep) == (5, 320)
        memory.check()


@pytest.mark.parametrize("rate", [1, 1e-3, 1e-12, 5e-324])
def test_a_sweep_as_slow_as_it_gets_begins_once(rate: float) -> None:
    with Memory(320) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=rate)
        until(lambda: migration.stats.sweeps, "a sweep")
        assert not migration.wait(0.05)
        assert migration.stats.sweeps == 1
        migration.cancel()
        assert migration.stats.left == {Reason.CANCELLED: 256}
        memory.check()


@pytest.mark.parametrize("rate", [0, 1])
@pytest.mark.parametrize("deadline", [0, 0.05])
def test_after_the_deadline_all_is_swept(rate: int, deadline: float) -> None:
    with Memory(320) as memory:
        began = time.monotonic()
        with nt.lazy(memory.words, 0, always=True, rate=rate, deadline=deadline) as migration:
            assert migration.wait_armed(HANG)
        assert time.monotonic() - began >= deadline
        assert (migration.stats.moved_by_sweep, migration.stats.left) == (320, {})
        memory.check()


@pytest.mark.parametrize("deadline", [3600, 1e12, 1e300, float("inf")])
def test_a_deadline_far_away(deadline: float) -> None:
    with Memory(320) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0, deadline=deadline)
        assert migration.wait_armed(HANG)
        assert not migration.wait(0.05)
        assert migration.stats.waiting == 320
        migration.cancel()
        memory.check()


def test_without_a_sweep_only_touches_move() -> None:
    with Memory(320) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0, window=4)
        assert migration.wait_armed(HANG)
        for page in (3, 100, 200):
            memory.table[page, 0] += np.uint64(0)
        assert not migration.wait(0.02)
        migration.cancel()
        stats = migration.stats
        assert (stats.moved_by_sweep, stats.sweeps, stats.windows) == (0, 0, 3)
        assert stats.left == {Reason.CANCELLED: 320 - stats.moved_by_touch}
        memory.check()


# ---- waiting and cancelling ----


def test_waiting_with_and_without_time() -> None:
    with Memory(10) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0)
        assert migration.wait_armed(HANG)
        began = time.monotonic()
        assert not migration.wait(0)
        assert not migration.wait(-1)
        assert not migration.wait(0.02)
        assert time.monotonic() - began >= 0.02
        assert not migration.done
        toucher = threading.Thread(target=memory.fill)
        toucher.start()
        assert migration.wait()
        assert migration.wait(0)
        assert migration.done
        toucher.join()  # it may have the last page to write yet


@way
def test_cancelled_at_any_moment(options: dict[str, Any]) -> None:
    """The moment is how far the move has come, not a time: only the first half is touched, so without a sweep the
    other half is there to be left, and with one the last page's move can be waited for."""
    half, times = 1024, 40
    moments = random.Random(1706)
    over = threading.Event()
    with Memory(2 * half) as memory:

        def touch() -> None:
            while not over.is_set():
                memory.table[:half, 100] += np.uint64(1)
                memory.expected.reshape(2 * half, WORDS)[:half, 100] += np.uint64(1)

        def cancel() -> None:
            try:
                for _ in range(times):
                    swept = moments.choice([False, True])
                    reach = moments.choice([0, 1, half // 2, half, 2 * half if swept else half])
                    rate = moments.choice([None, 2.0**28]) if swept else 0
                    window = moments.choice([1, 8])
                    migration = nt.lazy(memory.words, 0, always=True, rate=rate, window=window, **options)
                    give_up = time.monotonic() + HANG
                    while migration.stats.moved < reach:
                        assert time.monotonic() < give_up, (reach, migration.stats)
                    migration.cancel()
                    assert migration.done
                    assert settled(migration.stats, 2 * half), migration.stats
                    assert set(migration.stats.left) <= {Reason.CANCELLED}
                    assert migration.stats.moved >= reach
                    assert swept or migration.stats.left
            finally:
                over.set()

        run_threads(touch, cancel)
        memory.check()


def test_cancelled_by_many_threads_at_once() -> None:
    with Memory(500) as memory:
        for _ in range(20):
            migration = nt.lazy(memory.words, 0, always=True)
            run_threads(*[migration.cancel] * 4, *[lambda migration=migration: migration.wait(HANG)] * 4)
            assert settled(migration.stats, 500)
        memory.check()


def test_cancelling_what_is_done_changes_nothing() -> None:
    with Memory(50) as memory:
        with nt.lazy(memory.words, 0, always=True) as migration:
            pass
        before = migration.stats
        migration.cancel()
        migration.cancel()
        assert migration.stats == before
        assert before.moved == 50


@way
def test_nothing_is_left_behind(options: dict[str, Any]) -> None:
    """No descriptor, thread, mapping, or mark on a mapping."""
    with Memory(100) as memory:
        nt.lazy(memory.words, 0, always=True, **options).wait(HANG)  # what is made once is made now
        before = belongings(memory)
        for number in range(20):
            migration = nt.lazy(memory.words, 0, always=True, rate=None if number % 2 else 0, **options)
            migration.cancel()
            assert migration.shadow == []
        del migration  # which has its figures from the core
        until(lambda: no_more(belongings(memory), before), "the end of threads and descriptors")
        assert belongings(memory)[2:] == before[2:]
        memory.check()


def belongings(memory: Memory) -> tuple[Any, ...]:
    lines = Path("/proc/self/smaps").read_text().split("\n")
    flags = [
        line for line in lines if line.startswith("VmFlags:") and {"uw", "um", "ui", "ur", "dc"} & set(line.split())
    ]
    place = f"{memory.address:x}-{memory.at(memory.pages):x}"
    return (
        Counter(open_files()),
        len(list(Path("/proc/self/task").iterdir())),
        [line for line in flags if "dc" not in line],
        lines[[line.split(" ")[0] for line in lines].index(place)],
    )


def open_files() -> Iterator[str]:
    for link in list(Path("/proc/self/fd").iterdir()):
        with suppress(FileNotFoundError):  # closed since, by a thread that ends
            yield link.readlink().name


# When a migration is done its thread may have an instruction or two to go: that of the first one may be among `before`.
def no_more(now: tuple[Any, ...], before: tuple[Any, ...]) -> bool:
    return bool(now[0] <= before[0] and now[1] <= before[1])


# ---- as a context manager ----


@pytest.mark.parametrize("arguments", [{"rate": 64 * PAGE_SIZE / 0.02}, {"rate": 0, "deadline": 0.05}])
def test_a_block_waits_for_what_ends_by_itself(arguments: dict[str, Any]) -> None:
    with Memory(300) as memory:
        with nt.lazy(memory.words, 0, always=True, **arguments) as migration:
            pass
        assert migration.done
        assert migration.stats.moved == 300
        memory.check()


def test_a_block_waits_for_what_nobody_hastens() -> None:
    """With an hour to go it is far from done; it waits all the same until others have touched everything."""
    with Memory(300) as memory:
        toucher = threading.Thread(target=memory.fill)
        with nt.lazy(memory.words, 0, always=True, rate=0, deadline=3600.0) as migration:
            assert migration.wait_armed(HANG)
            assert not migration.done
            toucher.start()
        assert migration.done
        assert migration.stats.moved_by_touch == 300
        toucher.join()
        memory.check()


@pytest.mark.parametrize("deadline", [None, float("inf")])
def test_a_block_cancels_what_does_not(deadline: float | None) -> None:
    with Memory(300) as memory:
        with nt.lazy(memory.words, 0, always=True, rate=0, deadline=deadline) as migration:
            assert migration.wait_armed(HANG)
        assert migration.stats.left == {Reason.CANCELLED: 300}
        with nt.next_touch(memory.words, deadline=deadline) as migration:
            assert migration.wait_armed(HANG)
        assert migration.stats.left == {Reason.CANCELLED: 300}
        memory.check()


@pytest.mark.parametrize("arguments", [{"rate": 1.0}, {"rate": 0, "deadline": 3600.0}, {"rate": 0}])
def test_an_exception_cancels(arguments: dict[str, Any]) -> None:
    with Memory(300) as memory:
        migration = nt.lazy(memory.words, 0, always=True, **arguments)
        assert migration.wait_armed(HANG)
        with pytest.raises(ZeroDivisionError), migration:
            _ = 1 / 0
        assert migration.done
        assert set(migration.stats.left) == {Reason.CANCELLED}
        memory.check()


def test_an_exception_in_one_thread_leaves_the_others_alone() -> None:
    with Memory(300) as memory:
        other = nt.lazy(memory.part(100, 200), 0, always=True, rate=0)
        assert other.wait_armed(HANG)

        def fail() -> None:
            with nt.lazy(memory.part(0, 100), 0, always=True, rate=0):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run_threads(fail)
        assert not other.done
        memory.check()
        assert other.wait(HANG)
        assert other.stats.moved == 200


def test_a_block_can_be_entered_again() -> None:
    with Memory(30) as memory:
        migration = nt.lazy(memory.words, 0, always=True)
        with migration:
            pass
        with migration as again:
            assert again is migration
        assert migration.stats.moved == 30


# ---- dropped ----


def test_those_that_are_under_way() -> None:
    with Memory(100) as memory, Memory(100) as other:
        first = nt.lazy(memory.words, 0, always=True, rate=0)
        with nt.next_touch(other.words) as second:
            assert set(nt.migrations()) == {first, second}
        assert nt.migrations() == [first]
        first.cancel()
        assert nt.migrations() == []


def the_one_under_way() -> Running:
    (found,) = registry.running
    assert isinstance(found, Running)
    return found


@way
def test_one_that_is_dropped_is_cancelled(options: dict[str, Any]) -> None:
    """Its owner is told; and the array goes only after everything is given back."""
    with Memory(100) as memory:
        begun = nt.lazy(memory.words, 0, always=True, rate=0, **options)
        assert begun.wait_armed(HANG)
        under_way = the_one_under_way()
        with pytest.warns(ResourceWarning, match=r"^a migration was dropped while it was under way") as told:
            del begun
        assert told[0].filename == __file__
        assert under_way.wait(HANG)
        assert under_way.stats.left == {Reason.CANCELLED: 100}
        assert belongings(memory)[2] == []
        memory.check()


def test_an_array_outlives_a_migration_that_is_dropped_with_it() -> None:
    array = np.ones(50 * WORDS)
    gone = weakref.ref(array)
    begun = nt.lazy(array, 0, always=True, rate=0)
    assert begun.wait_armed(HANG)
    under_way = the_one_under_way()
    held = []
    settle = under_way._settle

    def look() -> None:
        held.append(gone() is not None and not under_way.armed)
        settle()

    under_way._settle = look  # type: ignore[method-assign]
    with pytest.warns(ResourceWarning):
        del begun, array
    assert under_way.wait(HANG)
    assert held == [True]
    until(lambda: gone() is None, "the end of the array")


def test_many_that_are_dropped_leave_nothing() -> None:
    """Descriptors, threads and arrays go, whatever else runs; and a finalizer can run while a page fault waits."""
    with Memory(100) as memory:
        nt.lazy(memory.words, 0, always=True).wait(HANG)
        before = belongings(memory)
        for number in range(40):
            with pytest.warns(ResourceWarning):
                nt.lazy(np.ones(20 * WORDS), 0, always=True, rate=0, service="inline" if number % 2 else "thread")
        until(lambda: not registry.running, "the end of them all")
        until(lambda: no_more(belongings(memory), before), "the end of threads and descriptors")


def test_one_that_is_dropped_when_it_is_done_says_nothing() -> None:
    with Memory(10) as memory:
        begun = nt.lazy(memory.words, 0, always=True)
        assert begun.wait(HANG)
        del begun


def test_garbage_that_is_found_by_any_thread() -> None:
    """In a circle, so that the collector drops it, while this thread waits for a page that it is to give back."""
    with Memory(100) as memory:
        circle: list[Any] = []
        circle += [circle, nt.lazy(memory.words, 0, always=True, rate=0)]
        assert circle[1].wait_armed(HANG)
        del circle
        with pytest.warns(ResourceWarning):
            run_threads(gc.collect, memory.part(0, 50).sum)
        until(lambda: not registry.running, "the end of the migration")
        memory.check()


# ---- a beginning that fails ----


@way
def test_without_a_thread_to_watch_it_nothing_begins(options: dict[str, Any]) -> None:
    with Memory(100) as memory:
        threading.stack_size(1 << 46)
        try:
            with pytest.raises(
                nt.KernelError, match=r"everything was given back; raise the limit of threads"
            ) as failed:
                nt.lazy(memory.words, 0, always=True, rate=0, **options)
        finally:
            threading.stack_size(0)
        assert failed.value.errno == errno.EAGAIN
        assert belongings(memory)[2] == []
        assert not registry.running
        memory.check()
        with nt.lazy(memory.words, 0, always=True, **options) as migration:
            pass
        assert migration.stats.moved == 100


@way
@pytest.mark.parametrize("started", [False, True])
def test_an_exception_as_the_watch_begins_gives_everything_back(
    options: dict[str, Any], started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler can raise before the thread has started, and after."""
    start = threading.Thread.start

    def raising(thread: threading.Thread) -> None:
        if started:
            start(thread)
        raise Interrupted

    with Memory(100) as memory:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", raising)
            with pytest.raises(Interrupted):
                nt.lazy(memory.words, 0, always=True, rate=0, **options)
        until(lambda: not registry.running, "the end of the migration")
        assert belongings(memory)[2] == []
        memory.check()


def test_exceptions_that_keep_everybody_from_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C twice as a migration begins: it can still be cancelled, as it is at the latest when the program ends."""

    def raising(_: object) -> None:
        raise Interrupted

    with Memory(100) as memory:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", raising)
            patch.setattr(Running, "ask_to_end", raising)
            with pytest.raises(Interrupted) as raised:  # which holds the half-made one
                nt.lazy(memory.words, 0, always=True, rate=0)
        (migration,) = registry.running
        del raised
        cancelling = threading.Thread(target=migration.cancel, daemon=True)
        cancelling.start()
        cancelling.join(HANG)
        assert not cancelling.is_alive()
        assert not registry.running
        assert belongings(memory)[2] == []
        memory.check()


# ---- signals ----


class Interrupted(Exception):
    """What the handler of the alarm raises."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    def handler(*_: object) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_a_signal_ends_a_wait_and_not_the_migration() -> None:
    with Memory(100) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0)
        with pytest.raises(Interrupted), alarm(0.05):
            migration.wait()
        assert not migration.done
        memory.check()
        assert migration.wait(HANG)
        assert migration.stats.moved == 100


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises; a shell has it ignored by what it runs in the background."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("interruptible")
def test_control_c_at_the_end_of_a_block_cancels() -> None:
    with Memory(100) as memory:
        timer = threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT])
        with pytest.raises(KeyboardInterrupt), nt.lazy(memory.words, 0, always=True, rate=1) as migration:
            timer.start()
        timer.join()
        assert migration.done
        assert settled(migration.stats, 100)
        memory.check()


def test_signals_while_pages_are_touched() -> None:
    """A fault that a signal interrupts happens again."""
    count = 0

    def handler(*_: object) -> None:
        nonlocal count
        count += 1

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        with Memory(500) as memory:
            for options in WAYS:
                migration = nt.lazy(memory.words, 0, always=True, rate=0, window=1, **options)
                assert migration.wait_armed(HANG)
                memory.words[:] += np.uint64(1)
                memory.expected[:] += np.uint64(1)
                assert migration.wait(HANG)
                assert migration.stats.moved_by_touch == 500
                memory.check()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert count


def serving() -> list[Path]:
    """The threads of this process that serve a migration."""
    found = []
    for task in list(Path("/proc/self/task").iterdir()):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ends
            if (task / "comm").read_text() == "nexttouch\n":
                found.append(task)
    return found


@service
def test_the_thread_that_serves_runs_no_handler_of_the_program(options: dict[str, Any]) -> None:
    """A handler that touches an armed page there would wait for itself."""
    with Memory(10) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0, **options)
        assert migration.wait_armed(HANG)
        until(lambda: len(serving()) == 1, "the end of the threads of earlier migrations")
        (task,) = serving()
        status = dict(line.split(":\t") for line in (task / "status").read_text().splitlines())
        assert all(int(status["SigBlk"], 16) >> number - 1 & 1 for number in (signal.SIGALRM, signal.SIGTERM, 40))
        migration.cancel()


# ---- the end of the program ----


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    ("ending", "status", "output"),
    [
        ("return", 0, "at the end\n"),
        ("exit", 7, ""),
        ("in the block", 7, ""),
        ("exception", 1, ""),
        ("thread", 0, None),
        ("daemon", 0, "at the end\n"),
        ("many", 0, "at the end\n"),
        ("_exit", 7, ""),
        ("signal", -signal.SIGTERM, ""),
        ("exec", 0, "34359607296\n"),
    ],
)
def test_a_program_that_ends_meanwhile(ending: str, status: int, output: str | None, service: str) -> None:
    program = Path(__file__).parents[1] / "support" / "ending.py"
    done = subprocess.run(
        [sys.executable, program, ending, service], capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == status, done.stderr
    if output is not None:
        assert done.stdout == output
    else:
        assert sorted(done.stdout.split("\n")) == ["", "34359607296", "at the end"]
    assert done.stderr.endswith("RuntimeError: on purpose\n") if ending == "exception" else not done.stderr
    assert done.stderr.count("Traceback") == (ending == "exception")
