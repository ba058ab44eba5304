"""`nexttouch follow`: have a program's memory follow its users, round by round."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TextIO

from ..errors import InvalidArgument, NoSuchProcess, TargetRefused
from ..printable import printable
from ..quantities import format_count, parse_duration, parse_size
from .move import STORES_ONLY, format_pages
from .paragraphs import Paragraphs
from .signals import Signals

if TYPE_CHECKING:
    from ..live.follow import Follower, Round

__all__ = ["Rounds", "add_parser", "add_rounds", "follow", "run"]

_DESCRIPTION = """\
Have the memory of process PID follow its users. Again and again all its pages are made traps for a while, to see which
node's threads touch which of them. Pages that were touched from the same node in two rounds, and are on another one,
are moved there. Pages that go to and fro are left where they are, and named: threads of several nodes use them.

A touch is any access where the kernel has RWP (Linux 7.3), and a store where it has not. If this command is
interrupted or killed, the kernel gives every permission back and the process runs on as before."""

_EPILOG = """\
examples:
  nexttouch follow 4242                          until Ctrl-C, or until the process ends
  nexttouch follow 4242 --every 30s --cap 256MiB
  nexttouch follow 4242 --rounds 2 --json        two rounds, one JSON object each

exit status: 0 when the rounds are over or the process has ended, 1 when it could not be reached, 2 for misuse, 130, 143
or 129 when interrupted (Ctrl-C, SIGTERM, SIGHUP)."""

_EVERY, _WINDOW = 10.0, 16  # seconds of a round, and pages that one touch speaks for
_GRAIN = 0.1  # seconds after which a wait looks whether it is to end


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `commands`."""
    parser = commands.add_parser(
        "follow",
        help="have a program's memory follow the threads that use it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=Paragraphs,
    )
    parser.add_argument("pid", type=int, metavar="PID", help="the process; your own, or any with CAP_SYS_PTRACE")
    add_rounds(parser)
    parser.add_argument("--rounds", type=int, metavar="N", help="end after so many rounds")
    parser.add_argument("--json", action="store_true", help="print one JSON object a round, as a line")
    parser.set_defaults(run=run)


def add_rounds(parser: argparse._ActionsContainer) -> None:
    """Add the options that say how a round goes."""
    parser.add_argument("--every", metavar="DURATION", help="how long a round lasts (10s)")
    parser.add_argument("--cap", metavar="SIZE", help="move at most this much after a round, as 256MiB (no limit)")
    parser.add_argument(
        "--window",
        type=int,
        metavar="PAGES",
        help="most pages that one touch speaks for (16): more cost the program fewer traps, and blur who uses what",
    )
    parser.add_argument(
        "--mechanism", metavar="NAME", help="rwp (any touch) or write_protect (stores) instead of the best there is"
    )


class Rounds(NamedTuple):
    """How rounds go: for how many seconds each, after which so many bytes move at most, and what `Follower` takes."""

    every: float
    cap: int | None
    window: int
    mechanism: str | None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Rounds:
        """Read the options that `add_rounds` has added.

        Raises:
            InvalidArgument: one of them makes no sense.
            FeatureMissing: the kernel lacks the mechanism.
        """
        from ..live.mechanisms import foreign
        from ..live.options import Options

        every = parse_duration(options.every, argument="--every") if options.every is not None else _EVERY
        if not every:
            raise InvalidArgument("--every", f"is {options.every!r}, but a round has to last")
        cap = parse_size(options.cap, argument="--cap") if options.cap is not None else None
        if cap == 0:
            raise InvalidArgument("--cap", f"is {options.cap!r}, but then nothing would ever move")
        window = _WINDOW if options.window is None else options.window
        Options(window=window).check()
        foreign(options.mechanism)
        return cls(every, cap, window, options.mechanism)


def run(options: argparse.Namespace) -> int:
    """Follow until the rounds are over, a signal comes or the process ends; return the exit status."""
    if options.rounds is not None and options.rounds < 1:
        raise InvalidArgument("--rounds", f"is {options.rounds}, but has to be 1 or more")
    how = Rounds.of(options)
    with Signals() as signals:
        return follow(options.pid, how, signals, most=options.rounds, as_json=options.json)


def follow(
    pid: int,
    how: Rounds,
    signals: Signals,
    *,
    most: int | None = None,
    as_json: bool = False,
    ended: Callable[[], bool] = lambda: False,
    file: TextIO | None = None,
) -> int:
    """Have the memory of `pid` follow its users, and print each round to `file` (None: the output); return the status.

    There are `most` rounds, None for no end. `ended` says whether the process is to be taken for ended, beside that it
    has.
    """
    from ..live.follow import Follower
    from ..live.mechanisms import foreign

    if foreign(how.mechanism).traps != "any touch" and not as_json:
        print(f"note: {STORES_ONLY}", file=sys.stderr, flush=True)
    with Follower(pid, window=how.window, most=how.cap, mechanism=how.mechanism) as follower:
        signals.hold_interrupts()
        number = 0
        while most is None or number < most:
            number += 1
            try:
                follower.arm()
            except NoSuchProcess:
                if number == 1:
                    raise
                break
            except TargetRefused:
                if not follower.process_ended:
                    raise
                break
            by = _wait(follower, how.every, signals, ended)
            if by:
                return 128 + by
            found = follower.move()
            print(json.dumps(found.to_dict()) if as_json else _line(found), file=file, flush=True)
            if follower.process_ended or ended():
                break
    return 0


# Until the round is over; the number of the signal that is to end it before that, 0 for none.
def _wait(follower: Follower, seconds: float, signals: Signals, ended: Callable[[], bool]) -> int:
    until = time.monotonic() + seconds
    while (rest := until - time.monotonic()) > 0 and not follower.process_ended and not ended():
        if (by := signals.interrupted()) is not None:
            return int(by)
        time.sleep(min(_GRAIN, rest))
    return 0


def _line(found: Round) -> str:
    places = ", ".join(f"{format_count(count)} from node {node}" for node, count in found.by_node.items())
    parts = [
        f"round {found.number}: {format_pages(found.touched)} of {format_pages(found.pages)} touched",
        *([f"{places}; {format_count(found.remote)} on another node"] if places else []),
        f"moved {format_pages(found.moved)}",
    ]
    if found.held_back:
        parts.append(f"{format_pages(found.held_back)} held back by --cap")
    for name, count in found.ping_pong.items():
        parts.append(f"{format_count(count)} stay in {printable(name)}: they go to and fro")
    parts += [f"{format_count(count)} stayed: {reason.sentence}" for reason, count in found.left.items()]
    return "; ".join(parts)
