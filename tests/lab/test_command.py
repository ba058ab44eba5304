"""The command line of the lab: what it makes of its words, not what the machine does."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nexttouch.cli import lab as command
from nexttouch.errors import InvalidArgument, LabError
from nexttouch.lab import missing
from nexttouch.lab.parts import collect, in_cache


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lab that is set up, but with a kernel that is none."""
    if missing():
        pytest.skip(str(missing()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for directory in ("tree/boot", "tree/bin", "tree/lib/modules/6.99-none"):
        (tmp_path / directory).mkdir(parents=True)
    for file in ("tree/boot/vmlinuz-6.99-none", "tree/bin/busybox"):
        (tmp_path / file).write_bytes(b"none")
    collect(tmp_path / "tree", "6.99-none", in_cache(None))
    return tmp_path


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(["lab", *words])


def status(*words: str) -> int:
    options = parsed(*words)
    result: int = options.run(options)
    return result


@pytest.mark.parametrize(
    "words",
    [
        ["--nodes", "2", "--", "program", "--nodes", "3", "--", "-x"],
        ["--nodes", "2", "program", "--nodes", "3", "--", "-x"],
    ],
)
def test_what_follows_the_command_belongs_to_it(words: list[str]) -> None:
    options = parsed(*words)
    assert options.nodes == 2
    assert options.command[-5:] == ["program", "--nodes", "3", "--", "-x"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "COMMAND or --setup"),
        (["--"], "COMMAND or --setup"),
        (["--setup", "--", "true"], "COMMAND or --setup"),
        (["--json", "--", "true"], "--json goes with --setup or --count"),
        (["--output", "x", "--", "true"], "--output goes with --count"),
        (["--nodes", "9", "--", "true"], "nodes is 9"),
        (["--nodes", "1", "--cpu-nodes", "2", "--", "true"], "cpu_nodes is 2"),
        (["--memory", "lots", "--", "true"], "memory is 'lots'"),
        (["--memory", "100MiB", "--", "true"], "memory is 100 MiB a node"),
        (["--timeout", "soon", "--", "true"], "timeout is 'soon'"),
    ],
)
def test_misuse_is_named(words: list[str], problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem) as caught:
        status(*words)
    assert caught.value.exit_code == 2


def test_set_up_prints_what_there_is(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--setup", "--json", "--nodes", "1", "--memory", "2GiB") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts.pop("accelerator") in {"kvm", "tcg"}
    assert facts == {
        "kernel": "6.99-none",
        "image": str(ready / "cache/nexttouch/lab/default/vmlinuz"),
        "nodes": 1,
        "cpu_nodes": 1,
        "memory": 2 * 2**30,
        "distances": [[10]],
    }
    assert status("--setup") == 0
    out = capsys.readouterr().out
    assert "kernel       6.99-none" in out
    assert "4 nodes of 1 GiB, 2 with a CPU" in out
    assert "distances     38  28  48  10\n" in out


@pytest.mark.usefixtures("ready")
def test_a_kernel_that_is_none_fails_with_what_qemu_says() -> None:
    with pytest.raises(
        LabError, match=r"(?s)ended before the command did; the end of its console:\n    qemu.* kernel "
    ) as caught:
        status("--", "true")
    assert caught.value.exit_code == 1


def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("--help")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for word in ("examples:", "--cpu-nodes", "128+n", "COMMAND"):
        assert word in out


def test_help_needs_no_machinery() -> None:
    code = "import sys, nexttouch.cli.lab; print('nexttouch.lab.boot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
