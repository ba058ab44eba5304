"""The examples in the docstrings, run as they stand there."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nexttouch as nt
from nexttouch.linux.process import SELF, Process
from nexttouch.linux.syscall import PAGE_SIZE

SOURCES = Path(nt.__file__).parent
SEVERAL_NODES = ("", "allocate", "live.attach", "live.eager", "live.lazy", "placement", "topology")
"""Modules whose examples name nodes that only a machine like the lab has."""


def modules() -> Iterator[str]:
    """Modules with an example, by their name within the package."""
    for path in sorted(SOURCES.rglob("*.py")):
        documented = ast.Module | ast.ClassDef | ast.FunctionDef
        nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, documented)]
        if any(">>>" in (ast.get_docstring(node) or "") for node in nodes):
            parts = path.relative_to(SOURCES).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__")


@contextmanager
def surroundings() -> Iterator[dict[str, Any]]:
    """What the examples speak of without making it: arrays on node 0, and a program that runs, its memory there too."""
    array, source, hole = nt.zeros((1024, PAGE_SIZE // 8), node=0), nt.zeros(PAGE_SIZE // 8), nt.zeros(PAGE_SIZE // 8)
    array += 1
    source += 1
    start = array.ctypes.data

    def run_workers(work: np.ndarray[Any, Any]) -> None:
        work += 1

    allowed = os.sched_getaffinity(0)
    text = (
        f"import os; os.sched_setaffinity(0, {set(nt.topology().node(0).cpus)});"
        "memory = bytearray(8 << 20); print(flush=True); input()"
    )
    with (
        subprocess.Popen([sys.executable, "-c", text], stdin=-1, stdout=-1) as program,
        Process.open(program.pid) as process,
    ):
        assert program.stdout is not None
        assert program.stdout.readline() == b"\n"
        yield {
            "array": array,
            "run_workers": run_workers,
            "nt": nt,
            "os": os,
            "SELF": SELF,
            "pid": program.pid,
            "process": process,
            "start": start,
            "end": start + array.nbytes,
            "address": hole.ctypes.data,
            "source": source.ctypes.data,
            "length": PAGE_SIZE,
        }
        os.sched_setaffinity(0, allowed)
        program.communicate(b"\n")


def run(name: str) -> None:
    module = importlib.import_module(f"nexttouch.{name}".rstrip("."))
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    found = [each for each in finder.find(module) if each.examples]
    assert found
    for each in found:
        with surroundings() as names:
            each.globs = vars(module) | names
            runner.run(each, out=sys.stdout.write)
    assert not runner.summarize(verbose=False).failed


@pytest.mark.parametrize("name", [name for name in modules() if name not in SEVERAL_NODES])
def test_examples(name: str) -> None:
    run(name)


@pytest.mark.lab
@pytest.mark.parametrize("name", SEVERAL_NODES)
def test_examples_with_several_nodes(name: str) -> None:
    run(name)


def test_those_for_several_nodes_are_there() -> None:
    assert set(SEVERAL_NODES) < set(modules())


def test_every_function_has_an_example() -> None:
    functions = [name for name in nt.__all__ if callable(getattr(nt, name)) and name.islower()]
    assert len(functions) == 9
    assert all(">>>" in (getattr(nt, name).__doc__ or "") for name in functions)
