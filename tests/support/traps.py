"""Which traps this kernel has."""

from __future__ import annotations

from nexttouch.linux.userfaultfd import Feature
from nexttouch.live.mechanisms import userfaultfd_features

__all__ = ["RWP", "best"]

RWP = Feature.RWP in userfaultfd_features()
"""Whether any touch of any memory is caught (Linux 7.3)."""


def best(without: str) -> str:
    """The mechanism that memory gets for which RWP is, where the kernel lacks that `without`."""
    return "rwp" if RWP else without
