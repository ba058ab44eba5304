"""Memory of every kind: each page moves, or stays for the reason that holds for it, and none is lost."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from support.holders import in_a_pipe, registered, while_a_child_shares
from support.mechanisms import service, traps_touches, way
from support.memory import (
    HANG,
    HUGE,
    PAGE_SIZE,
    WORDS,
    Memory,
    libc,
    more_hugetlb,
    on_nodes,
    settled,
)
from support.nodes import filled
from support.traps import RWP

import nexttouch as nt
from nexttouch import Reason
from nexttouch.linux import mempolicy
from nexttouch.linux.mempolicy import Mode
from nexttouch.linux.process import SELF
from nexttouch.live.pages import find

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


SHARED = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
MADV_GUARD_INSTALL = 102


def migrated(memory: Memory, options: dict[str, Any], *, first: int = 0, count: int | None = None) -> nt.Stats:
    """Arm pages, write to every second, let the sweep have the rest, and compare every word."""
    part = memory.part(first, memory.pages - first if count is None else count)
    with nt.lazy(part, 0, always=True, deadline=0, **options) as migration:
        assert migration.wait_armed(HANG)
        part[:: 2 * WORDS] += np.uint64(1)
    memory.expected[first * WORDS : first * WORDS + len(part) : 2 * WORDS] += np.uint64(1)
    memory.check()
    stats = migration.stats
    assert settled(stats, stats.pages)
    return stats


# ---- pages that somebody holds ----


@service
def test_pinned_pages_stay_and_nothing_else(options: dict[str, Any]) -> None:
    with Memory(100) as memory, registered(memory, 30, 7):
        before = memory.frames()
        stats = migrated(memory, options)
        assert (stats.moved, stats.left) == (93, {Reason.BUSY: 7})
        assert np.flatnonzero(memory.frames() == before).tolist() == list(range(30, 37))


@pytest.mark.lab
def test_pinned_pages_stay_when_they_are_protected() -> None:
    with Memory(100) as memory:
        memory.bind(0)
        with registered(memory, 30, 7):
            with nt.lazy(memory.words, 1, mechanism="write_protect") as migration:
                pass
            stats = migration.stats
            assert (stats.moved, stats.left) == (93, {Reason.BUSY: 7})
            assert np.flatnonzero(memory.nodes() == 0).tolist() == list(range(30, 37))
            memory.fill()
        memory.check()


@way
def test_pages_in_a_pipe(options: dict[str, Any]) -> None:
    """References that are no pins do not keep a page from being copied; the pipe keeps the frame it was given."""
    with Memory(64) as memory, in_a_pipe(memory, 8, 16) as pipe:
        stats = migrated(memory, options)
        assert stats.moved + stats.left.get(Reason.BUSY, 0) == 64
        read = np.frombuffer(os.read(pipe, 16 * PAGE_SIZE), np.uint64)
        original = memory.expected[8 * WORDS : 24 * WORDS].copy()
        original[:: 2 * WORDS] -= np.uint64(1)
        different = np.flatnonzero(read != original)
        assert set(different.tolist()) <= set(range(0, 16 * WORDS, 2 * WORDS))  # what was written later


@way
def test_pages_shared_with_a_child(options: dict[str, Any]) -> None:
    with Memory(64) as memory, Memory(20) as other:

        def meanwhile() -> None:
            with nt.lazy(memory.words, 0, always=True, **options) as migration:
                pass
            stats = migration.stats
            if options["mechanism"] != "relocate":  # on one node there is nothing to do that the kernel could refuse
                assert stats.moved == 64
            else:
                assert stats.left == {Reason.SHARED: 64}
            memory.check()
            # What only this process has by now is not shared.
            other.part(0, 15)[::WORDS] += np.uint64(0)
            with nt.lazy(other.words, 0, always=True, **options) as migration:
                pass
            assert migration.stats.moved == 20 - 5 * (options["mechanism"] == "relocate")

        while_a_child_shares(meanwhile, memory, other)
        memory.check()
        other.check()


@pytest.mark.lab
@way
def test_pages_shared_with_a_child_stay(options: dict[str, Any]) -> None:
    with Memory(64) as memory:
        memory.bind(0)

        def meanwhile() -> None:
            memory.part(0, 10)[::WORDS] += np.uint64(0)
            with nt.lazy(memory.words, 2, **options) as migration:
                pass
            assert (migration.stats.moved, migration.stats.left) == (10, {Reason.SHARED: 54})

        while_a_child_shares(meanwhile, memory)
        assert on_nodes(memory) == {0: 54, 2: 10}
        memory.check()


# ---- memory with a promise ----


def test_locked_pages_are_protected_and_stay_locked() -> None:
    with Memory(50) as memory:
        assert libc.mlock(ctypes.c_void_p(memory.at(10)), ctypes.c_size_t(20 * PAGE_SIZE)) == 0
        plan = nt.lazy(memory.words, 0, always=True)
        assert plan.wait(HANG)
        assert {(part.mechanism, len(part.origins)) for part in plan.plan.parts} == {
            ("relocate", 30),
            ("write_protect", 20),
        }
        assert migrated(memory, {}).moved == 50
        assert libc.munlock(ctypes.c_void_p(memory.at(10)), ctypes.c_size_t(20 * PAGE_SIZE)) == 0


@service
@pytest.mark.parametrize("mode", [Mode.BIND, Mode.PREFERRED, Mode.INTERLEAVE])
def test_memory_with_a_policy_of_its_own_keeps_it(options: dict[str, Any], mode: Mode) -> None:
    with Memory(100) as memory:
        mempolicy.mbind(memory.at(20), 40 * PAGE_SIZE, mode, (0,))
        before, policy = memory.frames(), mempolicy.policy_of(memory.at(20))
        stats = migrated(memory, options)
        assert (stats.moved, stats.left) == (100, {})
        changed = memory.frames() != before  # within a node only where that takes no policy away
        assert (changed[:20].all(), changed[20:60].any(), changed[60:].all()) == (True, False, True)
        assert mempolicy.policy_of(memory.at(20)) == policy
        assert mempolicy.policy_of(memory.at(0)).mode is Mode.DEFAULT


@pytest.mark.lab
@service
def test_a_policy_does_not_keep_pages_from_another_node(options: dict[str, Any]) -> None:
    with Memory(100) as memory:
        memory.bind(0)
        mempolicy.mbind(memory.at(20), 40 * PAGE_SIZE, Mode.BIND, (0,))
        with nt.lazy(memory.words, 3, **options) as migration:
            assert migration.wait_armed(HANG)
            memory.words[::WORDS] += np.uint64(0)
        assert (migration.stats.moved, on_nodes(memory)) == (100, {3: 100})
        assert mempolicy.policy_of(memory.at(20)) == (Mode.BIND, (0,), 0)
        memory.check()


# ---- huge pages ----


@service
def test_huge_pages_stay_huge(options: dict[str, Any]) -> None:
    with Memory(3 * HUGE, huge=True) as memory:
        if memory.huge_pages() < 3 * HUGE:
            pytest.skip("the kernel gave no huge pages")
        before = memory.frames()
        migration = nt.lazy(memory.words, 0, always=True, rate=0, window=1, **options)
        assert migration.wait_armed(HANG)
        memory.part(HUGE, HUGE)[100] += np.uint64(0)
        migration.cancel()
        stats = migration.stats
        assert (stats.moved_by_touch, stats.faults, stats.windows) == (HUGE, 1, 1)
        assert stats.left == {Reason.CANCELLED: 2 * HUGE}
        assert memory.huge_pages() == 3 * HUGE
        changed = memory.frames() != before
        assert changed.reshape(3, HUGE).all(axis=1).tolist() == [False, True, False]
        assert changed.sum() == HUGE
        assert migrated(memory, options).moved == 3 * HUGE
        assert memory.huge_pages() == 3 * HUGE


@way
def test_a_part_of_a_huge_page(options: dict[str, Any]) -> None:
    with Memory(2 * HUGE, huge=True) as memory:
        before = memory.frames()
        stats = migrated(memory, options, first=HUGE // 2, count=HUGE)
        assert (stats.moved, stats.left) == (HUGE, {})
        if options["mechanism"] == "relocate":
            assert np.flatnonzero(memory.frames() != before).tolist() == list(range(HUGE // 2, HUGE // 2 + HUGE))


@way
def test_a_hole_in_huge_pages(options: dict[str, Any]) -> None:
    with Memory(2 * HUGE, huge=True) as memory:
        memory.advise(4, HUGE + 7, 1)  # MADV_DONTNEED
        memory.expected[(HUGE + 7) * WORDS : (HUGE + 8) * WORDS] = 0
        stats = migrated(memory, options)
        assert stats.moved + stats.hole_faults >= 2 * HUGE - 1
        assert stats.left == {}


@pytest.mark.parametrize("flags", [SHARED, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS])
def test_hugetlb(flags: int) -> None:
    with more_hugetlb(2) as reserved:
        if reserved < 2:
            pytest.skip("the kernel has no huge pages of hugetlb")
        with Memory(2 * HUGE, huge=True, flags=flags | 0x40000) as memory:  # MAP_HUGETLB
            stats = migrated(memory, {})
            if flags == SHARED:
                assert (stats.moved, stats.left) == (2 * HUGE, {})
            else:
                assert stats.left == {Reason.AT_HOME: 2 * HUGE}


# ---- files ----


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
@pytest.mark.parametrize("kind", ["memfd", "file"])
def test_files(flags: int, kind: str) -> None:
    # /var/tmp is on a disk; /tmp need not be.
    file = os.memfd_create("pages") if kind == "memfd" else os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR)
    os.ftruncate(file, 64 * PAGE_SIZE)
    with Memory(64, flags=flags, file=file) as memory:
        stats = migrated(memory, {})
        if (kind, flags) == ("memfd", mmap.MAP_SHARED):
            assert (stats.moved, stats.left) == (64, {})
        else:  # no trap: they would be moved at the end, if they were not on the node already
            assert stats.left == {Reason.AT_HOME: 64}
        if flags == mmap.MAP_SHARED:
            assert os.pread(file, 64 * PAGE_SIZE, 0) == memory.expected.tobytes()
    os.close(file)


def test_shared_memory_seen_through_two_mappings() -> None:
    file = os.memfd_create("pages")
    os.ftruncate(file, 64 * PAGE_SIZE)
    with Memory(64, flags=mmap.MAP_SHARED, file=file) as one, Memory(64, fill=False, flags=1, file=file) as other:
        stats = migrated(one, {})
        assert stats.pages == 64
        other.expected[:] = one.expected
        other.check()
    os.close(file)


@pytest.mark.lab
def test_shared_memory_is_swept_and_what_cannot_be_trapped_moved_at_the_end() -> None:
    kinds = [("memfd", mmap.MAP_PRIVATE), ("file", mmap.MAP_SHARED), ("file", mmap.MAP_PRIVATE)]
    for kind, flags in kinds:
        file = os.memfd_create("pages") if kind == "memfd" else os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
        os.ftruncate(file, 64 * PAGE_SIZE)
        with Memory(64, flags=flags, file=file) as memory:
            memory.bind(0)
            with nt.lazy(memory.words, 1) as migration:
                pass
            stats = migration.stats
            if flags == mmap.MAP_SHARED or RWP:
                assert (stats.moved_by_sweep, stats.left) == (64, {})
            else:
                assert (stats.moved_eagerly, stats.left) == (64, {})
            assert on_nodes(memory) == {1: 64}
            memory.check()
        os.close(file)


@pytest.mark.lab
def test_memory_that_is_in_part_read_only() -> None:
    with Memory(30) as memory:
        memory.bind(0)
        memory.protect(mmap.PROT_READ, 10, 10)
        migration = nt.lazy(memory.words, 1, rate=0)
        assert migration.wait_armed(HANG)
        memory.check()
        assert migration.wait(HANG)
        stats = migration.stats
        assert (stats.moved_by_touch, stats.moved_eagerly, stats.left) == ((30, 0, {}) if RWP else (20, 10, {}))
        assert on_nodes(memory) == {1: 30}


# ---- pages that are not there ----


@service
def test_holes_touched_meanwhile(options: dict[str, Any]) -> None:
    with Memory(90, fill=False) as memory:
        for page in range(0, 90, 3):
            memory.part(page, 1)[:] = memory.expected[page * WORDS : (page + 1) * WORDS]
        migration = nt.lazy(memory.words, 0, always=True, rate=0, window=1, **options)
        assert migration.wait_armed(HANG)
        assert migration.stats.pages == 30
        for page in range(1, 85, 3):  # between pages that wait
            assert not memory.part(page, 1).any()
            memory.part(page, 1)[:] = memory.expected[page * WORDS : (page + 1) * WORDS]
        stats = migration.stats
        assert (stats.hole_faults, stats.faults, stats.moved, stats.waiting) == (28, 28, 0, 30)
        migration.cancel()
        for page in range(90):
            filled = page % 3 == 0 or (page % 3 == 1 and page < 85)
            assert (memory.table[page] == (memory.expected[page * WORDS : (page + 1) * WORDS] if filled else 0)).all()


@way
def test_zero_pages_are_none(options: dict[str, Any]) -> None:
    with Memory(30) as memory:
        memory.advise(4, 10, 10)
        memory.populate(10, 10, read=True)
        memory.expected[10 * WORDS : 20 * WORDS] = 0
        stats = migrated(memory, options)
        assert (stats.pages, stats.moved) == (20, 20)


@way
def test_neighbours_without_access(options: dict[str, Any]) -> None:
    """`Memory` has a page without access on each side; another in the middle is not the program's to lose."""
    with Memory(30) as memory:
        memory.protect(0, 15, 1)
        with nt.lazy(memory.words, 0, always=True, deadline=0, **options) as migration:
            assert migration.wait_armed(HANG)
            memory.part(0, 15)[::WORDS] += np.uint64(0)
        assert migration.stats.pages == 30
        assert migration.stats.moved == 29
        memory.protect(mmap.PROT_READ | mmap.PROT_WRITE, 15, 1)
        memory.check()


