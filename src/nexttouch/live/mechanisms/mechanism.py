"""What a mechanism is, to those who choose one and to those who explain it; what it does is in the C core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...linux.procfs import Kind, Smap
from ...linux.userfaultfd import Feature

__all__ = ["Mechanism", "is_anonymous", "is_shared_memory"]


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A way to make pages traps: one C file, one description, and one line in each of the two registries.

    Attributes:
        name: as users write it, and as the core names it (`nexttouch._core.MECHANISMS`).
        traps: what makes a page move: "any touch" or "stores".
        memory: whose and what memory it is for, in a phrase.
        purpose: what it does, for `nexttouch doctor`.
        death: what becomes of armed pages if the migrator dies.
        since: the first Linux that has what it needs, for remedies; whether a kernel has it is asked, never concluded.
        features: what the descriptor has to be able to do.
        more_features: what it can do without, where some memory is then not for it.
        foreign: whether it works on the memory of another process.
        inline: whether the thread that faults may serve itself (service="inline").
        can_trap: whether the memory of a mapping is for it, given what this kernel's userfaultfd can do.
    """

    name: str
    traps: str
    memory: str
    purpose: str
    death: str
    since: str
    features: Feature
    more_features: Feature
    foreign: bool
    inline: bool
    can_trap: Callable[[Smap, Feature], bool]


def is_anonymous(smap: Smap) -> bool:
    """Whether a mapping is private anonymous memory, the heap and stacks included."""
    return smap.mapping.kind in {Kind.ANONYMOUS, Kind.HEAP, Kind.STACK} and not smap.mapping.shared


def is_shared_memory(smap: Smap) -> bool:
    """Whether a mapping is of shared or hugetlb memory whose entries can be changed one by one.

    A huge entry of shared memory is split for that, by which the kernel drops what it mapped: there is nothing left to
    take a permission from, nor for move_pages(2) to find, until the program touches it again.
    """
    return smap.mapping.kind in {Kind.SHMEM, Kind.HUGETLB} and not smap.shmem_huge
