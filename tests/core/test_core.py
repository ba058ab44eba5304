"""The pager without Python, built plain and with each sanitizer.

`stress.c`: threads that read, write, discard, move, unmap and fork memory while it migrates, and a model of every word.
`pace.c`: when the sweep steps.
`threads.c`: threads that are cancelled, and that are made where memory is watched.
`crowd.c`: more threads that fault than there is room for.
`fuzz_stat.c`: what the core reads of files.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = sorted(path for path in (ROOT / "src/nexttouch/_core").glob("*.c") if path.name != "module.c")
BUILDS = {
    "plain": (["-O2"], 10),
    "address+undefined": (["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], 4),
    "thread": (["-O1", "-fsanitize=thread"], 2),
}
SCENARIOS = ("words", "huge", "discard", "remap", "unmap", "fork", "cancel")
SERVICES = ("thread", "inline", "protect")


def build(source: str, flags: list[str], program: Path) -> None:
    command = ["cc", "-std=gnu11", "-D_GNU_SOURCE", "-g", "-Wall", "-Wextra", "-Werror", *flags, *map(str, CORE)]
    command += [source, "-o", str(program), "-lpthread", "-lm"]
    subprocess.run(command, cwd=Path(__file__).parent, check=True)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def program(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("stress") / name
            build("stress.c", BUILDS[name][0], made[name])
        return made[name]

    return program


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", BUILDS)
def test_every_word_is_as_the_model_says(
    programs: Callable[[str], Path], name: str, scenario: str, service: str
) -> None:
    if name == "thread" and scenario == "fork":
        pytest.skip("the thread sanitizer does not follow a fork of a program with threads")
    rounds = BUILDS[name][1]
    done = subprocess.run(
        [programs(name), scenario, service, str(rounds), "5"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{scenario} {service}: ")
    assert not done.stderr
    counts = [part.split(":") for part in done.stdout.split(";")[1].split()]
    assert sum(int(count) for _, count in counts) == rounds * 1024


@pytest.mark.parametrize("name", ["plain", "address+undefined"])
def test_a_crowd_of_faults_does_not_hide_a_discard(name: str, tmp_path: Path) -> None:
    build("crowd.c", BUILDS[name][0], tmp_path / "crowd")
    done = subprocess.run([tmp_path / "crowd", "800"], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("scenario", ["cancelled", "heap"])
def test_threads_that_are_cancelled_or_not_there_yet(scenario: str, tmp_path: Path) -> None:
    build("threads.c", BUILDS["plain"][0], tmp_path / "threads")
    done = subprocess.run([tmp_path / "threads", scenario], capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_sweep_lets_faults_go_first_but_not_for_ever(tmp_path: Path) -> None:
    build("pace.c", BUILDS["address+undefined"][0], tmp_path / "pace")
    done = subprocess.run([tmp_path / "pace"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_content_of_a_stat_file_leads_outside_of_it(tmp_path: Path) -> None:
    build("fuzz_stat.c", BUILDS["address+undefined"][0], tmp_path / "fuzz_stat")
    done = subprocess.run(
        [tmp_path / "fuzz_stat", "200000", "7"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
