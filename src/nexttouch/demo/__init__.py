"""What the command `demo` shows: an ordinary program whose memory is moved under it, eagerly and lazily."""

from __future__ import annotations

from .acts import Act, Demonstration, demonstrate, relocate_here

__all__ = ["Act", "Demonstration", "demonstrate", "relocate_here"]
