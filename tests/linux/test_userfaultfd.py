"""The ioctls of userfaultfd, tried on the running kernel, one page at a time."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nexttouch.errors import FeatureMissing, InvalidArgument, KernelError
from nexttouch.linux.syscall import PAGE_SIZE
from nexttouch.linux.userfaultfd import (
    Event,
    Fault,
    FaultFlag,
    Feature,
    Fork,
    Mode,
    RangeIoctl,
    Remap,
    Remove,
    Unmap,
    Userfaultfd,
    available_features,
    parse_event,
)

HANG = 60.0
"""Seconds after which something that has not happened never will."""

AVAILABLE = available_features()
needs_move = pytest.mark.skipif(not AVAILABLE & Feature.MOVE, reason="this kernel has no UFFDIO_MOVE")


@contextmanager
def memory_of(pages: int, *, shared: bool = False) -> Iterator[tuple[mmap.mmap, int]]:
    flags = (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE) | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, pages * PAGE_SIZE, flags=flags) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        yield memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


@pytest.fixture
def uffd() -> Iterator[Userfaultfd]:
    with Userfaultfd.open() as opened:
        yield opened


def entry(address: int) -> int:
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(address // PAGE_SIZE * 8)
        return int.from_bytes(pagemap.read(8), "little")


def present(address: int) -> bool:
    return bool(entry(address) >> 63)


def write_protected(address: int) -> bool:
    return bool(entry(address) >> 57 & 1)


def events_of(uffd: Userfaultfd) -> list[Event]:
    deadline = time.monotonic() + HANG
    while not (events := uffd.read_events()):
        assert time.monotonic() < deadline, "no event came"
        time.sleep(0.0005)
    return events


def error_of(function: Callable[..., object], *arguments: object, **options: object) -> int | None:
    with pytest.raises(KernelError) as error:
        function(*arguments, **options)
    return error.value.errno


# ---- The descriptor -----------------------------------------------------------------------------------------------


def test_a_descriptor_is_closed_once_and_on_exec_and_never_blocks() -> None:
    with Userfaultfd.open() as uffd:
        number = uffd.fileno()
        assert str(Path(f"/proc/self/fd/{number}").readlink()) == "anon_inode:[userfaultfd]"
        assert not os.get_inheritable(number)
        assert not os.get_blocking(number)
    uffd.close()
    with pytest.raises(InvalidArgument, match="userfaultfd is closed"):
        uffd.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_detached_descriptor_stays_open() -> None:
    with Userfaultfd.open() as uffd:
        number = uffd.detach()
    os.close(number)


def test_the_handshake_goes_once(uffd: Userfaultfd) -> None:
    assert uffd.api(Feature.THREAD_ID) == AVAILABLE
    assert error_of(uffd.api) == errno.EINVAL


def test_unknown_features_are_refused(uffd: Userfaultfd) -> None:
    assert error_of(uffd.api, 1 << 40) == errno.EINVAL


def test_nothing_works_before_the_handshake(uffd: Userfaultfd) -> None:
    with memory_of(1) as (_, address):
        assert error_of(uffd.register, address, PAGE_SIZE, Mode.MISSING) == errno.EINVAL
    assert error_of(uffd.read_events) == errno.EINVAL


def test_every_bit_is_at_its_place() -> None:
    # include/uapi/linux/userfaultfd.h of 6.18, then the two posted bits.
    names = [
        "PAGEFAULT_FLAG_WP",
        "EVENT_FORK",
        "EVENT_REMAP",
        "EVENT_REMOVE",
        "MISSING_HUGETLBFS",
        "MISSING_SHMEM",
        "EVENT_UNMAP",
        "SIGBUS",
        "THREAD_ID",
        "MINOR_HUGETLBFS",
        "MINOR_SHMEM",
        "EXACT_ADDRESS",
        "WP_HUGETLBFS_SHMEM",
        "WP_UNPOPULATED",
        "POISON",
        "WP_ASYNC",
        "MOVE",
        "RWP",
        "RWP_ASYNC",
    ]
    assert [(bit.name, bit.value) for bit in Feature] == [(name, 1 << at) for at, name in enumerate(names)]


@pytest.mark.skipif(
    Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0"
    or bool(Path("/dev/userfaultfd").stat().st_mode & 6),
    reason="any user may have a userfaultfd",
)
def test_a_user_who_may_not_is_told_what_would_help() -> None:
    pid = os.fork()
    if pid == 0:
        os.setresuid(65534, 65534, 65534)
        before = len(list(Path("/proc/self/fd").iterdir()))
        try:
            Userfaultfd.open()
        except FeatureMissing as error:
            told = "vm.unprivileged_userfaultfd=1" in error.remedy and "/dev/userfaultfd" in error.remedy
            os._exit(0 if told and len(list(Path("/proc/self/fd").iterdir())) == before else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ---- Missing pages ------------------------------------------------------------------------------------------------


def test_registering_tells_which_ioctls_the_memory_takes(uffd: Userfaultfd) -> None:
    uffd.api()
    with memory_of(1) as (_, address):
        ioctls = uffd.register(address, PAGE_SIZE, Mode.MISSING | Mode.WP)
        basic = RangeIoctl.WAKE | RangeIoctl.COPY | RangeIoctl.ZEROPAGE | RangeIoctl.WRITEPROTECT
        assert ioctls & basic == basic
        assert bool(ioctls & RangeIoctl.MOVE) == bool(AVAILABLE & Feature.MOVE)
        assert bool(ioctls & RangeIoctl.RWPROTECT) == bool(AVAILABLE & Feature.RWP)


def test_a_range_belongs_to_one_descriptor_until_it_is_given_back(uffd: Userfaultfd) -> None:
    uffd.api()
    with memory_of(1) as (_, address), Userfaultfd.open() as other:
        other.api()
        uffd.register(address, PAGE_SIZE, Mode.MISSING)
        assert error_of(other.register, address, PAGE_SIZE, Mode.MISSING) == errno.EBUSY
        uffd.unregister(address, PAGE_SIZE)
        other.register(address, PAGE_SIZE, Mode.MISSING)


def test_copy_fills_missing_pages_and_says_how_far_it_came(uffd: Userfaultfd) -> None:
    uffd.api()
    with memory_of(4) as (memory, address), memory_of(4) as (source, source_address):
        source[:] = bytes([1]) * PAGE_SIZE + bytes([2]) * PAGE_SIZE + bytes([3]) * 2 * PAGE_SIZE
        memory[2 * PAGE_SIZE] = 9  # a page is there
        uffd.register(address, 4 * PAGE_SIZE, Mode.MISSING)
        assert uffd.copy(address, source_address, 4 * PAGE_SIZE) == 2 * PAGE_SIZE
        at = 2 * PAGE_SIZE
        assert error_of(uffd.copy, address + at, source_address + at, 2 * PAGE_SIZE) == errno.EEXIST
        assert uffd.copy(address + 3 * PAGE_SIZE, source_address + 3 * PAGE_SIZE, PAGE_SIZE) == PAGE_SIZE
        assert [memory[page * PAGE_SIZE] for page in range(4)] == [1, 2, 9, 3]


def test_copy_can_protect_what_it_fills(uffd: Userfaultfd) -> None:
    uffd.api(Feature.PAGEFAULT_FLAG_WP)
    with memory_of(2) as (_, address), memory_of(2) as (source, source_address):
        source[:1] = b"x"
        uffd.register(address, 2 * PAGE_SIZE, Mode.MISSING | Mode.WP)
        uffd.copy(address, source_address, PAGE_SIZE, write_protect=True)
        uffd.copy(address + PAGE_SIZE, source_address, PAGE_SIZE)
        assert [write_protected(address), write_protected(address + PAGE_SIZE)] == [True, False]


def test_zeropage_says_how_far_it_came(uffd: Userfaultfd) -> None:
    uffd.api()
    with memory_of(3) as (memory, address):
        memory[PAGE_SIZE] = 1
        uffd.register(address, 3 * PAGE_SIZE, Mode.MISSING)
        assert uffd.zeropage(address, 3 * PAGE_SIZE) == PAGE_SIZE
        assert error_of(uffd.zeropage, address + PAGE_SIZE, 2 * PAGE_SIZE) == errno.EEXIST
        assert present(address)
        assert not present(address + 2 * PAGE_SIZE)
        assert memory[0] == 0


@needs_move
def test_move_takes_pages_and_says_how_far_it_came(uffd: Userfaultfd) -> None:
    uffd.api(Feature.MOVE)
    with memory_of(4) as (memory, address), memory_of(4) as (source, source_address):
        source[0], source[PAGE_SIZE], source[3 * PAGE_SIZE] = 1, 2, 4  # a hole at page 2
        uffd.register(address, 4 * PAGE_SIZE, Mode.MISSING)
        assert uffd.move(address, source_address, 4 * PAGE_SIZE) == 2 * PAGE_SIZE
        at = 2 * PAGE_SIZE
        assert error_of(uffd.move, address + at, source_address + at, 2 * PAGE_SIZE) == errno.ENOENT
        assert uffd.move(address + at, source_address + at, 2 * PAGE_SIZE, allow_holes=True) == 2 * PAGE_SIZE
        assert error_of(uffd.move, address, source_address, PAGE_SIZE) == errno.EEXIST
        assert [present(address + page * PAGE_SIZE) for page in range(4)] == [True, True, False, True]
        assert not any(present(source_address + page * PAGE_SIZE) for page in range(4))
        assert (memory[0], memory[PAGE_SIZE], memory[3 * PAGE_SIZE]) == (1, 2, 4)


def test_a_fault_names_its_thread_waits_and_is_woken(uffd: Userfaultfd) -> None:
    uffd.api(Feature.THREAD_ID)
    with memory_of(1) as (memory, address), memory_of(1) as (source, source_address):
        source[:4] = b"page"
        uffd.register(address, PAGE_SIZE, Mode.MISSING)
        reader, writer = os.pipe()
        try:
            # A system call faults for the thread: touching from Python would keep the interpreter's lock.
            toucher = threading.Thread(target=os.write, args=(writer, memory))
            toucher.start()
            (event,) = events_of(uffd)
            assert event == Fault(FaultFlag(0), address, toucher.native_id or -1)
            assert uffd.read_events() == []
            uffd.copy(address, source_address, PAGE_SIZE, wake=False)
            assert toucher.is_alive()
            uffd.wake(address, PAGE_SIZE)
            toucher.join(HANG)
            assert os.read(reader, 4) == b"page"
        finally:
            os.close(reader)
            os.close(writer)


def test_user_mode_only_makes_system_calls_fail() -> None:
    with Userfaultfd.open(user_mode_only=True) as uffd, memory_of(1) as (memory, address):
        uffd.api()
        uffd.register(address, PAGE_SIZE, Mode.MISSING)
        reader, writer = os.pipe()
        try:
            with pytest.raises(OSError, match="Bad address"):
                os.write(writer, memory)
        finally:
            os.close(reader)
            os.close(writer)


@pytest.mark.skipif(not AVAILABLE & Feature.POISON, reason="this kernel has no UFFDIO_POISON")
def test_poison_marks_missing_pages(uffd: Userfaultfd) -> None:
    uffd.api(Feature.POISON)
    with memory_of(2) as (memory, address):
        memory[PAGE_SIZE] = 1
        uffd.register(address, 2 * PAGE_SIZE, Mode.MISSING)
        assert uffd.poison(address, 2 * PAGE_SIZE) == PAGE_SIZE
        assert error_of(uffd.poison, address + PAGE_SIZE, PAGE_SIZE) == errno.EEXIST
        reader, writer = os.pipe()
        try:
            with pytest.raises(OSError, match="Bad address"):
                os.write(writer, memory)
        finally:
            os.close(reader)
            os.close(writer)


# ---- Protection and minor faults ----------------------------------------------------------------------------------


def test_a_protected_page_reports_the_store(uffd: Userfaultfd) -> None:
    uffd.api(Feature.PAGEFAULT_FLAG_WP)
    with memory_of(2) as (memory, address):
        memory[0], memory[PAGE_SIZE] = 1, 1
        uffd.register(address, 2 * PAGE_SIZE, Mode.WP)
        uffd.write_protect(address, 2 * PAGE_SIZE)
        uffd.write_protect(address + PAGE_SIZE, PAGE_SIZE, protect=False)
        assert [write_protected(address), write_protected(address + PAGE_SIZE)] == [True, False]
        reader, writer = os.pipe()
        try:
            os.write(writer, b"ab")
            toucher = threading.Thread(target=os.readv, args=(reader, [memoryview(memory)[:1]]))
            toucher.start()
            assert events_of(uffd) == [Fault(FaultFlag.WRITE | FaultFlag.WP, address, 0)]
            uffd.write_protect(address, PAGE_SIZE, protect=False, wake=False)
            assert toucher.is_alive()
            uffd.wake(address, PAGE_SIZE)
            toucher.join(HANG)
            assert memory[:1] == b"a"
            del toucher
        finally:
            os.close(reader)
            os.close(writer)


def test_protecting_what_is_not_registered(uffd: Userfaultfd) -> None:
    uffd.api(Feature.PAGEFAULT_FLAG_WP)
    with memory_of(1) as (_, address):
        assert error_of(uffd.write_protect, address, PAGE_SIZE) == errno.ENOENT
        assert error_of(uffd.register, address + 1, PAGE_SIZE, Mode.WP) == errno.EINVAL


@pytest.mark.skipif(not AVAILABLE & Feature.MINOR_SHMEM, reason="this kernel has no minor faults of shmem")
def test_continue_maps_what_is_in_the_page_cache(uffd: Userfaultfd) -> None:
    uffd.api(Feature.MINOR_SHMEM)
    with memory_of(2, shared=True) as (memory, address):
        memory[:4], memory[PAGE_SIZE : PAGE_SIZE + 4] = b"page", b"next"
        uffd.register(address, 2 * PAGE_SIZE, Mode.MINOR)
        memory.madvise(mmap.MADV_DONTNEED, 0, PAGE_SIZE)
        assert uffd.continue_(address, 2 * PAGE_SIZE) == PAGE_SIZE
        assert error_of(uffd.continue_, address, PAGE_SIZE) == errno.EEXIST
        assert memory[:4] == b"page"


@pytest.mark.skipif(bool(AVAILABLE & Feature.RWP), reason="this kernel has RWP")
def test_rwp_is_refused_by_a_kernel_without_it(uffd: Userfaultfd) -> None:
    uffd.api()
    with memory_of(1) as (_, address):
        assert error_of(uffd.register, address, PAGE_SIZE, Mode.RWP) == errno.EINVAL
        assert error_of(uffd.rw_protect, address, PAGE_SIZE) == errno.EINVAL
        assert error_of(uffd.set_mode, enable=Feature.RWP_ASYNC) == errno.EINVAL


@pytest.mark.skipif(not AVAILABLE & Feature.RWP, reason="this kernel has no RWP")
def test_rwp_reports_any_touch(uffd: Userfaultfd) -> None:
    uffd.api(Feature.RWP)
    with memory_of(1) as (memory, address):
        memory[:4] = b"page"
        uffd.register(address, PAGE_SIZE, Mode.RWP)
        uffd.rw_protect(address, PAGE_SIZE)
        reader, writer = os.pipe()
        try:
            toucher = threading.Thread(target=os.write, args=(writer, memory))
            toucher.start()
            assert events_of(uffd) == [Fault(FaultFlag.RWP, address, 0)]
            uffd.rw_protect(address, PAGE_SIZE, protect=False)
            toucher.join(HANG)
            assert os.read(reader, 4) == b"page"
        finally:
            os.close(reader)
            os.close(writer)


# ---- Events -------------------------------------------------------------------------------------------------------

CHANGES = """
import ctypes, mmap, os, socket, sys
from nexttouch.linux.syscall import PAGE_SIZE
from nexttouch.linux.userfaultfd import Feature, Mode, Userfaultfd
libc = ctypes.CDLL(None)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
address = libc.mmap(None, ctypes.c_size_t(4 * PAGE_SIZE), 3, 0x22, -1, 0)
uffd = Userfaultfd.open()
uffd.api(Feature.EVENT_FORK | Feature.EVENT_REMAP | Feature.EVENT_REMOVE | Feature.EVENT_UNMAP)
uffd.register(address, 4 * PAGE_SIZE, Mode.MISSING)
channel = socket.socket(fileno=int(sys.argv[1]))
socket.send_fds(channel, [address.to_bytes(8, "little")], [uffd.fileno()])
uffd.close()
libc.madvise(address, PAGE_SIZE, 4)
new = libc.mremap(address, PAGE_SIZE, 2 * PAGE_SIZE, 1)
channel.send(new.to_bytes(8, "little"))
libc.munmap(address + 3 * PAGE_SIZE, PAGE_SIZE)
if os.fork() == 0: os._exit(0)
os.wait()
"""


def test_every_event_is_read_from_another_process() -> None:
    ours, theirs = socket.socketpair()
    child = subprocess.Popen([sys.executable, "-c", CHANGES, str(theirs.fileno())], pass_fds=(theirs.fileno(),))
    theirs.close()
    with child, ours:
        word, (number,), _, _ = socket.recv_fds(ours, 8, 1)
        address = int.from_bytes(word, "little")
        with Userfaultfd(number) as uffd:
            events: list[Event] = []
            while len(events) < 5:  # one read may bring several: reading one lets the program go on to the next
                events += events_of(uffd)
            new = int.from_bytes(ours.recv(8), "little")
            *changes, fork = events
            assert changes == [
                Remove(address, address + PAGE_SIZE),
                Remap(address, new, PAGE_SIZE),
                Unmap(address, address + PAGE_SIZE),  # the old place of the mapping
                Unmap(address + 3 * PAGE_SIZE, address + 4 * PAGE_SIZE),
            ]
            assert [type(change) for change in changes] == [Remove, Remap, Unmap, Unmap]
            assert isinstance(fork, Fork)
            assert str(Path(f"/proc/self/fd/{fork.descriptor}").readlink()) == "anon_inode:[userfaultfd]"
            os.close(fork.descriptor)
    assert child.returncode == 0


def message(kind: int, *words: int) -> bytes:
    return bytes([kind]) + bytes(7) + b"".join(word.to_bytes(8, "little") for word in (*words, 0, 0, 0))[:24]


@pytest.mark.parametrize(
    ("bytes_", "event"),
    [
        (message(0x12, 3, 0x7F0000001000, 42), Fault(FaultFlag.WRITE | FaultFlag.WP, 0x7F0000001000, 42)),
        (message(0x12, 8, 4096), Fault(FaultFlag.RWP, 4096, 0)),
        (message(0x13, 17), Fork(17)),
        (message(0x14, 4096, 8192, 12288), Remap(4096, 8192, 12288)),
        (message(0x15, 4096, 8192), Remove(4096, 8192)),
        (message(0x16, 4096, 8192), Unmap(4096, 8192)),
    ],
)
def test_messages_are_read(bytes_: bytes, event: Event) -> None:
    assert parse_event(bytes_) == event
    assert type(parse_event(bytes_)) is type(event)


@pytest.mark.parametrize("bytes_", [b"", bytes(31), bytes(33), message(0x17), message(0)])
def test_other_messages_are_refused(bytes_: bytes) -> None:
    with pytest.raises(InvalidArgument, match="message"):
        parse_event(bytes_)
