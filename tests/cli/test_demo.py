"""`nexttouch demo`: what it prints and draws, for people and as JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from nexttouch import lab
from nexttouch.cli import demo, main
from nexttouch.demo import Act, Demonstration
from nexttouch.errors import LabError
from nexttouch.live.reason import Reason
from nexttouch.quantities import parse_size
from nexttouch.topology import Topology, topology

TIMEOUT = 600  # seconds: in an emulated machine all of it takes long
ACTS = ["migratepages", "eager", "lazy"]

one_node = pytest.mark.skipif(len(topology().memory_nodes) != 1, reason="for a machine with one node")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nexttouch", "demo", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


# ---- misuse ----


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "lots"], "--size is 'lots'"),
        (["--size", "1"], "--size is 1, but has to be at least 1 MiB"),
        (["--size", "1000KiB"], "--size is 1000KiB, but has to be at least 1 MiB"),
        (["--size=-3"], "--size is '-3'"),
        (["--size"], "expected one argument"),
        (["--svg"], "expected one argument"),
        (["4711"], "unrecognized arguments: 4711"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_misuse(words: list[str], message: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.parametrize(
    ("file", "problem"), [("/proc/demo.svg", "No such file"), (".", "Is a directory"), ("no/folder", "No such file")]
)
def test_a_drawing_that_cannot_be_written(file: str, problem: str) -> None:
    """Found out at once, not after a minute."""
    done = run("--here", "--svg", file) if len(topology().memory_nodes) > 1 else run("--svg", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"nexttouch: --svg is {file!r}, which cannot be written: {problem}")
    assert done.stderr.count("\n") == 1


# ---- one node ----


@one_node
def test_one_node_is_nothing_to_draw(tmp_path: Path) -> None:
    done = run("--here", "--svg", str(tmp_path / "demo.svg"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nexttouch: --svg needs several nodes, and this machine has one")
    assert not list(tmp_path.iterdir())


@one_node
def test_on_one_node_for_people() -> None:
    done = run("--here", "--size", "4MiB")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr.startswith("demo: this machine has one node, ")
    first, second, third, *rest = done.stdout.splitlines()
    assert all(line.startswith("stayed: ") for line in rest)
    assert re.fullmatch(r"4 MiB of this process, moved to other frames of the only node in [\d.]+ \w+", first)
    found = re.fullmatch(
        r"([\d,]+) pages moved: ([\d,]+) when touched, ([\d,]+) by the sweep; ([\d,]+) have a new frame", second
    )
    assert found
    moved, touched, swept, changed = (int(number.replace(",", "")) for number in found.groups())
    assert moved == touched + swept == changed >= 1023
    waited = r"the longest touch waited [\d.]+ \w+" if touched else "no touch had to wait"
    assert re.fullmatch(rf"{waited}; every word was compared", third)


@one_node
def test_on_one_node_as_json() -> None:
    done = run("--here", "--size", "4MiB", "--json")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    shown = json.loads(done.stdout)
    assert shown["moved_by_touch"] + shown["moved_by_sweep"] == shown["changed_frames"]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one node, whichever this is."""
    machine = topology()
    single = Topology(machine.nodes[:1], ((10,),))
    monkeypatch.setattr(demo, "topology", lambda: single)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("size", "room"), [("4MiB", 128 << 20), ("64MiB", 128 << 20), ("65MiB", 256 << 20)])
def test_the_lab_takes_over_where_there_is_one_node(monkeypatch: pytest.MonkeyPatch, size: str, room: int) -> None:
    started: list[tuple[list[str], lab.Machine]] = []

    def start(command: list[str], machine: lab.Machine, *, timeout: float) -> int:
        assert timeout > 60
        started.append((command, machine))
        return 5

    monkeypatch.setattr(lab, "setup", lambda tell: tell("ready"))
    monkeypatch.setattr(lab, "run", start)
    assert main(["demo", "--size", size, "--json", "--svg", "drawn.svg"]) == 5
    ((command, machine),) = started
    assert command[:6] == [sys.executable, "-m", "nexttouch", "demo", "--here", "--size"]
    assert command[6:] == [str(parse_size(size)), "--json", "--svg", "drawn.svg"]
    assert machine.memory == lab.Machine.memory + room


