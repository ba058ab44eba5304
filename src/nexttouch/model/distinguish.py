"""Which architectures can tell a valid entry that is not present from every other: requirement E5 of the email.

The email wants "arch support for clearing and setting the present bit". Two ways to do it are tried on every small
present entry: the bit cleared and nothing else, and the architecture's own tag set as well (`Arch.hide`). Either is
supported where each entry comes back as VALID_NONPRESENT with the frame and the bits it had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from .arch import ARCHES, Arch
from .entry import Entry, Kind

__all__ = ["Confusion", "Support", "confusions", "support", "supports"]

Transform = Callable[[Arch, int], int]

_FRAMES = sorted({*range(64), *(frame for k in range(6, 21) for frame in (2**k - 1, 2**k) if frame < 2**20)})


class Confusion(NamedTuple):
    """The present entry `before` became `word`, which the kernel reads as `after`."""

    before: Entry
    word: int
    after: Entry


@dataclass(frozen=True, slots=True)
class Support:
    """What one architecture makes of entries without their present bit: one line of the table."""

    arch: str
    literal: tuple[Confusion, ...]
    """Of each kind that a word with only the present bit cleared is mistaken for, the first case. Empty: of none."""
    tagged: tuple[Confusion, ...] | None
    """The same of tagged words; None where there is no tag."""

    @property
    def needs_tag(self) -> bool:
        """Whether clearing the present bit alone is not enough."""
        return bool(self.literal)

    @property
    def works(self) -> bool:
        """Whether there is a way at all: E5 can be met without changing the architecture's code."""
        return not self.literal or self.tagged == ()


def confusions(arch: Arch, transform: Transform) -> tuple[Confusion, ...]:
    """Every small present entry that, after `transform`, is not read as the same entry VALID_NONPRESENT.

    Small: frames below 64 and those around each power of two up to 2**20, with each choice of write, accessed, dirty.

    >>> confusions(ARCHES["x86-64"], Arch.hide)
    ()
    >>> confusions(ARCHES["ppc64-2006"], Arch.clear_present)[1].after
    Entry(kind=<Kind.FILE: 6>, number=0, write=False, accessed=False, dirty=False)

    Raises:
        Unrepresentable: `transform` is `Arch.hide` and `arch` has no tag.
    """
    return tuple(_confusions(arch, transform))


def _confusions(arch: Arch, transform: Transform) -> Iterator[Confusion]:
    for frame, write, accessed, dirty in product(_FRAMES, *[(False, True)] * 3):
        before = Entry(Kind.PRESENT, frame, write, accessed, dirty)
        word = transform(arch, arch.encode(before))
        after = arch.decode(word)
        if after != before._replace(kind=Kind.VALID_NONPRESENT):
            yield Confusion(before, word, after)


def support(arch: Arch) -> Support:
    """Find what `arch` makes of entries without their present bit, untagged and tagged."""
    tagged = None if arch.tag is None else _firsts(confusions(arch, Arch.hide))
    return Support(arch.name, _firsts(confusions(arch, Arch.clear_present)), tagged)


def supports() -> tuple[Support, ...]:
    """The table: `support` of every architecture, in the order of ARCHES.

    >>> [line.arch for line in supports() if not line.works]
    ['ppc64-2006']
    """
    return tuple(support(arch) for arch in ARCHES.values())


def _firsts(found: tuple[Confusion, ...]) -> tuple[Confusion, ...]:
    firsts: dict[Kind, Confusion] = {}
    for confusion in found:
        firsts.setdefault(confusion.after.kind, confusion)
    return tuple(firsts[kind] for kind in sorted(firsts))
