"""What the engine's model says of the kernel, asked of the running one: events, their order, and what is refused."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import threading
from collections.abc import Callable, Iterator

import pytest
from support.memory import libc

from nexttouch.errors import KernelError
from nexttouch.linux.syscall import PAGE_SIZE
from nexttouch.linux.userfaultfd import Event, Feature, Mode, Remap, Remove, Unmap, Userfaultfd, available_features
from nexttouch.model.engine.machine import EngineMachine
from nexttouch.model.engine.program import Operation
from nexttouch.model.engine.rules import Rules
from nexttouch.model.engine.world import World

HANG_MS = 60_000
"""After which an event that has not come never will."""

TOLD = Feature.EVENT_REMAP | Feature.EVENT_UNMAP | Feature.EVENT_REMOVE
PLACES = 4
ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
MAP_FIXED = 0x10
MSEAL = 462

pytestmark = pytest.mark.skipif(not available_features() & Feature.MOVE, reason="this kernel has no UFFDIO_MOVE")


def address_at(base: int, place: int) -> int:
    """Every second page, so that no two mappings are one."""
    return base + 2 * place * PAGE_SIZE


def mapped(address: int, access: int) -> None:
    flags = ANONYMOUS | MAP_FIXED
    assert (
        libc.mmap(ctypes.c_void_p(address), ctypes.c_size_t(PAGE_SIZE), access, flags, -1, ctypes.c_long(0)) == address
    )


@pytest.fixture
def base() -> Iterator[int]:
    """Mappings at the places 0 and 1, room at the others."""
    size = ctypes.c_size_t(2 * PLACES * PAGE_SIZE)
    start = libc.mmap(None, size, mmap.PROT_READ, ANONYMOUS, -1, ctypes.c_long(0))
    for place in (0, 1):
        mapped(address_at(start, place), mmap.PROT_READ | mmap.PROT_WRITE)
    yield start
    libc.munmap(ctypes.c_void_p(start), size)


@pytest.fixture
def uffd(base: int) -> Iterator[Userfaultfd]:  # closed before the fixture of the mappings unmaps them
    with Userfaultfd.open() as opened:
        opened.api(TOLD)
        yield opened


def watch(uffd: Userfaultfd, address: int) -> None:
    uffd.register(address, PAGE_SIZE, Mode.MISSING)


def words_of(event: Event, base: int) -> str:
    def place(address: int) -> int:
        return (address - base) // PAGE_SIZE // 2

    if isinstance(event, Remap):
        return f"REMAP {place(event.old)} -> {place(event.new)}"
    assert isinstance(event, Unmap | Remove)
    return f"{'UNMAP' if isinstance(event, Unmap) else 'REMOVE'} {place(event.start)}"


def told_while(uffd: Userfaultfd, base: int, call: Callable[[], object], *, look: Callable[[], None]) -> list[str]:
    """What is told while another thread makes a call; `look` is called before the first event is read."""
    thread = threading.Thread(target=call)
    thread.start()
    waiting = select.poll()
    waiting.register(uffd.fileno(), select.POLLIN)
    assert waiting.poll(HANG_MS), "no event came"
    look()
    words = []
    while thread.is_alive():
        words += [words_of(event, base) for event in uffd.read_events()]
        thread.join(0.001)
    return words


def move(base: int, start: int, to: int) -> int:
    size, flags = ctypes.c_size_t(PAGE_SIZE), MREMAP_MAYMOVE | MREMAP_FIXED
    found = libc.mremap(
        ctypes.c_void_p(address_at(base, start)), size, size, flags, ctypes.c_void_p(address_at(base, to))
    )
    assert isinstance(found, int)
    return found


def told_in_the_model(operation: Operation) -> list[str]:
    """What the model's kernel tells of an operation, with one descriptor for the places 0 and 1."""
    machine = EngineMachine(Rules(descriptor_each=False, adds_up=False), ((operation,),), room=2)
    shared, locals_ = machine.initial()
    words = []
    while not machine.ended(0, locals_[0]):
        thread = 0 if machine.moves(shared, 0, locals_[0]) else 1
        step = machine.moves(shared, thread, locals_[thread])[0]
        words += [step.name.removeprefix("read ")] * (thread == 1)
        shared, locals_ = step.shared, (step.local, locals_[1]) if thread == 0 else (locals_[0], step.local)
    return words


