"""Entries without permission (UFFDIO_RWPROTECT): any touch, any process, and no page is ever out of its place."""

from __future__ import annotations

from ...linux.procfs import Smap
from ...linux.userfaultfd import Feature
from .mechanism import Mechanism, is_anonymous, is_shared_memory

__all__ = ["RWP"]


# The kernel asks for memory that may be made writable (VM_MAYWRITE), and is accessible when it is registered: a mapping
# that forbids writing will do.
def _can_trap(smap: Smap, features: Feature) -> bool:
    mapping = smap.mapping
    accessible = mapping.readable or mapping.writable or mapping.executable
    return (is_anonymous(smap) or is_shared_memory(smap)) and accessible and "mw" in smap.flags


RWP = Mechanism(
    name="rwp",
    traps="any touch",
    memory="anonymous, shared and hugetlb memory, also where it may only be read, of any process",
    purpose="any process's memory, when it is touched",
    death="the kernel gives all permissions back; contents were never out of place",
    since="7.3",
    features=Feature.RWP | Feature.THREAD_ID,
    more_features=Feature(0),
    foreign=True,
    inline=True,
    can_trap=_can_trap,
)
