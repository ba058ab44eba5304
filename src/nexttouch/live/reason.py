"""Why a page stays where it is: one word for machines, one sentence for people."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

__all__ = ["Reason", "describe", "keyed"]


class Reason(IntEnum):
    """Why a page was not moved. The numbers are those of the core (`nexttouch._core.REASONS`), where it has the reason.

    >>> Reason.SHARED.name, Reason.SHARED.sentence
    ('SHARED', 'mapped by several processes; moves only eagerly, with shared=True (--shared)')
    """

    ABSENT = 32
    AT_HOME = 33
    SHARED = 34
    BUSY = 35
    TARGET_FULL = 36
    FORKED = 37
    CANCELLED = 38
    UNTOUCHED = 39
    UNMAPPED = 40
    DISCARDED = 41
    REMAPPED = 42
    UNSUITABLE = 43
    STRANDED = 44
    PARTIAL = 45
    UNTRAPPED = 46
    SWAPPED = 47
    NOT_MAPPED = 48
    TARGET_GONE = 49
    UNREACHED = 50
    OUTSIDE = 51
    TOUCHED = 52

    @property
    def sentence(self) -> str:
        """The reason in words."""
        return _SENTENCES[self]


_SENTENCES = {
    Reason.ABSENT: "no page was there any more",
    Reason.AT_HOME: "on the right node already",
    Reason.SHARED: "mapped by several processes; moves only eagerly, with shared=True (--shared)",
    Reason.BUSY: "pinned for a device or in use by the kernel; try again later",
    Reason.TARGET_FULL: "the target node had no free memory",
    Reason.FORKED: "the process forked before the page was touched; migrate again",
    Reason.CANCELLED: "the migration was cancelled first",
    Reason.UNTOUCHED: "no thread touched it before the deadline",
    Reason.UNMAPPED: "unmapped by the program",
    Reason.DISCARDED: "discarded by the program (MADV_DONTNEED)",
    Reason.REMAPPED: "its mapping changed before it was touched (mremap, or an unmapping that failed); migrate again",
    Reason.UNSUITABLE: "the kernel does not migrate pages of this mapping, or not by the mechanism asked for",
    Reason.STRANDED: "could not be put back after its mapping changed; its contents are kept in Migration.shadow",
    Reason.PARTIAL: "the array covers only a part of it; `move` takes such pages along",
    Reason.TARGET_GONE: "the target node may not be used any more (its cpuset, or it went offline)",
    Reason.UNTRAPPED: "its touch cannot be caught (a file, or read-only memory); name a node, with `lazy` or `move`",
    Reason.SWAPPED: "in swap, thus on no node; comes back where its policy says, or on the node of its next toucher",
    Reason.NOT_MAPPED: "in memory, but not touched by this process, so it has no entry here; touch it, then move it",
    Reason.OUTSIDE: "touched from outside the program, or by a thread that has ended, so on no node of its own",
    Reason.TOUCHED: "touched; this was only to see by whom",
    Reason.UNREACHED: "the move ended before its turn came, as told above",
}


def describe(left: Mapping[Reason, int]) -> list[str]:
    """One line a reason, the most frequent first.

    >>> describe({Reason.BUSY: 2, Reason.AT_HOME: 9})
    ['9 pages: on the right node already', '2 pages: pinned for a device or in use by the kernel; try again later']
    """
    ranked = sorted(left.items(), key=lambda item: -item[1])
    return [f"{count:,} page{'s' * (count != 1)}: {reason.sentence}" for reason, count in ranked if count]


def keyed(left: Mapping[Reason, int]) -> dict[str, int]:
    """For JSON: the reasons by name in lower case.

    >>> keyed({Reason.AT_HOME: 9})
    {'at_home': 9}
    """
    return {reason.name.lower(): count for reason, count in sorted(left.items()) if count}
