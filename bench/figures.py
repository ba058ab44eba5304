"""What was measured: series of values, figures with their floors, and how both are written as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["UNSTABLE", "Figure", "Series", "ratios"]

UNSTABLE = 0.2
"""A series is unstable when its interquartile range is more than this part of its median."""


@dataclass(frozen=True, slots=True)
class Series:
    """Values of one quantity, one a repetition, in the order in which they were measured.

    >>> Series("memcpy", "GB/s", (9.0, 10.0, 11.0)).median
    10.0
    """

    label: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The values below which a quarter and three quarters lie; the range when there are fewer than four values."""
        if len(self.values) < 4:
            return min(self.values), max(self.values)
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    @property
    def spread(self) -> float:
        """The distance of the quartiles as a part of the median; infinite about a median of 0 unless all are 0."""
        low, high = self.quartiles
        if self.median == 0:
            return 0.0 if high == low else float("inf")
        return (high - low) / abs(self.median)

    @property
    def unstable(self) -> bool:
        """Whether the spread is too large to quote the median alone."""
        return self.spread > UNSTABLE

    def to_dict(self) -> dict[str, Any]:
        """For JSON: label, unit, median, quartiles, range, spread, unstable, values."""
        return {
            "label": self.label,
            "unit": self.unit,
            "median": self.median,
            "quartiles": list(self.quartiles),
            "range": [min(self.values), max(self.values)],
            "spread": self.spread,
            "unstable": self.unstable,
            "values": list(self.values),
        }


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure with its floor.

    Attributes:
        name: the measurement it belongs to and what it is, such as "arm.relocate".
        title: what it is, for people.
        value: the figure itself; of a ratio, one value a pair of measurements.
        floor: what the median has to reach.
        at_most: whether the floor is an upper bound.
        sides: what the ratio was made of, and what else was seen on the way.
        note: what has to be known to read it.
        where: "here", or "lab": the virtual machine.
    """

    name: str
    title: str
    value: Series
    floor: float
    at_most: bool
    sides: tuple[Series, ...] = ()
    note: str = ""
    where: str = "here"

    @property
    def met(self) -> bool:
        """Whether the median reaches the floor."""
        return self.value.median <= self.floor if self.at_most else self.value.median >= self.floor

    @property
    def certain(self) -> bool:
        """Whether the quartiles lie on the same side of the floor as the median."""
        low, high = self.value.quartiles
        return not low <= self.floor <= high or low == high

    @property
    def bound(self) -> str:
        """The floor for people: "<= 0.2"."""
        return f"{'<=' if self.at_most else '>='} {self.floor:g}"

    def at(self, where: str) -> Figure:
        """Return the same figure, measured `where`."""
        return replace(self, where=where)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the attributes, and met and certain; `from_dict` reads it again."""
        written = {name: getattr(self, name) for name in ("name", "title", "floor", "at_most", "note", "where")}
        written |= {"met": self.met, "certain": self.certain, "value": self.value.to_dict()}
        return written | {"sides": [side.to_dict() for side in self.sides]}

    @classmethod
    def from_dict(cls, written: dict[str, Any]) -> Figure:
        """Read what `to_dict` wrote."""
        kept = {name: written[name] for name in ("name", "title", "floor", "at_most", "note", "where")}
        return cls(value=_series(written["value"]), sides=tuple(map(_series, written["sides"])), **kept)


def _series(written: dict[str, Any]) -> Series:
    return Series(written["label"], written["unit"], tuple(written["values"]))


def ratios(above: Iterable[float], below: Iterable[float], label: str = "ratio") -> Series:
    """The ratio of each pair: the two were measured one right after the other, so that slow times hit both.

    >>> ratios([1.0, 2.0], [4.0, 4.0]).values
    (0.25, 0.5)

    Raises:
        ValueError: there are not as many of the one as of the other.
    """
    return Series(label, "", tuple(a / b for a, b in zip(above, below, strict=True)))
