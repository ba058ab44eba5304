"""Builds what counts accesses from the C in this package: a plugin for QEMU, and what sets marks in the guest."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import LabError
from .machine import Machine
from .parts import cache_directory

__all__ = ["Plugin", "build"]

_SOURCES = Path(__file__).parent
_FILES = ("count.c", "mark.c", "mark.h")
_OPTIONS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Plugin:
    """The plugin's file `counter`, and the program `mark` for the guest."""

    counter: Path
    mark: Path

    def option(self, machine: Machine, output: int) -> str:
        """Write the plugin with its options for QEMU's command line; it writes to the descriptor `output`."""
        file = str(self.counter).replace(",", ",,")
        return f"file={file},output={output},cpus={machine.cpu_nodes},nodes={machine.nodes},memory={machine.memory}"


def build() -> Plugin:
    """Compile both into the cache, unless they are there as these sources make them.

    Raises:
        LabError: there is no compiler, or it fails.
    """
    digest = hashlib.sha256(b"".join((_SOURCES / name).read_bytes() for name in _FILES)).hexdigest()[:16]
    folder = cache_directory() / f"count-{digest}"
    if not folder.exists():
        cache_directory().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="building-") as name:
            work = Path(name) / "count"
            work.mkdir()
            _compile("count.c", work / "count.so", "-fPIC", "-shared", "-fvisibility=hidden")
            _compile("mark.c", work / "mark", "-static")  # so that setting a mark takes few accesses
            try:
                work.rename(folder)
            except OSError:  # another process has built it meanwhile
                if not folder.exists():
                    raise
    return Plugin(folder / "count.so", folder / "mark")


def _compile(source: str, target: Path, *options: str) -> None:
    if shutil.which("gcc") is None:
        raise LabError("gcc is missing, which builds what counts accesses: run `apt-get install gcc libc6-dev`")
    command = ["gcc", *_OPTIONS, *options, "-o", str(target), str(_SOURCES / source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"`{' '.join(command)}` failed; are gcc and libc6-dev whole? {done.stderr.strip()}")
