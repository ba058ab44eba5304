"""The core without Python: compiled into the programs of tests/core, plain and with each sanitizer."""

from __future__ import annotations

import subprocess
from pathlib import Path

from nexttouch.live.mechanisms import MECHANISMS

__all__ = ["BUILDS", "CC", "FAILING", "SCENARIOS", "WAYS", "build"]

_ROOT = Path(__file__).parents[2]
_PROGRAMS = _ROOT / "tests/core"
CC = ("cc", "-std=gnu11", "-D_GNU_SOURCE", "-g", "-Wall", "-Wextra", "-Werror")
"""The compiler."""

BUILDS = {
    "plain": ["-O2"],
    "address+undefined": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-fsanitize=thread"],
}
"""Options of the compiler."""

SCENARIOS = ("words", "huge", "discard", "remap", "unmap", "fork", "cancel")
"""Of stress.c."""

FAILING = ("sweep", "cancel", "faults", "remap", "grow", "unmap", "discard", "fork", "huge")
"""Of failures.c."""

WAYS = tuple(
    way for mechanism in MECHANISMS for way in (mechanism.name, *[f"{mechanism.name}-inline"] * mechanism.inline)
)
"""Each mechanism with each service that it has: see ways.h."""


def build(source: str, name: str, folder: Path, *, injected: bool = False) -> Path:
    """A program of tests/core with the core in it, as build `name`; `injected`: its calls go through inject.c."""
    core = sorted(path for path in (_ROOT / "src/nexttouch/_core").glob("*.c") if path.name != "module.c")
    renamed = ["-include", str(_PROGRAMS / "inject.h")] if injected else []
    sources = [str(_PROGRAMS / f"{source}.c"), *([str(_PROGRAMS / "inject.c")] if injected else [])]
    folder.mkdir()
    subprocess.run([*CC, *BUILDS[name], *renamed, "-c", *map(str, core)], cwd=folder, check=True)
    objects = [f"{path.stem}.o" for path in core]
    subprocess.run([*CC, *BUILDS[name], *sources, *objects, "-o", source, "-lpthread", "-lm"], cwd=folder, check=True)
    return folder / source
