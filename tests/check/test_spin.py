"""An independent oracle: one protocol explored here and by Spin, which has to find the same states and the same faults.

The protocol is a page that moves while two threads store to it: `protocol` below, and protocol.pml. What Spin counts:

* states: the same as here, the start included. A process that ends would be a step of its own to Spin, so processes
  block in the end instead.
* transitions: Spin's is one more, as it counts storing the start.
* depth: of a search by breadth, Spin names the step that fails by the number of steps before it; of a state in which
  all processes wait, the number of steps to it.

Spin is told to leave nothing out: no partial order reduction (-DNOREDUCE), no merging of steps (-o3), no resetting of
dead variables (-o1, -o2), every state kept whole (no option that compresses or hashes), no stop at an error (-c0).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from handmade import END, Thread, Threads, in_order

from nexttouch.check.explorer import explore
from nexttouch.model.move import Move
from nexttouch.model.violation import Violation

SOURCE = Path(__file__).with_name("protocol.pml")

OLD, NEW, MOVING, NOWHERE = range(4)
THREADS, STORES = 2, 2


class Shared(NamedTuple):
    """The shared part: variables of protocol.pml by name."""

    entry: int = OLD
    tlb: tuple[int, ...] = (NOWHERE,) * THREADS
    words: tuple[int, ...] = (0, 0)
    stored: int = 0
    page_lock: bool = False
    table_lock: bool = False


class Local(NamedTuple):
    """A thread: where it is in protocol.pml, and its variables."""

    at: str = "compute"
    value: int = 0
    left: int = STORES


def put(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])


@dataclass(frozen=True)
class Variant:
    """The protocol, or one that is broken: its name in protocol.pml, and the promise that it breaks."""

    name: str = ""
    breaks: str | None = None

    def model(self) -> Threads:
        return Threads((self.thread(0), self.thread(1), self.migration()), Shared(), at_the_end=self.at_the_end)

    def thread(self, number: int) -> Thread:
        def moves(shared: Shared, local: Local | int) -> Sequence[Move]:
            now = Local() if local == 0 else local
            assert isinstance(now, Local)
            return tuple(getattr(self, now.at)(number, shared, now))

        return moves

    def compute(self, _: int, shared: Shared, local: Local) -> Sequence[Move]:
        return [Move("compute", shared, local._replace(at="access", value=1), private=True)]

    def access(self, number: int, shared: Shared, local: Local) -> Sequence[Move]:
        frame = shared.tlb[number]
        if frame != NOWHERE:
            words = put(shared.words, frame, shared.words[frame] + local.value)
            after = shared._replace(words=words, stored=shared.stored + local.value)
            return [Move("store", after, END if local.left == 1 else Local("compute", 0, local.left - 1))]
        if shared.entry != MOVING:
            return [Move("walk", shared._replace(tlb=put(shared.tlb, number, shared.entry)), local)]
        if shared.table_lock:
            return []
        return [Move("fault", shared._replace(table_lock=self.name == "UNORDERED"), local._replace(at="wait"))]

    def wait(self, _: int, shared: Shared, local: Local) -> Sequence[Move]:
        if shared.page_lock and self.name != "BUSY":
            return []
        table_lock = shared.table_lock and self.name != "UNORDERED"
        return [Move("again", shared._replace(table_lock=table_lock), local._replace(at="access"))]

    def migration(self) -> Thread:
        def flush(cpu: int) -> Callable[[Shared], Shared]:
            return lambda shared: shared._replace(tlb=put(shared.tlb, cpu, NOWHERE))

        return in_order(
            lambda shared: None if shared.page_lock else shared._replace(page_lock=True),
            lambda shared: None if shared.table_lock else shared._replace(entry=MOVING),
            *([] if self.name == "UNFLUSHED" else [flush(0), flush(1)]),
            lambda shared: shared._replace(words=(shared.words[OLD],) * 2),
            lambda shared: None if shared.table_lock else shared._replace(entry=NEW),
            lambda shared: shared._replace(page_lock=False),
        )

    @staticmethod
    def at_the_end(shared: Shared, _: tuple[Any, ...]) -> Violation | None:
        found = shared.words[shared.entry]
        return None if found == shared.stored else Violation("I-LOSTWRITE", f"{found} of {shared.stored} stores")


RIGHT = Variant()
VARIANTS = [
    RIGHT,
    Variant("UNFLUSHED", "I-LOSTWRITE"),
    Variant("UNORDERED", "I-DEADLOCK"),
    Variant("BUSY", "I-PROGRESS"),
]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name or "RIGHT")
each_safe = pytest.mark.parametrize("variant", VARIANTS[:3], ids=lambda variant: variant.name or "RIGHT")


def nothing(_: Violation) -> bool:
    return False


# ---- Spin ----


class Report(NamedTuple):
    """What a run of Spin's verifier says; `at` is where it names an error."""

    states: int
    transitions: int
    errors: int
    fault: str
    at: int
    depth: int


