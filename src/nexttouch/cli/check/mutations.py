"""Races, each as a design with one rule broken."""

from __future__ import annotations

import argparse
import json

from ...check.mutations import INEXPRESSIBLE, MUTATIONS
from ...check.suite import MutationVerdict, check_mutation, run_all
from .output import progress, show

__all__ = ["check_all", "check_one"]


def check_all(options: argparse.Namespace) -> int:
    """Look for every race, a line a race; return the exit status."""
    verdicts: list[MutationVerdict] = []
    if not options.json:
        show(
            f"{'race':12} {'design':12} {'scenario':18} {'page':10} {'breaks':12} {'after':>8}  "
            "the design itself; the race"
        )
    for verdict in run_all(check_mutation, list(MUTATIONS)):
        verdicts.append(verdict)
        progress(f"{len(verdicts)} of {len(MUTATIONS)} mutations")
        if not options.json:
            show(_mutation_line(verdict))
    progress("")
    good = all(verdict.good for verdict in verdicts)
    if options.json:
        found = [verdict.to_dict() for verdict in verdicts]
        print(json.dumps({"good": good, "mutations": found, "inexpressible": INEXPRESSIBLE}))
        return 0 if good else 1
    print("\nnot to be seen as a mutation:")
    for name, reason in INEXPRESSIBLE.items():
        print(f"  {name:6} {reason}")
    caught = sum(verdict.good for verdict in verdicts)
    print(f"\n{caught} of {len(verdicts)} races are found, and not in the design that keeps the rule")
    return 0 if good else 1


def _mutation_line(verdict: MutationVerdict) -> str:
    mutation = verdict.mutation
    after = f"{len(verdict.path)} steps" if verdict.violation else "NEVER"
    where = f"{mutation.design:12} {mutation.scenario:18} {mutation.kind:10}"
    return f"{mutation.name:12} {where} {mutation.breaks:12} {after:>8}  {verdict.fixed}; {mutation.title}"


def check_one(options: argparse.Namespace) -> int:
    """Look for one race; return the exit status."""
    verdict = check_mutation(options.design)
    if options.json:
        print(json.dumps(verdict.to_dict()))
        return 0 if verdict.good else 1
    print(_mutation_line(verdict))
    if verdict.violation:
        print(f"{verdict.violation.invariant}: {verdict.violation.sentence}")
        print(f"nexttouch check {options.design} --explain shows how")
    return 0 if verdict.good else 1
