"""The command line: one module a command, each with `add_parser` and `run`. Parse, call, print; no logic.

Exit status: 0 done, 1 could not, 2 misuse, 130 interrupted. Results go to standard output, progress and errors to
standard error.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import InvalidArgument, NexttouchError
from ..printable import printable
from .paragraphs import Paragraphs

__all__ = ["COMMANDS", "main"]

COMMANDS = ("doctor", "topology", "where", "move", "follow", "run", "check", "demo", "lab")

_DESCRIPTION = """\
Lazy page migration for Linux: memory moves to the right NUMA node when it is next touched.

Begin with `nexttouch doctor`, which says what works on this machine, and `nexttouch demo`."""

_EPILOG = """\
`nexttouch COMMAND --help` explains a command. Every command takes --json."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (default: those of the process) name; return the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    _open_closed_streams()
    _let_every_character_pass()
    try:
        options = _parser(given).parse_args(given)
        status = int(options.run(options))
        sys.stdout.flush()
    except NexttouchError as error:
        _complain(_message(error))
        return error.exit_code
    except MemoryError as error:
        _complain(f"there is not enough memory for that: {error}")
        return 1
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is at work is cancelled at exit: once is enough
        return 128 + int(getattr(error, "number", signal.SIGINT))  # of `signals.Interrupted`
    except BrokenPipeError:  # the reader of our output has seen enough
        _discard_output()
        return 1
    except OSError as error:  # the output could not be written, to a full disk for example
        _discard_output()
        _complain(str(error))
        return 1
    return status


def _complain(text: str) -> None:
    print("nexttouch: " + "\n".join(map(printable, text.split("\n"))), file=sys.stderr)


def _message(error: NexttouchError) -> str:
    """The error, in which an argument of a function is called as it is on the command line: "to" is "--to"."""
    text = str(error)
    if not isinstance(error, InvalidArgument) or not error.argument.islower() or error.argument.startswith("-"):
        return text
    name = _POSITIONAL.get(error.argument, f"--{error.argument.replace('_', '-')}")
    return name + text.removeprefix(error.argument)


_POSITIONAL = {"x": "PID", "pid": "PID"}


def _open_closed_streams() -> None:
    """A stream that the caller has closed is None, and whatever is opened next gets its number."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))


def _let_every_character_pass() -> None:
    """What the output's encoding lacks is written out, as on standard error, instead of ending the command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Python would complain again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Only the command that is asked for is imported: start-up counts.
def _parser(given: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nexttouch",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=Paragraphs,
    )
    parser.add_argument("--version", action="version", version=f"nexttouch {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in given[:1] if given[:1] and given[0] in COMMANDS else COMMANDS:
        importlib.import_module(f".{name}", __name__).add_parser(commands)
    return parser
