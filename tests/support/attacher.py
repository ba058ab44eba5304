"""The program that attaches, built with sanitizers, or so that what it does fails or waits for a test (inject.c)."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from .core import BUILDS, CC

__all__ = ["Injected", "build", "build_test"]

T = TypeVar("T")
_ROOT = Path(__file__).parents[2]
_SOURCES = sorted((_ROOT / "src/nexttouch/_attach").glob("*.c"))
_TESTS = _ROOT / "tests/attach"
_TIMEOUT = 120.0


def build(folder: Path, name: str = "plain", *, address: str = "") -> Path:
    """The program as build `name`; with `address`, what it does goes through inject.c, which asks there."""
    renamed = {"injection.c": ["-include", str(_TESTS / "inject.h")]} if address else {}
    more = [str(_TESTS / "inject.c"), f'-DADDRESS="{address}"'] if address else []
    folder.mkdir()
    for source in _SOURCES:
        options = renamed.get(source.name, [])
        subprocess.run([*CC, *BUILDS[name], *options, "-c", str(source)], cwd=folder, check=True)
    objects = [f"{source.stem}.o" for source in _SOURCES]
    subprocess.run([*CC, *BUILDS[name], *more, *objects, "-o", "attacher"], cwd=folder, check=True)
    return folder / "attacher"


def build_test(test: str, folder: Path, name: str) -> Path:
    """A program of tests/attach with all of the program in it but its main.c."""
    sources = [str(source) for source in _SOURCES if source.name != "main.c"]
    program = folder / f"{test}-{name}"
    subprocess.run([*CC, *BUILDS[name], str(_TESTS / f"{test}.c"), *sources, "-o", str(program)], check=True)
    return program


class Injected:
    """The program, what it does being counted, late, or failing; closed by `close`.

    Attributes:
        program: where it is.
        calls: what it and its target have asked of the kernel, the last time.
    """

    _numbers = itertools.count()

    def __init__(self, folder: Path, name: str = "plain") -> None:
        address = f"nexttouch-{os.getpid()}-{next(self._numbers)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.settimeout(_TIMEOUT)
        self._listener.bind(f"\0{address}")
        self._listener.listen()
        self.program = build(folder, name, address=address)
        self.calls = 0

    def accompany(
        self, nth: int = 0, fault: int = 0, meanwhile: Callable[[int, socket.socket], object] | None = None
    ) -> None:
        """Wait for it to start, and have its `nth` call (0: none) fail with errno `fault`; until it ends.

        Args:
            nth: from 1.
            fault: 0 kills the clone.
            meanwhile: what is done while the clone has all that it ever has, with its id and the socket.
        """
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(_TIMEOUT)
            connection.send(f"{nth} {fault}".encode())
            while words := connection.recv(64).split():
                if words[0] == b"calls":
                    self.calls = int(words[1])
                elif meanwhile:
                    meanwhile(int(words[1]), connection)
                if words[0] == b"clone":
                    connection.send(b"go on")

    def during(self, attach: Callable[[], T], meanwhile: Callable[[int], object]) -> T:
        """Return what `attach` does; do `meanwhile` with the id of the clone while that has all that it ever has."""
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(attach)
            self.accompany(meanwhile=lambda clone, _: meanwhile(clone))
            return result.result()

    def failing(self, attach: Callable[[], T], nth: int, fault: int) -> T:
        """Return what `attach` does while its `nth` call fails."""
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(attach)
            self.accompany(nth, fault)
            return result.result()

    def close(self) -> None:
        """No more of it can be started."""
        self._listener.close()
