"""What the kernel writes to a program's memory when one of its threads ends: get_robust_list(2), set_tid_address(2).

These stores are the kernel's own, by a thread that is exiting, and for such a thread a userfaultfd catches nothing
(handle_userfault refuses PF_EXITING): on a page that is write-protected they fail, without a word. A thread that
waits for this one (pthread_join), or for a robust mutex that it held, then waits for ever. On a page without any
permission its loads fail, too: at the first entry of the list of robust mutexes that it cannot load it stops.

Where they go is in the thread's control block. That of a thread which runs is known by the head of its robust list,
which lies in it. Those of threads that have ended, whose stacks the C library keeps for others to come, look the same;
so they are looked for in what can be a stack: writable memory behind memory without access.

In musl the word is the same for all threads, a lock in its data: one of them has to be asked for its address
(PR_GET_TID_ADDRESS), which is done where a thread is stopped anyway (`_attach/injection.c`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from ..errors import FeatureMissing, KernelError, NexttouchError, NoSuchProcess
from . import control_block, pagemap, procfs, remote
from .control_block import TID_BEFORE_HEAD
from .pagemap import Category
from .process import Process
from .procfs import Kind, Mapping
from .syscall import PAGE_SIZE

__all__ = ["LastWord", "exit_spans", "last_words", "lost"]

_WORD = 8
_USER = 1 << 63  # addresses from here on are the kernel's
_MOST_ENTRIES = 2048  # ROBUST_LIST_LIMIT, include/linux/futex.h
_WAITERS, _OWNER_DIED, _OWNER = 0x80000000, 0x40000000, 0x3FFFFFFF  # FUTEX_WAITERS, ..., include/uapi/linux/futex.h
_BEFORE_HEAD, _BEHIND_HEAD = 64, 3 * _WORD
_TOP = 2 * PAGE_SIZE  # of a stack: where the C library puts the control block
_LARGEST = 1 << 30  # bytes of a stack: what is farther from its guard is other memory that has come to be one mapping
_CHUNK = 1 << 18  # bytes read at a time
_ARENA = 64 << 20  # HEAP_MAX_SIZE of glibc's malloc
_ARENA_HEAD = 256


@dataclass(frozen=True, slots=True)
class LastWord:
    """A word by which the kernel will tell of a thread's end.

    Attributes:
        address: where it is.
        value: what it said when it was looked at: it names the thread, by the id that the program knows.
        mutex: whether it is a robust mutex's, which is marked, and not that of pthread_join, which becomes 0.
    """

    address: int
    value: int
    mutex: bool

    @property
    def thread(self) -> int:
        """The thread's id, as the program knows it."""
        return self.value & _OWNER

    @property
    def names_one(self) -> bool:
        """Whether a thread is named that has not told of its end; -1 is there before the thread is."""
        return bool(self.thread) and (not self.value & _OWNER_DIED if self.mutex else self.value == self.thread)

    @property
    def final(self) -> int:
        """What the kernel writes."""
        return self.value & _WAITERS | _OWNER_DIED if self.mutex else 0


def exit_spans(process: Process, known: Iterable[int] = ()) -> list[tuple[int, int]]:
    """Return where `process` has such words, as spans of whole pages, sorted, none touching another.

    Those at the addresses `known` (0: none) are some. The others are in the control block of each thread and in the
    mutexes on its robust list; and, as a stack can be used again by a thread that comes later, in what looks like a
    control block, and at the upper end of what can be a stack.

    >>> all(start % PAGE_SIZE == end % PAGE_SIZE == 0 for start, end in exit_spans(Process(os.getpid())))
    True

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    stacks = _stacks(process)
    heads = _heads(process)
    words = [address for address in known if address]
    words += [end - offset for _, end in stacks for offset in range(PAGE_SIZE, _TOP + 1, PAGE_SIZE)]
    for head in heads | _found(process, stacks, heads):
        words += [head - _BEFORE_HEAD, head + _BEHIND_HEAD, *chain.from_iterable(_listed(process, head))]
    return _joined(_pages(words))


def last_words(process: Process, *, armed: bool = True) -> list[LastWord]:
    """Return the words that name a thread of `process`: one that runs, or has ended and left them so.

    None where control blocks do not look as glibc's do. Those of threads that have ended are looked for everywhere; if
    not `armed`, only on pages that are no traps, so that no other page is touched.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    heads = _heads(process)
    alive = _alive(process)
    if not heads or not all(_word(process, head - TID_BEFORE_HEAD) in alive for head in heads):
        return []
    blocks = heads | _found(process, _stacks(process), heads, armed=armed)
    places = {(head - TID_BEFORE_HEAD, False) for head in blocks}
    places |= {(word, True) for head in blocks for _, word in _listed(process, head)}
    return [word for word in _looked_up(process, places) if word.names_one]


