"""A process that forks, spawns or executes while its memory migrates: parent and child both have every byte."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from support.mechanisms import service, way
from support.memory import HANG, PAGE_SIZE, WORDS, Memory, in_child, run_threads, settled, wait_moved
from targets.programs import compiled

import nexttouch as nt
from nexttouch import Reason
from nexttouch.live import lazy as module
from nexttouch.live import plan, registry
from nexttouch.live.running import Running

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def half_touched(memory: Memory, options: dict[str, Any]) -> nt.Migration:
    migration = nt.lazy(memory.words, 0, always=True, rate=0, window=1, **options)
    assert migration.wait_armed(HANG)
    memory.part(0, memory.pages // 2)[::WORDS] += np.uint64(0)
    wait_moved(migration, memory.pages // 2)
    return migration


@way
def test_a_fork_in_the_middle(options: dict[str, Any]) -> None:
    with Memory(200) as memory:
        migration = half_touched(memory, options)

        def child() -> dict[str, Any]:
            memory.check()
            memory.fill()
            return {"done": migration.done, "waited": migration.wait(0), "armed": migration.wait_armed(0)}

        assert in_child(child) == {"done": True, "waited": True, "armed": True}
        memory.check()
        if options["mechanism"] != "relocate":  # nothing is out of its place: the parent's pages stay armed
            assert migration.stats.waiting == 100
            memory.fill()
            assert migration.wait(HANG)
            assert migration.stats.moved == 200
        else:
            assert migration.wait(HANG)
            assert (migration.stats.moved, migration.stats.left) == (100, {Reason.FORKED: 100})
        memory.check()


@way
def test_a_child_migrates_what_it_has_inherited(options: dict[str, Any]) -> None:
    with Memory(100) as memory:
        migration = half_touched(memory, options)

        def child() -> tuple[int, int, bool]:
            migration.cancel()  # the parent's: nothing happens
            memory.words[::WORDS] += np.uint64(1)  # from now on its own
            memory.expected[::WORDS] += np.uint64(1)
            with nt.lazy(memory.words, 0, always=True, **options) as own:
                memory.check()
            memory.check()
            return own.stats.moved, own.stats.pages, own.stats.waiting == 0

        assert in_child(child) == (100, 100, True)
        migration.cancel()
        memory.check()


@way
@pytest.mark.parametrize("touched", [False, True])
def test_after_a_fork_pages_can_be_migrated_again(options: dict[str, Any], touched: bool) -> None:
    """As Reason.FORKED promises; also if nobody has written to them since the child ended."""
    with Memory(100) as memory:
        migration = half_touched(memory, options)
        in_child(memory.check)
        migration.cancel()
        if touched:
            memory.fill()
        with nt.lazy(memory.words, 0, always=True, **options) as again:
            pass
        assert (again.stats.moved, again.stats.left) == (100, {})
        memory.check()


@way
def test_forks_while_threads_write(options: dict[str, Any]) -> None:
    """Whatever moment the fork hits, each page of the child is as at one moment, and the parent's words go on."""
    pages = 256
    over = threading.Event()
    with Memory(pages) as memory:

        def write() -> None:
            while not over.is_set():
                memory.table[:, :8] += np.uint64(1)

        def migrate() -> None:
            while not over.is_set():
                migration = nt.lazy(memory.words, 0, always=True, window=2, **options)
                assert migration.wait(HANG)
                assert settled(migration.stats, pages)

        def fork() -> None:
            try:
                for _ in range(15):
                    in_child(child)
            finally:
                over.set()

        def child() -> None:
            table, expected = memory.table, memory.expected.reshape(pages, WORDS)
            assert (table[:, 8:] == expected[:, 8:]).all()
            added = table[:, :8] - expected[:, :8]
            assert added.max() - added.min() <= 1, (added.min(), added.max())

        run_threads(fork, write, migrate)
        added = memory.table[:, :8] - memory.expected.reshape(pages, WORDS)[:, :8]
        assert added.min() == added.max() > 0
        memory.expected.reshape(pages, WORDS)[:, :8] += added[0, 0]
        memory.check()


def test_a_fork_while_another_thread_begins_a_migration() -> None:
    """The child can begin one as well, whatever the other thread was at."""
    over = threading.Event()
    with Memory(20) as memory, Memory(20) as other:

        def begin() -> None:
            while not over.is_set():
                nt.lazy(memory.words, 0, always=True).wait(HANG)

        def child() -> int:
            with nt.lazy(other.words, 0, always=True, rate=0):
                other.words[::WORDS] = other.words[::WORDS].copy()
            with nt.lazy(memory.words, 0, always=True, rate=0, mechanism="write_protect"):
                pass
            return 1

        def fork() -> None:
            try:
                assert sum(in_child(child) for _ in range(40)) == 40
            finally:
                over.set()

        run_threads(fork, begin)
        memory.check()
        other.check()


# ---- by a signal handler ----


