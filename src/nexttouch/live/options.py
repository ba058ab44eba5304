"""How the pages of a lazy migration are served and swept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from ..errors import InvalidArgument
from ..quantities import is_number

__all__ = ["Options", "Service"]

Service = Literal["thread", "inline"]
"""Who serves a fault: a thread of the engine, or the thread that touches."""


@dataclass(frozen=True, slots=True)
class Options:
    """How pages are served and swept; checked by `check`.

    Attributes:
        service: "thread", or "inline": the faulting thread serves itself.
        window: most pages that one touch moves.
        rate: bytes a second that the sweep moves: None as fast as it goes, 0 no sweep.
        deadline: seconds after arming at which what is left is moved at once (without a target: given back); None:
            never.
        observe: only note which node's threads touch what (Reason.TOUCHED); nothing moves.
    """

    service: Service = "thread"
    window: int = 64
    rate: float | None = None
    deadline: float | None = None
    observe: bool = False

    def check(self) -> None:
        """Raise InvalidArgument if one of the values makes no sense."""
        if self.service not in ("thread", "inline"):
            raise InvalidArgument("service", f"is {self.service!r}, but has to be 'thread' or 'inline'")
        whole = is_number(self.window) and isinstance(self.window, Integral)
        if not whole or not 1 <= self.window <= 1 << 20:
            raise InvalidArgument("window", f"is {self.window!r}, but has to be a number of pages from 1 to 1048576")
        if self.rate is not None and not (is_number(self.rate) and self.rate >= 0):
            raise InvalidArgument("rate", f"is {self.rate!r}, but has to be 0 (no sweep) or more bytes a second")
        if self.deadline is not None and not (is_number(self.deadline) and self.deadline >= 0):
            raise InvalidArgument("deadline", f"is {self.deadline!r}, but has to be 0 or more seconds")

    @property
    def ends_itself(self) -> bool:
        """Whether every page is dealt with some day even if no thread touches it."""
        return self.rate != 0 or self.deadline not in (None, math.inf)
