"""A broken promise, found by a step or by looking at a state."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Broken", "Violation"]


class Violation(NamedTuple):
    """A broken promise: the invariant's name, and what was seen in one sentence."""

    invariant: str
    sentence: str


class Broken(Exception):
    """Raised by a step that breaks a promise."""

    def __init__(self, invariant: str, sentence: str) -> None:
        super().__init__(sentence)
        self.violation = Violation(invariant, sentence)