@pytest.fixture
def during_the_plan(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], object]]]:
    """What a signal handler does that runs in the next plan, in the thread that plans."""
    todo: list[Callable[[], object]] = []
    make_plan = plan.make_plan

    def interrupted(*arguments: Any, **options: Any) -> Any:
        made = make_plan(*arguments, **options)
        signal.raise_signal(signal.SIGUSR1)
        return made

    def handler(*_: object) -> None:
        while todo:
            todo.pop()()

    monkeypatch.setattr(module, "make_plan", interrupted)
    previous = signal.signal(signal.SIGUSR1, handler)
    yield todo
    signal.signal(signal.SIGUSR1, previous)


@way
def test_a_signal_handler_forks_in_the_middle_of_a_plan(
    options: dict[str, Any], during_the_plan: list[Callable[[], object]]
) -> None:
    with Memory(100) as memory:
        during_the_plan.append(lambda: in_child(memory.check))
        with nt.lazy(memory.words, 0, always=True, **options) as migration:
            pass
        assert (migration.stats.moved, during_the_plan) == (100, [])
        memory.check()


@way
def test_a_child_of_a_signal_handler_goes_on_with_the_plan(
    options: dict[str, Any], during_the_plan: list[Callable[[], object]]
) -> None:
    """Both have a migration of their own memory."""
    children: list[int] = []

    def fork() -> None:
        children.append(os.fork())

    with Memory(100) as memory:
        during_the_plan.append(fork)
        try:
            with nt.lazy(memory.words, 0, always=True, **options) as migration:
                memory.words[::WORDS] += np.uint64(1 + (children == [0]))
            memory.expected[::WORDS] += np.uint64(1 + (children == [0]))
            memory.check()
            assert settled(migration.stats, 100)
        finally:
            if children == [0]:
                os._exit(bool(sys.exc_info()[0]))
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0


INTERRUPTED = """
import os, signal, sys, threading
import numpy as np
import nexttouch as nt
from nexttouch.live import plan_lock
sys.unraisablehook = lambda told: say(told.exc_type.__name__)  # of what is registered for forks

def say(word):
    os.write(1, f"{word}\\n".encode())

HERE, OVER = threading.Event(), threading.Event()

def plan():
    with plan_lock.planning():
        HERE.set()
        OVER.wait()

def fork(*_):
    plan_lock._take = interrupted  # a handler raises while the fork waits for the plan
    children.append(os.fork())
    if children != [0]:
        OVER.set()

def interrupted():
    plan_lock._take = take
    raise InterruptedError

def forked():  # a handler forks as a plan begins, and the child goes on with that
    plan_lock._take = take
    signal.raise_signal(signal.SIGUSR1)
    return take()

children, take = [], plan_lock._take
other = threading.Thread(target=plan, daemon=True)
other.start()
HERE.wait()
if MODE == "in a fork":
    fork()
else:
    signal.signal(signal.SIGUSR1, fork)
    plan_lock._take = forked
with nt.lazy(np.ones(1 << 14), 0, always=True) as migration:
    pass
say(f"{'child' if children == [0] else 'parent'} {migration.stats.pages > 0}")
if children == [0]:
    os._exit(0)
os.waitpid(children[0], 0)
other.join()
"""


@pytest.mark.parametrize("mode", ["in a fork", "in a handler"])
def test_a_fork_whose_wait_for_a_plan_is_interrupted(mode: str) -> None:
    """The child finds the lock taken, by a thread that it does not have; also if it was waiting for it itself."""
    program = f"MODE = {mode!r}\n" + INTERRUPTED
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split("\n")) == ["", "InterruptedError", "child True", "parent True"]


def test_a_child_counts_the_fork() -> None:
    assert in_child(registry.forks) == registry.forks() + 1


