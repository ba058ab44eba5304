"""Migrators in processes of their own, which can be killed at any moment."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .programs import HANG

__all__ = ["Nursery"]


class Nursery:
    """The process of nursery.py."""

    def __init__(self) -> None:
        program = Path(__file__).parent / "nursery.py"
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
        )
        self._rest = b""

    def fork(self, **arguments: object) -> int:
        """Start a migrator; return its process id."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(arguments).encode() + b"\n")
        word, pid, _ = self.hear()
        assert word == "forked"
        return pid

    def hear(self, timeout: float = HANG) -> tuple[str, int, str]:
        """The next thing that is told; "nothing" if `timeout` seconds pass."""
        assert self.process.stdout
        while b"\n" not in self._rest:
            if not select.select([self.process.stdout], [], [], max(0.0, timeout))[0]:
                assert timeout < HANG, "the nursery hangs"
                return "nothing", 0, ""
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, "the nursery has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        word, pid, *message = line.decode().split(" ", 2)
        return word, int(pid.rstrip(":")), " ".join(message)

    def hear_until(self, *words: str) -> str:
        """Read on until one of `words` is told; return it."""
        while True:
            word, _, message = self.hear()
            if word in words:
                return word
            assert word != "error", message

    def kill_at(
        self, life: dict[str, object], stage: str, delay: float, first: Callable[[], object] | None = None
    ) -> str:
        """Kill a migrator `delay` seconds after it has reached `stage` and `first` was done; return its stage then."""
        pid = self.fork(**life)
        reached = "forked" if stage == "forked" else self.hear_until(stage)
        if first:
            first()
        moment = time.monotonic() + delay
        while reached != "done" and (left := moment - time.monotonic()) > 0:
            word, _, message = self.hear(left)
            assert word != "error", message
            reached = reached if word in ("nothing", "ended") else word
        with suppress(ProcessLookupError):  # it was done, and has ended
            os.kill(pid, signal.SIGKILL)
        self.hear_until("ended")
        return reached

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate(timeout=HANG)
