"""What can be measured on any machine: pages move into other frames of the node they are on (`always=True`)."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import nexttouch as nt
from nexttouch.errors import NexttouchError

from .figures import Figure, Series, ratios
from .native import PopulatedMemory, compiled, copy

__all__ = ["arm", "attach", "sweep", "touch"]

_MICRO = 1e6
_TOUCHED = 16 << 20
_SWEPT = 512 << 20
_ARMED = 256 << 20
_TARGETS = (64 << 20, 1 << 30)
_STOP_LIMIT = 5e-3


def touch(repetitions: int) -> list[Figure]:
    """One page a fault, put back by the faulting thread, against unprotected by another thread."""
    inline, thread = [], []
    for _ in range(repetitions):
        with PopulatedMemory(_TOUCHED) as memory:
            options = nt.lazy(memory.buffer, _node(), window=1, rate=0, service="inline", always=True)
            inline.append(_touched(memory, options))
            options = nt.lazy(memory.buffer, _node(), window=1, rate=0, mechanism="write_protect", always=True)
            thread.append(_touched(memory, options))
    note = "What is timed are the touches: the pages move right after them, by another thread, on both sides."
    return [
        Figure(
            "touch",
            "touch of an armed page, inline relocate / write_protect by a thread",
            ratios(inline, thread),
            floor=0.20,
            at_most=True,
            sides=(
                _micro("inline: put back by the faulting thread", inline),
                _micro("classic: unprotected by another thread", thread),
            ),
            note=note,
        )
    ]


def sweep(repetitions: int) -> list[Figure]:
    """Nobody touches anything: how fast does everything move, against memcpy(3) between populated pages?"""
    copied: list[float] = []
    populated: list[float] = []
    whole: dict[bool, list[float]] = {False: [], True: []}
    inside: dict[bool, list[float]] = {False: [], True: []}
    with PopulatedMemory(_SWEPT) as base, PopulatedMemory(_SWEPT, huge=True) as huge, PopulatedMemory(_SWEPT) as to:
        note = f"{nt.where(huge.buffer).total.huge or 0} of {huge.pages} pages of the huge memory were huge."
        for _ in range(repetitions):
            copied.append(_bandwidth(copy(to, base)))
            populated.append(_bandwidth(_populate()))
            for memory in (base, huge):
                seconds, swept = _swept(memory)
                whole[memory is huge].append(_bandwidth(seconds))
                inside[memory is huge].append(_bandwidth(swept))
    kinds = {
        "sweep.base": (False, "4 KiB pages"),
        "sweep.huge": (True, "huge pages, as NumPy asks for in large arrays"),
    }
    return [
        Figure(
            name,
            f"bandwidth of a sweep of {title} / memcpy",
            ratios(whole[kind], copied),
            floor=0.5,
            at_most=False,
            sides=(
                Series("sweep, from armed to done", "GB/s", tuple(whole[kind])),
                Series("sweep, only the time in which it moved pages", "GB/s", tuple(inside[kind])),
                Series("memcpy into populated memory", "GB/s", tuple(copied)),
                Series("the kernel alone, populating fresh memory with 4 KiB pages", "GB/s", tuple(populated)),
            ),
            note=note
            if kind
            else "Every page takes a frame that has to be allocated, and frees one: see the last line.",
        )
        for name, (kind, title) in kinds.items()
    ]


def arm(repetitions: int) -> list[Figure]:
    """What it takes to make a page a trap, against mprotect(2) over the same memory."""
    mechanisms = ("relocate", "write_protect")
    armed: dict[str, list[float]] = {mechanism: [] for mechanism in mechanisms}
    called: dict[str, list[float]] = {mechanism: [] for mechanism in mechanisms}
    protected = []
    for _ in range(repetitions):
        for mechanism in mechanisms:
            with PopulatedMemory(_ARMED) as memory:
                seconds, whole = _armed(memory, mechanism)
                armed[mechanism].append(seconds / memory.pages)
                called[mechanism].append(whole / memory.pages)
        with PopulatedMemory(_ARMED) as memory:
            protected.append(memory.protect() / memory.pages)
    return [
        Figure(
            f"arm.{mechanism}",
            f"arming a page by {mechanism} / mprotect of a page",
            ratios(armed[mechanism], protected),
            floor=1.5,
            at_most=True,
            sides=(
                _micro(f"arming, {mechanism}", armed[mechanism]),
                _micro("mprotect(PROT_NONE)", protected),
                _micro("from the call of lazy() until armed: plan, registration, arming", called[mechanism]),
            ),
        )
        for mechanism in mechanisms
    ]


def attach(repetitions: int) -> list[Figure]:
    """How long a program stands still while it is attached to, and whether that grows with its size."""
    stopped: dict[int, list[float]] = {size: [] for size in _TARGETS}
    gaps: dict[int, list[float]] = {size: [] for size in _TARGETS}
    ends: dict[int, list[float]] = {size: [] for size in _TARGETS}
    usual: dict[int, list[float]] = {size: [] for size in _TARGETS}
    for _ in range(repetitions):
        for size in _TARGETS:
            with _spinner(size) as target:
                times = _attached(target)
            for series, seconds in zip((stopped, gaps, ends, usual), times, strict=True):
                series[size].append(seconds)
    note = (
        "The gaps are what the program sees: its stop, and whatever else takes its CPU away; of that the longest gap "
        "in as long a time without attaching gives an idea."
    )
    figures = [
        Figure(
            f"attach.{size >> 20}MiB",
            f"a program of {size >> 20} MiB stands still to be attached to",
            Series("stopped", "s", tuple(stopped[size])),
            floor=_STOP_LIMIT,
            at_most=True,
            sides=(
                Series("longest gap it saw until armed", "s", tuple(gaps[size])),
                Series("longest gap it saw when the migration was cancelled", "s", tuple(ends[size])),
                Series("longest gap with nobody attaching", "s", tuple(usual[size])),
            ),
            note=note,
        )
        for size in _TARGETS
    ]
    small_size, large_size = _TARGETS
    growth = ratios(stopped[large_size], stopped[small_size])
    return [
        *figures,
        Figure("attach.growth", "the same, 1 GiB / 64 MiB", growth, floor=1.5, at_most=True),
    ]


def _node() -> int:
    return nt.topology().memory_nodes[0]


def _micro(label: str, seconds: list[float]) -> Series:
    return Series(label, "us a page", tuple(value * _MICRO for value in seconds))


# Seconds a page that it takes to touch memory that `migration` has armed.
def _touched(memory: PopulatedMemory, migration: nt.Migration) -> float:
    with migration:
        migration.wait_armed()
        seconds = memory.touch()
        migration.wait()  # pages move when the thread that touched them has gone on already
        _check_moved(migration, memory.pages, migration.stats.moved_by_touch)
    return seconds / memory.pages


# Seconds from armed to done when nobody touches `memory`, and those of them in which the sweep moved pages.
def _swept(memory: PopulatedMemory) -> tuple[float, float]:
    with nt.lazy(memory.buffer, _node(), always=True) as migration:
        migration.wait_armed()
        began = time.perf_counter()
        migration.wait()
        seconds = time.perf_counter() - began
    _check_moved(migration, memory.pages, migration.stats.moved_by_sweep)
    return seconds, migration.stats.sweep_seconds


# Seconds that the kernel takes to find frames for fresh memory, with one call.
def _populate() -> float:
    populate_write = 23  # madvise(2), 5.14
    with mmap.mmap(-1, _SWEPT, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as fresh:
        fresh.madvise(mmap.MADV_NOHUGEPAGE)
        began = time.perf_counter()
        fresh.madvise(populate_write)
        return time.perf_counter() - began


def _bandwidth(seconds: float) -> float:
    return _SWEPT / seconds / 1e9


def _check_moved(migration: nt.Migration, pages: int, moved: int) -> None:
    if moved != pages:
        raise NexttouchError(f"{moved} of {pages} pages moved as they should, so there is no figure: {migration!r}")


# Seconds spent arming, and from the call until all is armed.
def _armed(memory: PopulatedMemory, mechanism: str) -> tuple[float, float]:
    began = time.perf_counter()
    with nt.lazy(memory.buffer, _node(), rate=0, mechanism=mechanism, always=True) as migration:
        migration.wait_armed()
        return migration.stats.arm_seconds, time.perf_counter() - began


# Seconds that the target was stopped, its longest gap until armed, its longest at the end, and its longest in as long a
# time as attaching took with nobody there.
def _attached(target: _Target) -> tuple[float, float, float, float]:
    target.longest()
    began = time.perf_counter()
    with nt.attach(target.pid, _node(), rate=0, always=True) as migration:
        migration.wait_armed()
        took, gap = time.perf_counter() - began, target.seen()
        stopped = migration.stats.stopped
    end = target.seen()
    time.sleep(took)
    return stopped, gap, end, target.seen()


class _Target(NamedTuple):
    """A program that looks at the clock all the time, and what it shares with us: its longest gap, its rounds."""

    pid: int
    shared: mmap.mmap

    def longest(self) -> float:
        """Seconds of the longest gap since this was last asked."""
        (gap,) = struct.unpack_from("<Q", self.shared, 0)
        struct.pack_into("<Q", self.shared, 0, 0)
        return float(gap) / 1e9

    def seen(self) -> float:
        """The same, when it has run since: a gap that lasts is one as well."""
        rounds = self.rounds
        while self.rounds < rounds + 2:  # the round it is in may have looked at the clock before
            time.sleep(0)
        return self.longest()

    @property
    def rounds(self) -> int:
        """How often it has looked."""
        (rounds,) = struct.unpack_from("<Q", self.shared, 8)
        return int(rounds)


@contextmanager
def _spinner(size: int) -> Iterator[_Target]:
    # Memory, not a disk's file: writing back would protect the page, and the program would fault for that.
    file = os.memfd_create("nexttouch-bench")
    try:
        os.ftruncate(file, 16)
        with mmap.mmap(file, 16) as shared:
            command = [str(compiled("spinner.c")), f"/proc/{os.getpid()}/fd/{file}", str(size)]
            process = subprocess.Popen(command)
            try:
                target = _Target(process.pid, shared)
                while not target.rounds:
                    if process.poll() is not None:
                        raise NexttouchError(f"the program to attach to ended with status {process.returncode}")
                    time.sleep(0.01)
                yield target
            finally:
                process.kill()
                process.wait()
    finally:
        os.close(file)
