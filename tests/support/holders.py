"""Whoever else has pages of a program: a pipe, a device, a child."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from .memory import PAGE_SIZE, Memory, in_child, libc

__all__ = ["in_a_pipe", "registered", "while_a_child_shares"]


@contextmanager
def in_a_pipe(memory: Memory, first: int, count: int) -> Iterator[int]:
    """Hold pages by references from a pipe (vmsplice); gives the pipe's end to read from."""
    reading, writing = os.pipe()
    vector = struct.pack("<QQ", memory.at(first), count * PAGE_SIZE)
    assert libc.vmsplice(writing, vector, 1, 0) == count * PAGE_SIZE
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


@contextmanager
def registered(memory: Memory, first: int, count: int) -> Iterator[None]:
    """Pin pages as a buffer of io_uring, as a device would."""
    io_uring_setup, io_uring_register, register_buffers = 425, 427, 0
    parameters = ctypes.create_string_buffer(120)
    ring = libc.syscall(io_uring_setup, 1, parameters)
    if ring < 0:
        pytest.skip(f"io_uring: {os.strerror(ctypes.get_errno())}")
    vector = struct.pack("<QQ", memory.at(first), count * PAGE_SIZE)
    try:
        if libc.syscall(io_uring_register, ring, register_buffers, vector, 1):
            pytest.skip(f"registering buffers: {os.strerror(ctypes.get_errno())}")
        yield
    finally:
        os.close(ring)


def while_a_child_shares(meanwhile: Callable[[], object], *memories: Memory) -> None:
    """Call `meanwhile` while a forked child has the pages of `memories` as well; then it compares every word."""
    reading, writing = os.pipe()

    def child() -> bool:
        os.close(writing)
        assert os.read(reading, 1) == b"x"
        for memory in memories:
            memory.check()
        return True

    def and_then_let_it() -> None:
        meanwhile()
        os.write(writing, b"x")

    try:
        assert in_child(child, and_then_let_it)
    finally:
        os.close(reading)
        os.close(writing)
