"""The parts in C do what they are said to do, on real memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import native
from bench.native import PopulatedMemory, Toucher, compiled, copy
from bench.one_node import _spinner
from nexttouch import where
from nexttouch.errors import FeatureMissing
from nexttouch.linux import procfs
from nexttouch.linux.process import SELF, Process
from nexttouch.linux.syscall import PAGE_SIZE

PAGES = 64
SIZE = PAGES * PAGE_SIZE


def test_memory_is_all_there_in_small_pages() -> None:
    with PopulatedMemory(4 << 20) as memory:
        found = where(memory.buffer).total
        assert (found.pages, found.present, found.huge) == (1024, 1024, 0)


def test_touch_writes_to_each_page_and_nothing_else() -> None:
    with PopulatedMemory(SIZE) as memory:
        memory.buffer[:] = bytes([7]) * SIZE
        assert memory.touch() > 0
        written = np.frombuffer(memory.buffer, np.uint8).copy()
        assert np.flatnonzero(written == 1).tolist() == list(range(0, SIZE, PAGE_SIZE))
        assert np.count_nonzero(written == 7) == SIZE - PAGES


def test_copy_copies_everything() -> None:
    with PopulatedMemory(SIZE) as source, PopulatedMemory(SIZE) as to:
        source.buffer[:] = np.random.default_rng(1).bytes(SIZE)
        assert copy(to, source) > 0
        assert to.buffer[:] == source.buffer[:]


def test_protect_forbids_everything() -> None:
    with PopulatedMemory(SIZE) as memory:
        assert memory.protect() > 0
        mapping = next(one for one in procfs.mappings(SELF) if one.start <= memory.address < one.end)
        assert not mapping.readable
        assert not mapping.writable


def test_a_toucher_touches_every_page_until_its_end() -> None:
    with PopulatedMemory(SIZE) as memory:
        memory.buffer[:] = bytes(SIZE)
        with Toucher(memory) as toucher:
            while toucher.touches < 100 * PAGES:
                pass
            assert toucher.longest() > 0
            assert memory.buffer[:].count(1) == PAGES
        memory.buffer[:] = bytes(SIZE)
        assert memory.buffer[:].count(1) == 0


def test_a_spinner_has_its_memory_and_tells_of_its_longest_gap() -> None:
    with _spinner(8 << 20) as target:
        assert where(target.pid).total.present >= 2048
        target.longest()
        rounds = target.rounds
        while target.rounds == rounds:
            pass
        assert target.longest() > 0


def test_a_stop_is_a_gap() -> None:
    with _spinner(1 << 20) as target:
        stop(target.pid)
        rounds = target.rounds
        target.longest()
        began = procfs_uptime()
        while procfs_uptime() - began < 0.05:
            pass
        assert target.rounds == rounds
        resume(target.pid)
        while target.rounds < rounds + 2:  # the round it was stopped in may have looked at the clock before
            pass
        assert target.longest() >= 0.04


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while procfs.status(Process(pid)).state != "T":
        pass


def resume(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


def procfs_uptime() -> float:
    return float(Path("/proc/uptime").read_text().split()[0])


def test_a_spinner_without_arguments_is_misuse() -> None:
    assert subprocess.run([compiled("spinner.c")], check=False).returncode == 2


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(FeatureMissing, match=r"no cc on the path.*install gcc"):
        compiled("native.c")


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "wrong.c").write_text("nonsense\n")
    monkeypatch.setattr(native, "_SOURCES", tmp_path)
    with pytest.raises(FeatureMissing, match=r"failed on wrong\.c.*error"):
        compiled("wrong.c")
