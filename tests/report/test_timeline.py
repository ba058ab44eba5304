"""The drawing of the demonstration: one file, well-formed, and everything is inside of its panel."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from nexttouch.report.timeline import draw

SVG = "{http://www.w3.org/2000/svg}"


@dataclass
class Act:
    """What is drawn of an act of `nexttouch.demo`."""

    seconds: float = 1.0
    steps: list[float] = field(default_factory=lambda: [0.01] * 100)
    before: dict[int, int] = field(default_factory=lambda: {0: 100})
    during: list[tuple[float, dict[int, int]]] = field(default_factory=list)
    after: dict[int, int] = field(default_factory=lambda: {1: 100})

    @property
    def longest_step(self) -> float:
        return max(self.steps, default=0.0)


@dataclass(frozen=True)
class Panel:
    """Where a panel is, and what it shows."""

    left: float
    top: float
    right: float
    bottom: float
    bars: list[tuple[float, float, float]]  # x, top, bottom
    width: float  # of the widest bar
    area: list[tuple[float, float]]


def drawn(acts: list[Act], target: int = 1) -> ElementTree.Element:
    return ElementTree.fromstring(draw("title", "subtitle", target, [(f"act {n}", act) for n, act in enumerate(acts)]))


def panels(root: ElementTree.Element) -> Iterator[Panel]:
    """Each axis is drawn behind the area and the bars of its panel."""
    bars: list[tuple[float, float, float]] = []
    area: list[tuple[float, float]] = []
    width = 0.0
    for element in root:
        kind = element.get("class")
        if kind == "bar":
            x, y, height = (float(element.attrib[name]) for name in ("x", "y", "height"))
            bars.append((x, y, y + height))
            width = max(width, float(element.attrib["width"]))
        elif kind == "area":
            area = [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", element.attrib["d"])]
        elif kind == "axis":
            left, top, bottom, right = map(float, re.findall(r"-?[\d.]+", element.attrib["d"]))
            yield Panel(left, top, right, bottom, bars, width, area)
            bars, width = [], 0.0


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_one_panel_an_act(count: int) -> None:
    root = drawn([Act() for _ in range(count)])
    assert root.tag == f"{SVG}svg"
    found = list(panels(root))
    assert len(found) == count
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for above, below in pairwise(found):
        assert above.bottom < below.top
    assert all(0 < panel.left < panel.right < width and 0 < panel.top < panel.bottom < height for panel in found)
    assert [text.partition(":")[0] for text in texts(root) if text.startswith("act ")] == [
        f"act {number}" for number in range(count)
    ]


def test_words_are_escaped() -> None:
    words = "a < b & c > \"d\" 'e' </svg>"
    root = ElementTree.fromstring(draw(words, words, 1, [(words, Act())]))
    title = root.find(f"{SVG}title")
    assert title is not None
    assert title.text == words
    assert texts(root)[:2] == [words, words]
    assert [text for text in texts(root) if text.startswith(words + ": ")] == [f"{words}: 1.00 s, longest step 10.0 ms"]


def test_nothing_is_fetched() -> None:
    text = draw("title", "subtitle", 1, [("act", Act())])
    assert re.findall(r"\w+://[^\"\s]+", text) == ["http://www.w3.org/2000/svg"]  # a name, not an address to load
    assert not re.search(r"href|url\(|@import|<image|<script|<foreignObject|<\?", text)


@pytest.mark.parametrize("seed", range(30))
def test_nothing_leaves_its_panel(seed: int) -> None:
    """Steps shorter and longer than the scale, and steps and samples that end after the act did."""
    chance = random.Random(seed)
    acts = []
    for _ in range(3):
        seconds = 10 ** chance.uniform(-3, 2)
        steps = [10 ** chance.uniform(-8, 3) for _ in range(chance.randint(0, 300))]
        samples = sorted(chance.uniform(0, seconds) for _ in range(chance.randint(0, 10)))
        during = [(second, {0: chance.randint(0, 99), 1: chance.randint(0, 99)}) for second in samples]
        acts.append(Act(seconds, steps, during=during))
    for panel, act in zip(panels(drawn(acts)), acts, strict=True):
        assert bool(panel.bars) == bool(act.steps)
        for x, top, bottom in panel.bars:
            assert panel.left <= x <= panel.right - panel.width
            assert panel.top - 0.1 <= top <= bottom <= panel.bottom + 0.1
        assert len({x for x, _, _ in panel.bars}) == len(panel.bars)  # one bar a column
        for x, y in panel.area:
            assert panel.left <= x <= panel.right + 0.1
            assert panel.top - 0.1 <= y <= panel.bottom + 0.1


def test_the_longest_step_of_a_slice_is_its_bar() -> None:
    """A factor of ten is always the same height, and each step ends where its time ends."""
    act = Act(seconds=10.0, steps=[1.0, *[0.001] * 1000, 0.1, 0.1, *[0.01] * 680])
    (panel,) = panels(drawn([act]))
    width, height = panel.right - panel.left, panel.bottom - panel.top
    decade = height / 6  # from 10 us to 10 s
    long = [(x, bottom - top) for x, top, bottom in panel.bars if bottom - top > 3.5 * decade]
    assert [size for _, size in long] == pytest.approx([5 * decade, 4 * decade, 4 * decade], abs=0.2)
    assert [x for x, _ in long] == pytest.approx([panel.left + width * when / 10 for when in (1.0, 2.1, 2.2)], abs=1.1)


def test_the_area_is_the_share_of_the_target() -> None:
    act = Act(during=[(0.25, {0: 3, 1: 1}), (0.5, {1: 2, 2: 2}), (0.75, {})], before={0: 4}, after={1: 4})
    for target, shares in ((1, [0, 0, 0.25, 0.5, 0, 1, 1]), (0, [0, 1, 0.75, 0, 0, 0, 0]), (3, [0] * 7)):
        (panel,) = panels(drawn([act], target))
        height = panel.bottom - panel.top
        assert [(panel.bottom - y) / height for _, y in panel.area] == pytest.approx(shares, abs=0.01)


def test_all_panels_have_one_time_axis() -> None:
    """A short act leaves the rest of its panel without bars, and its area as it was at its end."""
    short, long = panels(drawn([Act(seconds=1.0), Act(seconds=10.0, steps=[0.01] * 1000)]))
    width = short.right - short.left
    assert max(x for x, _, _ in short.bars) == pytest.approx(short.left + width / 10, abs=1.1)
    assert max(x for x, _, _ in long.bars) == pytest.approx(long.right, abs=2.1)
    assert short.area[-1] == (short.right, short.top)


@pytest.mark.parametrize("seconds", [1e-3, 0.4, 1.0, 3.7, 95.0])
def test_the_time_axis_has_a_few_labels(seconds: float) -> None:
    labels = [text for text in drawn([Act(seconds)]).iter(f"{SVG}text") if text.get("text-anchor") == "middle"]
    times = [float((label.text or "").removesuffix(" s")) for label in labels]
    assert 5 <= len(times) <= 10
    assert times == sorted(times)
    assert times[0] == 0
    assert times[-1] <= seconds * 1.0001


def test_it_is_the_same_every_time() -> None:
    assert draw("a", "b", 1, [("act", Act())]) == draw("a", "b", 1, [("act", Act())])
