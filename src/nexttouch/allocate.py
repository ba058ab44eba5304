"""Arrays whose pages come from the node that is asked for, in memory of their own.

NumPy takes the memory of small arrays from the heap, where they share pages with others, and gives none a policy. These
arrays have whole pages that nothing else uses, with a memory policy for those that are yet to come.
"""

from __future__ import annotations

import math
import mmap
import operator
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import InvalidArgument, KernelError
from .linux import mempolicy
from .linux.mempolicy import Mode
from .topology import check_target

__all__ = ["empty", "zeros"]


def empty(
    shape: SupportsIndex | Sequence[SupportsIndex],
    dtype: DTypeLike = np.float64,
    *,
    node: SupportsIndex | Iterable[SupportsIndex] | None = None,
) -> NDArray[Any]:
    """Make an array whose pages come from `node` when they are first touched; whatever it contains is yours to write.

    The memory is private and anonymous, and the array's alone; it is unmapped with the last view of it. It is only
    reserved: a page is there from its first touch on. When `node` is full then, pages come from the next one, and
    nothing is killed for want of memory on `node`. The choice holds for new pages only: `lazy`, `next_touch` and
    `move` take those that are there elsewhere.

    Args:
        shape: length, or length of each dimension.
        dtype: of the elements; not one that holds Python objects.
        node: where pages come from; several: interleaved, page by page; None: from the node of the thread that
            touches them first, as in any other array.

    >>> array = nt.empty((1024, 512), node=1)
    >>> array[:] = 7
    >>> nt.where(array).by_node
    {1: 1024}

    Raises:
        InvalidArgument: naming the argument.
        NoSuchNode, NodeUnavailable: about `node`.
        KernelError: ENOMEM, so much is not to be had; EPERM, a container's seccomp filter forbids mbind(2).
    """
    lengths, kind = _shape(shape), _dtype(dtype)
    nodes = None if node is None else check_target(node, argument="node")
    memory = _memory(math.prod(lengths) * kind.itemsize, nodes)
    try:
        return np.ndarray(lengths, kind, buffer=memory)
    except ValueError as error:
        raise InvalidArgument("shape", f"is {shape!r}, which NumPy refuses ({error})") from None


def zeros(
    shape: SupportsIndex | Sequence[SupportsIndex],
    dtype: DTypeLike = np.float64,
    *,
    node: SupportsIndex | Iterable[SupportsIndex] | None = None,
) -> NDArray[Any]:
    """Make an array of zeros whose pages come from `node` when they are first written. All as `empty`.

    A page that is read before it is written is on no node yet: the kernel has one page of zeros for all of these.

    >>> array = nt.zeros(4096, "int64", node=(0, 1))
    >>> array += 1
    >>> nt.where(array).by_node
    {0: 4, 1: 4}

    Raises:
        As `empty`.
    """
    return empty(shape, dtype, node=node)  # fresh from the kernel


def _shape(shape: SupportsIndex | Sequence[SupportsIndex]) -> tuple[int, ...]:
    several = isinstance(shape, Iterable) and getattr(shape, "shape", None) != ()
    try:
        lengths = tuple(map(operator.index, shape if several else (shape,)))  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgument("shape", f"is {shape!r}, but has to be an integer or a tuple of integers") from None
    if any(length < 0 for length in lengths):
        raise InvalidArgument("shape", f"is {shape!r}, but no length can be negative")
    return lengths


def _dtype(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise InvalidArgument("dtype", f"is {dtype!r}, which NumPy does not know ({error})") from None
    if kind.hasobject:
        raise InvalidArgument("dtype", f"is {dtype!r}, but references to Python objects cannot be kept here")
    return kind


def _memory(size: int, nodes: tuple[int, ...] | None) -> mmap.mmap:
    try:
        memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OverflowError:
        raise InvalidArgument("shape", f"takes {size} bytes, more than there are addresses") from None
    except OSError as error:
        raise KernelError("mmap", error.errno or 0, f"{size} bytes for an array") from None
    if nodes:
        # Preferred, not bound: for a bound page the kernel kills a process when the node is full.
        mode = Mode.PREFERRED if len(nodes) == 1 else Mode.INTERLEAVE
        mempolicy.mbind(np.frombuffer(memory, np.uint8).ctypes.data, len(memory), mode, nodes)
    return memory
