"""A program that unmaps, moves, discards or protects memory while it migrates."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.mechanisms import service, way
from support.memory import HANG, PAGE_SIZE, WORDS, Memory, checked, in_child, libc, run_threads, settled

import nexttouch as nt
from nexttouch import Reason
from nexttouch.linux import procfs
from nexttouch.linux.process import SELF

MADV_DONTNEED, MADV_FREE, MADV_DONTFORK, MADV_COLLAPSE = 4, 8, 10, 25
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
MAP_FIXED_NOREPLACE = 0x100000
MAP_FIXED = 0x10
OVER = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000 | MAP_FIXED  # MAP_NORESERVE
MSEAL = 462
FAILED = 2**64 - 1


def armed(memory: Memory, options: dict[str, Any], **more: Any) -> nt.Migration:
    arguments: dict[str, Any] = {"rate": 0, "window": 1, "always": True} | options | more
    migration = nt.lazy(memory.words, 0, **arguments)
    assert migration.wait_armed(HANG)
    return migration


def same(memory: Memory, first: int, count: int, address: int | None = None) -> bool:
    """Whether pages hold what they shall, at another `address` if one is given."""
    place = memory.at(first) if address is None else address
    words = np.ctypeslib.as_array((ctypes.c_uint64 * (count * WORDS)).from_address(place))
    return bool((words == memory.expected[first * WORDS : (first + count) * WORDS]).all())


def remapped(old: int, size: int, new: int) -> int:
    """mremap(2) to an address that is free, or in use by what is to go."""
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    return checked(
        libc.mremap(ctypes.c_void_p(old), ctypes.c_size_t(size), ctypes.c_size_t(size), flags, ctypes.c_void_p(new))
    )


def reserve(address: int, size: int) -> None:
    """Keep addresses that have just become free from anybody else in this process, such as a migration that begins.

    Whoever was faster is waited for: another mapping put there would take his place.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    place = ctypes.c_void_p(address)
    until = time.monotonic() + HANG
    while (found := libc.mmap(place, ctypes.c_size_t(size), 0, flags, -1, ctypes.c_long(0))) != address:
        assert (found, ctypes.get_errno()) == (FAILED, errno.EEXIST)
        assert time.monotonic() < until


def unmap(memory: Memory, first: int, count: int) -> None:
    assert checked(libc.munmap(ctypes.c_void_p(memory.at(first)), ctypes.c_size_t(count * PAGE_SIZE))) == 0


def discard(memory: Memory, first: int, count: int) -> None:
    """Unmap pages for good: nobody else may come to be where `memory` unmaps all there is in the end."""
    unmap(memory, first, count)
    reserve(memory.at(first), count * PAGE_SIZE)


