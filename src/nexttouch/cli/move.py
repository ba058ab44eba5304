"""`nexttouch move`: bring the memory of a running process to another node, eagerly or lazily."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from typing import TYPE_CHECKING

from ..errors import InvalidArgument, NexttouchError, NoSuchProcess
from ..linux.syscall import PAGE_SIZE
from ..live.reason import Reason, describe
from ..quantities import format_count, format_duration, format_size, parse_duration, parse_rate
from .paragraphs import Paragraphs
from .progress import Progress
from .signals import Interrupted, Signals

if TYPE_CHECKING:
    from ..live.eager import MoveResult
    from ..live.migration import Migration
    from ..live.stats import Stats

__all__ = ["STORES_ONLY", "add_parser", "format_pages", "parse_nodes", "run"]

_DESCRIPTION = """\
Bring the memory of process PID to NUMA node NODE; or to several, as 0,1: pages of other nodes are interleaved over
them, those that are on one of them stay.

eagerly (the default): all pages now, in batches so short that the process never waits long. A thread that touches
a page that is just being moved waits for its batch.

--lazy: the process is stopped for some milliseconds, then its pages are made traps. A touch makes its page move, and a
window of those around it, right after it; a sweep moves the rest meanwhile.

--next-touch: lazily, and each page to the node of the thread that touches it next. There is no sweep: what no thread
touches stays.

A touch is any access where the kernel has RWP (Linux 7.3), and a store where it has not. If this command is
interrupted or killed, the kernel gives every permission back and the process runs on as before. Stopped (SIGSTOP, or
a control group that is frozen), it would leave the process waiting at its next touch, so Ctrl-Z does not stop it."""

_EXAMPLES = """\
examples:
  nexttouch move 4242 --to 1                     all of it, now
  nexttouch move 4242 --to 1 --lazy              as it is touched, and by a sweep
  nexttouch move 4242 --to 1 --lazy --rate 100MiB/s --deadline 5min
  nexttouch move 4242 --next-touch               each page to its next user, until Ctrl-C
  nexttouch move 4242 --to 0,1 --dry-run         what would move, and what could not

