"""Designs in scenarios."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from functools import partial

from ...check.subjects import SUBJECTS, parse_rules
from ...check.suite import Verdict, all_cases, check_case, run_all
from ...quantities import format_count
from .arguments import chosen_cases
from .output import progress, show

__all__ = ["check"]

_HEADER = f"{'design':12} {'scenario':18} {'page':10} {'states':>9} {'steps':>9} {'depth':>5} {'time':>8}  verdict"


def check(options: argparse.Namespace) -> int:
    """Search each case, a line a case; return the exit status."""
    cases = chosen_cases(options, all_cases(quick=options.quick))
    rules = parse_rules(options.design, options.rule)
    verdicts: list[Verdict] = []
    for verdict in run_all(partial(check_case, rules=rules, arch=options.arch, most_states=options.most_states), cases):
        verdicts.append(verdict)
        progress(f"{len(verdicts)} of {len(cases)} cases")
        if not options.json:
            show(*([_HEADER] * (len(verdicts) == 1)), _case_line(verdict))
    progress("")
    good = all(verdict.good for verdict in verdicts)
    if options.json:
        print(json.dumps({"good": good, "cases": [verdict.to_dict() for verdict in verdicts]}))
    else:
        print("\n".join(["", *_summary(verdicts)]))
    return 0 if good else 1


def _case_line(verdict: Verdict) -> str:
    case = verdict.case
    numbers = f"{format_count(verdict.states):>9} {format_count(verdict.transitions):>9} {verdict.depth:5}"
    line = f"{case.design:12} {case.scenario:18} {case.kind:10} {numbers} {verdict.seconds:7.2f}s  {verdict.verdict}"
    if verdict.violation:
        line += f": {verdict.violation.invariant}, {verdict.violation.sentence}"
    if verdict.missing:
        line += f": never came upon {', '.join(verdict.missing)}"
    return line


def _summary(verdicts: Sequence[Verdict]) -> Iterable[str]:
    for name, make in SUBJECTS.items():
        mine = [verdict for verdict in verdicts if verdict.case.design == name]
        if not mine:
            continue
        count = {
            word: sum(verdict.verdict == word for verdict in mine) for word in dict.fromkeys(v.verdict for v in mine)
        }
        design = make()
        yield f"{name}: {design.title}"
        yield "  " + ", ".join(f"{number} {word}" for word, number in count.items())
        for invariant, reason in design.refuted.items():
            if count.get("refuted"):
                yield f"  refuted: {invariant}: {reason}"
        for cost in sorted({cost for verdict in mine for cost in verdict.costs}):
            yield f"  cost: {cost}"
    states = sum(verdict.states for verdict in verdicts)
    seconds = sum(verdict.seconds for verdict in verdicts)
    searched = f"{format_count(len(verdicts))} case{'s' * (len(verdicts) != 1)}"
    yield f"{searched}, {format_count(states)} states in {seconds:.0f} s of search"
