"""`nexttouch follow` and `nexttouch run`: rounds and how they end, and what becomes of the command that is run."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nexttouch as nt
from nexttouch.cli import follow, run
from nexttouch.errors import KernelError, NoSuchProcess
from nexttouch.live.follow import Round
from nexttouch.live.mechanisms import foreign
from nexttouch.live.reason import Reason

TIMEOUT = 120
NEXTTOUCH = [sys.executable, "-m", "nexttouch"]
KEYS = set(Round.__dataclass_fields__)
NOTE = "note: this kernel has no RWP (Linux 7.3), so only stores are seen: what is only read stays where it is\n"
SAID = "" if foreign().traps == "any touch" else NOTE

STORES = """
import sys
memory = bytearray(1 << 20)
print(flush=True)
while True:
    memory[::4096] = bytes(256)
"""


@pytest.fixture
def storing() -> Iterator[int]:
    """A program that stores to its memory all the time."""
    with subprocess.Popen([sys.executable, "-c", STORES], stdout=subprocess.PIPE) as program:
        assert program.stdout
        program.stdout.readline()
        yield program.pid
        program.kill()


def done(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*NEXTTOUCH, *words], capture_output=True, text=True, timeout=TIMEOUT, check=False)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


def watched(pid: int) -> bool:
    return bool(re.search(rb"^VmFlags:.* u[mwir]", Path(f"/proc/{pid}/smaps").read_bytes(), re.MULTILINE))


# ---- follow ----


def test_each_round_is_a_line(storing: int) -> None:
    found = done("follow", str(storing), "--rounds", "2", "--every", "100ms")
    assert (found.returncode, found.stderr) == (0, SAID)
    pattern = r"round {}: [\d,]+ pages \([^)]*\) of [\d,]+ pages \([^)]*\) touched; .*; moved [\d,]+ pages \(.*\)"
    for number, line in enumerate(found.stdout.splitlines(), 1):
        assert re.match(pattern.format(number), line)
    assert number == 2
    assert not watched(storing)


def test_each_round_is_an_object(storing: int) -> None:
    found = done("follow", str(storing), "--rounds", "2", "--every", "100ms", "--window", "1", "--json")
    assert (found.returncode, found.stderr) == (0, "")
    rounds = [json.loads(line) for line in found.stdout.splitlines()]
    assert [set(each) for each in rounds] == [KEYS, KEYS]
    assert [each["number"] for each in rounds] == [1, 2]
    for each in rounds:
        assert each["pages"] >= each["touched"] == sum(each["by_node"].values()) > 0
        assert set(each["by_node"]) <= {str(node) for node in nt.topology().ids}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_round_and_gives_everything_back(storing: int, number: signal.Signals) -> None:
    command = [sys.executable, "-c", WITHOUT_NOHUP, "follow", str(storing), "--every", "1h"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        until(lambda: watched(storing))
        following.send_signal(number)
        output, errors = following.communicate(timeout=TIMEOUT)
    assert (following.returncode, output, errors) == (128 + number, "", SAID)
    assert not watched(storing)


WITHOUT_NOHUP = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from nexttouch.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_end_of_the_process_ends_the_rounds() -> None:
    with subprocess.Popen(["sleep", "1000"]) as program:
        command = [*NEXTTOUCH, "follow", str(program.pid), "--every", "1h", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
            until(lambda: watched(program.pid))
            program.kill()
            output, errors = following.communicate(timeout=TIMEOUT)
    assert (following.returncode, errors) == (0, "")
    assert json.loads(output)["number"] == 1


def test_what_a_line_says() -> None:
    assert (
        follow._line(Round(1, pages=2048))
        == "round 1: 0 pages (0 B) of 2,048 pages (8 MiB) touched; moved 0 pages (0 B)"
    )
    found = Round(
        number=3,
        pages=2048,
        touched=1024,
        by_node={0: 1000, 2: 24},
        remote=30,
        moved=20,
        held_back=4,
        left=Counter({Reason.BUSY: 6}),
        ping_pong={"/dev/shm/\x1b[31mqueue": 5},
    )
    assert follow._line(found).split("; ", 1)[1] == (
        "1,000 from node 0, 24 from node 2; 30 on another node; moved 20 pages (80 KiB); "
        "4 pages (16 KiB) held back by --cap; 5 stay in /dev/shm/\\x1b[31mqueue: they go to and fro; "
        f"6 stayed: {Reason.BUSY.sentence}"
    )


# ---- run ----

POLICY = "import re; print(open('/proc/self/numa_maps').readline().split()[1])"


@pytest.mark.parametrize("how", [["--to", "0"], ["--interleave"], ["--next-touch", "--every", "1h"], ["--every", "1h"]])
def test_a_command_is_run_as_it_is(how: list[str]) -> None:
    script = "read line; echo $line; echo $0 $1 >&2; exit 7"
    command = [*NEXTTOUCH, "run", *how, "--", "sh", "-c", script, "name", "an argument"]
    found = subprocess.run(command, input="a line\n", capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (found.returncode, found.stdout) == (7, "a line\n")
    assert "name an argument\n" in found.stderr


def test_what_is_run_on_a_node_prefers_it() -> None:
    found = done("run", "--to", "0", "--", sys.executable, "-c", POLICY)
    assert (found.returncode, found.stderr) == (0, "")
    assert re.fullmatch(r"prefer(=relative|=static)?:0\n", found.stdout)


def test_what_is_run_interleaved_takes_all_nodes() -> None:
    found = done("run", "--interleave", "--", sys.executable, "-c", POLICY)
    assert (found.returncode, found.stderr) == (0, "")
    nodes = nt.topology().memory_nodes
    shown = str(nodes[0]) if len(nodes) == 1 else rf"{nodes[0]}[-,].*{nodes[-1]}"
    assert re.fullmatch(rf"interleave:{shown}\n", found.stdout)


@pytest.mark.parametrize("how", [["--to", "0"], ["--next-touch"]])
def test_a_command_that_a_signal_ends(how: list[str]) -> None:
    found = done("run", *how, "--", "sh", "-c", "kill -KILL $$")
    assert found.returncode in (128 + signal.SIGKILL, -signal.SIGKILL)


def test_rounds_of_a_command_are_told_on_standard_error() -> None:
    found = done("run", "--every", "100ms", "--json", "--", sys.executable, "-c", STORES_FOR_A_ROUND)
    assert (found.returncode, found.stdout) == (0, "done\n")
    rounds = [json.loads(line) for line in found.stderr.splitlines()]
    assert rounds
    assert all(set(each) == KEYS for each in rounds)


STORES_FOR_A_ROUND = """
import re
def watched():
    return re.search(r"^VmFlags:.* u[mwir]", open("/proc/self/smaps").read(), re.MULTILINE)
