"""`nexttouch topology`: the machine's nodes, what they have, and how far they are from each other."""

from __future__ import annotations

import argparse
import dataclasses
import json

from ..linux.nodes import format_list
from ..quantities import format_duration, format_rate, format_size
from ..topology import Node, Topology, topology
from .paragraphs import Paragraphs

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Print the NUMA nodes of this machine. Each node is memory with the CPUs next to it (or without any: CXL, HBM).
The table of distances says what it costs CPUs of one node (row) to reach memory of another (column): 10 is local,
21 means about 2.1 times as long. A tier is how the kernel ranks memory: it demotes cold pages to a higher number.
Latency and bandwidth are the firmware's, where it states them."""

_EXAMPLE = """\
example:
  nexttouch topology
  nexttouch topology --json | jq '.nodes[] | {id, memory_free}'"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `commands`."""
    parser = commands.add_parser(
        "topology",
        help="show the nodes of this machine",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=Paragraphs,
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: nodes (id, cpus, has_memory, memory_total and memory_free in bytes, tier, "
        "latencies in seconds, bandwidths in bytes/s, null where unknown) and distances, rows in the order of nodes",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the topology; return 0."""
    found = topology()
    print(json.dumps(dataclasses.asdict(found)) if options.json else _text(found))
    return 0


def _text(found: Topology) -> str:
    heads = ["node", "CPUs", "memory", "free", "tier", "read latency", "write latency", "read rate", "write rate"]
    columns = list(zip(heads, *(_cells(node) for node in found.nodes), strict=True))
    told = [column for column in columns if any(column[1:])]  # a column that says nothing is left out
    text = _aligned(list(zip(*told, strict=True)))
    if len(found.nodes) == 1:
        return f"{text}\n\nThere is one node only: all memory is local, and nothing has to move."
    return f"{text}\n\ndistances\n{_aligned(_distances(found))}"


def _cells(node: Node) -> list[str]:
    def told(value: float | None, form: object) -> str:
        return form(value) if value is not None and callable(form) else ""

    return [
        str(node.id),
        format_list(node.cpus),
        format_size(node.memory_total) if node.has_memory else "none",
        format_size(node.memory_free) if node.has_memory else "",
        "" if node.tier is None else str(node.tier),
        told(node.read_latency, format_duration),
        told(node.write_latency, format_duration),
        told(node.read_bandwidth, format_rate),
        told(node.write_bandwidth, format_rate),
    ]


def _distances(found: Topology) -> list[tuple[str, ...]]:
    head = ("from \\ to", *map(str, found.ids))
    return [head, *((str(node), *map(str, row)) for node, row in zip(found.ids, found.distances, strict=True))]


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