def lost(process: Process, words: Iterable[LastWord]) -> list[LastWord]:
    """Return those of `words` that still name a thread which is gone: the kernel writes before it lets go of a thread.

    Raises:
        NoSuchProcess, NotPermitted: about `process`.
    """
    alive = _alive(process)  # behind the look at the words: a thread is there before it is named
    gone = {(word.address, word.mutex): word.thread for word in words if word.thread not in alive}
    now = _looked_up(process, gone)
    return [word for word in now if word.names_one and word.thread == gone[word.address, word.mutex]]


def _looked_up(process: Process, places: Iterable[tuple[int, bool]]) -> list[LastWord]:
    return [LastWord(address, _word(process, address), mutex) for address, mutex in places]


def _heads(process: Process) -> set[int]:
    heads = {thread: control_block.head(process.through(thread)) for thread in process.threads()}
    still = set(process.threads())  # the number of one that ended in between can be a stranger's
    return {head for thread, head in heads.items() if head and thread in still}


# The ids by which the threads of the process know each other.
def _alive(process: Process) -> set[int]:
    found = set()
    for thread in process.threads():
        with suppress(NoSuchProcess):  # it has ended since
            found.add(control_block.own_id(process.through(thread)))
    return found


def _word(process: Process, address: int) -> int:
    return int.from_bytes(remote.read(process, address, 4), "little") if 0 <= address < _USER else 0


# ---- stacks ----


def _stacks(process: Process) -> list[tuple[int, int]]:
    """Find what can be a stack: from the end of a guard to the end of its mapping, or the next guard in it."""
    mappings = procfs.mappings(process)
    guards = _guard_regions(process, mappings)
    found: list[tuple[int, int]] = []
    below = 0
    for mapping in mappings:
        if mapping.kind is Kind.ANONYMOUS and mapping.writable and not mapping.shared:
            first, last = np.searchsorted(guards["end"], [mapping.start, mapping.end], side="right").tolist()
            inside = [(int(run["start"]), int(run["end"])) for run in guards[first:last]]
            found += _between(([(below, below)] if below == mapping.start else []) + inside, mapping.end)
        guard = mapping.kind is Kind.ANONYMOUS and not (mapping.readable or mapping.writable or mapping.executable)
        below = mapping.end if guard else 0
    return found


def _between(guards: list[tuple[int, int]], end: int) -> Iterator[tuple[int, int]]:
    for (_, low), (high, _) in pairwise([*guards, (end, end)]):
        if low < high:
            yield low, high


# Guards within a mapping, as glibc has them since 2.42 (MADV_GUARD_INSTALL); kernels tell of them since 6.16.
def _guard_regions(process: Process, mappings: list[Mapping]) -> NDArray[np.void]:
    ends = [mapping.end for mapping in mappings if mapping.path != "[vsyscall]"]
    try:
        return pagemap.scan(process, mappings[0].start, max(ends), all_of=Category.GUARD, return_mask=Category.GUARD)
    except (FeatureMissing, KernelError):
        return np.empty(0, pagemap.RUN)


# ---- control blocks ----


