"""`nexttouch where`: on which nodes the memory of a process is."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from ..linux import procfs
from ..linux.process import Process
from ..linux.syscall import PAGE_SIZE
from ..printable import printable
from ..quantities import format_count, format_size
from .paragraphs import Paragraphs

if TYPE_CHECKING:
    from ..placement import MappingPlacement, Placement

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Print on which NUMA nodes the memory of a process is. Nothing is moved and the process is not stopped.

  node N      pages that have a frame on node N
  no node     present, but the kernel names no node: gone meanwhile, or memory of a device
  zero page   read before it was ever written: the one page of zeros that all share
  swapped     in swap, or being migrated at this moment
  untouched   mapped, but no page there: never touched by this process, given back, or a guard

Of the present pages, those in huge pages are counted again as "huge", those mapped more than once (they move only
when all their users may be disturbed) as "shared", those of the kernel, of drivers and of memfd_secret(2) as
"unmovable"."""

_EXAMPLE = """\
example:
  nexttouch where 4242
  nexttouch where 4242 --mappings
  nexttouch where 4242 --json | jq .by_node"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `commands`."""
    parser = commands.add_parser(
        "where",
        help="show on which nodes the memory of a process is",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=Paragraphs,
    )
    parser.add_argument("pid", type=int, metavar="PID", help="the process; your own, or any with CAP_SYS_PTRACE")
    parser.add_argument("--mappings", action="store_true", help="one line a mapping that has pages, largest first")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: pid, page_size (bytes), pages (= present + zero + swapped + holes), by_node, "
        "unknown (no node), holes (untouched), huge, shared, unmovable, all in pages; with --mappings also mappings, "
        "each with start, end, kind, path (what is not printable as \\xNN) and the same counts",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the placement of the process; return 0."""
    from ..placement import where

    with Process.open(options.pid) as process:  # held meanwhile, so that the name is that of the process looked at
        found = where(options.pid)
        name = procfs.status(process).name
    if options.json:
        print(json.dumps(_json(found, options.mappings)))
        return 0
    print(f"process {found.pid} ({printable(name)})\n{found}")
    if options.mappings:
        print(f"\n{_mappings(found)}")
    return 0


def _json(found: Placement, mappings: bool) -> dict[str, object]:
    return {key: value for key, value in found.to_dict().items() if mappings or key != "mappings"}


def _mappings(found: Placement) -> str:
    shown = [part for part in found.mappings if part.counts.holes < part.counts.pages]
    shown.sort(key=lambda part: part.counts.present, reverse=True)
    nodes = sorted(found.by_node)
    rows = [("mapping", "kind", *(f"node {node}" for node in nodes), "other", "huge", "shared", "")]
    rows += [_row(part, nodes) for part in shown]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    rest = len(found.mappings) - len(shown)
    return "\n".join(lines + ([f"{format_count(rest)} more without a page"] if rest else []))


def _row(part: MappingPlacement, nodes: list[int]) -> tuple[str, ...]:
    counts = part.counts
    by_node = [counts.by_node.get(node, 0) for node in nodes]
    numbers = [*by_node, counts.unknown + counts.zero + counts.swapped, counts.huge or 0, counts.shared]
    sizes = [format_size(number * PAGE_SIZE) if number else "-" for number in numbers]
    return (f"{part.start:x}-{part.end:x}", part.mapping.kind.value, *sizes, printable(part.mapping.path))


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    # Names to the left, numbers to the right, the path as it comes: it may be long.
    words = [f"{row[0]:{widths[0]}}", f"{row[1]:{widths[1]}}"]
    words += [f"{cell:>{width}}" for cell, width in zip(row[2:-1], widths[2:-1], strict=True)]
    return "  ".join([*words, row[-1]]).rstrip()
