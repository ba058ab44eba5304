"""The mechanisms by which pages become traps: the one list that plans, help, doctor and documents read.

How to add one: docs/adding-a-mechanism.md.
"""

from __future__ import annotations

from ...errors import FeatureMissing, InvalidArgument, KernelError
from ...linux.userfaultfd import Feature, available_features
from .mechanism import Mechanism
from .relocate import RELOCATE
from .rwp import RWP
from .write_protect import WRITE_PROTECT

__all__ = ["MECHANISMS", "Mechanism", "asked_for", "foreign", "named", "userfaultfd_features", "working"]

MECHANISMS = (RWP, RELOCATE, WRITE_PROTECT)
"""All there are; a mapping gets the first that works here and is for it."""


def userfaultfd_features() -> Feature:
    """Return what userfaultfd can do here; nothing where there is none, which is told of when one is opened."""
    try:
        return available_features()
    except (FeatureMissing, KernelError):
        return Feature(0)


def working(features: Feature) -> tuple[Mechanism, ...]:
    """Return those mechanisms that a kernel can do whose userfaultfd has `features`, the best first.

    >>> [mechanism.name for mechanism in working(Feature.RWP | Feature.THREAD_ID)]
    ['rwp']
    """
    return tuple(mechanism for mechanism in MECHANISMS if mechanism.features in features)


def named(name: object, *, argument: str = "mechanism") -> Mechanism:
    """Return the mechanism that a user named.

    >>> named("rwp").traps
    'any touch'

    Raises:
        InvalidArgument: naming `argument`; there is none of that name.
    """
    for mechanism in MECHANISMS:
        if mechanism.name == name:
            return mechanism
    names = ", ".join(repr(mechanism.name) for mechanism in MECHANISMS)
    raise InvalidArgument(argument, f"is {name!r}, but has to be one of {names}")


def asked_for(name: object, *, argument: str = "mechanism") -> Mechanism:
    """Return the mechanism that a user named, if this kernel has what it needs.

    Raises:
        InvalidArgument: as `named`.
        FeatureMissing: the kernel lacks it.
    """
    mechanism = named(name, argument=argument)
    lacking = mechanism.features & ~available_features()
    if lacking:
        remedy = f"use Linux {mechanism.since} or newer, or leave the choice of the mechanism to nexttouch"
        raise FeatureMissing(f"mechanism {mechanism.name}", f"this kernel's userfaultfd lacks {lacking.name}", remedy)
    return mechanism


def foreign(name: object = None) -> Mechanism:
    """Return the mechanism for another process's memory that a user named, or the best (None).

    Where none works that is the one which asks for the least: opening a descriptor tells what is missing.

    >>> foreign("write_protect").traps
    'stores'

    Raises:
        InvalidArgument: naming "mechanism"; there is none of that name, or it works within one process only.
        FeatureMissing: the kernel lacks the one that was named.
    """
    if name is None:
        features = userfaultfd_features()
        able = [mechanism for mechanism in MECHANISMS if mechanism.foreign]
        return next((mechanism for mechanism in able if mechanism.features in features), able[-1])
    mechanism = asked_for(name)
    if not mechanism.foreign:
        raise InvalidArgument("mechanism", f"is {name!r}, which works within one process only")
    return mechanism
