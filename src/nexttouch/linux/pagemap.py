"""Page table entries of a process: /proc/PID/pagemap word by word, and PAGEMAP_SCAN by runs.

Sources: Documentation/admin-guide/mm/pagemap.rst; PAGEMAP_SCAN came with Linux 6.7 (kernel commit 52526ca7fdb9).
Constants: include/uapi/linux/fs.h. Both ways need permission to read the process's memory.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from ..errors import FeatureMissing, KernelError, NoSuchProcess
from .process import Process
from .syscall import PAGE_SIZE

__all__ = [
    "EXCLUSIVE",
    "FILE",
    "GUARD",
    "PFN",
    "PRESENT",
    "RUN",
    "SOFT_DIRTY",
    "SWAP",
    "UFFD_WP",
    "Category",
    "entries",
    "frames",
    "joined",
    "scan",
    "swapped",
]

PRESENT = np.uint64(1 << 63)
"""The entry maps a frame."""
SWAP = np.uint64(1 << 62)
"""The entry is not present and not empty: in swap, being migrated at this moment, or a marker without a page."""
FILE = np.uint64(1 << 61)
"""The page is of a file or of shared memory."""
GUARD = np.uint64(1 << 58)
"""The entry is a guard without a page (MADV_GUARD_INSTALL, Linux 6.13; the bit came with 6.15)."""
UFFD_WP = np.uint64(1 << 57)
"""The entry is write-protected through userfaultfd (Linux 5.13)."""
EXCLUSIVE = np.uint64(1 << 56)
"""The page is mapped once, here. Clear for the zero page."""
SOFT_DIRTY = np.uint64(1 << 55)
"""The page was written since soft-dirty bits were cleared, on kernels with CONFIG_MEM_SOFT_DIRTY."""
PFN = np.uint64((1 << 55) - 1)
"""The bits that hold the frame number of a present page; they read 0 without CAP_SYS_ADMIN."""
_SWAP_TYPE = np.uint64((1 << 5) - 1)  # MAX_SWAPFILES_SHIFT: the area of a page in swap, with its offset above
_MARKER = np.uint64(31)  # SWP_PTE_MARKER, the last type since Linux 5.19: write-protected, poisoned, a guard


class Category(IntFlag):
    """What PAGEMAP_SCAN knows of a page (PAGE_IS_* in include/uapi/linux/fs.h)."""

    WPALLOWED = 1 << 0
    WRITTEN = 1 << 1
    FILE = 1 << 2
    PRESENT = 1 << 3
    SWAPPED = 1 << 4
    PFNZERO = 1 << 5
    HUGE = 1 << 6
    SOFT_DIRTY = 1 << 7
    GUARD = 1 << 8


RUN = np.dtype([("start", np.uint64), ("end", np.uint64), ("categories", np.int64)])
"""One result of `scan`: pages of [start, end), all of the same categories, to be tested with `Category`."""

_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
_RUNS_A_CALL = 1 << 15
_PAGES_A_CALL = 1 << 18  # bounds how long one call keeps the process from changing its mappings: about 4 ms


class _ScanArgument(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages",
            "category_inverted", "category_mask", "category_anyof_mask", "return_mask",
        )
    ]  # fmt: skip


def entries(process: Process, start: int, pages: int) -> NDArray[np.uint64]:
    """Pagemap words of `pages` pages of `process` from address `start` (on a page boundary), shape (pages,).

    A page where nothing is mapped, or beyond the address space, has 0. Costs eight bytes a virtual page, populated or
    not: use `scan` for what may be sparse.

    Raises:
        NoSuchProcess: there is no such process, or it has ended.
        NotPermitted: its memory belongs to another user.
    """
    words = np.zeros(pages, dtype=np.uint64)
    view, done, offset = words.view(np.uint8).data, 0, start // PAGE_SIZE * 8
    with _open(process) as descriptor:
        while done < words.nbytes:
            try:
                got = os.preadv(descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise process.access_error(error) from None
            if not got:
                break
            done += got
    return words


def swapped(words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of these pagemap words are of pages in swap, or being migrated, rather than markers without a page.

    Without CAP_SYS_ADMIN the kernel blanks the bits by which the markers of userfaultfd are known (`PFN`; those of a
    page in swap are never all 0): all words with `SWAP` and without `GUARD` are then said to be swapped.
    """
    marker = (words & GUARD != 0) | (words & _SWAP_TYPE == _MARKER)
    found: NDArray[np.bool_] = (words & SWAP != 0) & ~marker
    return found


