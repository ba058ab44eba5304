"""`nexttouch check`: every interleaving of every design, and the shortest one that breaks a promise."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ...errors import InvalidArgument
from ..paragraphs import Paragraphs
from .output import progress

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Explore every interleaving of every page migration design in an executable model of the VM: frames, page tables,
TLBs, caches and locks. It says which design keeps its promises, and shows the shortest interleaving in which one does
not.

Without arguments all designs run in all scenarios that apply to them (about a minute on two CPUs). With a DESIGN, or
the id of a mutation (a design with one rule broken), only that; with a SCENARIO only that one.

verdicts: passes: every state was visited, and every promise held. refuted: it breaks a promise that it made, as is
known. BROKEN: it breaks one, as is not. INCOMPLETE: the search was cut short, so nothing is known. EMPTY: the race that
the scenario is about was never entered. What a design loses, and did not claim to keep, is listed as its costs.

The live engine's own protocol is checked in the same way, in programs that move and unmap what is migrated:
relocate-0.1 is the engine as it is, relocate-one the best that one descriptor can do, and relocate has a descriptor for
each mapping."""

_EXAMPLES = """\
examples:
  nexttouch check --quick
  nexttouch check B lazy-fork
  nexttouch check --mutations
  nexttouch check T26 --explain
  nexttouch check D4-V1 access --explain --html lost-write.html
  nexttouch check T26 --replay 0,0,0,0,0
  nexttouch check relocate-0.1 unmap-in-vain --explain
  nexttouch check B --rule counts_entries=no
  nexttouch check --costs
  nexttouch check A --random 1000 --seed 7

exit status: 0 all is as it should be; 1 a promise is broken, or a search is incomplete; 2 misuse."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `commands`."""
    parser = commands.add_parser(
        "check",
        help="explore every interleaving of the migration designs",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=Paragraphs,
    )
    parser.add_argument("design", nargs="?", metavar="DESIGN", help="a design, a protocol, or the id of a mutation")
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO", help="a scenario, or a program")
    parser.add_argument("--kind", metavar="KIND", help="only pages of this kind: anonymous, private, shared")
    parser.add_argument("--arch", default="x86-64", metavar="ARCH", help="whose page table entries (default x86-64)")
    parser.add_argument(
        "--rule", action="append", default=[], metavar="RULE=VALUE", help="change a rule of the design: yes or no"
    )
    parser.add_argument("--quick", action="store_true", help="leave the largest cases out: under half a minute")
    parser.add_argument(
        "--mutations", action="store_true", help="every known race, each as a design with one rule broken"
    )
    parser.add_argument(
        "--costs", action="store_true", help="count what each design does to a page with 1, 2, 8 mappers"
    )
    parser.add_argument(
        "--most-states",
        type=int,
        default=5_000_000,
        metavar="N",
        help="give a case up after N states, about 200 bytes each (default 5000000)",
    )
    parser.add_argument("--random", type=int, metavar="N", help="N random walks with 4 threads and 3 pages instead")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="where the random walks begin (default 0)")
    parser.add_argument("--explain", action="store_true", help="print the shortest counterexample, a lane a thread")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write it as a page to step through")
    parser.add_argument(
        "--replay", metavar="CHOICES", help="print this path instead: the threads that go, as in 0,0,1,2"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object; see docs/designs.md for its keys")
    parser.set_defaults(run=run, usual=parser.get_default)


def run(options: argparse.Namespace) -> int:
    """Do what `options` say; return the exit status.

    Raises:
        InvalidArgument: there is no such design, scenario, kind, architecture or path.
    """
    if options.most_states < 1:
        raise InvalidArgument("--most-states", f"is {options.most_states}, but has to be at least 1")
    mode = _mode(options)
    for argument, value in vars(options).items():
        if argument not in mode.takes | _ALWAYS and value != options.usual(argument):
            name = argument.upper() if argument in ("design", "scenario") else f"--{argument.replace('_', '-')}"
            raise InvalidArgument(name, f"does not go with {mode.name}")
    try:
        return mode.do(options)
    finally:
        progress("")


_ALWAYS = {"json"}


class _Mode(NamedTuple):
    """A way of running the command: its name, the arguments that it takes, and what does it."""

    name: str
    takes: frozenset[str]
    do: Callable[[argparse.Namespace], int]


_ONE = frozenset({"design", "scenario", "kind", "arch", "rule", "most_states"})


def _mode(options: argparse.Namespace) -> _Mode:
    from ...check.mutations import MUTATIONS
    from . import cases, costs, mutations, paths, walks

    own = f"{options.design}, which has its own: --explain takes another"
    ways = (
        (options.costs, _Mode("--costs", frozenset({"costs", "design"}), costs.count)),
        (options.mutations, _Mode("--mutations", frozenset({"mutations"}), mutations.check_all)),
        (options.random is not None, _Mode("--random", frozenset({"design", "rule", "random", "seed"}), walks.take)),
        (options.replay is not None, _Mode("--replay", _ONE | {"explain", "html", "replay"}, paths.replay)),
        (options.explain or options.html, _Mode("--explain and --html", _ONE | {"explain", "html"}, paths.explain)),
        (options.design in MUTATIONS, _Mode(own, frozenset({"design"}), mutations.check_one)),
        (True, _Mode("a search of designs", _ONE | {"quick"}, cases.check)),
    )
    return next(mode for meant, mode in ways if meant)
