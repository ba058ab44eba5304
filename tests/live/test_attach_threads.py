"""Threads that end while their memory is protected: what the kernel itself writes there is not lost."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support.memory import HANG
from targets.programs import compiled

import nexttouch as nt
from nexttouch.errors import NoSuchProcess
from nexttouch.linux import procfs, threads
from nexttouch.linux.syscall import PAGE_SIZE
from nexttouch.linux.threads import exit_spans

PR_GET_TID_ADDRESS = 40


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("robust", tmp_path_factory.mktemp("robust"))


@pytest.mark.parametrize("mode", ["here", "shared"])
def test_a_robust_mutex_of_a_thread_that_ends(binary: Path, mode: str) -> None:
    with subprocess.Popen([binary, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        holder = int(program.stdout.readline())
        migration = nt.attach(holder, 0, rate=0, always=True)
        assert migration.wait_armed(HANG)
        out, _ = program.communicate("\n", timeout=HANG)
        assert out == "the owner died\n"
        migration.cancel()


def test_where_a_thread_leaves_its_last_words() -> None:
    here, over = threading.Event(), threading.Event()
    stacks: list[int] = []

    def wait() -> None:
        stacks.append(int(Path(f"/proc/self/task/{threading.get_native_id()}/syscall").read_text().split()[-2], 16))
        here.set()
        over.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    here.wait()
    try:
        spans = exit_spans(os.getpid())
        assert all(start % PAGE_SIZE == end % PAGE_SIZE == 0 for start, end in spans)
        assert (np.diff(np.array(spans).ravel()) > 0).all()
        (stack,) = stacks
        assert any(start <= stack < end for start, end in spans)
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("main", [True, False])
def test_the_word_that_tells_of_the_end(monkeypatch: pytest.MonkeyPatch, main: bool) -> None:
    """Where the C library has it is not said anywhere, but each thread can ask for its own; all stacks left aside."""
    monkeypatch.setattr(threads, "_stacks", lambda *_: [])
    found: list[tuple[int, int]] = []

    def ask() -> None:
        word = ctypes.c_uint64()
        assert ctypes.CDLL(None).prctl(PR_GET_TID_ADDRESS, ctypes.byref(word)) == 0
        found.extend((start, end) for start, end in exit_spans(os.getpid()) if start <= word.value < end)

    if main:
        ask()
    else:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert len(found) == 1


@pytest.mark.parametrize(("head", "entry"), [(8, None), (None, 0), (None, 1 << 63), (None, (1 << 64) - 8)])
def test_a_list_that_is_none(head: int | None, entry: int | None) -> None:
    """A program may say what it likes; and a list that is being changed has a null pointer in it."""
    words = [sys.executable, "-c", _LISTED, str(head or 0), str(entry or 0)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        assert program.stdout.readline() == "0\n"
        with nt.attach(program.pid, 0, always=True) as migration:
            pass
        assert migration.stats.moved
        assert program.communicate("\n", timeout=HANG)[0] == ""
        assert program.returncode == 0


_LISTED = """
import ctypes, os, sys
head, entry = map(int, sys.argv[1:])
listed = (ctypes.c_uint64 * 3)(entry, 2**64 - 32, 0)  # next, offset, pending
number = {'x86_64': 273, 'aarch64': 99}[os.uname().machine]  # set_robust_list
place = ctypes.c_uint64(head or ctypes.addressof(listed))
print(ctypes.CDLL(None).syscall(number, place, ctypes.c_ulong(24)), flush=True)
sys.stdin.readline()
"""


def test_the_first_of_a_large_stack_alone() -> None:
    """A mapping of the program's own that happens to begin where a stack ends is not taken for one."""
    command = ["prlimit", "--stack=1048576", sys.executable, "-c", _GUARDED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        start = int(program.stdout.readline(), 16)
        assert (start, start + (1 << 20)) in exit_spans(program.pid)
        program.communicate("\n", timeout=HANG)


_GUARDED = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
guard = libc.mmap(None, ctypes.c_size_t((64 << 20) + 4096), 0, 0x22, -1, ctypes.c_long(0))
libc.mprotect(ctypes.c_void_p(guard + 4096), ctypes.c_size_t(64 << 20), 3)
print(hex(guard + 4096), flush=True)
sys.stdin.read()
"""


def test_of_nobody() -> None:
    with pytest.raises(NoSuchProcess):
        exit_spans(4194305)


def test_stacks_are_moved_without_a_trap(binary: Path) -> None:
    """So is a thread's stack that another one takes over, later."""
    with subprocess.Popen([binary, "here"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        program.stdout.readline()
        spans = exit_spans(program.pid)
        with nt.attach(program.pid, 0, always=True, rate=0) as migration:
            assert migration.wait_armed(HANG)
            armed = [(smap.mapping.start, smap.mapping.end) for smap in procfs.smaps(program.pid) if "uw" in smap.flags]
            runs = np.concatenate([part.runs for part in migration.plan.parts])
            assert armed
            for start, pages, _ in runs.tolist():
                assert not any(first < start + pages * PAGE_SIZE and start < last for first, last in spans)
            migration.cancel()
        assert re.match("the owner", program.communicate("\n", timeout=HANG)[0])
