"""What each design does to a page when no other thread disturbs it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence

from ...check.move_costs import MAPPERS, Cost, costs_of
from ...model.designs import DESIGNS
from .arguments import known

__all__ = ["count"]

_COLUMNS = {
    "page_table_writes": "entries",
    "tlb_flushes": "flushes",
    "atomics": "atomics",
    "rmap_steps": "rmap",
    "faults": "faults",
    "words_copied": "copies",
    "allocations": "frames",
    "slots": "slots",
}


def count(options: argparse.Namespace) -> int:
    """Print what is counted, a table a kind of page and number of mappers; return the exit status."""
    known("DESIGN", options.design, DESIGNS)
    found = [
        costs_of(name, kind, mappers, way)
        for kind in ("anonymous", "shared")
        for mappers in MAPPERS
        for name, design in DESIGNS.items()
        for way, has in (("eager", design.eager), ("lazy", design.lazy))
        if has and options.design in (None, name) and kind in design.kinds
    ]
    if options.json:
        print(json.dumps({"costs": [cost.to_dict() for cost in found]}))
        return 0
    print("\n".join(_cost_table(found)))
    return 0


def _cost_table(found: Sequence[Cost]) -> Iterable[str]:
    for kind, mappers in dict.fromkeys((cost.kind, cost.mappers) for cost in found):
        touch = "store" if kind == "shared" or mappers == 1 else "load"
        yield f"a page of {kind} memory, {mappers} mapper{'s' * (mappers > 1)}; then a {touch} by each"
        names = "".join(f"{name:>9}" for name in _COLUMNS.values())
        yield f"  {'design':9} {'':6}{names}   afterwards: what the touches take more"
        for cost in found:
            if (cost.kind, cost.mappers) == (kind, mappers):
                yield _cost_line(cost)
        yield ""


def _cost_line(cost: Cost) -> str:
    moving, later = cost.moving.to_dict(), cost.later.to_dict()
    counts = "".join(f"{_in_pages(name, moving[name]):>9}" for name in _COLUMNS)
    more = [f"{_in_pages(name, later[name]):+} {word}" for name, word in _COLUMNS.items() if later[name]]
    if later["bits_set"]:
        more.append(f"{later['bits_set']:+} bits set by hardware")
    return f"  {cost.design:9} {cost.way:6}{counts}   {', '.join(more) or '-'}"


# Words are counted, two a page.
def _in_pages(name: str, count: int) -> int:
    return count // 2 if name == "words_copied" else count
