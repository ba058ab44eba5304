"""Another process's memory: read, written, and touched without being written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

import nexttouch as nt
from nexttouch.linux import remote
from nexttouch.linux.process import Process
from nexttouch.linux.syscall import PAGE_SIZE

# Two pages, the second of which nobody may read; says where, and at the end what is in the first.
PROGRAM = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None)
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 2 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:page] = b"abcd" * (page // 4)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
libc.mprotect(ctypes.c_void_p(address + page), ctypes.c_size_t(page), 0)
print(address, flush=True)
sys.stdin.readline()
print(memory[:8].decode())
"""


@pytest.fixture
def program() -> Iterator[tuple[int, int, subprocess.Popen[str]]]:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process.pid, int(process.stdout.readline()), process
        process.kill()


def test_reading_and_writing(program: tuple[int, int, subprocess.Popen[str]]) -> None:
    pid, address, process = program
    assert remote.read(Process(pid), address + 1, 5) == b"bcdab"
    assert remote.write(Process(pid), address + 2, b"XY")
    assert process.communicate("\n")[0] == "abXYabcd\n"


def test_where_memory_ends(program: tuple[int, int, subprocess.Popen[str]]) -> None:
    pid, address, _ = program
    end = address + PAGE_SIZE
    assert remote.read(Process(pid), end - 4, 8) == b"abcd"
    assert remote.read(Process(pid), end, 8) == b""
    assert not remote.write(Process(pid), end - 4, b"12345678")
    assert not remote.write(Process(pid), end, b"1")


def test_a_touch_is_a_store_that_stores_nothing(program: tuple[int, int, subprocess.Popen[str]]) -> None:
    pid, address, process = program
    with nt.attach(pid, 0, rate=0, always=True, window=1) as migration:
        assert migration.wait_armed()
        before = migration.stats.faults
        remote.touch(Process(pid), address + 5)
        remote.touch(Process(pid), address + 6)  # it is no trap any more
        assert migration.stats.faults == before + 1
    assert migration.stats.moved_by_touch == before + 1
    assert process.communicate("\n")[0] == "abcdabcd\n"


def test_where_there_is_nothing_to_touch(program: tuple[int, int, subprocess.Popen[str]]) -> None:
    remote.touch(Process(program[0]), 0)
    remote.touch(Process(program[0]), program[1] + PAGE_SIZE)


def test_a_process_that_is_gone(dead: int) -> None:
    for access in (
        lambda: remote.read(Process(dead), 0, 1),
        lambda: remote.write(Process(dead), 0, b"x"),
        lambda: remote.touch(Process(dead), 0),
    ):
        with pytest.raises(nt.NoSuchProcess, match=f"process {dead} ended"):
            access()
