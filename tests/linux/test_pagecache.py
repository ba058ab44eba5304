"""Pages that are in memory and have no entry in this process: found, and given one, and no page more."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from support.memory import PAGE_SIZE, Memory, in_child, libc

import nexttouch as nt
from nexttouch import Reason
from nexttouch.linux import pagecache
from nexttouch.linux.pagecache import map_cached, unmapped
from nexttouch.linux.userfaultfd import Feature, Mode, Userfaultfd

NOBODY = 65534
MADV_GUARD_INSTALL = 102


@contextmanager
def unseen(pages: int, *written: int) -> Iterator[tuple[Memory, int]]:
    """Shared memory in which these pages were written by way of its file; and that file."""
    descriptor = os.memfd_create("unseen")
    os.ftruncate(descriptor, pages * PAGE_SIZE)
    for page in written:
        os.pwrite(descriptor, b"x" * PAGE_SIZE, page * PAGE_SIZE)
    with Memory(pages, fill=False, flags=mmap.MAP_SHARED, file=descriptor) as memory:
        yield memory, descriptor
    os.close(descriptor)


def blocks(descriptor: int) -> int:
    return os.fstat(descriptor).st_blocks * 512 // PAGE_SIZE


def test_what_is_in_memory_gets_its_entry_and_holes_stay_holes() -> None:
    with unseen(40, 0, 1, 7, 20, 39) as (memory, descriptor):
        span = memory.address, memory.at(40)
        assert (nt.where(memory.words).total.present, unmapped(*span)) == (0, 5)
        assert map_cached(*span) == unmapped(*span) == 0
        total = nt.where(memory.words).total
        assert (total.present, total.holes, blocks(descriptor)) == (5, 35, 5)
        assert memory.table[7].tobytes() == b"x" * PAGE_SIZE


def test_only_what_is_asked_for() -> None:
    with unseen(10, *range(10)) as (memory, _):
        assert unmapped(memory.at(3) + 5, memory.at(5) + 1) == 3  # parts of pages are pages
        assert map_cached(memory.at(3), memory.at(6)) == 0
        assert (memory.nodes(3, 3) >= 0).all()  # and some around them, as with every touch


def test_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagecache, "_BATCH", 16)
    with unseen(100, *range(0, 100, 3)) as (memory, _):
        span = memory.address, memory.at(100)
        assert unmapped(*span) == 34
        assert map_cached(*span) == 0
        assert (memory.nodes() >= 0).nonzero()[0].tolist() == list(range(0, 100, 3))


def test_an_eager_move_moves_them_and_a_dry_run_names_them() -> None:
    with unseen(40, *range(20)) as (memory, _):
        dry = nt.move(memory.words, 0, dry_run=True)
        assert (dry.pages, dry.moved, dry.left) == (20, 0, {Reason.NOT_MAPPED: 20})
        assert nt.where(memory.words).total.present == 0
        result = nt.move(memory.words, 0)
        assert (result.pages, result.moved, result.left) == (20, 0, {Reason.AT_HOME: 20})


def test_a_lazy_move_moves_them() -> None:
    with unseen(40, *range(20)) as (memory, _), nt.lazy(memory.words, 0, always=True) as migration:
        assert migration.wait()
        assert migration.stats.pages == migration.stats.moved == 20


def test_a_kernel_that_makes_no_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.14 they are counted at least."""
    monkeypatch.setattr(pagecache, "_MADV_POPULATE_READ", 9999)
    with unseen(40, *range(20)) as (memory, _):
        assert map_cached(memory.address, memory.at(40)) == 20
        result = nt.move(memory.words, 0)
        assert (result.pages, result.left) == (20, {Reason.NOT_MAPPED: 20})
        with nt.lazy(memory.words, 0) as migration:
            assert migration.wait()
        assert (migration.stats.pages, migration.stats.left) == (20, {Reason.NOT_MAPPED: 20})


def test_a_handler_of_faults_is_not_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be waited for, and it may be this very thread's."""
    monkeypatch.setattr(pagecache, "_populate", pytest.fail)
    with unseen(8, *range(8)) as (memory, _), Userfaultfd.open(user_mode_only=True) as uffd:
        uffd.api(Feature.MINOR_SHMEM)
        uffd.register(memory.address, 8 * PAGE_SIZE, Mode.MINOR)
        assert map_cached(memory.address, memory.at(8)) == 8


def test_private_memory_has_none() -> None:
    with Memory(8, fill=False) as memory:
        memory.populate(0, 4)
        assert unmapped(memory.address, memory.at(8)) == map_cached(memory.address, memory.at(8)) == 0
        assert (memory.nodes() >= 0).tolist() == [True] * 4 + [False] * 4


def test_a_file_of_another_user() -> None:
    """To who may not write it the kernel says that all of it is in memory, and reading it in would be a surprise."""
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        file.write(os.urandom(16 * PAGE_SIZE))
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        descriptor = os.open(file.name, os.O_RDONLY)
        memory = mmap.mmap(descriptor, 16 * PAGE_SIZE, prot=mmap.PROT_READ)
        os.close(descriptor)
        address = np.frombuffer(memory, np.uint8).ctypes.data
        assert unmapped(address, address + 16 * PAGE_SIZE) == 16  # to its owner it tells

        def as_another() -> tuple[int, int]:
            os.setuid(NOBODY)
            assert libc.prctl(4, 1, 0, 0, 0) == 0  # PR_SET_DUMPABLE
            return unmapped(address, address + 16 * PAGE_SIZE), map_cached(address, address + 16 * PAGE_SIZE)

        assert in_child(as_another) == (0, 0)
        assert map_cached(address, address + 16 * PAGE_SIZE) == 0
        assert nt.where(np.frombuffer(memory, np.uint8)).total.present == 16
