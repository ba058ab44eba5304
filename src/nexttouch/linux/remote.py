"""The memory of another process: process_vm_readv(2), process_vm_writev(2).

They wait for a userfaultfd as the program itself would. A write through /proc/PID/mem does not: on a page that is
write-protected it fails.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from functools import cache

from ..errors import KernelError, NoSuchProcess
from .process import Process
from .syscall import PAGE_SIZE, try_call

__all__ = ["read", "read_into", "touch", "write"]


class _Vector(ctypes.Structure):  # struct iovec
    _fields_ = (("base", ctypes.c_uint64), ("length", ctypes.c_uint64))


def read(process: Process, address: int, size: int) -> bytes:
    """Return `size` bytes at `address` of `process`; fewer, perhaps none, where memory ends or there is none.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    buffer = ctypes.create_string_buffer(size)
    done = _transfer("process_vm_readv", process, ctypes.addressof(buffer), address, size)
    return buffer.raw[:done]


def read_into(process: Process, address: int, buffer: bytearray) -> int:
    """Fill `buffer` with what is at `address` of `process`, as far as there is something; return how far.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    ours = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    return _transfer("process_vm_readv", process, ctypes.addressof(ours), address, len(buffer))


def write(process: Process, address: int, data: bytes) -> bool:
    """Write `data` at `address` of `process`; return whether all of it could be written.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    buffer = ctypes.create_string_buffer(data, len(data))
    return _transfer("process_vm_writev", process, ctypes.addressof(buffer), address, len(data)) == len(data)


def touch(process: Process, address: int) -> None:
    """Have the page at `address` of `process` made ready for a store, and store nothing.

    A store from memory that cannot be read: the kernel gets hold of the page first, and finds out then. So the
    pager that serves the faults of that page serves one more, and no word that the program writes meanwhile is
    overwritten.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    _transfer("process_vm_writev", process, _unreadable(), address, 1)


def _transfer(call: str, process: Process, ours: int, theirs: int, size: int) -> int:
    local, remote = _Vector(ours, size), _Vector(theirs, size)
    process.check()
    done, error = try_call(call, process.number, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    process.check()
    match error:
        case 0:
            return done
        case errno.EFAULT:
            return 0
        case errno.ESRCH:
            raise NoSuchProcess(process.pid, "and has no memory any more")
        case errno.EPERM:
            raise process.not_permitted()
    raise KernelError(call, error)


@cache
def _unreadable() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = libc.mmap(None, ctypes.c_size_t(PAGE_SIZE), 0, anonymous, -1, ctypes.c_long(0))
    if address is None or address == ctypes.c_void_p(-1).value:
        raise KernelError("mmap", ctypes.get_errno())
    return int(address)