def test_a_pager_that_is_the_parents_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that was forked off between the making of a pager and its start, as if: it plans again."""
    make, made = Running._pager, []

    def forked(self: Running, *arguments: Any) -> Any:
        made.append(make(self, *arguments))
        if len(made) == 1:
            monkeypatch.setattr(registry, "_forks", registry.forks() + 1)
        return made[-1]

    monkeypatch.setattr(Running, "_pager", forked)
    with Memory(100) as memory:
        with nt.lazy(memory.words, 0, always=True) as migration:
            pass
        assert [pager.stats()["windows"] + pager.stats()["sweeps"] > 0 for pager in made] == [False, True]
        assert migration.stats.moved == 100
        memory.check()


def test_a_signal_handler_migrates_in_the_middle_of_a_plan(during_the_plan: list[Callable[[], object]]) -> None:
    moved: list[int] = []

    def migrate() -> None:
        with nt.lazy(other.words, 0, always=True) as migration:
            pass
        moved.append(migration.stats.moved)
        with pytest.raises(nt.InvalidArgument, match=r"^x overlaps memory that another migration"):
            nt.lazy(memory.words[:WORDS], 0, always=True)

    with Memory(100) as memory, Memory(50) as other:
        during_the_plan.append(migrate)
        with nt.lazy(memory.words, 0, always=True) as migration:
            pass
        assert (migration.stats.moved, moved) == (100, [50])
        memory.check()
        other.check()


# ---- without copying the memory: vfork ----


def spawn_run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def spawn_posix(program: str) -> str:
    reading, writing = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, writing, 1), (os.POSIX_SPAWN_CLOSE, reading)]
    child = os.posix_spawn(sys.executable, [sys.executable, "-c", program], os.environ, file_actions=actions)
    os.close(writing)
    output = b""
    while more := os.read(reading, 100):
        output += more
    os.close(reading)
    assert os.waitpid(child, 0)[1] == 0
    return output.decode()


@way
@pytest.mark.parametrize("spawn", [spawn_run, spawn_posix])
def test_spawning_does_not_disturb(options: dict[str, Any], spawn: Callable[[str], str]) -> None:
    with Memory(100) as memory:
        migration = half_touched(memory, options)
        assert spawn("print('here')") == "here\n"
        assert migration.stats.waiting == 50
        memory.fill()
        assert migration.wait(HANG)
        assert (migration.stats.moved_by_touch, migration.stats.left) == (100, {})
        memory.check()


def test_spawning_with_a_function_of_its_own_is_a_fork() -> None:
    with Memory(100) as memory:
        migration = half_touched(memory, {})
        done = subprocess.run(["true"], preexec_fn=memory.check, check=False)
        assert done.returncode == 0
        assert migration.wait(HANG)
        assert migration.stats.left == {Reason.FORKED: 50}
        memory.check()


@way
def test_multiprocessing(options: dict[str, Any]) -> None:
    context = multiprocessing.get_context("fork")
    with Memory(100) as memory:
        migration = half_touched(memory, options)
        workers = [context.Process(target=memory.check) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(HANG)
            assert worker.exitcode == 0
            worker.close()
        migration.cancel()
        memory.check()


# ---- past the handlers ----


@pytest.fixture(scope="module")
def barefork(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(compiled("barefork", tmp_path_factory.mktemp("barefork"), "-shared", "-fPIC")))


@contextmanager
def bare_child(barefork: ctypes.CDLL, memory: Memory) -> Iterator[bytes]:
    """A child that lives until the end of the block; what it has read of the first and the last page, and "!"."""
    reading, writing = os.pipe()
    child = barefork.bare_fork(writing, ctypes.c_void_p(memory.at(0)), ctypes.c_void_p(memory.at(memory.pages - 1)))
    os.close(writing)
    assert child > 0
    read = b""
    try:
        while not read.endswith(b"!"):
            assert select.select([reading], [], [], HANG)[0]
            more = os.read(reading, 100)
            assert more, "the child has died"
            read += more
        yield read
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)


@service
def test_a_fork_that_nobody_hears_of(options: dict[str, Any], barefork: ctypes.CDLL) -> None:
    """A bare system call: the child has no mapping there rather than zeros, and does not keep the parent's faults."""
    with Memory(60) as memory:
        migration = half_touched(memory, options)
        with bare_child(barefork, memory) as read:
            assert read == b"!"  # EFAULT for both
            run_threads(memory.fill)
            assert migration.wait(HANG)
            assert migration.stats.moved_by_touch == 60
            again = half_touched(memory, options)
            again.cancel()
            run_threads(memory.check)


@service
def test_parked_pages_stay_the_parents_own(options: dict[str, Any], barefork: ctypes.CDLL) -> None:
    """They would have to be copied to be put back."""
    with Memory(60) as memory:
        frames = memory.frames()
        migration = half_touched(memory, options)
        with bare_child(barefork, memory):
            migration.cancel()
            assert (memory.frames()[30:] == frames[30:]).all()
            memory.check()


@service
def test_children_after_a_migration_have_the_memory(options: dict[str, Any]) -> None:
    """The mark that keeps armed memory from a bare fork is gone at the end."""
    with Memory(40) as memory:
        with nt.lazy(memory.words, 0, always=True, **options):
            pass
        in_child(memory.check)
        memory.fill()
        migration = half_touched(memory, options)
        in_child(memory.check)
        assert migration.wait(HANG)


@service
def test_a_child_that_lives_on_does_not_hold_up_the_parent(options: dict[str, Any]) -> None:
    with Memory(40) as memory:
        first = half_touched(memory, options)
        reading, writing = os.pipe()

        def meanwhile() -> None:
            for _ in range(5):
                migration = nt.lazy(memory.words, 0, always=True, rate=0, **options)
                assert migration.wait_armed(HANG)
                run_threads(memory.fill)
                migration.cancel()
                assert settled(migration.stats, 40)
            memory.check()
            os.write(writing, b"x")
            assert first.done

        assert in_child(lambda: os.read(reading, 1), meanwhile) == b"x"
        os.close(reading)
        os.close(writing)


def test_a_child_killed_in_the_middle() -> None:
    with Memory(40) as memory:
        migration = half_touched(memory, {"mechanism": "write_protect"})
        child = os.fork()
        if not child:
            own = nt.lazy(memory.words, 0, always=True, rate=0)
            own.wait_armed()
            os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        memory.fill()
        assert migration.wait(HANG)
        assert PAGE_SIZE * migration.stats.moved + PAGE_SIZE * sum(migration.stats.left.values()) == memory.size
        memory.check()
