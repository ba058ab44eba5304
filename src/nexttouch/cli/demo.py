"""`nexttouch demo`: move the memory of an ordinary program, and show what it noticed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument, LabError
from ..linux.syscall import PAGE_SIZE
from ..live.reason import Reason, describe
from ..quantities import format_count, format_duration, format_size, parse_size
from ..topology import topology
from .paragraphs import Paragraphs

if TYPE_CHECKING:
    from ..demo import Act, Demonstration

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Move the memory of a real program that knows nothing of it from one NUMA node to another, and show what it noticed.

The program updates random blocks of a NumPy array and prints how long each step took. Its memory is moved three times:
by the call of migratepages(8), eagerly in short batches, and lazily, as it writes. On a machine with one node this
happens in a virtual machine with four (see `nexttouch lab`; its CPUs are emulated, so its times say little of a real
machine's); where that cannot be had, pages move to other frames of the one node."""

_LEAST = 128 << 20
_SMALLEST = 1 << 20  # bytes
_BAR = 32
_TITLES = {
    "migratepages": "one call (migratepages)",
    "eager": "eagerly, in batches",
    "lazy": "lazily",
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `commands`."""
    parser = commands.add_parser(
        "demo",
        help="move the memory of an ordinary program lazily, and show it",
        description=_DESCRIPTION,
        formatter_class=Paragraphs,
    )
    parser.add_argument("--size", metavar="SIZE", help="memory of the program (default 128MiB)")
    parser.add_argument("--svg", metavar="FILE", help="also draw it: the program's steps while its memory moved")
    parser.add_argument("--here", action="store_true", help="use this machine's nodes, however few; no virtual machine")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: size, source, target, usual_step, longest_usual_step, and acts, each with name, "
        "seconds, attaching, stopped, longest_step, steps (a number), before, during, after and left; with one node "
        "pages, changed_frames (null without root), moved_by_touch, moved_by_sweep, seconds, longest_service and left",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show it; return 0."""
    size = parse_size(options.size, argument="--size") if options.size is not None else _LEAST
    if size < _SMALLEST:
        raise InvalidArgument("--size", f"is {options.size}, but has to be at least {format_size(_SMALLEST)}")
    several = len(topology().memory_nodes) > 1
    if options.svg is not None:
        _check_drawing(options.svg, impossible=options.here and not several)
    if several:
        return _show_nodes(size, options)
    missing = "--here asks for this machine" if options.here else _missing_lab()
    if missing and options.svg is not None:
        raise LabError(f"there is nothing to draw: {missing}")
    if missing:
        _tell(f"this machine has one node, and the virtual one with four is not used: {missing}")
        return _show_frames(size, options.json)
    return _run_in_lab(size, options)


# Before anything that takes long, and without a trace: an older drawing stays until the new one is there.
def _check_drawing(file: str, *, impossible: bool) -> None:
    if impossible:
        raise InvalidArgument("--svg", "needs several nodes, and this machine has one; without --here there are four")
    path = Path(file)
    existed = path.exists()
    try:
        path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise InvalidArgument("--svg", f"is {file!r}, which cannot be written: {error.strerror}") from None


# Sets the lab up; what keeps it from working, None if nothing does.
def _missing_lab() -> str | None:
    from ..lab import setup

    _tell("this machine has one node; setting up a virtual one with four (see `nexttouch lab`)")
    try:
        setup(_tell)
    except LabError as error:
        return str(error)
    return None


def _run_in_lab(size: int, options: argparse.Namespace) -> int:
    from .. import lab

    command = [sys.executable, "-m", "nexttouch", "demo", "--here", "--size", str(size)]
    command += ["--json"] if options.json else []
    command += ["--svg", options.svg] if options.svg is not None else []
    return lab.run(command, lab.Machine.with_room(2 * size), timeout=900)


def _tell(line: str) -> None:
    print(f"demo: {line}", file=sys.stderr, flush=True)


def _show_nodes(size: int, options: argparse.Namespace) -> int:
    from ..demo import demonstrate

    shown = demonstrate(size, _tell)
    print(json.dumps(shown.to_dict()) if options.json else _text(shown))
    if options.svg is not None:
        Path(options.svg).write_text(_drawing(shown))
        _tell(f"drew {options.svg}")
    return 0


def _drawing(shown: Demonstration) -> str:
    from ..report.timeline import draw

    title = f"{format_size(shown.size)} of a running program move from node {shown.source} to node {shown.target}"
    usual = format_duration(shown.usual_step)
    acts = [(_TITLES[act.name], act) for act in shown.acts]
    return draw(title, f"while nothing moves, a step of the program takes {usual}", shown.target, acts)


def _text(shown: Demonstration) -> str:
    blocks = [
        f"subject: {format_size(shown.size)} of NumPy, running on node {shown.target}, first touched on node "
        f"{shown.source}\n"
        f"         a step takes {format_duration(shown.usual_step)} (median), at most "
        f"{format_duration(shown.longest_usual_step)}, while nothing moves"
    ]
    blocks += [_act_text(act) for act in shown.acts]
    blocks.append(_summary(shown))
    return "\n\n".join(blocks)


def _act_text(act: Act) -> str:
    most = max(sum(act.before.values()), sum(act.after.values()))
    lines = [f"{_TITLES[act.name]}: pages by node"]
    lines += [_nodes_line(act.before, most, "before")]
    lines += [_nodes_line(where, most, f"{second:.2f} s") for second, where in _thin(act.during)]
    lines += [_nodes_line(act.after, most, "after")]
    if act.stopped:
        lines.append(
            f"  attached after {format_duration(act.attaching)}, for which the program stood still "
            f"{format_duration(act.stopped)}"
        )
    return "\n".join([*lines, *(f"  stayed: {line}" for line in describe(act.left))])


def _thin(samples: list[tuple[float, dict[int, int]]], most: int = 8) -> list[tuple[float, dict[int, int]]]:
    step = -(-len(samples) // most) if samples else 1
    return samples[::step]


# Each node's share of the bar in its own digit: 0000011111.
def _nodes_line(where: dict[int, int], most: int, label: str) -> str:
    bar, total = "", 0
    for node, count in sorted(where.items()):
        total += count
        bar = bar.ljust(round(_BAR * total / most), str(node % 10))
    counts = "  ".join(f"node {node}: {format_count(count)}" for node, count in sorted(where.items()))
    return f"  {label:>8}  {bar:{_BAR}}  {counts}"


def _summary(shown: Demonstration) -> str:
    rows = [("", "total time", "of it attaching", "longest step", "steps meanwhile")]
    for act in shown.acts:
        times = (format_duration(act.seconds), format_duration(act.attaching) if act.attaching else "-")
        numbers = (*times, format_duration(act.longest_step), format_count(len(act.steps)))
        rows.append((_TITLES[act.name], *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{row[0]:{widths[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def _show_frames(size: int, as_json: bool) -> int:
    from ..demo import relocate_here

    shown = relocate_here(size)
    print(json.dumps(shown) if as_json else _frames_text(shown))
    return 0


def _frames_text(shown: dict[str, Any]) -> str:
    moved = shown["moved_by_touch"] + shown["moved_by_sweep"]
    left = {Reason[name.upper()]: count for name, count in shown["left"].items()}
    changed = shown["changed_frames"]
    seen = "only root may see their frames" if changed is None else f"{format_count(changed)} have a new frame"
    waited = f"the longest touch waited {format_duration(shown['longest_service'])}"
    lines = [
        f"{format_size(shown['pages'] * PAGE_SIZE)} of this process, moved to other frames of the only node in "
        f"{format_duration(shown['seconds'])}",
        f"{format_count(moved)} pages moved: {format_count(shown['moved_by_touch'])} when touched, "
        f"{format_count(shown['moved_by_sweep'])} by the sweep; {seen}",
        f"{waited if shown['moved_by_touch'] else 'no touch had to wait'}; every word was compared",
    ]
    return "\n".join([*lines, *(f"stayed: {line}" for line in describe(left))])
