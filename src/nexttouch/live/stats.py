"""What a lazy migration has done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .reason import Reason, keyed

__all__ = ["Phase", "Stats"]

Phase = Literal["arming", "serving", "done"]
"""How far a migration is."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What a migration has done so far. Durations in seconds, sizes in pages.

    Attributes:
        phase: "arming", "serving" or "done".
        pages: pages of the plan: the sum of `waiting`, `moved` and `left`.
        waiting: not dealt with yet; what was touched waits until it has moved.
        moved_by_touch, moved_by_sweep, moved_eagerly: moved, by what made them move. A touch takes a window along.
        left: pages that stay where they are, by reason.
        faults: page faults served.
        hole_faults: of these, touches of pages that were not there yet.
        windows, sweeps: runs of pages that a fault, and the sweep, made move.
        moves: calls of move_pages(2) for them.
        events: unmappings, moves and discards of memory that the program did meanwhile.
        arm_seconds, service_seconds, sweep_seconds, move_seconds: time spent on each; the moves' contains those of the
            sweep. A fault is served when its thread goes on: its pages move after that.
        longest_service: the longest service of one fault.
        latency: services by upper bound of their duration in seconds, ascending.
        stopped: how long the program stood still to be attached to; 0 for memory of this process.
    """

    phase: Phase
    pages: int
    waiting: int
    moved_by_touch: int
    moved_by_sweep: int
    moved_eagerly: int
    left: dict[Reason, int]
    faults: int
    hole_faults: int
    windows: int
    sweeps: int
    moves: int
    events: int
    arm_seconds: float
    service_seconds: float
    sweep_seconds: float
    move_seconds: float
    longest_service: float
    latency: dict[float, int]
    stopped: float

    @property
    def moved(self) -> int:
        """Pages moved in all."""
        return self.moved_by_touch + self.moved_by_sweep + self.moved_eagerly

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the attributes and `moved`, reasons by name, latency as pairs [upper bound, count]."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values |= {"moved": self.moved, "left": keyed(self.left)}
        values["latency"] = [[bound, count] for bound, count in self.latency.items()]
        return values
