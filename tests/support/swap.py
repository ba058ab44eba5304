"""An area of swap for as long as a test runs, and memory that is put there."""

from __future__ import annotations

import ctypes
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nexttouch.linux import pagemap
from nexttouch.linux.process import SELF

from .memory import PAGE_SIZE, Memory, checked, libc

__all__ = ["page_out", "swap_area"]

_MADV_PAGEOUT = 21
_ATTEMPTS = 100


@contextmanager
def swap_area(pages: int = 2048) -> Iterator[bool]:
    """Add a file of `pages` pages to the machine's swap; give whether that could be done."""
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:  # /tmp may be in memory
        os.posix_fallocate(file.fileno(), 0, pages * PAGE_SIZE)
        head = struct.pack("<1024xIII", 1, pages - 1, 0)  # union swap_header: version, last page, bad pages
        file.write(head.ljust(PAGE_SIZE - 10, b"\0") + b"SWAPSPACE2")
        file.flush()
        os.fsync(file.fileno())
        name = ctypes.c_char_p(os.fsencode(file.name))
        added = libc.swapon(name, 0) == 0
        try:
            yield added
        finally:
            if added:
                checked(libc.swapoff(name))


def page_out(memory: Memory, first: int, count: int, *, shared: bool = False) -> None:
    """Put `count` pages from page `first` on into swap; of `shared` memory no entries are left then."""
    for _ in range(_ATTEMPTS):  # pages that another CPU has not put on a list yet stay
        memory.advise(_MADV_PAGEOUT, first, count)
        words = pagemap.entries(SELF, memory.at(first), count)
        if not words.any() if shared else pagemap.swapped(words).all():
            return
    used = Path("/proc/swaps").read_text(encoding="utf-8")
    raise AssertionError(f"pages were not put into swap: {words}\n{used}")
