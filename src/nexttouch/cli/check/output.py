"""Lines of results, and progress that they overwrite."""

from __future__ import annotations

import sys

__all__ = ["progress", "show"]


def show(*lines: str) -> None:
    """Print lines of the result."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    print(*lines, sep="\n", flush=True)


def progress(text: str) -> None:
    """Say how far it is, on a terminal; "" takes that away."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
