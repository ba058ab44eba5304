"""The statistics of series, floors, and figures as JSON."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.figures import UNSTABLE, Figure, Series, ratios


def series(*values: float) -> Series:
    return Series("label", "s", values)


def figure(*values: float, floor: float = 1.0, at_most: bool = True) -> Figure:
    return Figure("name", "title", series(*values), floor, at_most)


@pytest.mark.parametrize(
    ("values", "median", "quartiles"),
    [
        ((3.0,), 3.0, (3.0, 3.0)),
        ((3.0, 1.0), 2.0, (1.0, 3.0)),
        ((9.0, 1.0, 4.0), 4.0, (1.0, 9.0)),
        ((4.0, 1.0, 3.0, 2.0), 2.5, (1.75, 3.25)),
        ((5.0, 1.0, 2.0, 4.0, 3.0), 3.0, (2.0, 4.0)),
        ((1.0, 1.0, 1.0, 1.0, 1000.0), 1.0, (1.0, 1.0)),  # one outlier moves neither
    ],
)
def test_median_and_quartiles(values: tuple[float, ...], median: float, quartiles: tuple[float, float]) -> None:
    assert series(*values).median == median
    assert series(*values).quartiles == quartiles


def test_spread_is_the_distance_of_the_quartiles_in_medians() -> None:
    assert series(5.0, 1.0, 2.0, 4.0, 3.0).spread == pytest.approx(2 / 3)
    assert series(0.0, 0.0).spread == 0.0
    assert math.isinf(series(-1.0, 0.0, 1.0).spread)


@pytest.mark.parametrize(("half", "unstable"), [(UNSTABLE / 2 * 0.99, False), (UNSTABLE / 2 * 1.01, True)])
def test_a_large_spread_is_unstable(half: float, unstable: bool) -> None:
    assert series(1 - half, 1.0, 1 + half).unstable is unstable


@pytest.mark.parametrize(
    ("values", "at_most", "met", "certain"),
    [
        ((0.8, 0.9, 0.95), True, True, True),
        ((0.8, 0.9, 1.1), True, True, False),
        ((0.9, 1.1, 1.2), True, False, False),
        ((1.1, 1.2, 1.3), True, False, True),
        ((1.0, 1.0, 1.0), True, True, True),  # the floor itself is good enough
        ((1.0, 1.0, 1.0), False, True, True),
        ((1.1, 1.2, 1.3), False, True, True),
        ((0.8, 0.9, 1.1), False, False, False),
        ((0.7, 0.8, 0.9), False, False, True),
    ],
)
def test_a_floor_is_met_by_the_median_and_certain_by_the_quartiles(
    values: tuple[float, ...], at_most: bool, met: bool, certain: bool
) -> None:
    one = figure(*values, at_most=at_most)
    assert (one.met, one.certain) == (met, certain)


def test_a_ratio_is_taken_pair_by_pair() -> None:
    # Everything took three times as long in the second round: the ratio does not show it.
    assert ratios([1.0, 3.0], [2.0, 6.0]) == Series("ratio", "", (0.5, 0.5))


def test_both_sides_have_to_have_been_measured_equally_often() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


def test_json_gives_the_figure_back() -> None:
    one = Figure("a.b", "title", series(1.5, 2.5), 2.0, False, (series(7.0), series(8.0, 9.0)), "note", "lab")
    assert Figure.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_keys_of_the_json() -> None:
    written = figure(0.5, 1.0, 2.0).at("lab").to_dict()
    assert written == {
        "name": "name",
        "title": "title",
        "where": "lab",
        "floor": 1.0,
        "at_most": True,
        "met": True,
        "certain": False,
        "note": "",
        "value": {
            "label": "label",
            "unit": "s",
            "median": 1.0,
            "quartiles": [0.5, 2.0],
            "range": [0.5, 2.0],
            "spread": 1.5,
            "unstable": True,
            "values": [0.5, 1.0, 2.0],
        },
        "sides": [],
    }
