"""One path through a machine: a counterexample, or one that was asked for."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, NamedTuple

from ...check.counterexample import Path, Readable, trace
from ...check.explorer import Choice, Result, explore
from ...check.mutation import Mutation
from ...check.mutations import MUTATIONS
from ...check.subjects import PROMISES, SUBJECTS, machine_of, parse_rules, places_of, scenarios_of
from ...check.suite import all_cases
from ...errors import InvalidArgument
from ...model.engine.engines import Engine
from ...model.scenarios import KINDS
from ...quantities import format_count
from ...report.lanes import text
from ...report.page import page
from .arguments import chosen_cases, known, known_arch
from .output import progress

__all__ = ["explain", "replay"]


def replay(options: argparse.Namespace) -> int:
    """Print the path that was asked for; return the exit status."""
    chosen = _machines(options)[0]
    return _show(trace(chosen.machine, Choice.parse(options.replay), chosen.title, cause=chosen.cause), options)


def explain(options: argparse.Namespace) -> int:
    """Print the shortest counterexample; return the exit status."""
    searched: list[dict[str, Any]] = []
    for chosen in _machines(options):
        result = explore(
            chosen.machine,
            most_states=options.most_states,
            only=lambda violation: violation.invariant in chosen.promises,  # noqa: B023 (called in this turn only)
        )
        if result.violation:
            path = trace(chosen.machine, result.path, chosen.title, result.violation, cause=chosen.cause)
            return _show(path, options)
        searched.append({"title": chosen.title, "states": result.states, "complete": result.complete})
        if not options.json:
            print(f"{chosen.title}: {_unbroken(chosen, result)}")
    if options.json:
        print(json.dumps({"violation": None, "searched": searched}))
    elif options.html:
        print(f"{options.html} is not written")
    return 0 if all(search["complete"] for search in searched) else 1


def _unbroken(chosen: _Chosen, result: Result) -> str:
    states = format_count(result.states)
    if not result.complete:
        return f"nothing was broken in the first {states} states; the search was cut short"
    what = "every promise holds" if len(chosen.promises) > 1 else f"{min(chosen.promises)} holds"
    return f"{what} in all {states} states; there is no counterexample"


def _show(path: Path, options: argparse.Namespace) -> int:
    if options.html:
        try:
            options.html.write_text(page(path, PROMISES), encoding="utf-8")
        except OSError as error:
            raise InvalidArgument("--html", f"cannot be written: {error}") from None
        progress("")
        print(f"wrote {options.html}", file=sys.stderr)
    if options.json:
        print(json.dumps(path.to_dict()))
    elif options.explain or options.replay:
        import shutil

        print(text(path, shutil.get_terminal_size((100, 24)).columns, PROMISES))
    return 1 if path.violation else 0


class _Chosen(NamedTuple):
    """One machine to explain: what it is, the promises to look for, and, of a mutation, what it breaks."""

    machine: Readable
    title: str
    promises: frozenset[str]
    cause: str


def _machines(options: argparse.Namespace) -> list[_Chosen]:
    """Each kind of page of a scenario, or of a mutation the one that it is about."""
    known_arch(options.arch)
    if options.design is None:
        raise InvalidArgument("DESIGN", "has to be given: which design or mutation is to be explained?")
    mutation, cause = MUTATIONS.get(options.design), ""
    if mutation:
        places = [_place_of_mutation(options, mutation)]
        design, promises = mutation.broken_design, frozenset({mutation.breaks})
        rules = ", ".join(f"{rule}={_value(value)}" for rule, value in {**mutation.context, **mutation.broken}.items())
        cause = f"{mutation.design} with {rules}: {mutation.title}."
    else:
        places = _places_of_design(options)
        design = SUBJECTS[options.design]()
        promises = frozenset(PROMISES) - set(design.weaknesses)
    design = design.with_rules(**parse_rules(mutation.design if mutation else options.design, options.rule))
    return [
        _Chosen(
            machine_of(design, scenario, kind, options.arch),
            f"{options.design}, {scenario}{'' if isinstance(design, Engine) else f', {kind} page'}",
            promises,
            cause,
        )
        for scenario, kind in places
    ]


def _place_of_mutation(options: argparse.Namespace, mutation: Mutation) -> tuple[str, str]:
    known("SCENARIO", options.scenario, scenarios_of(mutation.design))
    known("--kind", options.kind, KINDS)
    scenario, places = options.scenario or mutation.scenario, places_of(mutation.broken_design)
    kinds = [kind for place, kind in places if place == scenario]
    if not kinds or options.kind not in (None, *kinds):
        raise InvalidArgument("SCENARIO", f"{scenario} does not apply to {mutation.design} in this way")
    return scenario, options.kind or (mutation.kind if mutation.kind in kinds else kinds[0])


def _places_of_design(options: argparse.Namespace) -> list[tuple[str, str]]:
    cases = chosen_cases(options, all_cases())
    if options.scenario is None:
        raise InvalidArgument("SCENARIO", f"has to be given, one of {', '.join(scenarios_of(options.design))}")
    return [(case.scenario, case.kind) for case in cases]


def _value(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
