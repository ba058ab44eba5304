"""Arrays in memory of their own: where their pages come from, that nothing else is touched, and when they are gone."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nexttouch as nt
from nexttouch.linux import mempolicy
from nexttouch.linux.mempolicy import Mode
from nexttouch.linux.syscall import PAGE_SIZE

make = pytest.mark.parametrize("make", [nt.empty, nt.zeros])
lab = pytest.mark.lab

MADV_NOHUGEPAGE = 15


def small(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same, in small pages."""
    memory = array.base
    assert isinstance(memory, mmap.mmap)
    memory.madvise(MADV_NOHUGEPAGE)
    return array


@make
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (1000, float),
        ((1000,), "int32"),
        ([3, 4, 5], np.complex128),
        ((), np.uint8),
        (0, float),
        ((7, 0, 3), "<i8"),
        (np.int64(9), bool),
        (np.array([2, 3]), np.float16),
        (5, [("key", "u8"), ("name", "U4")]),
        (3, "datetime64[ns]"),
    ],
    ids=str,
)
def test_arrays_are_those_of_numpy(make: Callable[..., np.ndarray[Any, Any]], shape: Any, dtype: Any) -> None:
    made, expected = make(shape, dtype, node=0), np.zeros(shape, dtype)
    assert (made.shape, made.dtype, made.nbytes) == (expected.shape, expected.dtype, expected.nbytes)
    assert made.flags.c_contiguous
    assert made.flags.writeable
    assert made.flags.aligned
    assert (made == expected).all()


@make
def test_doubles_unless_told(make: Callable[..., np.ndarray[Any, Any]]) -> None:
    assert make(3).dtype == np.float64


@make
def test_no_page_is_there_before_its_first_touch(make: Callable[..., np.ndarray[Any, Any]]) -> None:
    array = small(make((64, PAGE_SIZE), np.uint8, node=0))
    assert nt.where(array).total.holes == 64
    array[10] = 1
    array[20, 5] = 1
    assert nt.where(array).by_node == {0: 2}


@pytest.mark.parametrize(("size", "pages"), [(1, 1), (PAGE_SIZE, 1), (PAGE_SIZE + 1, 2)])
def test_whole_pages_are_its_own(size: int, pages: int) -> None:
    arrays = [nt.zeros(size, np.uint8) for _ in range(10)]
    ours = [set(range(a.ctypes.data // PAGE_SIZE, (a.ctypes.data + size - 1) // PAGE_SIZE + 1)) for a in arrays]
    assert all(array.ctypes.data % PAGE_SIZE == 0 for array in arrays)
    assert len(set().union(*ours)) == 10 * pages


@pytest.mark.parametrize(
    ("node", "mode", "nodes"), [(None, Mode.DEFAULT, ()), (0, Mode.PREFERRED, (0,)), ([0], Mode.PREFERRED, (0,))]
)
def test_a_node_is_preferred_and_never_bound(node: Any, mode: Mode, nodes: tuple[int, ...]) -> None:
    array = nt.empty((4, PAGE_SIZE), np.uint8, node=node)
    for row in array:
        assert mempolicy.policy_of(row.ctypes.data) == (mode, nodes, 0)
    assert mempolicy.get_mempolicy() == (Mode.DEFAULT, (), 0)


def mapped(address: int) -> bool:
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").split("\n")[:-1]
    return any(int(a, 16) <= address < int(b, 16) for a, b in (line.split(" ")[0].split("-") for line in lines))


def test_memory_is_unmapped_with_the_last_view() -> None:
    array = nt.zeros((100, PAGE_SIZE), np.uint8, node=0)
    address, view = array.ctypes.data, array[50:, ::2]
    view[:] = 3
    del array
    gc.collect()
    assert mapped(address)
    assert (view == 3).all()
    del view
    gc.collect()
    assert not mapped(address)


def test_it_can_be_migrated() -> None:
    with nt.lazy(array := nt.zeros((50, PAGE_SIZE), np.uint8, node=0), 0, always=True) as migration:
        array += 7
    assert migration.stats.pages == migration.stats.moved
    assert (array == 7).all()


@make
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"shape": "3"}, "shape"),
        ({"shape": None}, "shape"),
        ({"shape": 2.5}, "shape"),
        ({"shape": (2, "3")}, "shape"),
        ({"shape": (2, -1)}, "shape"),
        ({"shape": 1 << 62}, "shape"),
        ({"shape": 1 << 100}, "shape"),
        ({"shape": (1 << 62, 0)}, "shape"),
        ({"shape": (1,) * 100}, "shape"),
        ({"dtype": object}, "dtype"),
        ({"dtype": [("reference", object)]}, "dtype"),
        ({"dtype": "what"}, "dtype"),
        ({"node": "0"}, "node"),
        ({"node": ()}, "node"),
        ({"node": (0, 0)}, "node"),
        ({"node": True}, "node"),
        ({"node": -1}, "node"),
        ({"node": 1 << 20}, "node"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(
    make: Callable[..., np.ndarray[Any, Any]], arguments: dict[str, Any], name: str
) -> None:
    with pytest.raises(nt.InvalidArgument, match=f"^{name} ") as refused:
        make(**{"shape": 3} | arguments)
    assert refused.value.argument == name


def test_more_than_there_is() -> None:
    with pytest.raises(nt.KernelError, match=r"^mmap: .*\(ENOMEM\); 1125899906842624 bytes for an array$"):
        nt.empty(1 << 50, np.uint8)


# ---- on several nodes ----


@lab
@make
def test_pages_come_from_the_node(make: Callable[..., np.ndarray[Any, Any]]) -> None:
    for node in nt.topology().memory_nodes:
        array = make((100, PAGE_SIZE), np.uint8, node=node)
        array[:] = 1
        assert nt.where(array).by_node == {node: 100}


@lab
def test_several_nodes_take_turns() -> None:
    array = small(nt.zeros((100, PAGE_SIZE), np.uint8, node=(3, 1)))
    array[:] = 1
    assert nt.where(array).by_node == {1: 50, 3: 50}


@lab
def test_a_full_node_is_passed_over() -> None:
    """Of the node's memory and half as much more: what finds no room there is on others, and nobody is killed."""
    node = nt.topology().node(3)
    array = small(nt.empty(node.memory_free * 3 // 2 // PAGE_SIZE * PAGE_SIZE, np.uint8, node=3))
    array[::PAGE_SIZE] = 1
    found = nt.where(array).by_node
    assert sum(found.values()) == len(array) // PAGE_SIZE
    assert found[3] > sum(count for other, count in found.items() if other != 3)


@lab
def test_the_choice_holds_for_new_pages_after_a_migration() -> None:
    array = small(nt.zeros((100, PAGE_SIZE), np.uint8, node=1))
    array[:50] = 1
    assert nt.lazy(array, to=2).wait()
    array[50:] = 1
    assert nt.where(array).by_node == {1: 50, 2: 50}
