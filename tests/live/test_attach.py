"""Attaching to programs that know nothing of it: whatever they and we do, their memory holds what they wrote."""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.memory import in_child, more_hugetlb
from targets.programs import HANG, Program, compiled, descriptors, leftovers, steady, unruly, until

import nexttouch as nt
from nexttouch.linux import procfs
from nexttouch.linux.process import Process
from nexttouch.live.migration import Migration
from nexttouch.live.reason import Reason
from nexttouch.live.stats import Stats

attach = importlib.import_module("nexttouch.live.attach")  # the package has the function under this name
TO = 0
SLOW = 1.0  # bytes a second: nothing ends by itself while a test looks


@pytest.fixture(scope="session")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("targets")
    return {name: compiled(name, folder) for name in ("steady", "unruly")}


@pytest.fixture
def hugetlb() -> Iterator[int]:
    """Reserve huge pages of hugetlb; 0 where there are none to be had."""
    with more_hugetlb(2) as reserved:
        yield 2 if reserved == 2 else 0


def ended(migration: Migration) -> Stats:
    """Wait for the end; every page is accounted for."""
    assert migration.wait(HANG), migration
    stats = migration.stats
    assert stats.phase == "done"
    assert stats.waiting == 0
    assert stats.pages == stats.moved + sum(stats.left.values())
    return stats


def clean(program: Program, before: dict[str, str]) -> None:
    assert leftovers(program.pid) == []
    assert descriptors(program.pid) == before
    program.advance()


# ---- Contents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"window": 1},
        {"rate": 100 * 2.0**20, "window": 512},
        {"rate": 0, "deadline": 0.1},
        {"rate": SLOW, "deadline": 0.05},
    ],
    ids=["sweep", "one page", "rate", "no sweep", "late"],
)
def test_contents_hold_through_several_attaches(binaries: dict[str, Path], how: dict[str, Any], hugetlb: int) -> None:
    with steady(binaries["steady"], hugetlb=hugetlb) as (program, companion):
        before = descriptors(program.pid)
        for _ in range(3):
            with nt.attach(program.pid, TO, always=True, **how) as migration:
                program.advance()
                companion.advance()
            stats = ended(migration)
            assert stats.moved >= 2 * 512 + 3 * 512  # huge pages, and shared, anonymous and heap pages
            assert 0 < stats.stopped < HANG
            assert set(stats.left) <= {Reason.AT_HOME, Reason.UNSUITABLE, Reason.BUSY, Reason.SHARED, Reason.ABSENT}
            clean(program, before)
            companion.advance()


def test_a_page_table_that_is_armed_looks_so(binaries: dict[str, Path]) -> None:
    """That nothing is found afterwards says something only if it is found before."""
    with steady(binaries["steady"]) as (program, _):
        before = descriptors(program.pid)
        migration = nt.attach(program.pid, TO, rate=0, always=True, window=1)
        assert migration.wait_armed(HANG)
        found = leftovers(program.pid)
        assert any("armed" in line for line in found)
        assert any("watched" in line for line in found)
        program.advance()
        until(lambda: migration.stats.moved_by_touch >= 512, "stores")
        program.advance()
        migration.cancel()
        stats = ended(migration)
        assert stats.left[Reason.CANCELLED] > 0
        assert 0 < stats.faults <= stats.moved_by_touch  # a store moves a page, or the huge page that it is in
        assert stats.moved_by_sweep == stats.moved_eagerly == 0
        clean(program, before)


def test_a_second_migrator_is_refused_and_the_first_one_goes_on(binaries: dict[str, Path]) -> None:
    with (
        steady(binaries["steady"]) as (program, _),
        nt.attach(program.pid, TO, rate=0, always=True, window=1) as migration,
    ):
        migration.wait_armed(HANG)
        with pytest.raises(nt.TargetRefused, match="another migrator"):
            nt.attach(program.pid, TO)
        assert not migration.done
        program.advance()