def _found(process: Process, stacks: list[tuple[int, int]], heads: set[int], *, armed: bool = True) -> set[int]:
    """Find in `stacks` what looks like the head of a robust list as the `heads` are: the same word follows it."""
    kinds = {remote.read(process, head + _WORD, _WORD) for head in heads}
    signs = [int.from_bytes(kind, "little") for kind in kinds if len(kind) == _WORD and any(kind)]
    found: set[int] = set()
    for start, end in stacks if signs else []:
        runs = _present(process, start, min(end, start + _LARGEST), armed=armed)
        if runs and not (runs[0][0] == start and _is_arena(process, start)):
            for low, high in runs:
                found.update(_candidates(process, low, high, signs))
    return {head for head in found if _is_head(process, head)}


# An arena of malloc's is behind another one's rest, which has no access; it begins with a pointer to its own head, or
# to that of the first part of it (struct heap_info). The lowest words of a stack are 0 for nearly ever.
def _is_arena(process: Process, start: int) -> bool:
    head = int.from_bytes(remote.read(process, start, _WORD), "little") if start % _ARENA == 0 else 0
    return 0 < head < _USER and 0 < head % _ARENA < _ARENA_HEAD


# Runs of pages that are there, and if not `armed` of those among them that are no traps.
def _present(process: Process, start: int, end: int, *, armed: bool) -> list[tuple[int, int]]:
    try:
        runs = pagemap.scan(process, start, end, all_of=Category.PRESENT)
        spans = list(zip(runs["start"].tolist(), runs["end"].tolist(), strict=True))
    except FeatureMissing:
        spans = [(start, end)]
    else:
        if armed:
            return spans
    return [page for low, high in spans for page in _open_pages(process, low, high, armed=armed)]


def _open_pages(process: Process, low: int, high: int, *, armed: bool) -> list[tuple[int, int]]:
    words = pagemap.entries(process, low, (high - low) // PAGE_SIZE)
    there = (words & pagemap.PRESENT != 0) & (armed | (words & pagemap.UFFD_WP == 0))
    return [(low + page * PAGE_SIZE, low + (page + 1) * PAGE_SIZE) for page in np.flatnonzero(there).tolist()]


def _candidates(process: Process, low: int, high: int, signs: list[int]) -> Iterator[int]:
    buffer = bytearray(min(_CHUNK, high - low))
    words = np.frombuffer(buffer, np.uint64)
    for start in range(low, high, len(buffer)):
        size = remote.read_into(process, start, buffer) if high - start >= len(buffer) else 0
        rest = words[: size // _WORD] if size else np.frombuffer(remote.read(process, start, high - start), np.uint64)
        for sign in signs:
            at = np.flatnonzero(rest == np.uint64(sign))
            before = rest[at - 1]
            likely = (at == 0) | ((before > 0) & (before < _USER))  # what is before the first one is not known here
            yield from [start + (index - 1) * _WORD for index in at[likely].tolist()]


# struct robust_list_head, and before it in glibc the last entry of the list: four words of which three are addresses.
def _is_head(process: Process, head: int) -> bool:
    data = remote.read(process, head - _WORD, 4 * _WORD)
    if len(data) < 4 * _WORD:
        return False
    last, entry, _, pending = struct.unpack("<4Q", data)
    return bool(0 < last < _USER and 0 < entry < _USER and pending < _USER)


# The entries of a robust list with their futex words, and the one that is about to be on it: as the thread ends the
# kernel loads each entry and marks each word, which need not be on the same page.
def _listed(process: Process, head: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    try:
        entry, offset, pending = struct.unpack("<QqQ", remote.read(process, head, 3 * _WORD))
        if pending:
            found.append((pending & ~1, (pending & ~1) + offset))
        while entry & ~1 != head and len(found) < _MOST_ENTRIES:
            found.append((entry & ~1, (entry & ~1) + offset))
            (entry,) = struct.unpack("<Q", remote.read(process, entry & ~1, _WORD))
    except (NexttouchError, struct.error):  # the thread has ended, or its list is being changed
        pass
    return found


# ---- spans ----


def _pages(words: Iterable[int]) -> list[tuple[int, int]]:
    pages = {word // PAGE_SIZE for word in words if 0 <= word < _USER}
    return [(page * PAGE_SIZE, (page + 1) * PAGE_SIZE) for page in pages]


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
