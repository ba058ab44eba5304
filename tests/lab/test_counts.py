"""What is counted of accesses to memory; the last test boots the machine twice."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from targets.programs import compiled

from nexttouch import lab
from nexttouch.cli import main
from nexttouch.errors import InvalidArgument, KernelError, LabError
from nexttouch.lab import marks
from nexttouch.lab.counts import CpuCounts, Interval, parse
from nexttouch.lab.plugin import build

TEXT = """\
mark start
100 7 8 9
200 1 2 3
mark full
110 8 10 12
200 1 2 3
mark end
1110 8 10 1012
201 1 3 3
"""


def test_intervals_are_what_lies_between_two_marks() -> None:
    filling, use = parse(TEXT, lab.Machine(3, 2))
    assert filling == Interval("start", "full", (CpuCounts(0, 0, 10, (1, 2, 3)), CpuCounts(1, 1, 0, (0, 0, 0))))
    assert use == Interval("full", "end", (CpuCounts(0, 0, 1000, (0, 0, 1000)), CpuCounts(1, 1, 1, (0, 1, 0))))
    assert (filling.cpus[0].local, filling.cpus[0].remote) == (1, 5)
    assert (use.cpus[1].local, use.cpus[1].remote) == (1, 0)
    whole = lab.Counts(0, (filling, use)).whole
    assert whole == Interval("start", "end", (CpuCounts(0, 0, 1010, (1, 2, 1003)), CpuCounts(1, 1, 1, (0, 1, 0))))


@pytest.mark.parametrize("text", ["", TEXT[: TEXT.index("mark full")]])
def test_a_guest_that_has_not_come_to_the_end_has_no_counts(text: str) -> None:
    with pytest.raises(LabError, match=r"set [01] marks, not one at its start and one at its end"):
        parse(text, lab.Machine(3, 2))


def test_marks_are_where_the_plugin_looks() -> None:
    head = (Path(marks.__file__).parent / "mark.h").read_text()
    for name, value in (("PAGE", marks._PAGE), ("SIZE", marks._SIZE), ("STRIDE", marks._STRIDE)):
        assert int(head.partition(f"#define MARK_{name} ")[2].split()[0].rstrip("ul"), 0) == value
    assert marks._STRIDE * 256 == marks._SIZE


def test_a_mark_leaves_nothing() -> None:
    for _ in range(2):
        lab.mark("begin")
    assert f"{marks._PAGE:x}-" not in Path("/proc/self/maps").read_text()


def test_a_mark_whose_place_is_taken() -> None:
    marks._map()
    try:
        with pytest.raises(KernelError, match=r"the page of marks is to be at 0x4e5400000000"):
            lab.mark("begin")
    finally:
        marks._libc.munmap(marks._PAGE, marks._SIZE)


@pytest.mark.parametrize("name", ["", "two words", "ä", "x" * 65, "line\n"])
def test_a_mark_has_a_name_that_can_be_spelled(name: str) -> None:
    with pytest.raises(InvalidArgument, match="name is"):
        lab.mark(name)


def test_what_counts_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plugin = build()
    assert plugin.option(lab.Machine(3, 2), 9).endswith("count.so,output=9,cpus=2,nodes=3,memory=1073741824")
    monkeypatch.setenv("PATH", "")
    assert build() == plugin
    assert [path.name for path in (tmp_path / "nexttouch" / "lab").iterdir()] == [plugin.mark.parent.name]


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match=r"gcc is missing.* `apt-get install gcc libc6-dev`"):
        lab.count(["true"])
    (tmp_path / "gcc").symlink_to("/bin/false")
    with pytest.raises(LabError, match=r"`gcc .*count\.c` failed"):
        lab.count(["true"])
    assert list((tmp_path / "nexttouch" / "lab").iterdir()) == []


def test_a_file_for_the_counts_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lab, "setup", lambda *_: None)
    assert main(["lab", "--count", "--output", str(tmp_path), "--", "true"]) == 2
    assert capsys.readouterr().err == f"nexttouch: --output is '{tmp_path}', which cannot be written: Is a directory\n"


LOADS = 500_000
SCRIPT = f"""
mark=/run/nexttouch-lab/mark
$mark begin
"$1" 0 0 4 {LOADS}; $mark local
"$1" 0 1 4 {LOADS}; $mark remote
"$1" 1 3 4 {LOADS}; $mark farther
"$2" -c 'from nexttouch import lab; lab.mark("python")'
exit 5
"""


@pytest.mark.usefixtures("boots")
def test_a_chase_through_memory_goes_where_the_memory_is_and_counts_the_same_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = compiled("chase", tmp_path)
    command = ["sh", "-c", SCRIPT, "sh", str(program), sys.executable]
    machine = lab.Machine(4, 2, 2**29)
    with Path(os.devnull).open("r+b") as null:
        counts = lab.count(command, machine, clock="instructions", timeout=900, stdin=null, stdout=null)
    assert counts.status == 5
    names = ["start", "begin", "local", "remote", "farther", "python", "end"]
    assert [(one.begin, one.end) for one in counts.intervals] == list(pairwise(names))

    # Each load misses, and so does the store that has made each of its lines.
    expected = LOADS + (4 << 20) // 64
    _, local, remote, farther, *_ = counts.intervals
    assert local.cpus[0].local == pytest.approx(expected, rel=0.05)
    assert local.cpus[0].remote < LOADS / 20
    assert remote.cpus[0].misses[1] == remote.cpus[0].remote - sum(remote.cpus[0].misses[2:])
    assert remote.cpus[0].misses[1] == pytest.approx(expected, rel=0.05)
    assert remote.cpus[0].local < LOADS / 20
    assert farther.cpus[1].misses[3] == pytest.approx(expected, rel=0.05)
    assert farther.cpus[1].local < LOADS / 20
    assert sum(farther.cpus[0].misses) < LOADS / 20

    # By the command line, which reads the numbers of the test's streams: give it files of its own.
    output = tmp_path / "counts.json"
    words = ["lab", "--memory", "512MiB", "--clock", "instructions", "--count", "--json", "--output", str(output)]
    saved = os.dup(0)
    try:
        with tempfile.TemporaryFile() as empty:
            os.dup2(empty.fileno(), 0)
        assert main([*words, "--timeout", "15min", "--", *command]) == 5
    finally:
        os.dup2(saved, 0)
        os.close(saved)
    again = json.loads(output.read_text())
    assert again["status"] == 5
    for index, cpu in ((1, 0), (2, 0), (3, 1)):
        first, second = counts.intervals[index].cpus[cpu], again["intervals"][index]["cpus"][cpu]
        assert second["local"] + second["remote"] == pytest.approx(first.local + first.remote, rel=0.03)
        assert second["misses"] == pytest.approx(list(first.misses), rel=0.03, abs=LOADS / 30)
    capsys.readouterr()


def test_counts_are_a_table_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lab, "setup", lambda *_: None)
    monkeypatch.setattr(lab, "count", lambda *_, **__: lab.Counts(3, parse(TEXT, lab.Machine(3, 2))))
    assert main(["lab", "--count", "--", "true"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err == TABLE


TABLE = """\
from   to    CPU  accesses  misses: local  remote  on node 0  on node 1  on node 2
start  full    0        10              1       5          1          2          3
start  full    1         0              0       0          0          0          0
full   end     0     1,000              0   1,000          0          0      1,000
full   end     1         1              1       0          0          1          0
start  end     0     1,010              1   1,005          1          2      1,003
start  end     1         1              1       0          0          1          0
"""
