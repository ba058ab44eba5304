"""What is recorded of the machine."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

import nexttouch
from bench.machine import _chosen, _field, commit, describe

HASH = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


def test_describe_says_what_the_system_says() -> None:
    machine = describe()
    assert machine["kernel"] == os.uname().release
    assert machine["cpus"] == os.cpu_count()
    assert machine["nodes"] == len(nexttouch.topology().memory_nodes)
    assert machine["nexttouch"] == nexttouch.__version__
    assert machine["cpu"] in Path("/proc/cpuinfo").read_text()
    assert len(machine["load"]) == 3
    json.dumps(machine)


@pytest.mark.parametrize(
    ("text", "chosen"), [("always [madvise] never\n", "madvise"), ("[always] madvise never", "always"), (None, None)]
)
def test_the_setting_in_brackets_is_the_one_that_holds(text: str | None, chosen: str | None) -> None:
    assert _chosen(text) == chosen


def test_fields_of_cpuinfo() -> None:
    text = "processor\t: 0\nmodel name\t: A: B\nflags\t\t: fpu hypervisor\n\nprocessor\t: 1\nmodel name\t: C\n"
    assert _field(text, "model name") == "A: B"
    assert _field(text, "Hardware") is None


def test_the_commit_of_a_detached_head(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/HEAD").write_text(f"{HASH}\n")
    assert commit(tmp_path) == HASH


def test_the_commit_of_a_branch_loose_or_packed(tmp_path: Path) -> None:
    (tmp_path / ".git/refs/heads").mkdir(parents=True)
    (tmp_path / ".git/HEAD").write_text("ref: refs/heads/main\n")
    assert commit(tmp_path) is None
    packed = f"# pack-refs with: peeled\n{OTHER} refs/heads/not-main\n{HASH} refs/heads/main\n"
    (tmp_path / ".git/packed-refs").write_text(packed)
    assert commit(tmp_path) == HASH
    (tmp_path / ".git/refs/heads/main").write_text(f"{OTHER}\n")
    assert commit(tmp_path) == OTHER


def test_no_repository_has_no_commit(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