@way
def test_guard_pages_stay_guards(options: dict[str, Any]) -> None:
    with Memory(30) as memory:
        if libc.madvise(ctypes.c_void_p(memory.at(15)), ctypes.c_size_t(2 * PAGE_SIZE), MADV_GUARD_INSTALL):
            pytest.skip("the kernel has no guard pages in page tables")
        with nt.lazy(memory.words, 0, always=True, rate=0, **options) as migration:
            assert migration.wait_armed(HANG)
            assert is_guarded(memory, 15)
            memory.part(0, 15)[::WORDS] += np.uint64(0)
            memory.part(17, 13)[::WORDS] += np.uint64(0)
        assert (migration.stats.pages, migration.stats.moved) == (28, 28)
        assert is_guarded(memory, 15)
        assert is_guarded(memory, 16)
        assert (memory.part(0, 15) == memory.expected[: 15 * WORDS]).all()
        assert (memory.part(17, 13) == memory.expected[17 * WORDS :]).all()


def is_guarded(memory: Memory, page: int) -> bool:
    """Whether a touch of the page would be a fault: the kernel copies nothing from there."""
    reading, writing = os.pipe()
    try:
        done = libc.write(writing, ctypes.c_void_p(memory.at(page)), ctypes.c_size_t(8))
        return done == -1 and ctypes.get_errno() == errno.EFAULT
    finally:
        os.close(reading)
        os.close(writing)


