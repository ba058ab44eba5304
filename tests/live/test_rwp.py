"""What is particular to entries without permission: what could take a trap away, or a permission for good."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.holders import registered
from support.memory import HANG, HUGE, PAGE_SIZE, WORDS, Memory, checked, libc, run_threads, settled
from support.nodes import setting
from support.swap import page_out

import nexttouch as nt
from nexttouch import Reason
from nexttouch.linux import pagemap
from nexttouch.linux.process import SELF
from nexttouch.live.mechanisms import named, userfaultfd_features

pytestmark = pytest.mark.skipif(
    named("rwp").features not in userfaultfd_features(), reason="this kernel has no UFFDIO_RWPROTECT"
)

SHARED = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
KEEP_SIZE, PUNCH_HOLE = 1, 2


def armed(memory: Memory, **more: Any) -> nt.Migration:
    arguments: dict[str, Any] = {"rate": 0, "window": 1, "always": True, "mechanism": "rwp"} | more
    migration = nt.lazy(memory.words, 0, **arguments)
    assert migration.wait_armed(HANG)
    return migration


def traps(memory: Memory) -> int:
    """How many pages are traps."""
    return int(np.count_nonzero(pagemap.entries(SELF, memory.address, memory.pages) & pagemap.UFFD_WP))


@contextmanager
def in_shared_memory(pages: int, *, huge: bool = False) -> Iterator[tuple[Memory, int]]:
    """Memory in a memfd, and the file."""
    file = os.memfd_create("pages")
    os.ftruncate(file, pages * PAGE_SIZE)
    try:
        with Memory(pages, huge=huge, flags=mmap.MAP_SHARED, file=file, fill=False) as memory:
            if huge:
                memory.advise(mmap.MADV_HUGEPAGE)
            memory.fill()
            yield memory, file
    finally:
        os.close(file)


# ---- what takes traps away ----


@pytest.mark.lab
@pytest.mark.usefixtures("swap")
def test_a_page_that_was_in_swap_is_a_trap_still() -> None:
    with Memory(64) as memory:
        migration = armed(memory)
        page_out(memory, 0, 64)
        memory.check()
        assert migration.wait(HANG)
        stats = migration.stats
        assert (stats.moved_by_touch, stats.faults, stats.left) == (64, 64, {})
        memory.check()


@pytest.mark.parametrize("how", ["punch", "truncate"])
def test_a_hole_in_shared_memory_is_none(how: str) -> None:
    """What is filled in anew is no trap; it counts with the rest at the end."""
    with in_shared_memory(64) as (memory, file):
        migration = armed(memory)
        if how == "punch":
            offset, size = ctypes.c_long(10 * PAGE_SIZE), ctypes.c_long(20 * PAGE_SIZE)
            checked(libc.fallocate(file, KEEP_SIZE | PUNCH_HOLE, offset, size))
            first, last = 10, 30
        else:
            os.ftruncate(file, 40 * PAGE_SIZE)
            os.ftruncate(file, 64 * PAGE_SIZE)
            first, last = 40, 64
        assert traps(memory) == 64 - (last - first)
        memory.expected[first * WORDS : last * WORDS] = 0
        memory.check()
        migration.cancel()
        stats = migration.stats
        assert (stats.moved, stats.left) == (64 - (last - first), {Reason.CANCELLED: last - first})
        memory.fill()
        memory.check()


@pytest.mark.lab
def test_a_huge_page_of_shared_memory_is_none() -> None:
    """The kernel drops the entry that would lose a permission, whichever; so the page moves without a trap."""
    with (
        setting(Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled"), "advise"),
        in_shared_memory(2 * HUGE, huge=True) as (memory, _),
    ):
        assert memory.huge_pages() == 2 * HUGE
        memory.bind(1)
        with nt.lazy(memory.words, 0) as migration:
            memory.fill()
        assert (migration.stats.moved_eagerly, migration.stats.left) == (2 * HUGE, {})
        memory.check()


def test_a_part_of_a_huge_page_that_is_split() -> None:
    """Of private memory each small page is a trap then."""
    with Memory(2 * HUGE, huge=True) as memory:
        if memory.huge_pages() < 2 * HUGE:
            pytest.skip("the kernel gave no huge pages")
        migration = armed(memory)
        memory.advise(mmap.MADV_DONTNEED, HUGE + 5, 7)
        memory.expected[(HUGE + 5) * WORDS : (HUGE + 12) * WORDS] = 0
        assert traps(memory) == 2 * HUGE - 7
        memory.check()
        migration.cancel()
        assert settled(migration.stats, 2 * HUGE)
        memory.check()


# ---- the kernel's own accesses ----


def test_direct_io_waits_for_the_pages() -> None:
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file, Memory(64) as memory:  # /tmp may be in memory
        direct = os.open(file.name, os.O_RDWR | os.O_DIRECT)
        migration = armed(memory)
        assert os.pwrite(direct, memory.part(0, 32).data, 0) == 32 * PAGE_SIZE
        assert os.preadv(direct, [memory.part(32, 32).data], 0) == 32 * PAGE_SIZE
        os.close(direct)
        memory.expected[32 * WORDS :] = memory.expected[: 32 * WORDS]
        assert migration.wait(HANG)
        stats = migration.stats
        assert stats.moved_by_touch + stats.left.get(Reason.BUSY, 0) == 64  # some while the device had them
        memory.check()


def test_pinning_for_io_uring_is_a_touch() -> None:
    with Memory(64) as memory:
        migration = armed(memory)
        with registered(memory, 10, 20):
            assert migration.stats.faults == 20
            assert traps(memory) == 44
            memory.check()
        migration.cancel()
        assert settled(migration.stats, 64)
        assert migration.stats.moved + migration.stats.left.get(Reason.BUSY, 0) == 64
        memory.check()


def test_from_outside_a_page_is_there_or_an_error_tells() -> None:
    """process_vm_readv(2) waits; /proc/PID/mem and ptrace(2) cannot, and fail."""
    with Memory(16) as memory:
        migration = armed(memory)
        copy = np.zeros(8 * WORDS, np.uint64)
        ours, theirs = (
            struct.pack("<QQ", copy.ctypes.data, copy.nbytes),
            struct.pack("<QQ", memory.address, copy.nbytes),
        )
        assert libc.process_vm_readv(os.getpid(), ours, 1, theirs, 1, 0) == copy.nbytes
        assert (copy == memory.expected[: 8 * WORDS]).all()
        file = os.open("/proc/self/mem", os.O_RDONLY)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.pread(file, PAGE_SIZE, memory.at(9))
        migration.cancel()
        assert os.pread(file, PAGE_SIZE, memory.at(9)) == memory.part(9, 1).tobytes()
        os.close(file)


_DUMPED = """
import mmap, os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (-1, -1))
memory = mmap.mmap(-1, 64 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(64):
    memory[page * 4096 : page * 4096 + 20] = b"page of the dump %03d" % (page * 13)
print("ready", flush=True)
sys.stdin.readline()
os.abort()
"""


_TAKEN = """\
#!/bin/sh
read line <{folder}/go
exec cat >{folder}/core
"""


@pytest.mark.lab
def test_a_core_dump_has_what_waited(tmp_path: Path) -> None:
    """Where a page is a trap the dump has a hole. But before it comes to one the migration has noticed, and is over."""
    handler = tmp_path / "handler"
    handler.write_text(_TAKEN.format(folder=tmp_path))
    handler.chmod(0o755)
    os.mkfifo(tmp_path / "go")
    with (
        setting(Path("/proc/sys/kernel/core_pattern"), f"|{handler}"),
        subprocess.Popen([sys.executable, "-c", _DUMPED], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program,
    ):
        assert program.stdin
        assert program.stdout
        assert program.stdout.readline() == b"ready\n"
        migration = nt.attach(program.pid, 0, rate=0, window=1, always=True, mechanism="rwp")
        assert migration.wait_armed(HANG)
        program.stdin.write(b"end\n")
        program.stdin.flush()
        assert migration.wait(HANG)
        assert migration.stats.left[Reason.CANCELLED] >= 64
        (tmp_path / "go").write_text("go\n")
        assert program.wait(HANG) == -signal.SIGABRT
    dump = (tmp_path / "core").read_bytes()
    assert [page for page in range(64) if b"page of the dump %03d" % (page * 13) not in dump] == []


# ---- the kernel's own PROT_NONE entries ----


@pytest.mark.lab
def test_with_automatic_balancing() -> None:
    """Its entries differ by a bit only: neither takes the other's away, and none is left without permission."""
    with setting(Path("/proc/sys/kernel/numa_balancing"), "1"), Memory(512) as memory:

        def touch(cpu: int) -> None:
            os.sched_setaffinity(0, {cpu})
            for _ in range(20):
                memory.check()

        for turn in range(4):
            memory.bind(turn % 2)
            migration = nt.lazy(memory.words, 1 - turn % 2, window=8, mechanism="rwp", rate=2.0**22)
            run_threads(lambda: touch(0), lambda: touch(1))
            assert migration.wait(HANG)
            assert settled(migration.stats, 512)
            memory.check()
            memory.fill()