def frames(process: Process, start: int, pages: int) -> NDArray[np.uint64]:
    """Frame numbers of `pages` pages from `start`, shape (pages,); 0 for a page not present.

    Raises:
        FeatureMissing: this process lacks CAP_SYS_ADMIN, for which the kernel blanks the numbers.
        NoSuchProcess, NotPermitted: as `entries`.
    """
    words = entries(process, start, pages)
    present = (words & PRESENT) != 0
    numbers = np.where(present, words & PFN, np.uint64(0))
    if present.any() and not numbers.any():
        raise FeatureMissing("the frame number of a page", "this process lacks CAP_SYS_ADMIN", "run as root")
    return numbers


def scan(
    process: Process,
    start: int,
    end: int,
    *,
    all_of: int = 0,
    any_of: int = 0,
    inverted: int = 0,
    return_mask: int = Category.PRESENT,
) -> NDArray[np.void]:
    """Find runs of pages in [start, end) of `process` that have the categories asked for; shape (runs,), dtype RUN.

    A page is taken when, after the categories in `inverted` are turned round, it has all of `all_of` and, if given, one
    of `any_of`. Runs are split where the categories in `return_mask`, reported as they are (not turned round), change.
    Time goes with what is populated, not with the size of the range; holes cost nothing.

    >>> runs = scan(SELF, start, end, all_of=Category.PRESENT)
    >>> int((runs["end"] - runs["start"]).sum()) // PAGE_SIZE
    1024

    Raises:
        FeatureMissing: the kernel has no PAGEMAP_SCAN (before 6.7): use `entries`.
        KernelError: EFAULT for a range that is not user memory, EINVAL for a category this kernel does not know.
        NoSuchProcess, NotPermitted: as `entries`.
    """
    found: list[NDArray[np.void]] = []
    buffer = np.empty(_RUNS_A_CALL, dtype=RUN)
    argument = _ScanArgument(
        size=ctypes.sizeof(_ScanArgument),
        start=start,
        end=end,
        vec=buffer.ctypes.data,
        vec_len=len(buffer),
        max_pages=_PAGES_A_CALL,
        category_inverted=inverted,
        category_mask=all_of,
        category_anyof_mask=any_of,
        return_mask=return_mask,
    )
    with _open(process) as descriptor:
        while argument.start < end:
            runs = buffer[: _scan_once(process, descriptor, argument)].copy()
            found.append(runs)
            # Not walk_end: it can lie before the last run (6.18). The kernel sets it each time its own buffer of 512
            # runs is full, but not again when it then reaches the end, and the next call would report pages twice.
            argument.start = int(runs["end"][-1]) if len(runs) else end
    # A call that stops at its limit of pages has cut a run in two.
    return joined(np.concatenate(found)) if found else buffer[:0].copy()


@contextmanager
def _open(process: Process) -> Iterator[int]:
    try:
        descriptor = os.open(process.directory / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise process.access_error(error) from None
    try:
        yield descriptor
        process.check()
    finally:
        os.close(descriptor)


def _scan_once(process: Process, descriptor: int, argument: _ScanArgument) -> int:
    try:
        return int(fcntl.ioctl(descriptor, _PAGEMAP_SCAN, argument))
    except OSError as error:
        if error.errno == errno.ENOTTY:
            raise FeatureMissing("PAGEMAP_SCAN", "this kernel does not know it", "use Linux 6.7 or later") from None
        if error.errno == errno.ESRCH:
            raise NoSuchProcess(process.pid, "while its pages were scanned") from None
        raise KernelError("PAGEMAP_SCAN", error.errno or 0) from None


def joined(runs: NDArray[np.void]) -> NDArray[np.void]:
    """Make one of each two neighbours in `runs`, ascending, that touch and have the same categories."""
    if not len(runs):
        return runs
    breaks = (runs["start"][1:] != runs["end"][:-1]) | (runs["categories"][1:] != runs["categories"][:-1])
    first = np.concatenate(([True], breaks))
    whole = runs[first].copy()
    whole["end"] = runs["end"][np.concatenate((breaks, [True]))]
    return whole
