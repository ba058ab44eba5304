"""The ways to move pages, and whether each works here: concluded from what was found by trying."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ...linux.features import Probe
from ...linux.userfaultfd import Feature
from . import MECHANISMS
from .mechanism import Mechanism

__all__ = ["Way", "suffices", "ways"]

_BY_ALL = ("pagemap", "/sys")
_BY_ATTACH = ("ptrace", "pidfd_getfd", "userfaultfd", "move_pages", "/proc")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to move pages, and whether it works here; if not, `reason` and `remedy` are those of what it lacks first.

    "NAME inline" is mechanism NAME with service="inline", "NAME shared" the same for memory that is not private and
    anonymous, and "attach" the best of those that work on another program's memory.
    """

    name: str
    purpose: str
    available: bool
    reason: str = ""
    remedy: str = ""


def ways(probed: Iterable[Probe]) -> tuple[Way, ...]:
    """Conclude from what `nexttouch.linux.features.probe` found which ways to move pages there are.

    >>> from nexttouch.linux.features import probe
    >>> [way.name for way in ways(probe())][:3]
    ['eager', 'rwp', 'rwp inline']
    """
    found = {entry.name: entry for entry in probed}
    answers = {"eager": _way("eager", "everything movable, now", ("move_pages",), found)}
    for mechanism in MECHANISMS:
        answers |= {way.name: way for way in _of_mechanism(mechanism, found)}
    answers["attach"] = _attach(answers, found)
    return tuple(answers.values())


def suffices(found: Iterable[Way]) -> bool:
    """Whether pages can be moved eagerly, when they are touched, and lazily in other processes."""
    works = {way.name for way in found if way.available}
    working = [mechanism for mechanism in MECHANISMS if mechanism.name in works]
    own = any(mechanism.traps == "any touch" for mechanism in working)
    return "eager" in works and own and any(mechanism.foreign for mechanism in working)


def _of_mechanism(mechanism: Mechanism, found: dict[str, Probe]) -> Iterator[Way]:
    name, bits = mechanism.name, _bits(mechanism.features)
    plain = _way(name, mechanism.purpose, ("userfaultfd", *bits, "move_pages"), found)
    if not mechanism.inline:
        yield plain
    else:
        purpose = 'the same with service="inline": system calls fail on pages that are still to move'
        needs = ("userfaultfd, user mode", *bits, *_bits(Feature.SIGBUS), "move_pages")
        inline = _way(f"{name} inline", purpose, needs, found)
        if not plain.available and inline.available:
            plain = replace(plain, remedy=f'{plain.remedy}; or use service="inline", which works here')
        yield from (plain, inline)
    if mechanism.more_features:
        needs = ("userfaultfd", *bits, *_bits(mechanism.more_features), "move_pages")
        yield _way(f"{name} shared", f"shared memory and hugetlb, for {mechanism.traps}", needs, found)


def _attach(answers: dict[str, Way], found: dict[str, Probe]) -> Way:
    foreign = [mechanism for mechanism in MECHANISMS if mechanism.foreign]
    best = next((mechanism for mechanism in foreign if answers[mechanism.name].available), foreign[-1])
    seen = "it is touched" if best.traps == "any touch" else "it is written"
    return _way("attach", f"another program's memory, when {seen}", (*_BY_ATTACH, *_bits(best.features)), found)


def _way(name: str, purpose: str, needs: Iterable[str], found: dict[str, Probe]) -> Way:
    for lacking in (found[need] for need in (*needs, *_BY_ALL) if not found[need].available):
        return Way(name, purpose, False, f"{lacking.name}: {lacking.reason}", lacking.remedy)
    return Way(name, purpose, True)


def _bits(features: Feature) -> list[str]:
    return [f"userfaultfd {bit.name}" for bit in Feature if bit in features]
