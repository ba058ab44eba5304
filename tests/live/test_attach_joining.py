"""Programs whose threads come and go: what the kernel stores for one that ends is not lost, wherever its stack is."""

from __future__ import annotations

from pathlib import Path

import pytest
from targets.programs import HANG, Program, compiled, leftovers

import nexttouch as nt

MAKERS = 2
"""Threads that make others, see joining.c."""


@pytest.mark.parametrize("sizes", [(), (16,), (64,), (8 << 10,), (16 << 10,)], ids=str)
def test_threads_on_stacks_of_any_size_are_joined(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    program = Program(compiled("joining", tmp_path), *map(str, sizes), threads=MAKERS)
    try:
        for _ in range(15):
            with nt.attach(program.pid, to=0, always=True) as migration:
                assert migration.wait(HANG)
            program.check()
        program.advance()
        assert leftovers(program.pid) == []
        program.finish()
    finally:
        program.kill()