@pytest.mark.parametrize("to", [1, 2])
def test_what_a_move_tells(uffd: Userfaultfd, base: int, to: int) -> None:
    for place in (0, 1):
        watch(uffd, address_at(base, place))
    words = told_while(uffd, base, lambda: move(base, 0, to), look=lambda: None)
    assert words == told_in_the_model(Operation("move", 0, to=to))
    assert words == ["UNMAP 1"] * (to == 1) + [f"REMAP 0 -> {to}", "UNMAP 0"]


def test_the_registration_travels(uffd: Userfaultfd, base: int) -> None:
    watch(uffd, address_at(base, 0))
    told_while(uffd, base, lambda: move(base, 0, 2), look=lambda: None)
    assert told_while(uffd, base, lambda: move(base, 2, 3), look=lambda: None) == ["REMAP 2 -> 3", "UNMAP 2"]


def test_a_discard_is_told_of_before_it_happens(uffd: Userfaultfd, base: int) -> None:
    address = address_at(base, 0)
    word = ctypes.c_uint64.from_address(address)
    word.value = 7
    watch(uffd, address)
    seen: list[int] = []

    def discard() -> None:
        libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(PAGE_SIZE), mmap.MADV_DONTNEED)

    told = told_while(uffd, base, discard, look=lambda: seen.append(word.value))
    assert (told, seen) == (told_in_the_model(Operation("discard", 0)), [7])


def test_an_unmapping_that_fails_is_told_of(uffd: Userfaultfd, base: int) -> None:
    address, sealed = address_at(base, 0), address_at(base, 0) + PAGE_SIZE
    if libc.syscall(MSEAL, ctypes.c_void_p(sealed), ctypes.c_size_t(PAGE_SIZE), ctypes.c_ulong(0)):
        pytest.skip("this kernel has no mseal(2)")
    watch(uffd, address)
    results: list[int] = []

    def unmap() -> None:
        results.append(libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(2 * PAGE_SIZE)))

    told = told_while(uffd, base, unmap, look=lambda: None)
    assert (told, results) == (told_in_the_model(Operation("unmap in vain", 0)), [-1])
    uffd.zeropage(address, PAGE_SIZE)  # it is still there, and still registered


def errno_of(call: Callable[[], object]) -> int | None:
    """Why a call failed; 0 if it did not."""
    try:
        call()
    except KernelError as error:
        return error.errno
    return 0


def test_what_is_refused_while_mappings_change(uffd: Userfaultfd, base: int) -> None:
    """Nothing is installed anywhere; registering and unregistering go on."""
    for place in (0, 1):
        watch(uffd, address_at(base, place))
    other, numbers = address_at(base, 1), []

    def look() -> None:
        numbers.append(errno_of(lambda: uffd.zeropage(other, PAGE_SIZE)))
        uffd.unregister(other, PAGE_SIZE)
        watch(uffd, other)

    told_while(uffd, base, lambda: move(base, 0, 2), look=look)
    world = World(EngineMachine(Rules(descriptor_each=False), ((),)).initial()[0])
    world.changing[0] = 1
    assert [errno.errorcode[number or 0] for number in numbers] == [world.fill(0, 1, 0, own=False)] == ["EAGAIN"]
    assert errno_of(lambda: uffd.zeropage(other, PAGE_SIZE)) == 0


def test_a_descriptor_is_refused_only_for_its_own_mappings(uffd: Userfaultfd, base: int) -> None:
    """Why a toucher does not wait for other mappings' moves where each has a descriptor."""
    watch(uffd, address_at(base, 0))
    with Userfaultfd.open() as second:
        second.api(TOLD)
        watch(second, address_at(base, 1))
        numbers: list[int | None] = []

        def look() -> None:
            numbers.append(errno_of(lambda: second.zeropage(address_at(base, 1), PAGE_SIZE)))

        told_while(uffd, base, lambda: move(base, 0, 2), look=look)
        assert numbers == [0]


def test_another_descriptors_mapping(uffd: Userfaultfd, base: int) -> None:
    """It is not registered again; whether it can be unregistered depends on the kernel, and the model has both."""
    address = address_at(base, 0)
    watch(uffd, address)
    with Userfaultfd.open() as second:
        second.api(TOLD)
        assert errno_of(lambda: watch(second, address)) == errno.EBUSY
        refused = errno_of(lambda: second.unregister(address, PAGE_SIZE)) == errno.EINVAL
        assert (errno_of(lambda: watch(second, address)) == errno.EBUSY) == refused
    version = tuple(map(int, os.uname().release.split(".")[:2]))
    assert refused or version < (6, 17)