def moved_there_and_back(memory: Memory, first: int, count: int, room: Memory) -> None:
    """Move pages to the same place of `room` and back, and compare them in both.

    What is free meanwhile is kept from others: the next buffer of some size would land there, and be moved over.
    mremap(2) fails (EFAULT) while a migration has cut the mapping in two; since Linux 6.17 it may have moved what is
    before the cut by then.
    """
    here, there, size = memory.at(first), room.at(first), count * PAGE_SIZE
    try:
        remapped(here, size, there)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        size = min(mapping.start for mapping in procfs.mappings(SELF) if mapping.end > here) - here
        if size <= 0:
            return
    reserve(here, size)
    assert same(memory, first, size // PAGE_SIZE, there)
    remapped(there, size, here)
    reserve(there, size)
    assert same(memory, first, count)


# ---- discarding ----


@way
def test_discarded_pages_read_as_zeros(options: dict[str, Any]) -> None:
    with Memory(100) as memory:
        migration = armed(memory, options)
        memory.advise(MADV_DONTNEED, 20, 30)
        assert not memory.part(20, 30).any()
        memory.expected[20 * WORDS : 50 * WORDS] = 0
        memory.check()
        memory.fill()
        migration.cancel()
        stats = migration.stats
        assert settled(stats, 100)
        if (
            options["mechanism"] != "relocate"
        ):  # there is no event of it: a store to a page that is gone finds none to move
            assert stats.moved + stats.left.get(Reason.ABSENT, 0) + stats.left.get(Reason.CANCELLED, 0) == 100
        else:
            assert (stats.moved, stats.left) == (70, {Reason.DISCARDED: 30})
            assert stats.events == 1
        memory.check()


@way
def test_discarded_pages_do_not_come_back_by_the_sweep(options: dict[str, Any]) -> None:
    with Memory(300) as memory:
        for _ in range(20):
            memory.fill()
            migration = nt.lazy(memory.words, 0, always=True, **options)
            memory.advise(MADV_DONTNEED, 100, 100)
            assert not memory.part(100, 100).any()
            assert migration.wait(HANG)
            assert not memory.part(100, 100).any()
            assert settled(migration.stats, 300)
            assert same(memory, 0, 100)
            assert same(memory, 200, 100)


@service
def test_pages_that_may_be_freed_are_old_or_zero(options: dict[str, Any]) -> None:
    with Memory(50) as memory:
        migration = armed(memory, options)
        memory.advise(MADV_FREE, 10, 20)
        for page in range(50):
            words = memory.table[page]
            assert same(memory, page, 1) or (10 <= page < 30 and not words.any())
        migration.cancel()
        assert settled(migration.stats, 50)


def test_a_hole_punched_into_shared_memory() -> None:
    file = os.memfd_create("pages")
    os.ftruncate(file, 50 * PAGE_SIZE)
    with Memory(50, flags=mmap.MAP_SHARED, file=file) as memory:
        migration = armed(memory, {})
        keep_size_and_punch = 3
        offset, size = ctypes.c_long(10 * PAGE_SIZE), ctypes.c_long(5 * PAGE_SIZE)
        assert libc.fallocate(file, keep_size_and_punch, offset, size) == 0
        assert not memory.part(10, 5).any()
        memory.fill()
        migration.cancel()
        assert settled(migration.stats, 50)
        memory.check()
    os.close(file)


@service
def test_collapsing_armed_pages_into_huge_ones_fills_no_hole(options: dict[str, Any]) -> None:
    with Memory(1024) as memory:
        memory.advise(14)  # MADV_HUGEPAGE
        migration = armed(memory, options)
        memory.part(0, 500)[::WORDS] += np.uint64(0)
        done = libc.madvise(ctypes.c_void_p(memory.address), ctypes.c_size_t(memory.size), MADV_COLLAPSE)
        assert done in (0, -1)
        memory.check()
        migration.cancel()
        assert settled(migration.stats, 1024)
        memory.check()


# ---- unmapping ----


@way
def test_unmapped_pages_are_gone(options: dict[str, Any]) -> None:
    with Memory(100) as memory:
        migration = armed(memory, options)
        discard(memory, 40, 20)
        assert same(memory, 0, 40)
        assert same(memory, 60, 40)
        memory.part(0, 40)[::WORDS] += np.uint64(0)
        migration.cancel()
        stats = migration.stats
        assert settled(stats, 100)
        if options["mechanism"] == "relocate":
            assert (stats.moved, stats.left) == (80, {Reason.UNMAPPED: 20})


@way
def test_what_is_mapped_there_later_is_somebody_elses(options: dict[str, Any]) -> None:
    with Memory(100) as memory:
        migration = armed(memory, options)
        place, size = ctypes.c_void_p(memory.at(40)), ctypes.c_size_t(20 * PAGE_SIZE)
        checked(libc.mmap(place, size, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED, -1, ctypes.c_long(0)))
        assert not memory.part(40, 20).any()
        memory.part(40, 20)[:] = 4711
        migration.cancel()
        assert (memory.part(40, 20) == 4711).all()
        assert same(memory, 0, 40)
        assert same(memory, 60, 40)
        assert settled(migration.stats, 100)


@service
def test_more_holes_than_are_remembered(options: dict[str, Any]) -> None:
    """What the program maps in the last of them stays as the program has made it."""
    pages = 2 * 1100 + 1
    with Memory(pages) as memory:
        migration = armed(memory, options)
        for page in range(1, pages, 2):
            unmap(memory, page, 1)
        place = ctypes.c_void_p(memory.at(pages - 2))
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
        checked(libc.mmap(place, ctypes.c_size_t(PAGE_SIZE), 3, flags, -1, ctypes.c_long(0)))
        checked(libc.madvise(place, ctypes.c_size_t(PAGE_SIZE), MADV_DONTFORK))
        migration.cancel()
        (smap,) = procfs.smaps(SELF, memory.at(pages - 2), memory.at(pages - 1))
        assert "dc" in smap.flags
        (smap,) = procfs.smaps(SELF, memory.at(0), memory.at(1))
        assert not {"dc", "um"} & smap.flags
        assert all(same(memory, page, 1) for page in range(0, pages, 2))
        assert settled(migration.stats, pages)


@way
def test_unmapping_everything_ends_the_migration(options: dict[str, Any]) -> None:
    memory = Memory(100)
    migration = armed(memory, options)
    run_threads(memory.unmap)
    if options["mechanism"] != "relocate":
        migration.cancel()
    assert migration.wait(HANG)
    assert settled(migration.stats, 100)
    assert migration.shadow == []


@way
def test_memory_mapped_and_unmapped_by_many_threads(options: dict[str, Any]) -> None:
    """Each maps, fills, migrates, checks and unmaps, again and again: addresses are used over and over."""

    def use(number: int) -> None:
        for turn in range(12):
            with Memory(64, seed=number * 100 + turn) as memory:
                migration = nt.lazy(memory.words, 0, always=True, rate=0 if turn % 2 else None, **options)
                memory.check()
                if turn % 3:
                    migration.cancel()
                elif turn % 2:
                    assert migration.wait_armed(HANG)
                    memory.fill()
                assert migration.wait(HANG)
                assert settled(migration.stats, 64)
                memory.check()

    run_threads(*(lambda number=number: use(number) for number in range(4)))


# ---- an unmapping that fails ----


def refused_at_a_seal(memory: Memory, call: str) -> int:
    """Unmap half of the first 64 pages with the one behind them, which is sealed."""
    if libc.syscall(MSEAL, ctypes.c_void_p(memory.at(64)), ctypes.c_size_t(PAGE_SIZE), ctypes.c_ulong(0)):
        pytest.skip(f"mseal: {os.strerror(ctypes.get_errno())}")
    place, size = ctypes.c_void_p(memory.at(32)), ctypes.c_size_t(33 * PAGE_SIZE)
    if call == "munmap":
        return int(libc.munmap(place, size))
    return int(libc.mmap(place, size, mmap.PROT_READ, OVER, -1, ctypes.c_long(0)))


def refused_at_the_limit(memory: Memory, _: str) -> int:
    """Map more than RLIMIT_AS allows over all of them."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * PAGE_SIZE + (1 << 28), resource.RLIM_INFINITY))
    place, size = ctypes.c_void_p(memory.address), ctypes.c_size_t(1 << 32)
    return int(libc.mmap(place, size, mmap.PROT_READ, OVER, -1, ctypes.c_long(0)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@way
@pytest.mark.parametrize(
    ("refused", "call"),
    [(refused_at_a_seal, "munmap"), (refused_at_a_seal, "mmap"), (refused_at_the_limit, "mmap")],
    ids=["munmap-sealed", "mmap-sealed", "mmap-limit"],
)
def test_an_unmapping_that_fails_leaves_what_was_there(
    options: dict[str, Any], refused: Callable[[Memory, str], int], call: str
) -> None:
    """The kernel tells of it before it fails."""

    def child() -> bool:  # what is sealed goes with the process
        memory = Memory(65)
        with nt.lazy(memory.part(0, 64), 0, always=True, rate=0, window=1, **options) as migration:
            assert migration.wait_armed(HANG)
            assert refused(memory, call) in (-1, FAILED)
            memory.check()
        memory.check()
        return settled(migration.stats, 64)

    assert in_child(child)


# ---- moving the mapping ----


@service
def test_a_mapping_that_moves_takes_its_contents_along(options: dict[str, Any]) -> None:
    with Memory(100) as memory, Memory(60, fill=False) as room:
        migration = armed(memory, options)
        memory.part(0, 10)[::WORDS] += np.uint64(0)
        assert remapped(memory.at(30), 50 * PAGE_SIZE, room.at(5)) == room.at(5)
        assert same(memory, 30, 50, room.at(5))
        assert same(memory, 0, 30)
        assert same(memory, 80, 20)
        migration.cancel()
        stats = migration.stats
        assert (stats.moved, stats.left) == (50, {Reason.REMAPPED: 50})
        room.part(5, 50)[:] = 1
        assert (room.part(5, 50) == 1).all()


@service
def test_a_mapping_that_moves_twice(options: dict[str, Any]) -> None:
    with Memory(50) as memory, Memory(50, fill=False) as one, Memory(50, fill=False) as two:
        migration = armed(memory, options)
        assert remapped(memory.address, memory.size, one.address) == one.address
        assert remapped(one.address, memory.size, two.address) == two.address
        assert same(memory, 0, 50, two.address)
        assert migration.wait(HANG)
        assert migration.stats.left == {Reason.REMAPPED: 50}


@service
def test_resizing_an_mmap(options: dict[str, Any]) -> None:
    buffer = mmap.mmap(-1, 64 * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    data = np.random.default_rng(1).bytes(64 * PAGE_SIZE)
    buffer[:] = data
    migration = nt.lazy(buffer, 0, always=True, rate=0, **options)
    with pytest.raises(BufferError):  # Python knows that somebody looks at it
        buffer.resize(128 * PAGE_SIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    old, new = ctypes.c_size_t(64 * PAGE_SIZE), ctypes.c_size_t(4096 * PAGE_SIZE)
    with Memory(4096, fill=False) as room:  # as realloc does for large blocks
        flags, to = MREMAP_MAYMOVE | MREMAP_FIXED, ctypes.c_void_p(room.address)
        moved = checked(libc.mremap(ctypes.c_void_p(address), old, new, flags, to))
        reserve(address, 64 * PAGE_SIZE)
        assert ctypes.string_at(moved, 64 * PAGE_SIZE) == data
        assert not room.part(64, 4096 - 64).any()
        assert migration.wait(HANG)
        assert migration.stats.left == {Reason.REMAPPED: 64}
        back = checked(libc.mremap(to, new, old, flags, ctypes.c_void_p(address)))
        reserve(room.address, room.size)
        assert back == address
    assert buffer[:] == data
    del back
    assert nt.lazy(buffer, 0, always=True).wait(HANG)
    assert buffer[:] == data


@service
def test_a_mapping_that_grows_and_shrinks_where_it_is(options: dict[str, Any]) -> None:
    with Memory(100) as memory:
        discard(memory, 60, 40)
        migration = nt.lazy(memory.part(0, 60), 0, always=True, rate=0, window=1, **options)
        assert migration.wait_armed(HANG)
        place = ctypes.c_void_p(memory.address)
        sizes = [ctypes.c_size_t(pages * PAGE_SIZE) for pages in (60, 90, 30)]
        unmap(memory, 60, 40)
        assert checked(libc.mremap(place, sizes[0], sizes[1], 0)) == memory.address
        reserve(memory.at(90), 10 * PAGE_SIZE)
        memory.part(60, 30)[:] = 5
        assert (memory.part(60, 30) == 5).all()
        assert checked(libc.mremap(place, sizes[1], sizes[2], 0)) == memory.address
        reserve(memory.at(30), 60 * PAGE_SIZE)
        assert same(memory, 0, 30)
        assert migration.wait(HANG)
        assert (migration.stats.moved, migration.stats.left) == (30, {Reason.UNMAPPED: 30})


# ---- other changes ----


@way
@pytest.mark.parametrize("access", [0, mmap.PROT_READ])
def test_protected_meanwhile(options: dict[str, Any], access: int) -> None:
    """Pages whose protection has changed while they were out of place are there again when it is changed back."""
    with Memory(100) as memory:
        migration = armed(memory, options)
        memory.protect(access, 20, 30)
        memory.part(0, 20)[::WORDS] += np.uint64(0)
        if access:
            memory.check()
        migration.cancel()
        assert settled(migration.stats, 100)
        assert not migration.stats.left.get(Reason.STRANDED)
        memory.protect(mmap.PROT_READ | mmap.PROT_WRITE, 20, 30)
        memory.check()


def test_locked_meanwhile() -> None:
    with Memory(50) as memory:
        migration = armed(memory, {})
        where, size = ctypes.c_void_p(memory.at(10)), ctypes.c_size_t(20 * PAGE_SIZE)
        done = libc.mlock(where, size)  # brings in what is not there: a touch
        assert done == 0, errno.errorcode[ctypes.get_errno()]
        memory.check()
        assert migration.wait(HANG)
        assert migration.stats.moved_by_touch == 50
        assert libc.munlock(where, size) == 0


@way
def test_changes_of_all_kinds_while_another_thread_migrates(options: dict[str, Any]) -> None:
    """Discards and refills, protections and moves there and back, in turn, against a model of each page."""
    pages, half = 192, 96
    over = threading.Event()
    rng = np.random.default_rng(5)
    with Memory(pages) as memory, Memory(pages, fill=False) as room:

        def migrate() -> None:
            while not over.is_set():
                migration = nt.lazy(memory.words, 0, always=True, window=4, **options)
                assert migration.wait(HANG)

        def change() -> None:
            try:
                for turn in range(60):
                    first = int(rng.integers(0, 150))
                    count = int(rng.integers(1, 40))
                    kind = turn % 3
                    if kind == 0:
                        memory.advise(MADV_DONTNEED, first, count)
                        memory.part(first, count)[:] = memory.expected[first * WORDS : (first + count) * WORDS]
                    elif kind == 1:
                        memory.protect(mmap.PROT_READ, first, count)
                        assert same(memory, first, count)
                        memory.protect(mmap.PROT_READ | mmap.PROT_WRITE, first, count)
                    else:
                        moved_there_and_back(memory, turn // 3 % 2 * half, half, room)
            finally:
                over.set()

        run_threads(change, migrate)
        memory.check()
