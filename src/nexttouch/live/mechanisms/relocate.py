"""Entries moved away (UFFDIO_MOVE): any touch of this process's own memory, on kernels without RWP."""

from __future__ import annotations

from ...linux.procfs import Smap
from ...linux.userfaultfd import Feature
from .mechanism import Mechanism, is_anonymous

__all__ = ["RELOCATE"]


# UFFDIO_MOVE wants both sides alike: not locked, writable, not executable. What children do not get (dc) stays so, and
# a stack (gd) has to grow.
def _can_trap(smap: Smap, features: Feature) -> bool:
    mapping = smap.mapping
    plain = mapping.writable and not mapping.executable and not smap.flags & {"lo", "dc", "gd"}
    return plain and is_anonymous(smap)


RELOCATE = Mechanism(
    name="relocate",
    traps="any touch",
    memory="private anonymous memory, writable, of this process",
    purpose="this process's private anonymous memory, when it is touched",
    death="it is the program itself",
    since="6.8",
    features=Feature.MOVE | Feature.THREAD_ID | Feature.EVENT_REMAP | Feature.EVENT_REMOVE | Feature.EVENT_UNMAP,
    more_features=Feature(0),
    foreign=False,
    inline=True,
    can_trap=_can_trap,
)
