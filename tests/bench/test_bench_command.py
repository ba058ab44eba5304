"""`python -m bench`: arguments, table, JSON, and what happens where something cannot be measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

import nexttouch
from bench import suite
from bench.__main__ import main
from bench.figures import Figure, Series
from bench.suite import SUITE, Measurement, Results
from bench.table import render
from nexttouch import lab
from nexttouch.errors import LabError, NexttouchError

ONE_NODE = len(nexttouch.topology().memory_nodes) == 1


def figures(repetitions: int) -> list[Figure]:
    """Nothing at all."""
    value = Series("ratio", "", (0.5,) * repetitions)
    side = Series("one side", "us a page", (2.0,) * repetitions)
    return [Figure("fake", "one / another", value, 0.6, True, (side,), "Made up.")]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A suite with one measurement that takes no time."""
    real = dict(SUITE)
    SUITE.clear()
    SUITE["fake"] = Measurement(figures, 3)
    monkeypatch.setattr(suite, "_warm_up", lambda: None)
    yield
    SUITE.clear()
    SUITE.update(real)


def results(*values: float, load: float = 0.0) -> Results:
    machine: dict[str, Any] = {
        "cpu": "Testium",
        "cpus": 2,
        "hypervisor": False,
        "memory": 1 << 30,
        "nodes": 1,
        "kernel": "6.18",
        "transparent_huge_pages": "madvise",
        "numa_balancing": None,
        "load": [load, 0.0, 0.0],
        "load_after": [1.0, 0.0, 0.0],
        "python": "3.11.7",
        "nexttouch": "0.1.0",
        "commit": None,
    }
    value = Series("stopped", "s", values)
    return Results({"here": machine}, [Figure("attach", "a program stands still", value, 5e-3, True)])


def test_the_table() -> None:
    assert render(results(1e-3, 1.05e-3, 0.95e-3)) == (
        "here: Testium (machine), 2 CPUs, 1 node, 1 GiB\n"
        "    Linux 6.18, huge pages madvise, NUMA balancing not there\n"
        "    Python 3.11.7, nexttouch 0.1.0\n"
        "    load 0.00 at the begin, 1.00 at the end\n"
        "\n"
        "attach: a program stands still\n"
        "    1.00 ms (950 us .. 1.05 ms)                     floor <= 5.00 ms    met\n"
        "\n"
        "1 of 1 floors met\n"
    )


def test_the_table_warns() -> None:
    text = render(results(4e-3, 6e-3, 7e-3, load=2.0))
    assert "MISSED (uncertain: the quartiles lie on both sides)" in text
    assert "WARNING: unstable" in text
    assert "WARNING: the machine was not idle" in text
    assert "0 of 1 floors met" in text


def test_results_survive_json() -> None:
    one = results(1.0, 2.0)
    assert Results.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.usefixtures("fake")
def test_measured_printed_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.json"
    assert main(["--json", str(file)]) == 0
    printed = capsys.readouterr()
    assert "fake: one / another" in printed.out
    assert "2 (2 .. 2) us a page" in printed.out
    assert "fake: Nothing at all. 3 times" in printed.err
    written = json.loads(file.read_text())
    assert set(written) == {"date", "machines", "figures", "missing"}
    assert written["machines"]["here"]["nexttouch"] == nexttouch.__version__
    assert written["figures"][0]["value"]["values"] == [0.5, 0.5, 0.5]
    assert written["missing"] == {}


@pytest.mark.usefixtures("fake")
def test_repetitions_and_where(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    assert main(["fake", "--repetitions", "7", "--where", "lab", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert list(written["machines"]) == ["lab"]
    assert written["figures"][0]["where"] == "lab"
    assert len(written["figures"][0]["value"]["values"]) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "NAME is 'nonsense', but has to be one of touch, sweep, arm, attach, states, total, pause"),
        (["touch", "--repetitions", "0"], "--repetitions is 0, but has to be at least 1"),
    ],
)
def test_misuse(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("fake")
def test_without_the_lab_the_rest_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise LabError("no QEMU here")

    SUITE["many"] = Measurement(figures, 1, nodes=1000)
    monkeypatch.setattr(lab, "setup", refuse)
    file = tmp_path / "out.json"
    assert main(["--json", str(file)]) == 1
    assert "many: NOT MEASURED: no QEMU here" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["missing"] == {"many": "no QEMU here"}
    assert [one["name"] for one in written["figures"]] == ["fake"]


@pytest.mark.skipif(not ONE_NODE, reason="this machine has the nodes")
@pytest.mark.parametrize("name", ["total", "pause"])
def test_a_measurement_that_needs_two_nodes_says_so(name: str) -> None:
    with pytest.raises(NexttouchError, match="needs two"):
        SUITE[name].take(1)


@pytest.mark.parametrize("name", ["touch", "arm", "attach"])
def test_measuring_for_real(name: str) -> None:
    made = SUITE[name].take(1)
    assert made
    for one in made:
        assert one.name.partition(".")[0] == name
        assert all(value > 0 for series in (one.value, *one.sides) for value in series.values)
