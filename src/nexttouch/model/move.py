"""One alternative of a thread's next step, as a value."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple, TypeAlias

from .violation import Violation

__all__ = ["Move", "State"]

State: TypeAlias = Any
"""The shared part of a state, or a thread's own: a hashable value that only the model itself looks into."""


class Move(NamedTuple):
    """One alternative of a thread's next step.

    Attributes:
        name: what the step is called.
        shared, local: what the shared part and the thread's own are after it.
        broken: the promise that the step itself broke.
        fatal: the step could not be finished for that; nothing comes after it.
        private: the step neither reads nor changes anything that another thread can reach, and private steps come to an
            end: they never go round.
    """

    name: str
    shared: Hashable
    local: Hashable
    broken: Violation | None = None
    fatal: bool = False
    private: bool = False
