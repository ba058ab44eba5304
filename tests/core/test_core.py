"""The pager without Python, built plain and with each sanitizer.

`stress.c`: threads that read, write, discard, move, unmap and fork memory while it migrates, and a model of every word.
`operations.c`: random operations on memory that migrates, those that fail among them.
`pace.c`: when the sweep steps.
`threads.c`: threads that are cancelled, and that are made where memory is watched.
`crowd.c`: more threads that fault than there is room for.
`batch.c`: how many calls it takes to read of many.
`failures.c`: every call to the kernel fails once, in each way that it can.
`let_go.c`: who serves itself waits for no mover.
`moved_twice.c`, `refused.c`, `forks.c`, `left_behind.c`, `exchanged.c`: each shows one thing that was wrong once.
`fuzz_stat.c`: what the core reads of files.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Protocol

import pytest
from support.core import BUILDS, FAILING, SCENARIOS, WAYS, build

ROUNDS = {"plain": 10, "address+undefined": 4, "thread": 2}
CANNOT = 77
"""Exit status of a program that the kernel lacks something for."""
OPERATIONS = {"plain": 100_000, "address+undefined": 20_000, "thread": 20_000}


class Make(Protocol):
    """A program of this folder in a build, with its calls failing if it is `injected`."""

    def __call__(self, source: str, name: str, injected: bool = ...) -> Path: ...


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The program of a source in a build, made once."""
    folder = tmp_path_factory.mktemp("core")
    made: dict[tuple[str, str, bool], Path] = {}

    def program(source: str, name: str, injected: bool = False) -> Path:
        key = source, name, injected
        if key not in made:
            made[key] = build(source, name, folder / f"{source}-{name}-{injected}", injected=injected)
        return made[key]

    return program


def run(program: Path, *words: object, timeout: float = 600) -> str:
    """What a program prints that has to end well and without a complaint."""
    command = [str(program), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode == CANNOT:
        pytest.skip("this kernel cannot")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BUILDS)
def test_every_word_is_right_whatever_is_done_to_its_mapping(programs: Make, name: str, way: str) -> None:
    line = run(programs("operations", name), way, OPERATIONS[name], 3)
    assert line.startswith(f"operations {way}: ")
    kinds = [part.split(":") for part in line.split(";")[1].split()]
    done = {kind: int(counts.split("/")[0]) for kind, counts in kinds}
    left_out = {"plain": set(), "address+undefined": {"fill_mappings"}, "thread": {"fill_mappings", "fork"}}[name]
    sealed = set() if done["fail_at_seal"] else {"fail_at_seal"}  # before Linux 6.10
    assert {kind for kind, count in done.items() if not count} == left_out | sealed


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BUILDS)
def test_every_word_is_right_whatever_is_done_while_calls_fail(programs: Make, name: str, way: str) -> None:
    line = run(programs("operations", name, True), way, OPERATIONS[name], 4)
    assert line.startswith(f"operations {way}: ")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scenario", FAILING)
@pytest.mark.parametrize("name", ["plain", "address+undefined"])
def test_nothing_is_lost_whichever_call_fails(programs: Make, name: str, scenario: str, way: str) -> None:
    line = run(programs("failures", name, True), scenario, way, 4).splitlines()[-1]
    assert line.startswith(f"failures {scenario} {way}: ")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", BUILDS)
def test_every_word_is_as_the_model_says(programs: Make, name: str, scenario: str, way: str) -> None:
    if name == "thread" and scenario == "fork":
        pytest.skip("the thread sanitizer does not follow a fork of a program with threads")
    rounds = ROUNDS[name]
    line = run(programs("stress", name), scenario, way, rounds, 5)
    assert line.startswith(f"{scenario} {way}: ")
    counts = [part.split(":") for part in line.split(";")[1].split()]
    assert sum(int(count) for _, count in counts) == rounds * 1024


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scenario", ["discard", "remap", "unmap"])
def test_four_at_once_on_two_processors_come_to_an_end(programs: Make, scenario: str, way: str) -> None:
    """Each of their migrations in time, which they see to themselves."""
    program, processors = programs("stress", "plain"), os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(processors)[:2])
    try:
        commands = [[str(program), scenario, way, "10", str(seed)] for seed in range(1, 5)]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    finally:
        os.sched_setaffinity(0, processors)
    said = [process.communicate(timeout=600)[0] for process in running]
    statuses = [process.returncode for process in running]
    if statuses == [CANNOT] * 4:
        pytest.skip("this kernel cannot")
    assert statuses == [0] * 4, said


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BUILDS)
def test_an_address_that_a_second_move_frees_is_watched_for_who_takes_it(programs: Make, name: str, way: str) -> None:
    assert run(programs("moved_twice", name), way, 10).startswith("moved_twice: 6000 moves")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("how", "call"),
    [("sealed", "munmap"), ("sealed", "mmap"), ("limit", "mmap"), ("mappings", "munmap"), ("mappings", "mmap")],
)
def test_an_unmapping_that_fails_leaves_what_was_there(programs: Make, how: str, call: str, way: str) -> None:
    assert run(programs("refused", "plain"), how, call, way) == ""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["plain", "address+undefined"])
def test_forks_while_pagers_begin_and_end(programs: Make, name: str, way: str) -> None:
    assert run(programs("forks", name), way, 200).startswith("forks: 600 migrations")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BUILDS)
def test_nothing_is_left_of_a_mapping_that_changes_at_the_end(programs: Make, name: str, way: str) -> None:
    assert run(programs("left_behind", name), way, 100, 1).startswith("left_behind:")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BUILDS)
def test_mappings_of_two_pagers_change_places(programs: Make, name: str, way: str) -> None:
    assert run(programs("exchanged", name), way, 20).startswith("exchanged:")


@pytest.mark.parametrize("name", BUILDS)
def test_a_pager_that_has_let_go_holds_up_no_thread(programs: Make, name: str) -> None:
    assert run(programs("let_go", name, True)) == ""


@pytest.mark.parametrize("way", [way for way in WAYS if "inline" not in way])
@pytest.mark.parametrize("name", BUILDS)
def test_a_crowd_of_faults_does_not_hide_a_discard(programs: Make, name: str, way: str) -> None:
    assert run(programs("crowd", name), 800, way) == ""


@pytest.mark.parametrize("name", BUILDS)
def test_faults_that_wait_together_are_read_by_one_call(programs: Make, name: str) -> None:
    assert run(programs("batch", name, True), 300) == ""


@pytest.mark.parametrize("name", ["plain", "thread"])
@pytest.mark.parametrize("scenario", ["cancelled", "heap"])
def test_threads_that_are_cancelled_or_not_there_yet(programs: Make, scenario: str, name: str) -> None:
    if name == "thread" and scenario == "heap":
        pytest.skip("the thread sanitizer has a heap of its own, and does not follow a fork")
    assert run(programs("threads", name), scenario) == ""


def test_the_sweep_lets_faults_go_first_but_not_for_ever(programs: Make) -> None:
    assert run(programs("pace", "address+undefined")) == ""


def test_no_content_of_a_stat_file_leads_outside_of_it(programs: Make) -> None:
    assert run(programs("fuzz_stat", "address+undefined"), 200_000, 7) == ""
