"""The demonstration as a picture: how long the subject's steps took while its memory moved. One self-contained SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from ..quantities import format_duration

__all__ = ["Moved", "draw"]

_WIDTH, _PANEL, _GAP, _LEFT, _TOP, _RIGHT, _BOTTOM = 920, 120, 46, 74, 78, 24, 40
_LOWEST, _HIGHEST = 1e-5, 10.0  # seconds, of the logarithmic scale
_STYLE = """\
svg { font: 13px system-ui, sans-serif; color-scheme: light dark; background: #fff; fill: #222 }
.area { fill: #cfe3f7 } .bar { fill: #b3361b } .axis { stroke: #999; stroke-width: 1; fill: none }
.grid { stroke: #999; stroke-width: .5; opacity: .4 } .small { font-size: 11px; opacity: .75 }
.title { font-weight: 600 }
@media (prefers-color-scheme: dark) {
  svg { background: #16181c; fill: #ddd } .area { fill: #24405c } .bar { fill: #ff8f6b } }"""


class Moved(Protocol):
    """What of an act is drawn; `nexttouch.demo.Act` has it."""

    @property
    def seconds(self) -> float: ...  # noqa: D102 (as in Act)
    @property
    def longest_step(self) -> float: ...  # noqa: D102
    @property
    def steps(self) -> Sequence[float]: ...  # noqa: D102
    @property
    def before(self) -> dict[int, int]: ...  # noqa: D102
    @property
    def during(self) -> list[tuple[float, dict[int, int]]]: ...  # noqa: D102
    @property
    def after(self) -> dict[int, int]: ...  # noqa: D102


def draw(title: str, subtitle: str, target: int, acts: Sequence[tuple[str, Moved]]) -> str:
    """Draw one panel an act, with its name, over a common time axis; return the SVG.

    Bars are the longest step in each slice of time, on a logarithmic scale; the area behind them is the share of the
    pages that is on node `target`.
    """
    longest = max(act.seconds for _, act in acts)
    height = _TOP + len(acts) * (_PANEL + _GAP) + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{_escaped(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{_LEFT}" y="26" font-size="17">{_escaped(title)}</text>',
        f'<text x="{_LEFT}" y="46">{_escaped(subtitle)}</text>',
    ]
    for number, (name, act) in enumerate(acts):
        top = _TOP + number * (_PANEL + _GAP) + 16
        parts += _panel(name, act, target, longest, top)
    parts += _time_axis(longest, height - _BOTTOM)
    return "\n".join([*parts, "</svg>", ""])


def _panel(name: str, act: Moved, target: int, longest: float, top: float) -> Iterable[str]:
    yield (
        f'<text class="title" x="{_LEFT}" y="{top - 7}">{_escaped(name)}: {format_duration(act.seconds)}, '
        f"longest step {format_duration(act.longest_step)}</text>"
    )
    yield _area(act, target, longest, top)
    for power in range(round(math.log10(_LOWEST)) + 1, round(math.log10(_HIGHEST)), 2):
        y = _y(10.0**power, top)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        label = format_duration(10.0**power).replace(".00", "").replace(".0", "")
        yield f'<text class="small" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    yield from _bars(act.steps, longest, top)
    yield f'<path class="axis" d="M{_LEFT} {top} V{top + _PANEL} H{_WIDTH - _RIGHT}"/>'


def _area(act: Moved, target: int, longest: float, top: float) -> str:
    samples = [(0.0, act.before), *act.during, (act.seconds, act.after), (longest, act.after)]
    bottom = top + _PANEL
    points = [f"M{_LEFT} {bottom}"]
    for second, where in samples:
        share = where.get(target, 0) / max(1, sum(where.values()))
        points.append(f"L{_x(second, longest):.1f} {bottom - share * _PANEL:.1f}")
    return f'<path class="area" d="{" ".join(points)} V{bottom} Z"/>'


# The subject is always in one of its steps, so the sum of the steps so far is the time. One bar a pixel.
def _bars(steps: Sequence[float], longest: float, top: float) -> Iterable[str]:
    highest: dict[int, float] = {}
    second = 0.0
    for step in steps:
        second += step
        column = min(int(_x(second, longest)), _WIDTH - _RIGHT - 2)
        highest[column] = max(highest.get(column, 0.0), step)
    for column, step in highest.items():
        y = _y(step, top)
        yield f'<rect class="bar" x="{column}" y="{y:.1f}" width="1.2" height="{top + _PANEL - y:.1f}"/>'


def _time_axis(longest: float, y: float) -> Iterable[str]:
    tick = 10.0 ** math.floor(math.log10(longest))
    while longest / tick < 4:
        tick /= 2
    for number in range(int(longest / tick) + 1):
        x = _x(number * tick, longest)
        yield f'<text class="small" x="{x:.1f}" y="{y + 6}" text-anchor="middle">{number * tick:g} s</text>'
    yield (
        f'<text class="small" x="{_LEFT}" y="{y + 26}">bars: the longest step of the program in each slice of time '
        f"(logarithmic); area: the share of its pages that is on the target node</text>"
    )


def _x(second: float, longest: float) -> float:
    return _LEFT + second / longest * (_WIDTH - _LEFT - _RIGHT)


def _y(step: float, top: float) -> float:
    share = math.log(max(step, _LOWEST) / _LOWEST) / math.log(_HIGHEST / _LOWEST)
    return top + _PANEL * (1 - min(1.0, share))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
