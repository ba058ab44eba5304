"""Programs whose threads only read: each page goes to the node of its next reader, and memory follows its users."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from targets.programs import HANG, compiled, until

import nexttouch as nt
from nexttouch.errors import NoSuchProcess
from nexttouch.linux import mempolicy, procfs, remote
from nexttouch.linux.mempolicy import Mode
from nexttouch.linux.occupied import nodes_of
from nexttouch.linux.process import Process
from nexttouch.linux.syscall import PAGE_SIZE
from nexttouch.linux.userfaultfd import Feature, available_features
from nexttouch.live.follow import MOST_MOVES, Follower, Round
from nexttouch.live.reason import Reason

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(Feature.RWP not in available_features(), reason="this kernel has no RWP: only stores are seen"),
]

PAGES = 1024
CAP = 600  # pages: room for a huge one
KINDS = ("private", "shared", "read-only", "huge")
AT_FIRST = {kind: [{0}, {0}] for kind in KINDS}
AT_HOME = {kind: [{0}, {1}] for kind in KINDS}
ELSEWHERE = ("unshare", "--pid", "--fork", "--kill-child")


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("readers", tmp_path_factory.mktemp("targets"))


class Readers:
    """The program, and where its memory is."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.addresses = [int(word) for word in self._line().split()]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        self.pid = int(children[0]) if children else process.pid

    def read(self, how: str = "") -> None:
        """Have its threads read all memory once; with "swap" each the other one's half."""
        assert self._process.stdin
        self._process.stdin.write(f"{how}\n")
        self._process.stdin.flush()
        assert self._line() == "read\n"

    def halves(self) -> dict[str, list[set[int]]]:
        """The nodes of both halves of each kind of memory."""
        with Process.open(self.pid) as process:
            found = {}
            for kind, start in zip(KINDS, self.addresses, strict=True):
                nodes = nodes_of(process, range_of(start)).tolist()
                found[kind] = [set(nodes[: PAGES // 2]), set(nodes[PAGES // 2 :])]
        return found

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()


def range_of(start: int) -> NDArray[np.uint64]:
    return np.arange(start, start + PAGES * PAGE_SIZE, PAGE_SIZE, dtype=np.uint64)


@contextmanager
def readers(binary: Path, *prefix: str) -> Iterator[Readers]:
    """The program, its memory on node 0 to begin with."""
    policy = mempolicy.get_mempolicy()
    mempolicy.set_mempolicy(Mode.PREFERRED, [0])
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen([*prefix, str(binary), str(PAGES)], stdin=pipe, stdout=pipe, text=True)
    finally:
        mempolicy.set_mempolicy(*policy)
    try:
        program = Readers(process)
        assert program.halves() == AT_FIRST
        yield program
        assert process.stdin
        process.stdin.close()
        assert process.wait(HANG) == 0, "a byte was wrong"
    finally:
        process.kill()
        process.wait(HANG)
        for stream in (process.stdin, process.stdout):
            assert stream
            stream.close()


@pytest.mark.parametrize("prefix", [(), ELSEWHERE], ids=["here", "in another pid namespace"])
def test_every_page_goes_to_the_node_of_its_reader(binary: Path, prefix: tuple[str, ...]) -> None:
    with readers(binary, *prefix) as program:
        with nt.next_touch(program.pid) as migration:
            assert migration.wait_armed(HANG)
            assert {part.mechanism for part in migration.plan.parts} == {"rwp"}
            program.read()
        assert program.halves() == AT_HOME
        assert migration.stats.moved_by_touch >= len(KINDS) * PAGES // 2
        assert Reason.OUTSIDE not in migration.stats.left


def test_the_command_does_it_too(binary: Path) -> None:
    with readers(binary) as program:
        command = [sys.executable, "-m", "nexttouch", "move", str(program.pid), "--next-touch", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as moving:
            until(lambda: armed(program.pid), "arming")
            program.read()
            moving.send_signal(signal.SIGINT)
            output, _ = moving.communicate(timeout=HANG)
        assert moving.returncode == 130
        assert program.halves() == AT_HOME
        assert json.loads(output)["moved_by_touch"] >= len(KINDS) * PAGES // 2


def armed(pid: int) -> bool:
    """Whether all private memory of the program, which is planned before the huge pages, has its marks."""
    with Process.open(pid) as process:
        smaps = procfs.smaps(process)
        return any("ur" in smap.flags for smap in smaps)


def test_a_touch_from_outside_moves_nothing(binary: Path) -> None:
    with readers(binary) as program, Process.open(program.pid) as process:
        with nt.next_touch(program.pid, window=1) as migration:
            assert migration.wait_armed(HANG)
            assert remote.read(process, program.addresses[0], PAGE_SIZE) == b"\x07" * PAGE_SIZE
            assert migration.stats.left.get(Reason.OUTSIDE, 0) >= 1
        assert program.halves() == AT_FIRST


def test_memory_follows_its_users_and_what_goes_to_and_fro_stays(binary: Path) -> None:
    def round_of(follower: Follower, how: str) -> Round:
        follower.arm()
        program.read(how)
        return follower.move()

    ours = len(KINDS) * PAGES
    with readers(binary) as program, Follower(program.pid) as follower:
        first = round_of(follower, "")
        assert first.moved == 0
        assert min(first.by_node.values()) >= ours // 2
        assert first.touched <= first.pages
        assert first.remote >= ours // 2
        second = round_of(follower, "")
        assert second.moved >= ours // 2
        assert program.halves() == AT_HOME
        for _ in range(MOST_MOVES - 1):
            before = program.halves()
            assert round_of(follower, "swap").moved <= ours // 8  # the second look agrees with none before it
            assert program.halves() == before
            assert round_of(follower, "swap").moved >= ours // 2
            last = round_of(follower, "")
            assert last.moved <= ours // 8
            last = round_of(follower, "")
        assert sum(last.ping_pong.values()) >= ours // 2
        assert follower.process_ended is False


def test_a_cap_bounds_what_a_round_moves(binary: Path) -> None:
    with readers(binary) as program, Follower(program.pid, most=CAP * PAGE_SIZE) as follower:
        for _ in range(2):
            follower.arm()
            program.read()
            found = follower.move()
        assert 0 < found.moved <= CAP
        assert found.held_back >= len(KINDS) * PAGES // 2 - CAP


def test_a_program_that_ends_ends_the_rounds(binary: Path) -> None:
    with readers(binary) as program:
        follower = Follower(program.pid)
        follower.arm()
    assert follower.process_ended
    assert follower.move().moved == 0
    with pytest.raises(NoSuchProcess):
        follower.arm()
    follower.close()