memory = bytearray(1 << 20)
while not watched():
    pass
while watched():
    memory[::4096] = bytes(256)
print("done")
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 3), (signal.SIGHUP, 4)])
def test_a_signal_is_passed_on_once_and_the_command_decides(number: signal.Signals, status: int) -> None:
    script = f"""
import signal, sys
came = []
signal.pthread_sigmask(signal.SIG_BLOCK, [{int(number)}])
print("ready", flush=True)
signal.sigwait([{int(number)}])
sys.exit({status} if signal.sigtimedwait([{int(number)}], 0.5) is None else 1)
"""
    command = [sys.executable, "-c", WITHOUT_NOHUP, "run", "--every", "1h", "--", sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout
        assert running.stdout.readline() == "ready\n"
        running.send_signal(number)
        assert running.wait(TIMEOUT) == status


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    run.add_parser(parser.add_subparsers())
    return parser.parse_args(["run", *words])


@pytest.fixture
def following(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process ids that were followed; the first time the command became another one, so it is no more there."""
    seen: list[int] = []

    def made_up(pid: int, *_: Any, ended: Callable[[], bool], **__: Any) -> int:
        seen.append(pid)
        if len(seen) == 1:
            raise NoSuchProcess(pid, "or became another program meanwhile")
        until(ended)
        return 0

    monkeypatch.setattr(run, "follow", made_up)
    return seen


def test_a_command_that_becomes_another_program_is_followed_as_that(following: list[int]) -> None:
    assert run.run(options("--", "sh", "-c", "sleep 0.2; exit 5")) == 5
    assert len(following) == 2
    assert len(set(following)) == 1


def test_a_command_that_cannot_be_followed_runs_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any, **__: Any) -> int:
        raise KernelError("attach", 1)

    monkeypatch.setattr(run, "follow", refused)
    assert run.run(options("--", "sh", "-c", "sleep 0.2; exit 6")) == 6
    assert capsys.readouterr().err.endswith("; the command runs on by itself\n")
