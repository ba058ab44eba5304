"""Run what finds rare failures again and again, with new seeds, until the time is over; a line tells how to repeat it.

usage: python -m soak [DURATION] [SEED]    (from tests/; `make soak SOAK=8h`)

Exit 0 if all went well, 1 if anything did not: then what it said stands under its line.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from support.core import BUILDS, FAILING, SCENARIOS, WAYS, build
from targets.programs import HANG, Program, compiled

import nexttouch as nt
from nexttouch.quantities import format_duration, parse_duration

ATTACHMENTS = 500
"""To one program; four rounds with each size of stacks are 10,000."""
STACKS: tuple[tuple[int, ...], ...] = ((), (16,), (64,), (8 << 10,), (16 << 10,))
"""Sizes in KiB; () is all in turn: see joining.c."""
MAKERS = 2
"""Threads that make others."""
MOST = 3600

Check = Callable[[], str]
"""Raises AssertionError, or says something."""


class Programs:
    """The programs of tests/core, each made when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def at(self, source: str, name: str, injected: bool = False) -> str:
        """Path of a program in a build, `injected` if calls are to fail in it."""
        path = self.folder / f"{source}-{name}-{injected}" / source
        return str(path if path.exists() else build(source, name, path.parent, injected=injected))

    def run(self, source: str, name: str, *words: object, injected: bool = False) -> Check:
        """Run one."""
        return lambda: self._ended([self._start(self.at(source, name, injected), *words)])

    def four(self, source: str, words: tuple[object, ...], seed: int) -> Check:
        """Run four at once, each with a seed of its own, on two processors."""

        def check() -> str:
            processors = os.sched_getaffinity(0)
            os.sched_setaffinity(0, sorted(processors)[:2])
            try:
                running = [self._start(self.at(source, "plain"), *words, 4 * seed + number) for number in range(4)]
            finally:
                os.sched_setaffinity(0, processors)
            return self._ended(running)

        return check

    def _start(self, program: str, *words: object) -> subprocess.Popen[str]:
        command = [program, *map(str, words)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def _ended(self, running: list[subprocess.Popen[str]]) -> str:
        try:
            said = [process.communicate(timeout=MOST)[0] for process in running]
        finally:
            for process in running:
                process.kill()
                process.wait()
        codes = [process.returncode for process in running]
        assert not any(codes), f"status {codes}\n" + "\n".join(said)
        return said[-1].splitlines()[-1] if said[-1] else ""


def attach_often(folder: Path, *sizes: int) -> str:
    """Attach to a program whose threads come and go."""
    binary = folder / "joining"
    program = Program(binary if binary.exists() else compiled("joining", folder), *map(str, sizes), threads=MAKERS)
    try:
        for number in range(ATTACHMENTS):
            with nt.attach(program.pid, to=0, always=True) as migration:
                assert migration.wait(HANG), f"attachment {number}: {migration}"
            program.check()
        program.advance()
        program.finish()
        return f"{ATTACHMENTS} attachments, {sum(program.counters)} threads joined"
    finally:
        program.kill()


def checks(programs: Programs, seed: int) -> Iterator[tuple[str, Check]]:
    """All there is to run with one seed, and what each is called."""
    for name in BUILDS:
        for way in WAYS:
            many = 1_000_000 if name == "plain" else 50_000
            for injected in (False, True):
                what = f"operations ({name}{', calls fail' * injected}) {way} {many} {seed}"
                yield what, programs.run("operations", name, way, many, seed, injected=injected)
    for scenario in SCENARIOS:
        for way in WAYS:
            what = f"stress {scenario} {way} 20, four from seed {4 * seed}"
            yield what, programs.four("stress", (scenario, way, 20), seed)
    for name in ("plain", "address+undefined"):
        for scenario in FAILING:
            for way in WAYS:
                what = f"failures ({name}) {scenario} {way} 50"
                yield what, programs.run("failures", name, scenario, way, 50, injected=True)
    for name in BUILDS:
        for way in WAYS:
            yield f"moved_twice ({name}) {way}", programs.run("moved_twice", name, way, 100)
            yield f"left_behind ({name}) {way}, seed {seed}", programs.run("left_behind", name, way, 500, seed)
            yield f"exchanged ({name}) {way}", programs.run("exchanged", name, way, 200)
    for way in WAYS:
        yield f"forks {way}", programs.run("forks", "plain", way, 1000)
    for sizes in STACKS:
        yield f"attachments, stacks {sizes}", partial(attach_often, programs.folder, *sizes)


def holds(what: str, check: Check) -> bool:
    """Run one and print what comes of it."""
    began = time.monotonic()
    try:
        said, right = check(), True
    except (AssertionError, nt.NexttouchError, subprocess.TimeoutExpired) as failure:
        said, right = str(failure), False
    took = format_duration(time.monotonic() - began)
    print(f"{'ok' if right else 'FAILS'}  {what}  {took}\n        {said}", flush=True)
    return right


def main(duration: str = "1h", seed: str = "1") -> int:
    """Run for `duration`, with seeds from `seed` on; the exit status."""
    until, number, failed = time.monotonic() + parse_duration(duration), int(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(Path(folder))
        while time.monotonic() < until:
            print(f"seed {number}", flush=True)
            for what, check in checks(programs, number):
                if time.monotonic() < until:
                    failed += not holds(what, check)
            number += 1
    print(f"{failed} failed, seeds {seed} to {number - 1}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
