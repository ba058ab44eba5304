"""Threads that end while their memory is protected: what the kernel itself writes there is not lost."""

from __future__ import annotations

import ctypes
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.mechanisms import foreign
from support.memory import HANG, Memory
from targets.programs import compiled, until

import nexttouch as nt
from nexttouch.errors import NoSuchProcess
from nexttouch.linux import control_block, procfs, thread_exit
from nexttouch.linux.process import Process
from nexttouch.linux.syscall import PAGE_SIZE
from nexttouch.linux.thread_exit import LastWord, exit_spans
from nexttouch.live import exits, plan
from nexttouch.live.mechanisms import Mechanism

PR_GET_TID_ADDRESS = 40
FUTEX = {"x86_64": 202, "aarch64": 98}


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("robust", tmp_path_factory.mktemp("robust"))


@pytest.fixture(scope="module")
def leaving_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("leaving", tmp_path_factory.mktemp("leaving"))


@pytest.mark.parametrize("mode", ["here", "apart", "shared"])
def test_a_robust_mutex_of_a_thread_that_ends(binary: Path, mode: str) -> None:
    with subprocess.Popen([binary, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        holder = int(program.stdout.readline())
        migration = nt.attach(holder, 0, rate=0, always=True)
        assert migration.wait_armed(HANG)
        out, _ = program.communicate("\n", timeout=HANG)
        assert out == "the owner died\n"
        migration.cancel()


class Leaving:
    """A program of leaving.c, step by step."""

    def __init__(self, binary: Path, kibibytes: int, stack: str) -> None:
        environment = os.environ | {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
        self.process = subprocess.Popen(
            [binary, str(kibibytes), stack],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.pid = int(self.hear())

    def tell(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], HANG)[0], "it hangs"
        return self.process.stdout.readline().strip()

    def begin(self) -> None:
        self.tell()
        assert self.hear() == "begun"

    def waits_for_its_thread(self) -> bool:
        call = Path(f"/proc/{self.pid}/syscall").read_text().split()[0]
        return Process(self.pid).threads() == [self.pid] and call == str(FUTEX[os.uname().machine])


@pytest.fixture
def leaving(leaving_binary: Path) -> Iterator[Callable[..., Leaving]]:
    programs = []

    def started(kibibytes: int, stack: str = "guard") -> Leaving:
        programs.append(Leaving(leaving_binary, kibibytes, stack))
        return programs[-1]

    yield started
    for program in programs:
        program.process.kill()
        program.process.communicate()


stacks = pytest.mark.parametrize(
    ("kibibytes", "stack"), [(16, "guard"), (64, "guard"), (12 << 10, "guard"), (64 << 10, "guard"), (1 << 10, "own")]
)


@stacks
@pytest.mark.parametrize("first", [True, False])
def test_a_thread_that_ends_is_joined(leaving: Callable[..., Leaving], kibibytes: int, stack: str, first: bool) -> None:
    """Whether it began before its stack was armed, or after that."""
    program = leaving(kibibytes, stack)
    if first:
        program.begin()
    with nt.attach(program.pid, 0, rate=0, always=True) as migration:
        assert migration.wait_armed(HANG)
        if not first:
            program.begin()
        program.tell()
        assert program.hear() == "joined"
        migration.cancel()


@stacks
def test_a_thread_that_began_behind_the_look_at_them(
    leaving: Callable[..., Leaving], kibibytes: int, stack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its control block is armed; that it is there is found out before it can end."""
    monkeypatch.setattr(plan, "exit_spans", lambda *_: [])
    program = leaving(kibibytes, stack)
    program.begin()
    with nt.attach(program.pid, 0, rate=0, always=True) as migration:
        assert migration.wait_armed(HANG)
        program.tell()
        assert program.hear() == "joined"
        migration.cancel()


@pytest.fixture
def healed(monkeypatch: pytest.MonkeyPatch) -> list[LastWord]:
    """What was written in the stead of threads that had ended on armed pages."""
    words: list[LastWord] = []
    heal = exits.heal

    def recorded(*arguments: Any) -> list[LastWord]:
        words.extend(found := heal(*arguments))
        return found

    monkeypatch.setattr(exits, "heal", recorded)
    return words


def behind(end: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept from being armed, and `end` happens before anyone looks again."""
    look_again = exits.look_again

    def late(*arguments: Any, **keywords: Any) -> None:
        end()
        look_again(*arguments, **keywords)

    monkeypatch.setattr(plan, "exit_spans", lambda *_: [])
    monkeypatch.setattr(exits, "look_again", late)


@pytest.mark.parametrize("kibibytes", [16, 64, 12 << 10, 64 << 10])
def test_a_thread_that_ended_while_it_could_not_say_so(
    leaving: Callable[..., Leaving], kibibytes: int, healed: list[LastWord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's store is lost, and the program waits for it until the same is written from outside."""
    program = leaving(kibibytes)
    program.begin()
    (thread,) = set(Process(program.pid).threads()) - {program.pid}

    def end() -> None:
        program.tell()
        until(program.waits_for_its_thread, "the end of the thread")

    behind(end, monkeypatch)
    # Where loads are trapped the thread itself opens the page as it ends.
    with nt.attach(program.pid, 0, rate=0, always=True, window=1, mechanism="write_protect") as migration:
        assert migration.wait_armed(HANG)
        assert program.hear() == "joined"
        migration.cancel()
    assert [(word.value, word.mutex) for word in healed] == [(thread, False)]


def test_a_robust_mutex_that_could_not_be_marked(
    binary: Path, healed: list[LastWord], monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([binary, "here"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin
        assert program.stdout
        pid = int(program.stdout.readline())
        (thread,) = set(Process(pid).threads()) - {pid}

        def end() -> None:
            program.stdin.write("\n")  # type: ignore[union-attr]
            program.stdin.flush()  # type: ignore[union-attr]
            until(lambda: Process(pid).threads() == [pid], "the end of the thread")

        behind(end, monkeypatch)
        with nt.attach(pid, 0, rate=0, always=True) as migration:
            assert migration.wait_armed(HANG)
            assert program.communicate(timeout=HANG)[0] == "the owner died\n"
            migration.cancel()
    assert [(word.thread, word.mutex) for word in healed] == [(thread, True)]


def test_a_word_that_all_threads_share(tmp_path: Path) -> None:
    """It is in none of their control blocks; a thread is made to ask for it, on memory that is gone again."""
    program = subprocess.Popen(
        [compiled("elsewhere", tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert program.stdout
        pid = int(program.stdout.readline())
        before = procfs.mappings(Process(pid))
        with nt.attach(pid, 0, rate=0, always=True, window=1) as migration:
            assert migration.wait_armed(HANG)
            assert procfs.mappings(Process(pid)) == before
            assert program.communicate("\n", timeout=HANG)[0] == "open\n"
            migration.cancel()
    finally:
        program.kill()
        program.wait(HANG)


def tid_address() -> int:
    """Where the kernel tells of the end of the thread that calls this."""
    word = ctypes.c_uint64()
    assert ctypes.CDLL(None).prctl(PR_GET_TID_ADDRESS, ctypes.byref(word)) == 0
    return word.value


@pytest.mark.parametrize("top", [0, thread_exit._TOP])
def test_the_control_block_of_a_thread_that_has_ended(monkeypatch: pytest.MonkeyPatch, top: int) -> None:
    """Its stack is kept for another one; it is known by what it looks like, and by where it is."""
    monkeypatch.setattr(thread_exit, "_TOP", top)
    if top:
        monkeypatch.setattr(thread_exit, "_found", lambda *_: set())
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(tid_address()))
    thread.start()
    thread.join()
    spans = exit_spans(Process(os.getpid()))
    assert all(start % PAGE_SIZE == end % PAGE_SIZE == 0 for start, end in spans)
    assert (np.diff(np.array(spans).ravel()) > 0).all()
    assert any(start <= found[0] < end for start, end in spans)


@pytest.mark.parametrize("main", [True, False])
def test_the_word_that_tells_of_the_end(monkeypatch: pytest.MonkeyPatch, main: bool) -> None:
    """Where the C library has it is not said anywhere, but each thread can ask for its own; all stacks left aside."""
    monkeypatch.setattr(thread_exit, "_stacks", lambda *_: [])
    found: list[tuple[int, int]] = []

    def ask() -> None:
        address = tid_address()
        found.extend((start, end) for start, end in exit_spans(Process(os.getpid())) if start <= address < end)

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


@pytest.mark.parametrize("arena", [False, True])
def test_what_looks_like_a_control_block(arena: bool) -> None:
    """It is found wherever it is in what can be a stack; malloc's arenas, large and many, are not searched."""
    (head, *_) = thread_exit._heads(Process(os.getpid()))
    kind = ctypes.c_uint64.from_address(head + 8).value
    size = thread_exit._ARENA
    with Memory(3 * size // PAGE_SIZE, fill=False) as memory:
        start = -(-memory.address // size) * size
        first = (start - memory.address) // PAGE_SIZE
        memory.protect(0, 0, first)
        at = start + size // 2 + PAGE_SIZE - 8  # its first word on one page, the others on the next
        words = memory.words[(at - memory.address) // 8 - 1 :][:4]
        words[:] = [at, at, kind, 0]
        memory.table[first, 0] = start + 0x30 if arena else 0
        spans = exit_spans(Process(os.getpid()))
        assert any(low <= at < high for low, high in spans) is not arena


@pytest.mark.parametrize("inside", [False, True])
def test_the_upper_end_of_what_can_be_a_stack(inside: bool) -> None:
    """Of any size; a guard is a mapping without access, or, as glibc has it since 2.42, a part of the stack's own."""
    command = [sys.executable, "-c", _GUARDED, str(int(inside))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        where = program.stdout.readline()
        if where == "refused\n":
            pytest.skip("this kernel has no guards within a mapping")
        start, spans = int(where, 16), exit_spans(Process(program.pid))
        ends = [start + (half << 20) for half in ((32, 64) if inside else (64,))]
        for end in ends:
            assert any(first <= end - 2 * PAGE_SIZE and end <= last for first, last in spans)
        within = [(first, last) for first, last in spans if start <= first and last <= ends[-1]]
        assert sum(last - first for first, last in within) == len(ends) * 2 * PAGE_SIZE
        program.communicate("\n", timeout=HANG)


# 64 MiB behind a guard, with free room around; or two stacks of 32 MiB in one mapping with a guard at each's begin.
_GUARDED = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
inside, size, page = int(sys.argv[1]), 64 << 20, 4096
base = libc.mmap(None, ctypes.c_size_t(size + 4 * page), 0, 0x22, -1, ctypes.c_long(0))
libc.munmap(ctypes.c_void_p(base), ctypes.c_size_t(inside * page))
libc.munmap(ctypes.c_void_p(base + page + size), ctypes.c_size_t(3 * page))
libc.mprotect(ctypes.c_void_p(base + page), ctypes.c_size_t(size), 3)
guards = [base + page, base + page + size // 2] if inside else []
refused = any([libc.madvise(ctypes.c_void_p(guard), ctypes.c_size_t(page), 102) for guard in guards])
if "filled" in globals():
    ctypes.memset(base + page, 1, size)
print("refused" if refused else hex(base + page), flush=True)
sys.stdin.read()
"""


def test_the_number_of_a_thread_that_ended_is_not_taken_for_one_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its list is asked for by number, and by then another program's thread can have that."""
    told = iter([[1, 2], [1]])
    monkeypatch.setattr(Process, "threads", lambda _: next(told))
    monkeypatch.setattr(control_block, "head", lambda process: process.thread * PAGE_SIZE)
    assert thread_exit._heads(Process(1)) == {PAGE_SIZE}


@foreign
def test_looking_for_control_blocks_is_no_touch(trap: Mechanism) -> None:
    """Of a program that stands still no page is touched, though all that can be a stack is searched."""
    command = [sys.executable, "-c", "filled = True\n" + _GUARDED, "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        program.stdout.readline()
        with nt.attach(program.pid, 0, always=True, rate=0, mechanism=trap.name) as migration:
            assert migration.wait_armed(HANG)
            stats = migration.stats
            assert (stats.faults, stats.moved) == (0, 0)
            assert stats.waiting > (64 << 20) // PAGE_SIZE
            migration.cancel()
        program.communicate("\n", timeout=HANG)


def test_of_nobody() -> None:
    with pytest.raises(NoSuchProcess):
        exit_spans(Process(4194305))


def test_stacks_are_moved_without_a_trap(binary: Path) -> None:
    """So is a thread's stack that another one takes over, later."""
    with subprocess.Popen([binary, "here"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        program.stdout.readline()
        spans = exit_spans(Process(program.pid))
        with nt.attach(program.pid, 0, always=True, rate=0) as migration:
            assert migration.wait_armed(HANG)
            armed = [
                (smap.mapping.start, smap.mapping.end)
                for smap in procfs.smaps(Process(program.pid))
                if {"uw", "ur"} & smap.flags
            ]
            runs = np.concatenate([part.runs for part in migration.plan.parts])
            assert armed
            for start, pages, _ in runs.tolist():
                assert not any(first < start + pages * PAGE_SIZE and start < last for first, last in spans)
            migration.cancel()
        assert re.match("the owner", program.communicate("\n", timeout=HANG)[0])
