"""The demonstration: a real program is moved, and what it says of its steps is told as it is."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nexttouch as nt
from nexttouch import Reason, demo, placement
from nexttouch.demo import Act, Demonstration, demonstration, one_node
from nexttouch.linux import mempolicy, pagemap
from nexttouch.linux.process import Process
from nexttouch.linux.syscall import PAGE_SIZE
from nexttouch.topology import Node, Topology

SIZE = 4 << 20
TIMEOUT = 60

STAYS = {Reason.AT_HOME, Reason.SHARED, Reason.UNSUITABLE, Reason.BUSY, Reason.ABSENT}
"""Why pages of a Python program may stay."""


# ---- on one node ----


def test_relocated_here() -> None:
    shown = demo.relocate_here(SIZE)
    pages = SIZE // PAGE_SIZE
    assert set(shown) == {
        *("pages", "moved_by_touch", "moved_by_sweep", "changed_frames", "seconds", "longest_service", "left")
    }
    assert pages - 1 <= shown["pages"] - shown["left"].get("partial", 0) <= pages
    assert shown["moved_by_touch"] + shown["moved_by_sweep"] + sum(shown["left"].values()) == shown["pages"]
    assert shown["changed_frames"] == shown["moved_by_touch"] + shown["moved_by_sweep"] >= pages - 1
    assert 0 <= shown["longest_service"] <= shown["seconds"]
    json.dumps(shown)


def test_relocated_here_without_privileges(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object) -> None:
        raise nt.FeatureMissing("the frame number of a page", "this process lacks CAP_SYS_ADMIN", "run as root")

    def lazy(*arguments: Any, **options: Any) -> nt.Migration:
        if options.get("service") != "inline":
            raise nt.FeatureMissing("userfaultfd", "this user may not catch faults of system calls", "run as root")
        return nt.lazy(*arguments, **options)

    monkeypatch.setattr(pagemap, "frames", without)
    monkeypatch.setattr(one_node, "lazy", lazy)
    shown = demo.relocate_here(SIZE)
    assert shown["changed_frames"] is None
    assert shown["moved_by_touch"] + shown["moved_by_sweep"] >= SIZE // PAGE_SIZE - 1


def machine(*nodes: tuple[int, bool, bool], distances: tuple[tuple[int, ...], ...]) -> Topology:
    """Nodes by id, whether they have CPUs, and whether they have memory."""
    made = [Node(node, (node,) if cpus else (), memory, 1 << 30, 1 << 30) for node, cpus, memory in nodes]
    return Topology(tuple(made), distances)


def test_the_program_runs_on_the_last_node_with_cpus_and_its_memory_begins_on_the_nearest_other() -> None:
    three = ((10, 30, 20), (30, 10, 20), (20, 20, 10))
    nodes = machine((0, True, True), (2, True, True), (5, False, True), distances=three)
    assert demonstration._choose_nodes(nodes) == (5, 2)
    nodes = machine((0, True, True), (2, True, False), (5, False, True), distances=three)
    assert demonstration._choose_nodes(nodes) == (5, 0)


@pytest.mark.parametrize(
    "nodes",
    [
        [(0, True, True)],
        [(0, True, True), (1, True, False)],
        [(0, True, False), (1, False, True)],
    ],
    ids=["one node", "one with memory", "no CPUs where memory is"],
)
def test_a_machine_that_has_nowhere_to_move_to(nodes: list[tuple[int, bool, bool]]) -> None:
    distances = ((10, 20), (20, 10)) if len(nodes) == 2 else ((10,),)
    with pytest.raises(nt.NexttouchError, match="no two nodes"):
        demonstration._choose_nodes(machine(*nodes, distances=distances))


def test_an_act_for_json() -> None:
    act = Act("lazy", 2.0, 0.5, [0.1, 0.5], {0: 9}, [(1.0, {0: 4, 1: 5})], {1: 9}, {Reason.BUSY: 1}, 0.001, 0.1)
    shown = json.loads(json.dumps(Demonstration(SIZE, 0, 1, 0.01, 0.02, [act]).to_dict()))
    assert shown == {
        "size": SIZE,
        "source": 0,
        "target": 1,
        "usual_step": 0.01,
        "longest_usual_step": 0.02,
        "acts": [
            {
                "name": "lazy",
                "seconds": 2.0,
                "longest_step": 0.5,
                "steps": 2,
                "before": {"0": 9},
                "during": [[1.0, {"0": 4, "1": 5}]],
                "after": {"1": 9},
                "left": {"busy": 1},
                "stopped": 0.001,
                "attaching": 0.1,
            }
        ],
    }


# ---- the subject ----


def test_the_subject_is_a_program_of_its_own() -> None:
    """It says how long each of its steps took, and imports nothing of ours."""
    source = Path(demonstration.__file__).with_name("subject.py")
    command = [sys.executable, "-I", "-X", "importtime", str(source), str(1 << 20)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout
        lines = [program.stdout.readline() for _ in range(5)]
        program.kill()
        imported = re.findall(r"^import time:.*\| +(\S+)$", program.communicate(timeout=TIMEOUT)[1], re.MULTILINE)
    assert "numpy" in imported
    assert not [name for name in imported if name.partition(".")[0] == "nexttouch"]
    assert all(line.startswith("step ") and line.endswith(" ms\n") for line in lines)
    assert all(float(line.split()[1]) > 0 for line in lines)


def subject() -> demonstration._Subject:
    node = next(node.id for node in nt.topology().nodes if node.cpus and node.has_memory)
    return demonstration._Subject(1 << 20, node, node)


def test_a_sample_counts_for_the_array_alone() -> None:
    """What is not of it is counted where it was, and pages that are nowhere just now do not make it smaller."""
    with subject() as program:
        program.wait_steps(1)
        placed = placement.where(program.pid)
        sample, process = program.sample(placed), Process(program.pid)
        node = demonstration._by_node(process, sample)
        assert set(node) == set(placed.by_node)
        assert sum(node.values()) == sample.pages + sum(sample.others.values())
        assert sample.pages >= (1 << 20) // PAGE_SIZE
        addresses = sample.addresses.copy()
        addresses[::2] = 0  # nothing is mapped there
        assert demonstration._by_node(process, sample._replace(addresses=addresses)) == node
        nowhere = sample._replace(addresses=addresses[::2])
        assert sum(demonstration._by_node(process, nowhere).values()) == sum(sample.others.values())


def test_steps_are_read_whole_from_any_place() -> None:
    with subject() as program:
        program.wait_steps(20)
        os.kill(program.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, program.pid, os.WSTOPPED | os.WNOWAIT)
        everything = program.steps_since(0)
        assert len(everything) >= 20
        for begin in range(60):
            steps = program.steps_since(begin)
            assert steps == everything[len(everything) - len(steps) :]
        assert program.steps_since(program.told) == []
        os.write(program._output, b"step 0.5")  # a line that is not complete yet
        assert program.steps_since(0) == everything
    assert not Path(f"/proc/{program.pid}").exists()


def test_a_subject_that_ends_by_itself() -> None:
    with subject() as program:
        os.kill(program.pid, signal.SIGKILL)
        with pytest.raises(nt.NexttouchError, match=r"ended by itself \(status -9\)"):
            program.wait_steps(1 << 30)


def test_what_a_move_fails_with_is_raised() -> None:
    def refuse(_: Process, __: int) -> dict[str, object]:
        raise nt.NotPermitted(4711, "because")

    with subject() as program, pytest.raises(nt.NotPermitted, match="4711"):
        program.watch("refused", refuse, 0)


def test_a_move_is_watched_to_its_end() -> None:
    """What the subject told of after the end does not count, but for the step that was under way."""
    with subject() as program:
        program.wait_steps(5)

        def move(_: Process, target: int) -> dict[str, object]:
            program.wait_steps(10, program.told)
            return {"left": {Reason.BUSY: target}, "stopped": 0.25}

        act = program.watch("made up", move, 3)
    assert (act.name, act.left, act.stopped, act.attaching) == ("made up", {Reason.BUSY: 3}, 0.25, 0.0)
    assert len(act.steps) >= 10
    assert act.longest_step == max(act.steps)
    assert [second for second, _ in act.during] == sorted(second for second, _ in act.during)
    assert all(second <= act.seconds for second, _ in act.during)
    assert sum(act.before.values()) >= (1 << 20) // PAGE_SIZE


# ---- several nodes ----


@pytest.mark.lab
def test_a_demonstration() -> None:
    told: list[str] = []
    before = mempolicy.get_mempolicy(), os.sched_getaffinity(0)
    shown = demo.demonstrate(SIZE, told.append)
    assert (mempolicy.get_mempolicy(), os.sched_getaffinity(0)) == before
    assert (shown.size, [act.name for act in shown.acts]) == (SIZE, ["migratepages", "eager", "lazy"])
    machine = nt.topology()
    assert machine.node(shown.target).cpus
    assert shown.source == machine.nearest(shown.target)[0]
    assert 0 < shown.usual_step <= shown.longest_usual_step
    assert len(told) == 1 + 2 * len(shown.acts)
    array = SIZE // PAGE_SIZE
    for act in shown.acts:
        assert act.before[shown.source] >= array
        assert act.after[shown.target] >= array
        assert act.after.get(shown.source, 0) < act.before[shown.source] - array // 2
        assert act.steps
        assert act.longest_step == max(act.steps) > 0
        assert set(act.left) <= STAYS
        assert 0 <= act.stopped <= act.attaching <= act.seconds
        assert (act.attaching > 0) == (act.name == "lazy")
