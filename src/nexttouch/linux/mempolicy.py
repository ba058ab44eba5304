"""Memory policy and migration: set_mempolicy(2), get_mempolicy(2), mbind(2), move_pages(2), migrate_pages(2).

Constants: include/uapi/linux/mempolicy.h. NumPy is needed by `move_pages` alone and loaded there: a program that asks
which nodes are allowed shall not wait for it.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import KernelError, NexttouchError, NodeUnavailable, NoSuchProcess, NotPermitted
from . import nodes as sysfs
from . import procfs
from .process import SELF, Process
from .syscall import call, forbidden, try_call

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "F_NUMA_BALANCING",
    "F_RELATIVE_NODES",
    "F_STATIC_NODES",
    "MOVE",
    "MOVE_ALL",
    "STRICT",
    "UNWRITTEN",
    "Mode",
    "Policy",
    "get_mempolicy",
    "mbind",
    "mems_allowed",
    "migrate_pages",
    "move_pages",
    "policy_of",
    "set_mempolicy",
]


class Mode(IntEnum):
    """How a policy chooses the node of a new page."""

    DEFAULT = 0
    PREFERRED = 1
    BIND = 2
    INTERLEAVE = 3
    LOCAL = 4
    PREFERRED_MANY = 5
    WEIGHTED_INTERLEAVE = 6


F_STATIC_NODES = 1 << 15
"""Policy flag: keep the nodes as given when the cpuset changes."""
F_RELATIVE_NODES = 1 << 14
"""Policy flag: nodes are positions within the cpuset."""
F_NUMA_BALANCING = 1 << 13
"""Policy flag: let NUMA balancing move pages among the nodes of a BIND or PREFERRED_MANY policy (Linux 5.12)."""

STRICT = 1 << 0
"""mbind: fail with EIO when a page does not follow the policy."""
MOVE = 1 << 1
"""mbind, move_pages: move pages that this process alone maps."""
MOVE_ALL = 1 << 2
"""mbind, move_pages: move pages that other processes map too; needs CAP_SYS_NICE."""

UNWRITTEN = -(2**31)
"""Status of a page that the kernel said nothing about. Negative, but no -errno: those end at -4095."""

_MASK_BITS = 1024  # MAX_NUMNODES with the largest NODES_SHIFT (10); get_mempolicy refuses a mask that is too small
_WORD_BITS = 8 * ctypes.sizeof(ctypes.c_ulong)
_MAX_NODE = _MASK_BITS + 1  # the kernel reads one bit less than it is told (mm/mempolicy.c, get_nodes)
_MODE_FLAGS = F_STATIC_NODES | F_RELATIVE_NODES | F_NUMA_BALANCING
_F_ADDR = 1 << 1
_F_MEMS_ALLOWED = 1 << 2

_Mask = ctypes.c_ulong * (_MASK_BITS // _WORD_BITS)


class Policy(NamedTuple):
    """A memory policy; in the order of the arguments of `set_mempolicy`, so `set_mempolicy(*policy)` brings it back."""

    mode: Mode
    nodes: tuple[int, ...]
    flags: int


def set_mempolicy(mode: Mode, nodes: Iterable[int] = (), flags: int = 0) -> None:
    """Set where new pages of the calling thread go; `flags` are the F_ ones.

    Raises:
        KernelError: EINVAL for nodes or flags that do not fit the mode, or a mode this kernel lacks.
    """
    call("set_mempolicy", mode | flags, _mask(nodes), _MAX_NODE)


def get_mempolicy() -> Policy:
    """Return the policy of the calling thread.

    >>> get_mempolicy()
    Policy(mode=<Mode.DEFAULT: 0>, nodes=(), flags=0)
    """
    return _get(None, 0)


def policy_of(address: int) -> Policy:
    """Return the policy that governs the page at `address` of this process.

    Raises:
        KernelError: EFAULT when nothing is mapped there.
        FeatureMissing: a seccomp filter forbids get_mempolicy(2).
    """
    return _get(ctypes.c_void_p(address), _F_ADDR)


def mbind(address: int, size: int, mode: Mode, nodes: Iterable[int] = (), flags: int = 0) -> None:
    """Set the policy of [address, address + size) of this process, `address` on a page boundary.

    `flags` are STRICT, MOVE, MOVE_ALL for the pages that are there already, and F_STATIC_NODES or F_RELATIVE_NODES.

    Raises:
        KernelError: EIO when STRICT was asked and a page is, or stays, elsewhere; EFAULT for a hole in the range;
            EINVAL for nodes that do not fit the mode; EPERM for MOVE_ALL without CAP_SYS_NICE.
    """
    call(
        "mbind",
        ctypes.c_void_p(address),
        size,
        mode | (flags & _MODE_FLAGS),
        _mask(nodes),
        _MAX_NODE,
        flags & ~_MODE_FLAGS,
    )


def move_pages(
    process: Process, addresses: NDArray[np.uint64], nodes: int | NDArray[np.int32] | None, flags: int = MOVE
) -> tuple[int, NDArray[np.int32]]:
    """Move the pages at `addresses` of `process`, or ask where they are when `nodes` is None.

    `addresses` has shape (n,) and one address a page; an address inside a large folio moves all of it. `nodes` is one
    node for all of them, or shape (n,).

    Returns (result, status). The result is 0 when everything was moved and otherwise how many pages were not, among
    them all that were not attempted after a batch of the kernel's failed. Status has shape (n,): the node of the page
    (where it is now), -errno (-EACCES mapped by others and no MOVE_ALL, -EBUSY could not be isolated, -EFAULT zero
    page or nothing mapped, -ENOENT no page there, -ENOMEM, -EIO), or UNWRITTEN for a page of a failed batch: ask again
    with `nodes` None to learn where those are.

    Raises:
        NoSuchProcess: there is no such process, or no memory is left of it.
        NotPermitted: its memory belongs to another user, or MOVE_ALL without CAP_SYS_NICE.
        FeatureMissing: a seccomp filter forbids the call.
        NodeUnavailable: a target node has no memory or is outside the cpuset of the process.
        KernelError: any other error of the whole call. ENOMEM means that a target node is full; earlier pages may
            have moved.
    """
    import numpy as np  # noqa: PLC0415 (see the head of the module)

    pages = np.ascontiguousarray(addresses, dtype=np.uint64)
    status = np.full(pages.size, UNWRITTEN, dtype=np.int32)
    wanted = None if nodes is None else np.ascontiguousarray(np.broadcast_to(np.int32(nodes), pages.shape))
    process.check()
    result, error = try_call(
        "move_pages",
        process.number,
        pages.size,
        ctypes.c_void_p(pages.ctypes.data),
        None if wanted is None else ctypes.c_void_p(wanted.ctypes.data),
        ctypes.c_void_p(status.ctypes.data),
        flags,
    )
    process.check()
    if error:
        raise _move_error(process, error, () if wanted is None else np.unique(wanted).tolist(), flags)
    return result, status


def migrate_pages(process: Process, old: Iterable[int], new: Iterable[int]) -> int:
    """Move all pages of `process` that lie on the nodes `old` to `new`, keeping their relative positions.

    Blocks until all is done, minutes for a large process. Returns how many pages could not be moved.

    Raises:
        NoSuchProcess, NotPermitted, FeatureMissing, NodeUnavailable: as `move_pages`.
        KernelError: any other error.
    """
    new = tuple(new)
    process.check()
    result, error = try_call("migrate_pages", process.number, _MAX_NODE, _mask(old), _mask(new))
    if error:
        raise _move_error(process, error, new, 0, "migrate_pages")
    return result


def mems_allowed(process: Process = SELF) -> tuple[int, ...]:
    """Nodes that `process`, by default the calling thread, may allocate from: its cpuset.

    >>> mems_allowed()
    (0,)

    Raises:
        NoSuchProcess: `process` has ended.
        FeatureMissing: a seccomp filter forbids get_mempolicy(2).
    """
    if not process.own:
        return procfs.status(process).mems_allowed
    mask = _Mask()
    _ask(None, mask, _MAX_NODE, None, _F_MEMS_ALLOWED)
    return _nodes(mask)


def _get(address: ctypes.c_void_p | None, flags: int) -> Policy:
    mode, mask = ctypes.c_int(), _Mask()
    _ask(ctypes.byref(mode), mask, _MAX_NODE, address, flags)
    return Policy(Mode(mode.value & ~_MODE_FLAGS), _nodes(mask), mode.value & _MODE_FLAGS)


def _ask(*arguments: Any) -> None:  # noqa: ANN401 (whatever ctypes converts)
    error = try_call("get_mempolicy", *arguments)[1]
    if error:
        raise forbidden("get_mempolicy") if error == errno.EPERM else KernelError("get_mempolicy", error)


def _mask(nodes: Iterable[int]) -> ctypes.Array[ctypes.c_ulong]:
    mask = _Mask()
    for node in nodes:
        mask[node // _WORD_BITS] |= 1 << node % _WORD_BITS
    return mask


def _nodes(mask: ctypes.Array[ctypes.c_ulong]) -> tuple[int, ...]:
    return tuple(node for node in range(_MASK_BITS) if mask[node // _WORD_BITS] >> node % _WORD_BITS & 1)


def _move_error(
    process: Process, error: int, nodes: Iterable[int], flags: int, name: str = "move_pages"
) -> NexttouchError:
    if error == errno.ESRCH or (error == errno.EINVAL and not process.own and not process.has_memory()):
        return NoSuchProcess(process.pid) if error == errno.ESRCH else NoSuchProcess(process.pid, "and left no memory")
    if error == errno.EPERM:
        return _not_permitted(process, flags, name)
    if error == errno.ENODEV:
        node = _first_outside(nodes, sysfs.has_memory())
        return NodeUnavailable(node, "it is offline or has no memory; name another")
    if error == errno.EACCES:
        node = _first_outside(nodes, mems_allowed(process))
        return NodeUnavailable(
            node, "it is outside the cpuset of the process; add it to cpuset.mems of its control group"
        )
    return KernelError(name, error, "a target node is full" if error == errno.ENOMEM else "")


def _not_permitted(process: Process, flags: int, name: str) -> NexttouchError:
    if try_call(name, *_NOTHING[name])[1] == errno.EPERM:
        return forbidden(name)
    if flags & MOVE_ALL:
        return NotPermitted(process.pid, "moving pages that other processes map needs CAP_SYS_NICE; run as root")
    return process.not_permitted()


# Arguments that move nothing of this process, which the kernel always allows.
_NOTHING = {"move_pages": (0, 0, None, None, None, 0), "migrate_pages": (0, 0, None, None)}


def _first_outside(nodes: Iterable[int], allowed: tuple[int, ...]) -> int:
    # The kernel does not say which node it refused. By now the state may have changed: then the first will do.
    candidates = tuple(nodes)
    return next((node for node in candidates if node not in allowed), candidates[0])
