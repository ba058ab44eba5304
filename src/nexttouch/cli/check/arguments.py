"""What the arguments name: designs, scenarios, kinds of page, architectures, rules."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from ...check.suite import Case
from ...errors import InvalidArgument
from ...model.arch import ARCHES
from ...model.design import parse_rule
from ...model.designs import DESIGNS
from ...model.scenarios import KINDS, SCENARIOS

__all__ = ["chosen_cases", "known", "known_arch", "rules_of"]


def known(argument: str, value: str | None, names: Iterable[str]) -> None:
    """Raise InvalidArgument, which lists `names`, if `value` was given and is none of them."""
    if value is not None and value not in names:
        raise InvalidArgument(argument, f"is {value!r}, but has to be one of {', '.join(names)}")


def known_arch(arch: str) -> None:
    """Raise InvalidArgument if there is no such architecture."""
    known("--arch", arch, ARCHES)


def rules_of(options: argparse.Namespace) -> dict[str, bool | str]:
    """Return the rules that --rule changes."""
    return dict(map(parse_rule, options.rule))


def chosen_cases(options: argparse.Namespace, cases: Sequence[Case]) -> list[Case]:
    """Return those of `cases` that the design, the scenario and the kind of page leave; raise if none is left."""
    known("DESIGN", options.design, (*DESIGNS, "or a mutation: nexttouch check --mutations"))
    known("SCENARIO", options.scenario, SCENARIOS)
    known("--kind", options.kind, KINDS)
    known_arch(options.arch)
    chosen = [
        case
        for case in cases
        if options.design in (None, case.design)
        and options.scenario in (None, case.scenario)
        and options.kind in (None, case.kind)
    ]
    if not chosen:
        raise InvalidArgument("SCENARIO", f"{options.scenario} does not apply to {options.design} in this way")
    return chosen