@pytest.mark.usefixtures("alone")
def test_without_a_lab_there_is_nothing_to_draw(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(_: object) -> None:
        raise LabError("no QEMU: apt-get install qemu-system-x86")

    monkeypatch.setattr(lab, "setup", refuse)
    assert main(["demo", "--size", "1MiB", "--svg", str(tmp_path / "demo.svg")]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.endswith("nexttouch: there is nothing to draw: no QEMU: apt-get install qemu-system-x86\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("alone")
def test_without_a_lab_pages_move_on_the_one_node(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> None:
        raise LabError("no QEMU: apt-get install qemu-system-x86")

    monkeypatch.setattr(lab, "setup", refuse)
    assert main(["demo", "--size", "1MiB"]) == 0
    out, err = capsys.readouterr()
    assert "of this process, moved to other frames" in out
    assert err.endswith("the virtual one with four is not used: no QEMU: apt-get install qemu-system-x86\n")


# ---- what it says of a demonstration ----


SHOWN = Demonstration(
    size=8 << 20,
    source=0,
    target=1,
    usual_step=0.002,
    longest_usual_step=0.004,
    acts=[
        Act("migratepages", 0.5, 0.5, [0.5], {0: 3000}, [], {1: 3000}, {}),
        Act("eager", 1.0, 0.02, [0.02] * 50, {0: 3000}, [(0.4, {0: 1500, 1: 1500})], {1: 3000}, {Reason.SHARED: 7}),
        Act(
            name="lazy",
            seconds=2.0,
            longest_step=0.01,
            steps=[0.01] * 200,
            before={0: 3000},
            during=[(0.1 * number, {0: 3000 - 150 * number, 1: 150 * number}) for number in range(1, 20)],
            after={0: 100, 1: 2900},
            left={Reason.BUSY: 1, Reason.SHARED: 99},
            stopped=0.001,
            attaching=0.3,
        ),
    ],
)


def test_a_demonstration_for_people() -> None:
    head, *acts, summary = demo._text(SHOWN).split("\n\n")
    assert head.splitlines() == [
        "subject: 8 MiB of NumPy, running on node 1, first touched on node 0",
        "         a step takes 2.00 ms (median), at most 4.00 ms, while nothing moves",
    ]
    assert acts[0].splitlines() == [
        "one call (migratepages): pages by node",
        "    before  00000000000000000000000000000000  node 0: 3,000",
        "     after  11111111111111111111111111111111  node 1: 3,000",
    ]
    assert acts[1].splitlines() == [
        "eagerly, in batches: pages by node",
        "    before  00000000000000000000000000000000  node 0: 3,000",
        "    0.40 s  00000000000000001111111111111111  node 0: 1,500  node 1: 1,500",
        "     after  11111111111111111111111111111111  node 1: 3,000",
        "  stayed: 7 pages: mapped by several processes; moves only eagerly, with shared=True (--shared)",
    ]
    lazily = acts[2].splitlines()
    assert lazily[0] == "lazily: pages by node"
    assert sum(" s  " in line for line in lazily) <= 8  # not every sample
    assert lazily[-3:] == [
        "  attached after 300 ms, for which the program stood still 1.00 ms",
        "  stayed: 99 pages: mapped by several processes; moves only eagerly, with shared=True (--shared)",
        "  stayed: 1 page: pinned for a device or in use by the kernel; try again later",
    ]
    assert [" ".join(line.split()) for line in summary.splitlines()] == [
        "total time of it attaching longest step steps meanwhile",
        "one call (migratepages) 500 ms - 500 ms 1",
        "eagerly, in batches 1.00 s - 20.0 ms 50",
        "lazily 2.00 s 300 ms 10.0 ms 200",
    ]
    assert len({len(line) for line in summary.splitlines()}) == 1  # a table


@pytest.mark.parametrize("as_json", [False, True])
def test_where_there_are_several_nodes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, as_json: bool
) -> None:
    node = topology().nodes[0]
    several = Topology((node, replace(node, id=1)), ((10, 20), (20, 10)))
    monkeypatch.setattr(demo, "topology", lambda: several)
    asked: list[int] = []

    def demonstrate(size: int, _: object) -> Demonstration:
        asked.append(size)
        return SHOWN

    monkeypatch.setattr("nexttouch.demo.demonstrate", demonstrate)
    picture = tmp_path / "demo.svg"
    assert main(["demo", "--svg", str(picture), *(["--json"] if as_json else [])]) == 0
    assert asked == [128 << 20]
    out, err = capsys.readouterr()
    assert out == (json.dumps(SHOWN.to_dict()) if as_json else demo._text(SHOWN)) + "\n"
    assert err == f"demo: drew {picture}\n"
    assert picture.read_text() == demo._drawing(SHOWN)


def test_a_bar_is_as_long_as_its_pages() -> None:
    for where in ({0: 5, 1: 5, 2: 5}, {0: 1, 1: 30, 12: 2}, {3: 33}, {}):
        line = demo._nodes_line(where, 33, "before")
        bar = line.split("before  ")[1][: demo._BAR]
        assert len(bar.rstrip()) == round(demo._BAR * sum(where.values()) / 33)
        assert set(bar.rstrip()) <= {str(node % 10) for node in where}


def test_the_picture_of_a_demonstration() -> None:
    root = ElementTree.fromstring(demo._drawing(SHOWN))
    words = " ".join(element.text or "" for element in root.iter())
    assert "8 MiB of a running program move from node 0 to node 1" in words
    assert "a step of the program takes 2.00 ms" in words
    assert all(title in words for title in demo._TITLES.values())


# ---- several nodes ----


def accounted(act: dict[str, Any]) -> bool:
    return bool(act["seconds"] > 0 and act["steps"] > 0 and act["longest_step"] > 0)


@pytest.mark.lab
def test_in_the_lab_as_json(tmp_path: Path) -> None:
    picture = tmp_path / "demo.svg"
    done = run("--size", "4MiB", "--json", "--svg", str(picture))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    shown = json.loads(done.stdout)
    assert set(shown) == {"size", "source", "target", "usual_step", "longest_usual_step", "acts"}
    assert shown["size"] == 4 << 20
    assert [act["name"] for act in shown["acts"]] == ACTS
    assert all(accounted(act) for act in shown["acts"])
    assert {line.partition(":")[0] for line in done.stderr.splitlines()} == {"demo"}
    assert done.stderr.endswith(f"demo: drew {picture}\n")
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")