exit status: 0 when every page has moved or had a reason to stay (also as the process ended), 1 when the process could
not be reached or the kernel refused to go on, 2 for misuse, 130, 143 or 129 when interrupted (Ctrl-C, SIGTERM, SIGHUP):
what had moved is said then, too."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `commands`."""
    parser = commands.add_parser(
        "move",
        help="move the memory of a process to another node, at once or when it is next touched",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=Paragraphs,
    )
    parser.add_argument("pid", type=int, metavar="PID", help="the process; your own, or any with CAP_SYS_PTRACE")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", metavar="NODE[,NODE...]", help="target node, or nodes to interleave")
    where.add_argument("--next-touch", action="store_true", help="each page to the node of its next user; lazily")
    parser.add_argument("--lazy", action="store_true", help="move pages as they are touched, and by a sweep")
    parser.add_argument(
        "--rate",
        metavar="RATE",
        help="move at most this much a second, as 100MiB/s (no limit); lazily, the sweep: touches are not held back",
    )
    eager = parser.add_argument_group("eagerly")
    eager.add_argument("--latency", metavar="DURATION", help="longest that the process may wait for a batch (20ms)")
    eager.add_argument("--shared", action="store_true", help="also pages that other processes map (CAP_SYS_NICE)")
    eager.add_argument("--dry-run", action="store_true", help="only say what would be moved")
    lazy = parser.add_argument_group("lazily")
    lazy.add_argument("--no-sweep", action="store_true", help="move what is touched only; needs --deadline to end")
    lazy.add_argument(
        "--deadline",
        metavar="DURATION",
        help="after this long move what is left at full speed; with --next-touch: end, and leave it",
    )
    lazy.add_argument("--window", type=int, metavar="PAGES", help="most pages that one touch moves (64)")
    lazy.add_argument(
        "--mechanism",
        metavar="NAME",
        help="rwp (any touch; Linux 7.3) or write_protect (stores) instead of the best that the kernel has",
    )
    lazy.add_argument(
        "--lend-userfaultfd",
        action="store_true",
        help="let a process whose user may have no userfaultfd use yours; that user can keep it, and with it hold up "
        "the kernel: only for users who are trusted with that",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: pages, moved, left (pages by reason) and times in seconds; eagerly by_node, "
        "longest_call and dry_run, lazily the counters of faults, windows and sweeps, and latency as pairs",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Move, and print what became of every page; return the exit status."""
    _refuse_mixture(options)
    if options.next_touch:
        return _move_lazily(options, None)
    nodes = parse_nodes(options.to)
    return _move_lazily(options, nodes) if options.lazy else _move_eagerly(options, nodes)


_EAGERLY = ("latency", "shared", "dry_run")
_LAZILY = ("no_sweep", "deadline", "window", "mechanism", "lend_userfaultfd")


def _refuse_mixture(options: argparse.Namespace) -> None:
    lazily = options.lazy or options.next_touch
    mode = "--next-touch" if options.next_touch else "--lazy"
    for name in (*_EAGERLY, *(("no_sweep", "rate") if options.next_touch else ())) if lazily else _LAZILY:
        if getattr(options, name) is not None and getattr(options, name) is not False:
            raise InvalidArgument(
                f"--{name.replace('_', '-')}", f"does not go with {mode}" if lazily else "needs --lazy"
            )
    if options.no_sweep and options.rate is not None:
        raise InvalidArgument("--rate", "is the sweep's, which --no-sweep turns off")


def parse_nodes(text: str) -> tuple[int, ...]:
    """Read the node, or nodes, that --to names; InvalidArgument if they are none."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidArgument("--to", f"is {text!r}, but has to be a node number, or several as 0,1") from None


def _move_eagerly(options: argparse.Namespace, nodes: tuple[int, ...]) -> int:
    from ..live.eager import move

    latency = parse_duration(options.latency, argument="--latency") if options.latency is not None else 0.02
    rate = parse_rate(options.rate, argument="--rate") if options.rate is not None else None
    progress = Progress("moved", quiet=options.json)
    try:
        with Signals(stoppable=True), progress:
            result = move(
                options.pid,
                nodes,
                latency=latency,
                rate=rate,
                shared=options.shared,
                dry_run=options.dry_run,
                progress=progress.show,
            )
    except KeyboardInterrupt as error:
        done = f"{format_count(progress.done)} of {format_pages(progress.total)} were done"
        said = done if progress.total else "the first batch was not done"
        by = error.number if isinstance(error, Interrupted) else signal.SIGINT
        print(f"{_interrupted(by)}: {said}; what has moved stays where it is", file=sys.stderr)
        raise
    ended = isinstance(result.ended, NoSuchProcess)
    if result.ended is not None:
        print(_ENDED if ended else f"ended early: {result.ended}", file=sys.stderr)
    print(json.dumps(result.to_dict()) if options.json else _eager_text(result))
    return 0 if ended or result.ended is None else 1


STORES_ONLY = "this kernel has no RWP (Linux 7.3), so only stores are seen: what is only read stays where it is"
"""What a command says that would see any touch, and cannot."""

_ENDED = "the process has ended meanwhile, and its memory is gone"


# Ctrl-C needs no name.
def _interrupted(by: signal.Signals) -> str:
    return "interrupted" if by == signal.SIGINT else f"interrupted by {by.name}"


def _eager_text(result: MoveResult) -> str:
    verb = "would move" if result.dry_run else "moved"
    lines = [
        f"{verb} {format_pages(result.moved)} of {format_pages(result.pages)} in {format_duration(result.seconds)}"
    ]
    if result.longest_call:
        lines.append(f"longest call {format_duration(result.longest_call)}: no thread waited longer")
    return "\n".join([*lines, *_left(dict(result.left)), _nodes_text(result)])


def _nodes_text(result: MoveResult) -> str:
    places = ", ".join(f"{format_count(count)} on node {node}" for node, count in result.by_node.items())
    return f"pages now: {places or 'none'}"


def _move_lazily(options: argparse.Namespace, nodes: tuple[int, ...] | None) -> int:
    from ..live.attach import attach
    from ..live.mechanisms import foreign

    deadline = parse_duration(options.deadline, argument="--deadline") if options.deadline is not None else None
    rate = parse_rate(options.rate, argument="--rate") if options.rate is not None else None
    if options.no_sweep and deadline is None:
        raise InvalidArgument("--no-sweep", "needs --deadline: pages that no thread touches would wait for ever")
    window = 64 if options.window is None else options.window
    trap = foreign(options.mechanism)
    if nodes is None and trap.traps != "any touch" and not options.json:
        print(f"note: {STORES_ONLY}", file=sys.stderr)
    with Signals() as signals:
        migration = attach(
            options.pid,
            "toucher" if nodes is None else nodes,
            rate=0.0 if options.no_sweep else rate,
            deadline=deadline,
            window=window,
            mechanism=options.mechanism,
            lend_device=options.lend_userfaultfd,
        )
        signals.hold_interrupts()
        by, failed = _follow(migration, signals, quiet=options.json)
    if by is not None:
        print(f"{_interrupted(by)}: every page that was still a trap has been given back", file=sys.stderr)
    if migration.process_ended:
        print(_ENDED, file=sys.stderr)
    if failed is not None:
        print(f"ended early: {failed}", file=sys.stderr)
    stats = migration.stats
    print(json.dumps(stats.to_dict()) if options.json else _lazy_text(stats, trap.traps))
    return 128 + by if by is not None else int(failed is not None)


def _follow(
    migration: Migration, signals: Signals, *, quiet: bool
) -> tuple[signal.Signals | None, NexttouchError | None]:
    """Show how far it has come until it is done, or cancelled as a signal came; return that, and what went wrong."""
    try:
        with migration, Progress("done", quiet=quiet) as progress:
            while not migration.wait(0.1):
                if (by := signals.interrupted()) is not None:
                    migration.cancel()
                    return by, None
                stats = migration.stats
                progress.show(stats.pages - stats.waiting, stats.pages)
    except NexttouchError as error:
        return None, error
    return None, None


def _lazy_text(stats: Stats, traps: str) -> str:
    when = "when touched" if traps == "any touch" else "when written to"
    lines = [
        f"moved {format_pages(stats.moved)} of {format_pages(stats.pages)}: "
        f"{format_count(stats.moved_by_touch)} {when}, {format_count(stats.moved_by_sweep)} by the sweep, "
        f"{format_count(stats.moved_eagerly)} without a trap",
        f"the process stood still for {format_duration(stats.stopped)}; {_waits(stats)}",
    ]
    return "\n".join([*lines, *_left(stats.left)])


def _waits(stats: Stats) -> str:
    if not stats.faults:
        return "no access had to wait"
    return f"{format_count(stats.faults)} accesses waited, the longest for {format_duration(stats.longest_service)}"


def _left(left: dict[Reason, int]) -> list[str]:
    return [f"stayed: {line}" for line in describe(left)]


def format_pages(count: int) -> str:
    """A number of pages, and what they come to."""
    return f"{format_count(count)} pages ({format_size(count * PAGE_SIZE)})"