@pytest.mark.parametrize("moment", ["acquire", "make_plan"])
def test_of_two_migrators_that_begin_at_once_one_is_refused(
    binaries: dict[str, Path], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one begins when the other has looked whether there is one."""
    with steady(binaries["steady"]) as (program, companion):
        before, first = descriptors(program.pid), []
        step = getattr(attach, moment)

        def overtaken(*arguments: Any, **keywords: Any) -> Any:
            done = step(*arguments, **keywords)
            monkeypatch.setattr(attach, moment, step)
            first.append(nt.attach(program.pid, TO, rate=0, always=True, window=1))
            return done

        monkeypatch.setattr(attach, moment, overtaken)
        with pytest.raises(nt.TargetRefused, match=r"another migrator.* handles its page faults$"):
            nt.attach(program.pid, TO, always=True)
        assert first[0].wait_armed(HANG)
        until(lambda: first[0].stats.moved_by_touch >= 512, "stores")
        program.advance()
        companion.advance()
        first[0].cancel()
        assert set(ended(first[0]).left) <= {
            Reason.CANCELLED,
            Reason.AT_HOME,
            Reason.UNSUITABLE,
            Reason.SHARED,
            Reason.BUSY,
        }
        clean(program, before)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_descriptor_that_nothing_needed_is_forgotten(binaries: dict[str, Path]) -> None:
    with steady(binaries["steady"]) as (program, _), nt.attach(program.pid, nt.topology().memory_nodes):
        pass
    files = [os.memfd_create("next") for _ in range(8)]  # one of them has its number
    in_child(lambda: [os.fstat(file) for file in files])
    for file in files:
        os.close(file)


def test_a_number_of_numpy_is_a_process_id(binaries: dict[str, Path]) -> None:
    with steady(binaries["steady"]) as (program, _):
        with nt.attach(np.int64(program.pid), TO, always=True) as migration:
            pass
        assert ended(migration).moved


def test_an_exception_gives_everything_back(binaries: dict[str, Path]) -> None:
    with steady(binaries["steady"]) as (program, _):
        before = descriptors(program.pid)
        with pytest.raises(ZeroDivisionError), nt.attach(program.pid, TO, rate=SLOW, always=True) as migration:
            raise ZeroDivisionError
        assert migration.done
        clean(program, before)


def test_what_has_reached_its_node_is_left_alone(binaries: dict[str, Path]) -> None:
    with steady(binaries["steady"]) as (program, _):
        nodes = nt.topology().memory_nodes
        with nt.attach(program.pid, nodes) as migration:
            pass
        stats = ended(migration)
        assert stats.moved == stats.faults == 0
        assert stats.left[Reason.AT_HOME] > 5 * 512


PYTHON = """
import hashlib, sys, threading
print("ready", flush=True)
def work(number, results):
    table, digest = {}, hashlib.sha256()
    for step in range(60000):
        table[step % 997] = table.get(step % 991, b"") [-40:] + bytes([step % 251]) * (number + 1)
        if step % 50 == 0:
            digest.update(b"".join(table.values()))
    results[number] = digest.hexdigest()
results = {}
threads = [threading.Thread(target=work, args=(number, results)) for number in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
sys.stdin.read()
print(sorted(results.items()))
"""


def test_a_python_program_computes_the_same() -> None:
    command = [sys.executable, "-c", PYTHON]
    expected = subprocess.run(command, input=b"", capture_output=True, check=True, timeout=HANG).stdout
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdout
    said, moved = program.stdout.readline(), 0
    while moved < 20_000:  # it does not end before its input does
        with nt.attach(program.pid, TO, always=True) as migration:
            moved += ended(migration).moved
    rest, _ = program.communicate(timeout=HANG)
    assert program.returncode == 0
    assert said + rest == expected


# ---- Programs that change themselves ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_program_that_remaps_discards_protects_and_forks(binaries: dict[str, Path], seed: int) -> None:
    chances = random.Random(seed)
    with unruly(binaries["unruly"], seed) as program:
        before = descriptors(program.pid)
        for _ in range(5):
            window, rate = chances.choice([1, 8, 64, 512]), chances.choice([None, 2.0**20, 2.0**24, 0])
            with nt.attach(program.pid, TO, always=True, deadline=0.2, window=window, rate=rate) as migration:
                program.advance(chances.randrange(1, 400))
            stats = ended(migration)
            assert stats.moved, stats
            clean(program, before)
        with nt.attach(program.pid, TO, always=True, rate=0) as migration:
            forked = program.children
            until(lambda: program.children > forked, "a fork")
        ended(migration)
        clean(program, before)
        program.finish()


def test_a_mapping_is_not_cut_in_two(binaries: dict[str, Path]) -> None:
    """mremap(2) takes one mapping; one that is watched in part would be two."""
    with unruly(binaries["unruly"], 3, threads=0) as program:
        for _ in range(3):
            with nt.attach(program.pid, TO, always=True, rate=0) as migration:
                migration.wait_armed(HANG)
                program.command(b"m", counter="children")
            assert program.failures == 0
        program.finish()


@pytest.mark.parametrize("how", [{}, {"rate": 0}, {"rate": SLOW}], ids=["sweep", "no sweep", "slow"])
def test_a_program_that_becomes_another(binaries: dict[str, Path], how: dict[str, Any]) -> None:
    """Exec: the new program has none of the traps, and the migration finds nobody to move any more."""
    chances = random.Random(11)
    with unruly(binaries["unruly"], 7) as program:
        before = descriptors(program.pid)
        for _ in range(8):
            with nt.attach(program.pid, TO, always=True, **how) as migration:
                program.advance(chances.randrange(1, 200))
                program.command(b"x", counter="generation")
                program.advance()
                if how:
                    migration.cancel()
            ended(migration)
            clean(program, before)
        program.finish()


_BECOMES_ANOTHER = """
import os, sys
memory = bytearray(b"x") * (16 << 20)
print(flush=True)
sys.stdin.read(1)
os.execvp("sleep", ["sleep", "60"])
"""


def test_the_pages_of_another_program_are_not_moved() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", _BECOMES_ANOTHER], stdin=pipe, stdout=pipe, text=True) as program:
        assert program.stdin
        assert program.stdout
        program.stdout.readline()
        with nt.attach(program.pid, TO, always=True, rate=SLOW) as migration:
            assert migration.wait_armed(HANG)
            program.stdin.write("x")
            program.stdin.close()
            assert migration.wait(HANG)
        program.kill()
    assert ended(migration).sweeps < 32  # of more than 64
    assert migration.process_ended
    assert migration.stats.moved_eagerly == 0


@pytest.mark.parametrize("how", [{}, {"rate": 0}, {"rate": SLOW}], ids=["sweep", "no sweep", "slow"])
@pytest.mark.parametrize("end", ["exit", "kill"])
def test_a_program_that_ends(binaries: dict[str, Path], end: str, how: dict[str, Any]) -> None:
    chances = random.Random(12)
    for seed in range(4):
        with unruly(binaries["unruly"], seed) as program:
            migration = nt.attach(program.pid, TO, always=True, **how)
            program.advance(chances.randrange(1, 200))
            if end == "exit":
                program.command(b"q")
            else:
                os.kill(program.pid, signal.SIGKILL)
            assert program.process.wait(HANG) == (0 if end == "exit" else -signal.SIGKILL)
            assert program.failures == 0
            ended(migration)  # by the program's end, or by its last touch before that


ENDED = (" does not exist", " ended ", " cannot be attached to: it has ended already")
"""What is said of a program that has ended, behind its number."""


@pytest.mark.parametrize("step", ["acquire", "make_plan"])
def test_a_program_killed_between_the_steps_of_attaching(
    binaries: dict[str, Path], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unruly(binaries["unruly"], 5) as program:
        take = getattr(attach, step)

        def late(*arguments: Any, **keywords: Any) -> Any:
            program.process.kill()
            os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
            return take(*arguments, **keywords)

        monkeypatch.setattr(attach, step, late)
        with pytest.raises((nt.NoSuchProcess, nt.TargetRefused)) as told:
            ended(nt.attach(program.pid, TO, always=True, rate=SLOW))
        assert str(told.value).partition(str(program.pid))[2].startswith(ENDED)


def test_a_program_killed_while_it_is_attached_to(binaries: dict[str, Path]) -> None:
    chances = random.Random(13)
    outcomes: set[str] = set()
    for seed in range(20):
        with unruly(binaries["unruly"], seed) as program:
            killer = threading.Timer(chances.uniform(0, 0.15), program.process.kill)
            killer.start()
            try:
                ended(nt.attach(program.pid, TO, always=True, rate=SLOW))
                outcomes.add("attached")
            except (nt.NoSuchProcess, nt.TargetRefused) as error:
                outcomes.add(str(error).partition(str(program.pid))[2])
            killer.join()
    assert all(outcome.startswith(ENDED) for outcome in outcomes - {"attached"}), outcomes


def test_a_program_that_is_stopped_and_continued(binaries: dict[str, Path]) -> None:
    with steady(binaries["steady"]) as (program, companion):
        before = descriptors(program.pid)
        for moment in ("before", "while armed"):
            if moment == "before":
                stop(program)
            migration = nt.attach(program.pid, TO, always=True, rate=20 * 2.0**20, window=1)
            if moment != "before":
                migration.wait_armed(HANG)
                stop(program)
            ended(migration)  # the sweep needs nobody
            assert stopped(program)
            assert leftovers(program.pid) == []
            companion.advance()
            os.kill(program.pid, signal.SIGCONT)
            clean(program, before)


def stop(program: Program) -> None:
    os.kill(program.pid, signal.SIGSTOP)
    until(lambda: stopped(program), "stop")


def stopped(program: Program) -> bool:
    return all(procfs.status(Process(thread)).state == "T" for thread in Process(program.pid).threads())


# ---- Arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "keywords", "name"),
    [
        ((0, 0), {}, "pid"),
        ((-5, 0), {}, "pid"),
        ((True, 0), {}, "pid"),
        ((np.True_, 0), {}, "pid"),
        ((np.float64(1), 0), {}, "pid"),
        (("1", 0), {}, "pid"),
        ((1.0, 0), {}, "pid"),
        ((1, -1), {}, "to"),
        ((1, []), {}, "to"),
        ((1, "0"), {}, "to"),
        ((1, [0, 0]), {}, "to"),
        ((1, np.array([0, 0])), {}, "to"),
        ((1, 1023), {}, "to"),
        ((1, 0), {"rate": -1}, "rate"),
        ((1, 0), {"rate": float("nan")}, "rate"),
        ((1, 0), {"deadline": -1}, "deadline"),
        ((1, 0), {"window": 0}, "window"),
        ((1, 0), {"window": 2**20 + 1}, "window"),
        ((1, 0), {"window": 1.5}, "window"),
        ((1, 0), {"window": True}, "window"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Any, ...], keywords: dict[str, Any], name: str) -> None:
    with pytest.raises(nt.InvalidArgument, match=f"^{name} ") as caught:
        nt.attach(*arguments, **keywords)
    assert caught.value.argument == name
