"""What every mechanism keeps, whatever is done to memory that it has armed: a registry line is enough to be tested."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.mechanisms import foreign, traps_touches, way
from support.memory import HANG, PAGE_SIZE, WORDS, Memory, checked, in_child, libc, on_nodes, run_threads, settled
from support.nodes import filled
from targets.migrators import Nursery
from targets.programs import Program, compiled, leftovers, steady, unruly, until

import nexttouch as nt
from nexttouch import Reason
from nexttouch.linux import procfs
from nexttouch.linux.process import SELF
from nexttouch.live.mechanisms import Mechanism

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
PAGES = 96
WATCHED = {"um", "uw", "ui", "ur", "dc"}


def armed(memory: Memory, options: dict[str, Any], words: Any = None) -> nt.Migration:
    """A migration of which every page is a trap that only a touch springs."""
    what = memory.words if words is None else words
    migration = nt.lazy(what, 0, always=True, rate=0, window=1, **options)
    assert migration.wait_armed(HANG)
    return migration


def is_left_alone(memory: Memory) -> bool:
    """Whether no mapping of it is watched or kept from children any more."""
    return not any(smap.flags & WATCHED for smap in procfs.smaps(SELF, memory.address, memory.at(memory.pages)))


def ended(memory: Memory, migration: nt.Migration) -> nt.Stats:
    """Cancel what is left; every page is accounted for, and nothing is left behind."""
    migration.cancel()
    assert settled(migration.stats, migration.stats.pages), migration.stats
    assert is_left_alone(memory)
    return migration.stats


# ---- of this process ----


@way
def test_contents_and_what_is_a_touch(options: dict[str, Any]) -> None:
    with Memory(PAGES) as memory:
        migration = armed(memory, options)
        memory.check()
        assert migration.stats.faults == (PAGES if traps_touches(options) else 0)
        memory.fill()
        assert migration.wait(HANG)
        assert (migration.stats.moved_by_touch, migration.stats.left) == (PAGES, {})
        memory.check()
        assert is_left_alone(memory)


@way
def test_the_sweep(options: dict[str, Any]) -> None:
    with Memory(PAGES) as memory:
        with nt.lazy(memory.words, 0, always=True, **options) as migration:
            pass
        assert (migration.stats.moved, migration.stats.left) == (PAGES, {})
        memory.check()
        assert is_left_alone(memory)


@way
def test_two_threads_on_a_page(options: dict[str, Any]) -> None:
    together = threading.Barrier(2, timeout=HANG)
    with Memory(PAGES) as memory:
        migration = armed(memory, options)

        def write(word: int) -> None:
            value = (ctypes.c_uint64 * 1)(word + 7)
            for page in range(PAGES):
                together.wait()
                ctypes.memmove(memory.at(page) + word * 8, value, 8)

        run_threads(lambda: write(0), lambda: write(511))
        assert migration.wait(HANG)
        assert (migration.stats.moved_by_touch, migration.stats.windows) == (PAGES, PAGES)
        memory.expected.reshape(PAGES, WORDS)[:, [0, 511]] = [7, 518]
        memory.check()


@way
def test_cancel(options: dict[str, Any]) -> None:
    with Memory(PAGES) as memory:
        stats = ended(memory, armed(memory, options))
        assert stats.left == {Reason.CANCELLED: PAGES}
        memory.check()
        memory.fill()


@way
def test_fork(options: dict[str, Any]) -> None:
    with Memory(PAGES) as memory:
        migration = armed(memory, options)

        def child() -> bool:
            memory.check()
            memory.words[:] = 1
            return bool((memory.words == 1).all())

        assert in_child(child)
        memory.check()
        memory.fill()
        ended(memory, migration)
        memory.check()


@way
def test_munmap(options: dict[str, Any]) -> None:
    with Memory(PAGES) as memory:
        migration = armed(memory, options)
        hole, size = ctypes.c_void_p(memory.at(30)), ctypes.c_size_t(20 * PAGE_SIZE)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED: another mapping is there from now on
        checked(libc.mmap(hole, size, READ_WRITE, flags, -1, ctypes.c_long(0)))
        memory.expected[30 * WORDS : 50 * WORDS] = 0
        memory.check()
        memory.words[:] += np.uint64(1)
        memory.expected[:] += np.uint64(1)
        ended(memory, migration)
        memory.check()


@way
def test_mremap(options: dict[str, Any]) -> None:
    with Memory(PAGES) as memory, Memory(PAGES, fill=False) as room:
        migration = armed(memory, options)
        old, size, new = ctypes.c_void_p(memory.address), ctypes.c_size_t(memory.size), ctypes.c_void_p(room.address)
        checked(libc.mremap(old, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, new))
        assert (room.words == memory.expected).all()
        room.words[:] += np.uint64(1)
        assert (room.words == memory.expected + np.uint64(1)).all()
        ended(room, migration)
        assert (room.words == memory.expected + np.uint64(1)).all()


@way
def test_discard(options: dict[str, Any]) -> None:
    with Memory(PAGES) as memory:
        migration = armed(memory, options)
        memory.advise(mmap.MADV_DONTNEED, 10, 40)
        memory.expected[10 * WORDS : 50 * WORDS] = 0
        memory.check()
        memory.words[:] += np.uint64(1)
        memory.expected[:] += np.uint64(1)
        ended(memory, migration)
        memory.check()


@way
@pytest.mark.parametrize("access", [0, mmap.PROT_READ], ids=["none", "read-only"])
@pytest.mark.parametrize("back", ["armed", "done"])
def test_protected_and_back(options: dict[str, Any], access: int, back: str) -> None:
    """While it is armed, or when it is not any more: no page is left without permission."""
    with Memory(PAGES) as memory:
        migration = armed(memory, options)
        memory.protect(access, 20, 50)
        if access:
            memory.check()
        if back == "done":
            ended(memory, migration)
        memory.protect(READ_WRITE, 20, 50)
        memory.check()
        memory.fill()
        ended(memory, migration)
        memory.check()


@way
def test_a_view_that_forbids_writing(options: dict[str, Any]) -> None:
    with Memory(PAGES) as memory:
        view = memory.words[:]
        view.flags.writeable = False
        migration = armed(memory, options, view)
        memory.check()
        memory.fill()
        assert migration.wait(HANG)
        assert (migration.stats.moved_by_touch, migration.stats.left) == (PAGES, {})


@way
def test_a_mapping_that_forbids_writing(options: dict[str, Any]) -> None:
    """It is trapped, or stays for a reason; and is readable at any moment."""
    with Memory(PAGES) as memory:
        memory.protect(mmap.PROT_READ, 0, PAGES)
        migration = nt.lazy(memory.words, 0, always=True, rate=0, window=1, **options)
        assert migration.wait_armed(HANG)
        memory.check()
        stats = ended(memory, migration)
        trapped = sum(len(part.origins) for part in migration.plan.parts)
        assert stats.moved_by_touch == trapped
        assert stats.moved + sum(stats.left.values()) == PAGES
        assert set(stats.left) <= {Reason.UNSUITABLE, Reason.AT_HOME}
        memory.check()


@way
def test_the_end_of_the_interpreter(options: dict[str, Any]) -> None:
    program = Path(__file__).parents[1] / "support" / "ending.py"
    command = [sys.executable, program, "thread", options["service"], options["mechanism"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split("\n")) == ["", "34359607296", "at the end"]


@pytest.mark.lab
@way
def test_a_full_target(options: dict[str, Any]) -> None:
    with Memory(8192) as memory:
        memory.bind(0)
        with filled(3, 2048):
            with nt.lazy(memory.words, 3, **options) as migration:
                memory.check()
            assert settled(migration.stats, 8192)
            assert set(migration.stats.left) == {Reason.TARGET_FULL}
            assert on_nodes(memory).get(3, 0) == migration.stats.moved > 0
            memory.check()
        assert is_left_alone(memory)


# ---- of another process ----


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("targets")
    return {name: compiled(name, folder) for name in ("steady", "unruly")}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


def unharmed(program: Program) -> None:
    assert leftovers(program.pid) == []
    program.advance(3)


@foreign
def test_contents_of_another(binaries: dict[str, Path], trap: Mechanism) -> None:
    with steady(binaries["steady"], pages=128) as (program, companion):
        for _ in range(3):
            with nt.attach(program.pid, 0, always=True, mechanism=trap.name) as migration:
                program.advance()
                companion.advance()
            assert settled(migration.stats, migration.stats.pages)
            assert migration.stats.moved > 3 * 128
            unharmed(program)


@foreign
def test_cancel_of_another(binaries: dict[str, Path], trap: Mechanism) -> None:
    with steady(binaries["steady"], pages=128) as (program, _):
        migration = nt.attach(program.pid, 0, always=True, rate=0, window=1, mechanism=trap.name)
        assert migration.wait_armed(HANG)
        assert any("armed" in line for line in leftovers(program.pid))
        until(lambda: migration.stats.moved_by_touch > 64, "touches")
        migration.cancel()
        assert settled(migration.stats, migration.stats.pages)
        unharmed(program)


@foreign
def test_what_another_was_called_with_is_still_told(binaries: dict[str, Path], trap: Mechanism) -> None:
    with steady(binaries["steady"], pages=128) as (program, _):
        files = [Path(f"/proc/{program.pid}/{name}") for name in ("cmdline", "environ")]
        before = [file.read_bytes() for file in files]
        with nt.attach(program.pid, 0, always=True, rate=0, mechanism=trap.name) as migration:
            assert migration.wait_armed(HANG)
            assert [file.read_bytes() for file in files] == before
        assert all(before)


@foreign
@pytest.mark.parametrize("seed", [1, 2])
def test_another_that_changes_all_it_has(binaries: dict[str, Path], trap: Mechanism, seed: int) -> None:
    """It forks, unmaps, moves, discards and protects memory."""
    with unruly(binaries["unruly"], seed) as program:
        for rate in (0, 2.0**24, None):
            with nt.attach(
                program.pid, 0, always=True, deadline=0.2, window=8, rate=rate, mechanism=trap.name
            ) as migration:
                program.advance(100)
            assert migration.wait(HANG)
            assert settled(migration.stats, migration.stats.pages)
            unharmed(program)
        program.finish()


def wait_in_a_fault(pid: int) -> bool:
    """Whether every thread of a process does."""
    places = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/wchan")]
    working = places[1:]  # the first one waits for the others
    return bool(working) and all("userfault" in place for place in working)


@foreign
def test_the_death_of_the_migrator(binaries: dict[str, Path], nursery: Nursery, trap: Mechanism) -> None:
    """By SIGKILL, while every thread waits at an armed page that it does not serve."""
    with steady(binaries["steady"], pages=1024) as (program, companion):
        life = {"pid": program.pid, "to": 0, "always": True, "rate": 0, "window": 1, "mechanism": trap.name}
        for _ in range(3):
            migrator = nursery.fork(**life)
            nursery.hear_until("armed")
            os.kill(migrator, signal.SIGSTOP)
            try:
                until(lambda: wait_in_a_fault(program.pid), "all threads at armed pages")
            finally:
                os.kill(migrator, signal.SIGKILL)
            nursery.hear_until("ended")
            unharmed(program)
            companion.advance()


@pytest.mark.lab
@foreign
def test_a_full_target_of_another(binaries: dict[str, Path], trap: Mechanism) -> None:
    with steady(binaries["steady"], pages=2048) as (program, _), filled(3, 512):
        with nt.attach(program.pid, 3, mechanism=trap.name) as migration:
            program.advance()
        assert settled(migration.stats, migration.stats.pages)
        assert migration.stats.left[Reason.TARGET_FULL]
        unharmed(program)
