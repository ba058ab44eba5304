"""What the command `demo` shows: an ordinary program whose memory is moved under it, eagerly and lazily."""

from __future__ import annotations

from .demonstration import Act, Demonstration, demonstrate
from .one_node import relocate_here

__all__ = ["Act", "Demonstration", "demonstrate", "relocate_here"]
