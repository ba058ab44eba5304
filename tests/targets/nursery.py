"""A process that has everything imported already and forks migrators on demand, each of which lives a short life.

Each line of standard input is the keyword arguments of one `attach` as JSON, with "pid" and "to". What becomes of it is
told on standard output: "forked PID", "attached PID", "armed PID", "done PID" or "error PID: MESSAGE", and at last
"ended PID", when no process of it is left, its helpers included.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

import nexttouch as nt
from nexttouch.live.attach import attach

PR_SET_CHILD_SUBREAPER = 36


def tell(word: str, message: str = "") -> None:
    """Write one line at once."""
    os.write(1, f"{word} {os.getpid()}{message}\n".encode())


def migrate(arguments: dict[str, object]) -> None:
    """Be a migrator; tell how far it has come."""
    tell("forked")
    try:
        migration = attach(arguments.pop("pid"), arguments.pop("to"), **arguments)  # type: ignore[arg-type]
        tell("attached")
        migration.wait_armed()
        tell("armed")
        migration.wait()
        tell("done")
    except nt.NexttouchError as error:
        tell("error", f": {error}")


def main() -> None:
    """Fork one migrator a line."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            migrate(json.loads(line))
            os._exit(0)
        try:
            while True:
                os.wait()
        except ChildProcessError:
            os.write(1, f"ended {child}\n".encode())


main()
