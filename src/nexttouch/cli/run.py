"""`nexttouch run`: start a program with its memory where it should be, from its first page on."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import InvalidArgument, NexttouchError, NoSuchProcess
from ..linux import mempolicy
from ..topology import check_target, topology
from .follow import Rounds, add_rounds, follow
from .move import parse_nodes
from .paragraphs import Paragraphs
from .signals import Signals

if TYPE_CHECKING:
    import subprocess

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Run COMMAND with its memory where it should be, from its first page on.

--to: new pages come from the node, or the nodes in turn; from others only when these are full.

--interleave: new pages come from all nodes that have memory, in turn.

--next-touch: new pages are where the kernel puts them, on the node of the thread that touches them first; then they
follow their users, as `nexttouch follow` has it."""

_EPILOG = """\
examples:
  nexttouch run --next-touch -- ./solver input.dat
  nexttouch run --interleave -- redis-server
  nexttouch run --to 2 -- python3 job.py

exit status: that of COMMAND (128+n if signal n ended it); 127 if there is no such command, 126 if it cannot be run."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `commands`."""
    parser = commands.add_parser(
        "run",
        help="start a program with its memory where it should be",
        usage="nexttouch run [--next-touch | --to NODE[,NODE...] | --interleave] [options] -- COMMAND [ARGUMENT ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=Paragraphs,
    )
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run, and its arguments")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--next-touch", action="store_true", help="pages follow their users (the default)")
    where.add_argument("--to", metavar="NODE[,NODE...]", help="node, or nodes in turn")
    where.add_argument("--interleave", action="store_true", help="all nodes in turn")
    add_rounds(parser.add_argument_group("with --next-touch"))
    parser.add_argument(
        "--json", action="store_true", help="with --next-touch: a JSON object a round, on standard error"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit status, unless it takes this process's place."""
    if options.to is not None or options.interleave:
        _refuse_rounds(options)
    if options.to is not None:
        nodes = check_target(parse_nodes(options.to))
        mode = mempolicy.Mode.INTERLEAVE if len(nodes) > 1 else mempolicy.Mode.PREFERRED
        return _become(options.command, mode, nodes)
    if options.interleave:
        nodes = topology().memory_nodes
        return _become(options.command, mempolicy.Mode.INTERLEAVE, nodes)
    return _follow(options)


def _refuse_rounds(options: argparse.Namespace) -> None:
    for name in ("every", "cap", "window", "mechanism", "json"):
        if getattr(options, name) not in (None, False):
            raise InvalidArgument(f"--{name}", f"does not go with {'--to' if options.to else '--interleave'}")


# A memory policy is kept by execve(2), and by all that the command starts.
def _become(command: list[str], mode: mempolicy.Mode, nodes: tuple[int, ...]) -> int:
    mempolicy.set_mempolicy(mode, list(nodes))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        return _cannot(command, error)


def _cannot(command: list[str], error: OSError) -> int:
    print(f"nexttouch: {command[0]}: {error.strerror}", file=sys.stderr)
    return 127 if isinstance(error, FileNotFoundError) else 126


def _follow(options: argparse.Namespace) -> int:
    import subprocess

    how = Rounds.of(options)
    with Signals() as signals:
        try:
            child = subprocess.Popen(options.command)
        except OSError as error:
            return _cannot(options.command, error)
        signals.hold_interrupts()
        try:
            while child.poll() is None and signals.interrupted() is None:
                with suppress(NoSuchProcess):  # it became another program before the first round: that one is followed
                    follow(
                        child.pid,
                        how,
                        signals,
                        as_json=options.json,
                        ended=lambda: child.poll() is not None,
                        file=sys.stderr,
                    )
        except NexttouchError as error:
            if child.poll() is None:
                print(f"nexttouch: {error}; the command runs on by itself", file=sys.stderr, flush=True)
        return _wait(child, signals)


# A signal that is to end this process is the command's to act on: from a terminal it has come to both.
def _wait(child: subprocess.Popen[bytes], signals: Signals) -> int:
    import subprocess

    told = False
    while True:
        by = signals.interrupted()
        if by is not None and by != signal.SIGINT and not told:
            child.send_signal(by)
            told = True
        try:
            status = child.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        return status if status >= 0 else 128 - status
