"""Where pages should live: pure functions, arrays in and arrays out, which know nothing of how pages move.

Pages are named by address; a node that is not known, or not wanted, is STAY. All ways to move pages share these.
"""

from __future__ import annotations

from .placements import STAY, interleave, spread
from .touches import ping_pong, two_touch

__all__ = ["STAY", "interleave", "ping_pong", "spread", "two_touch"]
