"""What the kernel writes to a program's memory when one of its threads ends: get_robust_list(2), set_tid_address(2).

These stores are the kernel's own, by a thread that is exiting, and for such a thread a userfaultfd catches nothing
(handle_userfault refuses PF_EXITING): on a page that is write-protected they fail, without a word. Whoever waits for
the thread (pthread_join), or for a robust mutex that it held, then waits for ever.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct

from . import procfs
from .syscall import PAGE_SIZE, read_file, try_call

__all__ = ["exit_spans"]

_WORD = 8
_USER = 1 << 63  # addresses from here on are the kernel's
_MOST_ENTRIES = 2048  # ROBUST_LIST_LIMIT, include/linux/futex.h
# In glibc the word that set_tid_address names stands 16 bytes before the head of the robust list (struct pthread).
_BEFORE_HEAD, _BEHIND_HEAD = 64, 3 * _WORD
_USUAL_STACK = 8 << 20


def exit_spans(pid: int) -> list[tuple[int, int]]:
    """Return where process `pid` has such words, as spans of whole pages, sorted, none touching another.

    They are around the head of each thread's robust list and in the mutexes on it; and, as a stack can be used again by
    a thread that comes later, at the begin of each writable mapping behind one without access, which is how the C
    library guards its stacks, as far as the usual stack of this process is large.

    >>> all(start % PAGE_SIZE == end % PAGE_SIZE == 0 for start, end in exit_spans(os.getpid()))
    True

    Raises:
        NoSuchProcess, NotPermitted: about `pid`.
    """
    try:
        spans = _stacks(pid, _stack_size(read_file(procfs.directory(pid) / "limits")))
        memory = os.open(procfs.directory(pid) / "mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise procfs.access_error(pid, error) from None
    try:
        for head in filter(None, map(_robust_list, procfs.threads(pid))):
            for word in (head - _BEFORE_HEAD, head + _BEHIND_HEAD, *_locked(memory, head)):
                if 0 <= word < _USER:  # a list is what the program says, or half changed
                    spans.append((word // PAGE_SIZE * PAGE_SIZE, (word // PAGE_SIZE + 1) * PAGE_SIZE))
    finally:
        os.close(memory)
    return _joined(spans)


def _stacks(pid: int, size: int) -> list[tuple[int, int]]:
    found, guard = [], 0
    for mapping in procfs.mappings(pid):
        if mapping.writable and mapping.start == guard and not mapping.path:
            found.append((mapping.start, min(mapping.end, mapping.start + size)))
        guard = 0 if mapping.readable or mapping.writable or mapping.path else mapping.end
    return found


def _stack_size(limits: bytes) -> int:
    found = re.search(rb"^Max stack size +(\d+)", limits, re.MULTILINE)  # the soft limit: what pthread_create takes
    return -(-int(found[1]) // PAGE_SIZE) * PAGE_SIZE if found else _USUAL_STACK


def _robust_list(thread: int) -> int:
    head, size = ctypes.c_uint64(), ctypes.c_uint64()
    _, error = try_call("get_robust_list", thread, ctypes.byref(head), ctypes.byref(size))
    return 0 if error else head.value


# The futex words on a robust list, and the one that is about to be on it.
def _locked(memory: int, head: int) -> list[int]:
    found: list[int] = []
    try:
        entry, offset, pending = struct.unpack("<QqQ", os.pread(memory, 3 * _WORD, head))
        if pending:
            found.append((pending & ~1) + offset)
        while entry & ~1 != head and len(found) < _MOST_ENTRIES:
            found.append((entry & ~1) + offset)
            (entry,) = struct.unpack("<Q", os.pread(memory, _WORD, entry & ~1))
    except (OSError, OverflowError, struct.error):  # the thread has ended, or its list is being changed
        pass
    return found


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
