from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from support.memory import Memory

from nexttouch.errors import KernelError, NodeUnavailable, NoSuchProcess
from nexttouch.linux import mempolicy, nodes
from nexttouch.linux.mempolicy import Mode, Policy
from nexttouch.linux.process import SELF, Process
from nexttouch.linux.syscall import PAGE_SIZE

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
NODE = nodes.has_memory()[0]


@pytest.fixture(autouse=True)
def policy_kept() -> Iterator[None]:
    before = mempolicy.get_mempolicy()
    yield
    mempolicy.set_mempolicy(*before)


def raised_in_child(work: Callable[[], object]) -> str:
    """Name and text of what `work` raises in a child that is another user."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        text = "nothing"
        try:
            work()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


def test_a_process_starts_with_the_default_policy() -> None:
    assert mempolicy.get_mempolicy() == Policy(Mode.DEFAULT, (), 0)


@pytest.mark.parametrize(
    ("mode", "flags"),
    [
        (Mode.PREFERRED, 0),
        (Mode.BIND, 0),
        (Mode.BIND, mempolicy.F_STATIC_NODES),
        (Mode.BIND, mempolicy.F_NUMA_BALANCING),
        (Mode.INTERLEAVE, mempolicy.F_RELATIVE_NODES),
        (Mode.PREFERRED_MANY, 0),
    ],
)
def test_set_mempolicy_reads_back(mode: Mode, flags: int) -> None:
    mempolicy.set_mempolicy(mode, [NODE], flags)
    policy = mempolicy.get_mempolicy()
    assert policy == Policy(mode, (NODE,), flags)
    mempolicy.set_mempolicy(Mode.DEFAULT)
    mempolicy.set_mempolicy(*policy)
    assert mempolicy.get_mempolicy() == policy


def test_local_policy_has_no_nodes() -> None:
    mempolicy.set_mempolicy(Mode.LOCAL)
    assert mempolicy.get_mempolicy() == Policy(Mode.LOCAL, (), 0)


@pytest.mark.parametrize(
    ("mode", "where", "flags"),
    [
        (Mode.BIND, (), 0),
        (Mode.DEFAULT, (NODE,), 0),
        (Mode.LOCAL, (), mempolicy.F_STATIC_NODES),
        (Mode.BIND, (900,), 0),
    ],
)
def test_set_mempolicy_refuses(mode: Mode, where: tuple[int, ...], flags: int) -> None:
    with pytest.raises(KernelError) as raised:
        mempolicy.set_mempolicy(mode, where, flags)
    assert (raised.value.call, raised.value.errno) == ("set_mempolicy", errno.EINVAL)


def test_mbind_governs_its_pages_alone() -> None:
    with Memory(4, fill=False) as memory:
        mempolicy.mbind(memory.address + PAGE_SIZE, 2 * PAGE_SIZE, Mode.BIND, [NODE], mempolicy.F_STATIC_NODES)
        policies = [mempolicy.policy_of(int(page)) for page in memory.addresses]
        bound = Policy(Mode.BIND, (NODE,), mempolicy.F_STATIC_NODES)
        default = Policy(Mode.DEFAULT, (), 0)
        assert policies == [default, bound, bound, default]
        assert mempolicy.get_mempolicy() == default


def test_mbind_moves_pages_that_are_there() -> None:
    with Memory(4, fill=False) as memory:
        memory.fill()
        mempolicy.mbind(memory.address, memory.size, Mode.BIND, [NODE], mempolicy.MOVE | mempolicy.STRICT)
        assert mempolicy.move_pages(SELF, memory.addresses, None)[1].tolist() == [NODE] * 4


def test_mbind_refuses_a_hole() -> None:
    with pytest.raises(KernelError) as raised:
        mempolicy.mbind(PAGE_SIZE, PAGE_SIZE, Mode.BIND, [NODE])
    assert raised.value.errno == errno.EFAULT


def test_policy_of_a_hole() -> None:
    with pytest.raises(KernelError, match="EFAULT"):
        mempolicy.policy_of(PAGE_SIZE)


def test_query_tells_pages_holes_zero_pages_and_no_mapping_apart() -> None:
    mempolicy.set_mempolicy(Mode.BIND, [NODE])
    with Memory(3, fill=False) as memory:
        memory.write(0)
        memory.read(1)  # the zero page
        addresses = np.append(memory.addresses, np.uint64(PAGE_SIZE))
        for process in (SELF, Process(os.getpid())):
            result, status = mempolicy.move_pages(process, addresses, None)
            assert result == 0
            assert status.dtype == np.int32
            assert status.tolist() == [NODE, -errno.EFAULT, -errno.ENOENT, -errno.EFAULT]


def test_move_to_where_pages_are() -> None:
    mempolicy.set_mempolicy(Mode.BIND, [NODE])
    with Memory(600, fill=False) as memory:
        memory.fill()
        result, status = mempolicy.move_pages(SELF, memory.addresses, NODE)
        assert (result, set(status.tolist())) == (0, {NODE})
        result, status = mempolicy.move_pages(SELF, memory.addresses[::2], np.full(300, NODE, dtype=np.int32))
        assert (result, status.tolist()) == (0, [NODE] * 300)


def test_moving_holes_reports_them() -> None:
    with Memory(2, fill=False) as memory:
        memory.write(0)
        assert mempolicy.move_pages(SELF, memory.addresses, NODE)[1][1] == -errno.ENOENT


def test_no_pages_at_all() -> None:
    result, status = mempolicy.move_pages(SELF, np.empty(0, dtype=np.uint64), NODE)
    assert (result, status.shape) == (0, (0,))


def test_no_status_of_a_kernel_looks_unwritten() -> None:
    assert mempolicy.UNWRITTEN < -4095
    assert np.int32(mempolicy.UNWRITTEN) == mempolicy.UNWRITTEN


@pytest.mark.parametrize("as_array", [False, True])
def test_move_to_a_node_that_is_not_there(as_array: bool) -> None:
    with Memory(2, fill=False) as memory:
        memory.fill()
        missing = 900
        to = np.array([NODE, missing], dtype=np.int32) if as_array else missing
        with pytest.raises(NodeUnavailable, match="offline or has no memory") as raised:
            mempolicy.move_pages(SELF, memory.addresses, to)
        assert raised.value.node == missing


def test_unknown_flags() -> None:
    with Memory(1, fill=False) as memory:
        with pytest.raises(KernelError) as raised:
            mempolicy.move_pages(SELF, memory.addresses, None, 1 << 20)
        assert raised.value.errno == errno.EINVAL


def test_no_such_process() -> None:
    with pytest.raises(NoSuchProcess, match="does not exist"):
        mempolicy.move_pages(Process(2**30), np.array([PAGE_SIZE], np.uint64), None)
    with pytest.raises(NoSuchProcess, match="does not exist"):
        mempolicy.migrate_pages(Process(2**30), [NODE], [NODE])
    with pytest.raises(NoSuchProcess):
        mempolicy.mems_allowed(Process(2**30))


def test_zombies_have_no_pages(zombie: int) -> None:
    for work in (
        lambda: mempolicy.move_pages(Process(zombie), np.array([PAGE_SIZE], np.uint64), None),
        lambda: mempolicy.migrate_pages(Process(zombie), [NODE], [NODE]),
    ):
        with pytest.raises(NoSuchProcess, match="ended and left no memory"):
            work()


def test_memory_of_another_user() -> None:
    parent, page = os.getpid(), np.array([PAGE_SIZE], np.uint64)
    reason = "its memory is another user's or protected; run as root or with CAP_SYS_PTRACE"
    refused = f"process {parent} may not be touched: {reason}"
    assert raised_in_child(lambda: mempolicy.move_pages(Process(parent), page, None)) == f"NotPermitted: {refused}"
    assert (
        raised_in_child(lambda: mempolicy.migrate_pages(Process(parent), [NODE], [NODE])) == f"NotPermitted: {refused}"
    )


def test_move_all_without_privilege_says_what_it_needs() -> None:
    with Memory(1, fill=False) as memory:
        text = raised_in_child(lambda: mempolicy.move_pages(SELF, memory.addresses, NODE, mempolicy.MOVE_ALL))
        assert text.startswith("NotPermitted")
        assert "CAP_SYS_NICE" in text


def test_migrate_pages_that_are_there_already() -> None:
    with Memory(8, fill=False) as memory:
        memory.fill()
        assert mempolicy.migrate_pages(SELF, [NODE], [NODE]) == 0


def test_mems_allowed() -> None:
    allowed = mempolicy.mems_allowed()
    assert set(nodes.has_memory()) >= set(allowed)
    assert mempolicy.mems_allowed(Process(os.getpid())) == allowed


@pytest.mark.lab
def test_move_pages_moves() -> None:
    with Memory(64, fill=False) as memory:
        mempolicy.mbind(memory.address, memory.size, Mode.BIND, [0])
        memory.fill()
        mempolicy.mbind(memory.address, memory.size, Mode.DEFAULT)
        assert mempolicy.move_pages(SELF, memory.addresses, None)[1].tolist() == [0] * 64
        to = np.arange(64, dtype=np.int32) % 2
        result, status = mempolicy.move_pages(SELF, memory.addresses, to)
        assert (result, status.tolist()) == (0, to.tolist())
        assert mempolicy.move_pages(SELF, memory.addresses, None)[1].tolist() == to.tolist()
        memory.check()


@pytest.mark.lab
def test_pages_of_two_processes_move_with_move_all_only() -> None:
    with Memory(8, fill=False) as memory:
        mempolicy.mbind(memory.address, memory.size, Mode.BIND, [0])
        memory.fill()
        mempolicy.mbind(memory.address, memory.size, Mode.DEFAULT)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)  # until the parent closes its end
            os._exit(0)
        os.close(reading)
        kept = mempolicy.move_pages(SELF, memory.addresses, 1)[1].tolist()
        moved = mempolicy.move_pages(SELF, memory.addresses, 1, mempolicy.MOVE_ALL)[1].tolist()
        os.close(writing)
        os.waitpid(child, 0)
        assert kept == [-errno.EACCES] * 8
        assert moved == [1] * 8


@pytest.mark.lab
def test_a_page_that_cannot_move_leaves_its_batch_unwritten() -> None:
    with Memory(8, fill=False) as memory:
        mempolicy.mbind(memory.address, memory.size, Mode.BIND, [0])
        memory.fill()
        mempolicy.mbind(memory.address, memory.size, Mode.DEFAULT)
        reading, writing = os.pipe()
        vector = (ctypes.c_void_p * 2)(int(memory.addresses[5]), PAGE_SIZE)  # struct iovec
        assert ctypes.CDLL(None).vmsplice(writing, vector, ctypes.c_ulong(1), 0) == PAGE_SIZE  # it holds the frame
        result, status = mempolicy.move_pages(SELF, memory.addresses, 1)
        now = mempolicy.move_pages(SELF, memory.addresses, None)[1].tolist()
        os.close(reading)
        os.close(writing)
        assert result == 1
        assert mempolicy.UNWRITTEN in status.tolist()
        assert all(told in {place, mempolicy.UNWRITTEN} for told, place in zip(status.tolist(), now, strict=True))
        assert now == [1, 1, 1, 1, 1, 0, 1, 1]


@pytest.mark.lab
def test_migrate_pages_moves() -> None:
    with Memory(8, fill=False) as memory:
        mempolicy.mbind(memory.address, memory.size, Mode.BIND, [0])
        memory.fill()
        mempolicy.mbind(memory.address, memory.size, Mode.DEFAULT)
        assert mempolicy.migrate_pages(SELF, [0], [1]) >= 0
        assert mempolicy.move_pages(SELF, memory.addresses, None)[1].tolist() == [1] * 8


@pytest.mark.lab
@pytest.mark.parametrize("mode", [Mode.INTERLEAVE, Mode.WEIGHTED_INTERLEAVE])
def test_interleaving_spreads(mode: Mode) -> None:
    with Memory(8, fill=False) as memory:
        mempolicy.mbind(memory.address, memory.size, mode, [0, 1])
        memory.fill()
        status = mempolicy.move_pages(SELF, memory.addresses, None)[1]
        assert np.bincount(status).tolist() == [4, 4]
        assert mempolicy.policy_of(memory.address) == Policy(mode, (0, 1), 0)
