"""What takes two nodes: pages are copied from one to another, eagerly in one call or lazily."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

import nexttouch as nt
from nexttouch.errors import NexttouchError
from nexttouch.linux import mempolicy
from nexttouch.linux.mempolicy import Mode
from nexttouch.linux.process import SELF
from nexttouch.linux.syscall import PAGE_SIZE

from .figures import Figure, Series, ratios
from .native import PopulatedMemory, Toucher

__all__ = ["pause", "total"]

_MOVED = 256 << 20
_OTHER = 1 << 20
_SETTLED = 10_000  # touches


def total(repetitions: int) -> list[Figure]:
    """Move everything and touch all of it: lazily, and eagerly before the touches."""
    lazily, eagerly = [], []
    _back()
    for _ in range(repetitions):
        with _memory(_MOVED) as memory:
            lazily.append(_timed(memory, _move_lazily_and_touch)[0])
        with _memory(_MOVED) as memory:
            eagerly.append(_timed(memory, _move_eagerly_and_touch)[0])
    return [
        Figure(
            "total",
            "touching and moving everything, lazily / move_pages and the same touches",
            ratios(lazily, eagerly),
            floor=1.25,
            at_most=True,
            sides=(
                Series("lazily: relocate, window 64, sweep at full speed", "s", tuple(lazily)),
                Series("one move_pages(2) call, then the touches", "s", tuple(eagerly)),
            ),
        )
    ]


def pause(repetitions: int) -> list[Figure]:
    """The longest that a thread waits which writes to random pages while all of them move."""
    lazily: list[float] = []
    eagerly: list[float] = []
    lazy_calls: list[float] = []
    eager_calls: list[float] = []
    usual = []
    _back()
    for _ in range(repetitions):
        for move, longest, calls in ((_move_lazily, lazily, lazy_calls), (_move_eagerly, eagerly, eager_calls)):
            with _memory(_MOVED) as memory, Toucher(memory) as toucher:
                _settle(toucher)
                took, call = _timed(memory, move)
                calls.append(call)
                longest.append(toucher.longest())
        usual.append(_longest_without(took))
    return [
        Figure(
            "pause",
            "longest wait of a thread that touches random pages, lazily / move_pages in one call",
            ratios(lazily, eagerly),
            floor=0.05,
            at_most=True,
            sides=(
                Series("while another thread moves them lazily", "s", tuple(lazily)),
                Series("while another thread moves them by one move_pages(2) call", "s", tuple(eagerly)),
                Series("in as long a time with nothing moving, but another thread busy", "s", tuple(usual)),
                Series("duration of the lazy() call: what its caller waits", "s", tuple(lazy_calls)),
                Series("duration of the move_pages(2) call: what its caller waits", "s", tuple(eager_calls)),
            ),
            note="Since 6.3 the kernel moves at most 512 pages at once, and a touch waits for these, not for the call.",
        )
    ]


# Where the memory comes from and where it goes: the two nodes nearest to each other, CPUs first.
def _nodes() -> tuple[int, int]:
    nodes = nt.topology().memory_nodes
    if len(nodes) < 2:
        raise NexttouchError("this machine has one node, and the measurement needs two; leave out --here")
    return nodes[0], nodes[1]


# A virtual machine's frame costs its host a page fault when it is touched for the first time since the boot: so touch
# more of them than are needed, on both nodes.
def _back() -> None:
    for node in _nodes():
        with _memory(3 * _MOVED, node):
            pass


# The policy is the thread's, not the mapping's: relocate takes a detour for mappings that have their own.
@contextmanager
def _memory(size: int, node: int | None = None) -> Iterator[PopulatedMemory]:
    mempolicy.set_mempolicy(Mode.BIND, [_nodes()[0] if node is None else node])
    try:
        memory = PopulatedMemory(size)
    finally:
        mempolicy.set_mempolicy(Mode.DEFAULT)
    with memory:
        yield memory


# Seconds that a move takes, and what it returns.
def _timed(memory: PopulatedMemory, move: Callable[[PopulatedMemory], float]) -> tuple[float, float]:
    began = time.perf_counter()
    result = move(memory)
    seconds = time.perf_counter() - began
    there = nt.where(memory.buffer).by_node.get(_nodes()[1], 0)
    if there != memory.pages:
        raise NexttouchError(f"{there} of {memory.pages} pages arrived, so there is no figure")
    return seconds, result


# The moves return the seconds of the call that begins them.


def _move_lazily(memory: PopulatedMemory) -> float:
    began = time.perf_counter()
    with nt.lazy(memory.buffer, _nodes()[1]):
        return time.perf_counter() - began


def _move_lazily_and_touch(memory: PopulatedMemory) -> float:
    began = time.perf_counter()
    with nt.lazy(memory.buffer, _nodes()[1]):
        seconds = time.perf_counter() - began
        memory.touch()
    return seconds


def _move_eagerly(memory: PopulatedMemory) -> float:
    began = time.perf_counter()
    addresses = memory.address + np.arange(memory.pages, dtype=np.uint64) * np.uint64(PAGE_SIZE)
    mempolicy.move_pages(SELF, addresses, _nodes()[1])
    return time.perf_counter() - began


def _move_eagerly_and_touch(memory: PopulatedMemory) -> float:
    seconds = _move_eagerly(memory)
    memory.touch()
    return seconds


def _settle(toucher: Toucher) -> None:
    while toucher.touches < _SETTLED:
        time.sleep(0.01)
    toucher.longest()


def _longest_without(seconds: float) -> float:
    with _memory(_MOVED) as memory, Toucher(memory) as toucher, PopulatedMemory(_OTHER) as other, Toucher(other):
        _settle(toucher)
        time.sleep(seconds)
        return toucher.longest()
