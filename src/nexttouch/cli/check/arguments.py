"""What the arguments name: designs, scenarios, kinds of page, architectures, rules."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from ...check.subjects import SUBJECTS, scenarios_of
from ...check.suite import Case
from ...errors import InvalidArgument
from ...model.arch import ARCHES
from ...model.designs import DESIGNS
from ...model.scenarios import KINDS

__all__ = ["chosen_cases", "known", "known_arch"]


def known(argument: str, value: str | None, names: Iterable[str]) -> None:
    """Raise InvalidArgument, which lists `names`, if `value` was given and is none of them."""
    if value is not None and value not in names:
        raise InvalidArgument(argument, f"is {value!r}, but has to be one of {', '.join(names)}")


def known_arch(arch: str) -> None:
    """Raise InvalidArgument if there is no such architecture."""
    known("--arch", arch, ARCHES)


def chosen_cases(options: argparse.Namespace, cases: Sequence[Case]) -> list[Case]:
    """Return those of `cases` that the design, the scenario and the kind of page leave; raise if none is left.

    Rules and architectures are those of the designs where no design is named.
    """
    known("DESIGN", options.design, (*SUBJECTS, "or a mutation: nexttouch check --mutations"))
    known("SCENARIO", options.scenario, scenarios_of(options.design))
    known("--kind", options.kind, KINDS)
    known_arch(options.arch)
    chosen = [
        case
        for case in cases
        if options.design in (None, case.design)
        and options.scenario in (None, case.scenario)
        and options.kind in (None, case.kind)
        and (case.design in DESIGNS or options.design or not (options.rule or options.arch != "x86-64"))
    ]
    if not chosen:
        raise InvalidArgument("SCENARIO", f"{options.scenario} does not apply to {options.design} in this way")
    return chosen
