"""Where a thread's control block is, and whether it is one as glibc's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from nexttouch.errors import NoSuchProcess
from nexttouch.linux import control_block
from nexttouch.linux.process import Process


def test_of_every_thread_of_this_program() -> None:
    found: list[tuple[int, bool, int]] = []

    def look() -> None:
        process = Process(os.getpid()).through(threading.get_native_id())
        found.append((control_block.head(process), control_block.exists(process), control_block.own_id(process)))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    look()
    assert [(known, own) for _, known, own in found] == [(True, thread.native_id), (True, os.getpid())]
    assert 0 < found[0][0] != found[1][0] > 0


@pytest.mark.parametrize(("address", "head"), [(0, 0), (8, 0), (1 << 63, 0), (1 << 40, 1 << 40)])
def test_of_a_program_that_has_none(address: int, head: int) -> None:
    """It says where the head of its robust list is, and may say anything."""
    words = [sys.executable, "-c", _SAYS, str(address)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        assert program.stdout.readline() == "0\n"
        process = Process(program.pid)
        assert control_block.head(process) == head
        assert not control_block.exists(process)
        program.communicate("\n")


_SAYS = """
import ctypes, os, sys
number = {'x86_64': 273, 'aarch64': 99}[os.uname().machine]  # set_robust_list
print(ctypes.CDLL(None).syscall(number, ctypes.c_uint64(int(sys.argv[1])), ctypes.c_ulong(24)), flush=True)
sys.stdin.readline()
"""


def test_of_a_process_that_is_gone(dead: int) -> None:
    process = Process(dead)
    assert control_block.head(process) == 0
    assert not control_block.exists(process)
    with pytest.raises(NoSuchProcess):
        control_block.own_id(process)
