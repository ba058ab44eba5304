"""Marks in the counts of the lab: what happens between two of them is told apart.

A mark has to be set by a program that may do nothing special, and be seen by QEMU's plugin, which can read neither
registers nor memory of the guest, but sees the address of every access. So a mark is a page at an address that nothing
else uses, and a name is spelled by which places of it are read. `mark.c` does the same for shells, `mark.h` says where.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import threading

from ..errors import InvalidArgument, KernelError

__all__ = ["LONGEST_NAME", "mark"]

LONGEST_NAME = 64
"""Letters in the name of a mark."""

_PAGE, _SIZE, _STRIDE = 0x4E54_0000_0000, 4096, 16
_MAP_POPULATE, _MAP_FIXED_NOREPLACE = 0x8000, 0x100000  # linux/mman.h
_NAME = re.compile(rf"[!-~]{{1,{LONGEST_NAME}}}")

_lock = threading.Lock()


def mark(name: str) -> None:
    """Set a mark in the counts of `lab.count` and `nexttouch lab --count`; anywhere else it does nothing.

    Marks belong to the whole machine: they tell what came before from what comes after, for all of its CPUs and
    programs. Two programs should not set one at the same moment. A shell has `/run/nexttouch-lab/mark NAME`.

    >>> mark("begin")

    Raises:
        InvalidArgument: a name that is not 1 to 64 letters, digits and signs of ASCII, without spaces.
        KernelError: the page of marks cannot be mapped: something else is at its address.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument("name", f"is {name!r}, but has to be 1 to {LONGEST_NAME} signs of ASCII without spaces")
    with _lock:
        page = _map()
        try:
            for letter in (*name.encode(), 0):
                ctypes.c_ubyte.from_address(page + letter * _STRIDE).value  # noqa: B018 (reading it is the point)
        finally:
            _libc.munmap(page, _SIZE)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def _map() -> int:
    how = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_POPULATE | _MAP_FIXED_NOREPLACE
    page = _libc.mmap(_PAGE, _SIZE, mmap.PROT_READ, how, -1, 0)
    if page != _PAGE:
        raise KernelError("mmap", ctypes.get_errno(), f"the page of marks is to be at {_PAGE:#x}")
    return _PAGE
