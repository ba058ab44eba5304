"""Random walks through machines that are too large to be searched."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ...check.walks import Walk, large_machine, walk
from ...errors import InvalidArgument
from ...model.design import parse_rule
from ...model.designs import DESIGNS
from ...quantities import format_count
from .arguments import known
from .output import progress

__all__ = ["take"]


def take(options: argparse.Namespace) -> int:
    """Walk through machines of 4 threads and 3 pages, a line a design; return the exit status."""
    known("DESIGN", options.design, DESIGNS)
    if options.random < 1:
        raise InvalidArgument("--random", f"is {options.random}, but has to be at least 1")
    rules = dict(map(parse_rule, options.rule))
    outcome: dict[str, Any] = {}
    broken = 0
    for name, design in DESIGNS.items():
        if options.design not in (None, name):
            continue
        steps, found = 0, []
        for seed in range(options.seed, options.seed + options.random):
            gone = walk(large_machine(design().with_rules(**rules), seed), seed)
            steps += gone.steps
            if gone.violation and gone.violation.invariant not in design.refuted:
                found.append(gone)
            progress(f"{name}: {seed - options.seed + 1} of {options.random} walks")
        broken += len(found)
        outcome[name] = {"walks": options.random, "steps": steps, "broken": [_walk_dict(gone) for gone in found]}
        progress("")
        if not options.json:
            print(f"{name:9} {format_count(options.random)} walks, {format_count(steps)} steps: {len(found)} broken")
            for gone in found[:3]:
                print(f"  seed {gone.seed}, step {gone.steps}: {': '.join(gone.violation or ())}")
    if options.json:
        print(json.dumps({"seed": options.seed, "designs": outcome}))
    return 1 if broken else 0


def _walk_dict(gone: Walk) -> dict[str, Any]:
    return {
        "seed": gone.seed,
        "steps": gone.steps,
        "broken": gone.violation and gone.violation._asdict(),
        "path": ",".join(map(str, gone.path)),
    }