SAFETY = ("-DSAFETY", "-DNOREDUCE")


@pytest.fixture(scope="session")
def spin() -> str:
    """The command; root has it installed. Where it must not be missing, NEXTTOUCH_REQUIRE_SPIN is set."""
    found = shutil.which("spin") or _install()
    if shutil.which("spin"):
        return found
    if os.environ.get("NEXTTOUCH_REQUIRE_SPIN"):
        pytest.fail(found)
    pytest.skip(found)


def _install() -> str:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return "Spin is missing: run `apt-get install spin`"
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    for words in (["update"], ["install", "--no-install-recommends", "spin"]):
        done = subprocess.run([*apt, "-y", *words], capture_output=True, text=True, env=environment, check=False)
    return shutil.which("spin") or f"Spin is missing, and apt-get cannot install it: {done.stderr.strip()}"


@pytest.fixture(scope="session")
def verify(spin: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Report]:
    """A function that makes a verifier of a variant, with options for its compiler and for itself, and runs it."""

    @cache
    def run(variant: str, compiled: tuple[str, ...], *options: str) -> Report:
        work = tmp_path_factory.mktemp("spin")
        named = [f"-D{variant}"] if variant else []
        _run(work, spin, *named, "-o1", "-o2", "-o3", "-a", str(SOURCE))
        _run(work, "gcc", "-O0", "-w", *compiled, "-o", "pan", "pan.c")
        return _read(_run(work, "./pan", *options))

    return run


def _run(work: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _read(text: str) -> Report:
    def number(pattern: str) -> int:
        found = re.search(pattern, text)
        assert found, text
        return int(found[1])

    assert "max search depth too small" not in text
    fault = re.search(
        r"^pan:1: (assertion violated|invalid end|non-progress cycle).* \(at depth (\d+)\)", text, re.MULTILINE
    )
    return Report(
        number(r"(\d+) states, stored"),
        number(r"(\d+) transitions"),
        number(r"errors: (\d+)"),
        fault[1] if fault else "",
        int(fault[2]) if fault else -1,
        number(r"depth reached (\d+)"),
    )


# ---- the same, there and here ----


@each_variant
def test_the_same_states_and_transitions(variant: Variant, verify: Callable[..., Report]) -> None:
    here = explore(variant.model(), only=nothing)
    there = verify(variant.name, SAFETY, "-c0")
    assert (here.states, here.transitions + 1) == (there.states, there.transitions)
    assert bool(there.errors) == (variant.breaks in ("I-LOSTWRITE", "I-DEADLOCK"))


NUMBERS = {"": (598, 1258), "UNFLUSHED": (644, 1361), "UNORDERED": (491, 1041), "BUSY": (598, 1401)}


@each_variant
def test_the_numbers_that_spin_found(variant: Variant) -> None:
    """For machines without Spin."""
    here = explore(variant.model(), only=nothing)
    assert (here.states, here.transitions) == NUMBERS[variant.name]


@each_variant
def test_the_same_verdict(variant: Variant, verify: Callable[..., Report]) -> None:
    """Cycles are Spin's non-progress cycles: no step of the protocol is marked as progress."""
    here = explore(variant.model())
    assert (here.violation.invariant if here.violation else None) == variant.breaks
    safety, cycles = verify(variant.name, SAFETY), verify(variant.name, ("-DNP", "-DNOREDUCE"), "-l", "-E", "-A")
    faults = {safety.fault, cycles.fault} - {""}
    named = {"I-LOSTWRITE": "assertion violated", "I-DEADLOCK": "invalid end", "I-PROGRESS": "non-progress cycle"}
    assert faults == ({named[variant.breaks]} if variant.breaks else set())


@each_safe
def test_the_same_length_of_the_shortest_way(variant: Variant, verify: Callable[..., Report]) -> None:
    here = explore(variant.model())
    there = verify(variant.name, (*SAFETY, "-DBFS"))
    assert len(here.path) == {"": 0, "assertion violated": there.at + 1, "invalid end": there.at}[there.fault]
    if not variant.breaks:
        assert here.depth == there.depth


@each_safe
def test_the_same_states_with_reduction(variant: Variant, verify: Callable[..., Report]) -> None:
    """Fewer than without: so the other tests compare searches that leave nothing out.

    Here the step `compute` is private, and Spin finds out that it is. In BUSY it finds another one, on a cycle.
    """
    here, full = (explore(variant.model(), reduce=reduce, only=nothing) for reduce in (True, False))
    there = verify(variant.name, ("-DSAFETY",), "-c0")
    assert (here.states, here.transitions + 1) == (there.states, there.transitions)
    assert there.states < full.states
    assert here.passed_over.keys() == full.passed_over.keys()


def test_a_protocol_that_is_not_the_same_would_be_noticed(verify: Callable[..., Report]) -> None:
    """Broken on purpose: three stores of each thread there, two here."""
    there = verify("STORES=3", SAFETY, "-c0")
    assert there.states != NUMBERS[""][0]