# ---- system calls that touch the array ----


def test_system_calls_touch_too() -> None:
    """The thread serves faults of the kernel as well."""
    with Memory(64) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0, window=4)
        assert migration.wait_armed(HANG)
        file = os.memfd_create("copy")
        assert os.write(file, memory.part(0, 32).data) == 32 * PAGE_SIZE
        assert os.pread(file, 32 * PAGE_SIZE, 0) == memory.expected[: 32 * WORDS].tobytes()
        memory.expected[32 * WORDS :] = 7
        os.pwrite(file, memory.expected[32 * WORDS :].data, 0)
        assert os.preadv(file, [memory.part(32, 32).data], 0) == 32 * PAGE_SIZE
        os.close(file)
        assert migration.wait(HANG)
        assert migration.stats.moved_by_touch == 64
        memory.check()


def test_system_calls_fail_on_armed_pages_of_the_inline_service() -> None:
    """They say so (EFAULT), and succeed after a touch."""
    with Memory(16) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0, window=1, service="inline")
        assert migration.wait_armed(HANG)
        file = os.memfd_create("copy")
        with pytest.raises(OSError, match="Bad address"):
            os.write(file, memory.part(0, 8).data)
        memory.words[::WORDS] += np.uint64(0)
        assert os.write(file, memory.part(0, 8).data) == 8 * PAGE_SIZE
        os.close(file)
        assert migration.wait(HANG)
        memory.check()


@way
def test_looking_from_outside(options: dict[str, Any]) -> None:
    """Who looks into the memory as a debugger does sees its contents or an error, never zeros."""
    with Memory(16) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0, window=1, **options)
        assert migration.wait_armed(HANG)
        trapped = traps_touches(options)
        mem = os.open("/proc/self/mem", os.O_RDONLY)
        if trapped:  # this file cannot wait for a fault to be served
            with pytest.raises(OSError, match="Input/output error"):
                os.pread(mem, PAGE_SIZE, memory.address)
        else:
            assert os.pread(mem, 16 * PAGE_SIZE, memory.address) == memory.expected.tobytes()
        copy = np.zeros(16 * WORDS, np.uint64)
        here = struct.pack("<QQ", copy.ctypes.data, copy.nbytes)
        there = struct.pack("<QQ", memory.address, copy.nbytes)
        copied = libc.process_vm_readv(os.getpid(), here, 1, there, 1, 0)
        if options.get("service") == "inline":
            assert (copied, ctypes.get_errno()) == (-1, errno.EFAULT)
        else:
            assert copied == copy.nbytes
            assert (copy == memory.expected).all()
        memory.fill()
        assert migration.wait(HANG)
        assert os.pread(mem, 16 * PAGE_SIZE, memory.address) == memory.expected.tobytes()
        os.close(mem)
        memory.check()


@service
def test_a_page_that_has_moved_takes_memory_once(options: dict[str, Any]) -> None:
    with Memory(100) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0, window=1, **options)
        assert migration.wait_armed(HANG)
        ((start, size),) = migration.shadow
        assert find(SELF, start, start + size).count == 100
        memory.words[: 60 * WORDS : WORDS] += np.uint64(0)
        # The pager lets the program go on before it frees the frame that the last page has left.
        assert 40 <= find(SELF, start, start + size).count <= 41
        migration.cancel()
        memory.check()


_PEAK = """
import re, sys
import numpy as np
import nexttouch as nt
def kibibytes(name):
    return int(re.search(rf"^{name}:\\s+(\\d+) kB", open("/proc/self/status").read(), re.M)[1])
pages = 16384
array = nt.zeros(pages * 512)
array[:] = 1
migration = nt.lazy(array, 0, always=True, rate=0, window=pages, service=sys.argv[1])
assert migration.wait_armed(60)
open("/proc/self/clear_refs", "w").write("5")  # the peak begins here
before = kibibytes("VmRSS")
for page in range(pages):
    array[page * 512] += 0
migration.wait(60)
print(kibibytes("VmHWM") - before, migration.stats.moved_by_touch)
migration.cancel()
"""


@service
def test_a_large_window_takes_little_memory_at_once(options: dict[str, Any]) -> None:
    """A control group that has little to spare would kill the program for it."""
    command = [sys.executable, "-c", _PEAK, options["service"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True)
    more, moved = map(int, done.stdout.split())
    assert moved > 8192
    assert more < 8 << 10


_LOCKED = """
import ctypes, os
import nexttouch as nt
array = nt.zeros(100 * 512)
array[:] = range(100 * 512)
assert ctypes.CDLL(None).mlockall(2) == 0  # MCL_FUTURE
with nt.lazy(array, 0, always=True) as migration:
    pass
assert (array == range(100 * 512)).all()
print(migration.stats.moved, migration.plan.parts[0].mechanism)
"""


def test_what_is_mapped_from_now_on_is_locked() -> None:
    """The place where pages are parked is not."""
    done = subprocess.run([sys.executable, "-c", _LOCKED], capture_output=True, text=True, timeout=HANG, check=True)
    assert done.stdout == "100 relocate\n"


def test_memory_with_code_moves_when_it_is_written_to() -> None:
    """UFFDIO_MOVE takes no page to a mapping of another protection."""
    with Memory(64) as memory:
        memory.protect(mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC, 0, 64)
        with nt.lazy(memory.words, 0, always=True) as migration:
            pass
        assert (migration.stats.moved, migration.plan.parts[0].mechanism) == (64, "write_protect")
        memory.check()


_HEAP = """
import ctypes, sys
import nexttouch as nt
from nexttouch.linux.procfs import Kind, mappings
(heap,) = (mapping for mapping in mappings() if mapping.kind is Kind.HEAP)
memory = (ctypes.c_char * (heap.end - heap.start)).from_address(heap.start)
migration = nt.lazy(memory, 0, always=True, rate=0, mechanism=sys.argv[1])
assert migration.wait_armed(60)
words = [str(number) for number in range(100_000)]
migration.cancel()
assert migration.stats.moved_by_touch
assert words == list(map(str, range(100_000)))
"""


@way
def test_all_of_the_heap(options: dict[str, Any]) -> None:
    """The pager's own memory is not on it: it would wait for itself."""
    if options["service"] == "inline":
        pytest.skip("system calls of the interpreter fail, and new threads block SIGBUS, while its heap is armed")
    subprocess.run([sys.executable, "-c", _HEAP, options["mechanism"]], timeout=HANG, check=True)


# ---- what a step of the sweep takes ----


@pytest.mark.lab
@way
def test_fragments_are_swept_together(options: dict[str, Any]) -> None:
    """Runs of one page with a hole behind each: a step, and so a call of move_pages(2), is of 64 of them."""
    with Memory(256, fill=False) as memory:
        memory.advise(15)  # MADV_NOHUGEPAGE
        for page in range(0, 256, 2):
            memory.populate(page, 1)
        memory.bind(0)
        with nt.lazy(memory.words, 1, **options) as migration:
            pass
        assert (migration.stats.moved_by_sweep, migration.stats.sweeps) == (128, 128)
        assert migration.stats.moves <= 4
        assert on_nodes(memory)[1] == 128


# ---- a full node ----


@pytest.mark.lab
@way
def test_a_full_node(options: dict[str, Any]) -> None:
    """What does not fit is readable, elsewhere, and counted as such; what is counted as moved is there."""
    with Memory(8192) as memory:
        memory.bind(0)
        with filled(3, 2048):
            with nt.lazy(memory.words, 3, **options) as migration:
                memory.check()
            stats = migration.stats
            assert settled(stats, 8192)
            assert set(stats.left) == {Reason.TARGET_FULL}
            assert on_nodes(memory).get(3, 0) == stats.moved > 0
            memory.check()
        with nt.lazy(memory.words, 3, **options) as migration:
            pass
        assert on_nodes(memory) == {3: 8192}
        memory.check()


@pytest.mark.lab
def test_a_full_node_and_huge_pages() -> None:
    with Memory(4 * HUGE, huge=True) as memory:
        memory.bind(0)
        assert memory.huge_pages() == 4 * HUGE
        with filled(3, 300):
            with nt.lazy(memory.words, 3) as migration:
                memory.check()
            assert settled(migration.stats, 4 * HUGE)
            assert set(migration.stats.left) == {Reason.TARGET_FULL}
            assert on_nodes(memory).get(3, 0) == migration.stats.moved
            memory.check()
