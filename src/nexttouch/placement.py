"""Where memory is: pages by node, and what is not on any node: holes, zero pages, swap.

Everything is counted in pages of `PAGE_SIZE`, huge pages too. A count is of one moment a page, not of one moment for
all: the process runs on meanwhile.

Page tables are walked by PAGEMAP_SCAN, nodes asked for by move_pages(2). /proc/PID/numa_maps would be three times
faster for a whole process, but keeps it from changing its mappings while it walks the largest of them (0.3 s for
40 GiB), and asking where memory is shall stop no thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidArgument
from .linux import procfs
from .linux.occupied import mapped_often, nodes_of, occupied, shared_in_swap
from .linux.pagemap import Category
from .linux.process import SELF, Process
from .linux.syscall import PAGE_SIZE
from .printable import printable
from .quantities import format_count, format_size

__all__ = [
    "Counts",
    "MappingPlacement",
    "Placement",
    "mapped_often",
    "nodes_of",
    "span",
    "where",
]

_BATCH = 1 << 18
"""Pages asked for in one call: between two of them a signal such as Ctrl-C gets its turn (50 ms)."""
_ADDRESSES = 2**64
_USER = 2**63
"""[vsyscall] alone lies beyond user memory: there is no page table to walk for it."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Pages by where they are. Always `pages == present + zero + swapped + holes`.

    by_node: present pages by node id.
    unknown: present in the page table, but on no node the kernel would name: gone meanwhile, or memory of a device.
    zero: entries that point to the kernel's page of zeros, after a read of untouched memory.
    swapped: in swap, or being migrated at this very moment.
    holes: never touched here, or given back. Memory of drivers without a page behind it counts here too, and so do
        guards (MADV_GUARD_INSTALL) and the markers of a userfaultfd.
    huge: of the present, those mapped by an entry for a huge page, transparent or hugetlb; None where the kernel does
        not tell (before Linux 6.7).
    shared: of the present, those mapped more than once: by another process, or twice by this one. They move only with
        MOVE_ALL.
    unmovable: of the present, those that belong to the kernel or a driver (vdso, device), or are of memfd_secret(2).
        Locked pages are movable.
    """

    pages: int
    by_node: dict[int, int]
    unknown: int
    zero: int
    swapped: int
    holes: int
    huge: int | None
    shared: int
    unmovable: int

    @property
    def present(self) -> int:
        """Pages that have a frame of their own."""
        return sum(self.by_node.values()) + self.unknown

    def to_dict(self) -> dict[str, Any]:
        """Make a JSON object: the names above and `present`; `by_node` has node ids as strings, ascending."""
        return {
            "pages": self.pages,
            "present": self.present,
            "by_node": {str(node): count for node, count in sorted(self.by_node.items())},
            "unknown": self.unknown,
            "zero": self.zero,
            "swapped": self.swapped,
            "holes": self.holes,
            "huge": self.huge,
            "shared": self.shared,
            "unmovable": self.unmovable,
        }


@dataclass(frozen=True, slots=True)
class MappingPlacement:
    """The part [start, end) of one mapping that was asked for, and where its pages are."""

    mapping: procfs.Mapping
    start: int
    end: int
    counts: Counts

    def to_dict(self) -> dict[str, Any]:
        """Make a JSON object: `start`, `end`, `kind`, `path` (`printable`), and the keys of `Counts.to_dict`."""
        path = printable(self.mapping.path)
        head = {"start": self.start, "end": self.end, "kind": self.mapping.kind.value, "path": path}
        return head | self.counts.to_dict()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the memory of process `pid`, or a part of it, is: in all, and mapping by mapping."""

    pid: int
    total: Counts
    mappings: tuple[MappingPlacement, ...]

    @property
    def by_node(self) -> dict[int, int]:
        """Present pages by node id; a node without any is not in it."""
        return self.total.by_node

    def to_dict(self) -> dict[str, Any]:
        """Make a JSON object: `pid`, `page_size`, the keys of `Counts.to_dict`, and `mappings`, a list of objects."""
        head = {"pid": self.pid, "page_size": PAGE_SIZE} | self.total.to_dict()
        return head | {"mappings": [mapping.to_dict() for mapping in self.mappings]}

    def __str__(self) -> str:
        return _table(self.total)


def where(x: object) -> Placement:
    """Find the node of each page of `x`: an array, anything with the buffer protocol, or a process id.

    A page that a buffer covers in part counts as a whole. A view with gaps (`array[::2]`) covers the span from its
    first byte to its last. The buffer is neither read nor written, so pages stay as they are. About three
    seconds for ten million pages of 4 KiB; a hole costs nothing. Pages that `lazy` is to move are holes until they have
    moved: `relocate` keeps them in `Migration.shadow`.

    >>> array = nt.zeros((1024, 512), node=(0, 3))
    >>> array[:512] = 1
    >>> nt.where(array).by_node, nt.where(array).total.holes
    ({0: 256, 3: 256}, 512)

    Raises:
        InvalidArgument: `x` is none of these, or has no bytes.
        NoSuchProcess: there is no such process, or it ended meanwhile.
        NotPermitted: its memory belongs to another user.
        FeatureMissing: /proc is missing or of another pid namespace, or a container's seccomp filter forbids
            move_pages(2), by which the kernel is asked.
    """
    if isinstance(x, int | np.generic):
        with Process.open(x, argument="x") as process:
            return _placement(process, 0, _ADDRESSES)
    start, end = span(x)
    return _placement(SELF, start // PAGE_SIZE * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE)


def span(x: object, *, argument: str = "x") -> tuple[int, int]:
    """Return the addresses [start, end) from the first byte of buffer `x` to its last, not rounded to pages.

    Raises:
        InvalidArgument: naming `argument`; `x` has no buffer, or one without bytes.
    """
    array = x if isinstance(x, np.ndarray) else _as_array(x, argument)
    if array.size == 0 or array.itemsize == 0:
        raise InvalidArgument(argument, "has no bytes, so there is no memory to speak of")
    first = last = array.ctypes.data
    for length, stride in zip(array.shape, array.strides, strict=True):
        reach = (length - 1) * stride
        first, last = first + min(reach, 0), last + max(reach, 0)
    return first, last + array.itemsize


def _as_array(x: object, argument: str) -> NDArray[Any]:
    try:
        return np.asarray(memoryview(cast(bytes, x)))
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            argument, f"is a {type(x).__name__}, but has to be an array, a buffer or a process id ({error})"
        ) from None


def _placement(process: Process, start: int, end: int) -> Placement:
    mappings = [mapping for mapping in procfs.mappings(process) if mapping.start < end and mapping.end > start]
    bounds = np.array([(max(m.start, start), min(m.end, end)) for m in mappings], dtype=np.uint64).reshape(-1, 2)
    tally = _tally(process, bounds)
    if any(mapping.kind is procfs.Kind.SHMEM for mapping in mappings):
        tally.swapped += shared_in_swap(process, bounds)
    parts = tuple(
        MappingPlacement(mapping, first, last, tally.counts(row, (last - first) // PAGE_SIZE, mapping.kind.movable))
        for row, (mapping, (first, last)) in enumerate(zip(mappings, bounds.tolist(), strict=True))
    )
    return Placement(process.pid, _total([part.counts for part in parts]), parts)


@dataclass(slots=True)
class _Tally:
    """Counts of all mappings at once: arrays with one element, by_node with one row, a mapping."""

    by_node: NDArray[np.int64]
    unknown: NDArray[np.int64]
    zero: NDArray[np.int64]
    swapped: NDArray[np.int64]
    huge: NDArray[np.int64] | None
    shared: NDArray[np.int64]

    def counts(self, row: int, pages: int, movable: bool) -> Counts:
        by_node = {int(node): int(self.by_node[row, node]) for node in self.by_node[row].nonzero()[0]}
        unknown, zero, swapped = int(self.unknown[row]), int(self.zero[row]), int(self.swapped[row])
        present = sum(by_node.values()) + unknown
        return Counts(
            pages=pages,
            by_node=by_node,
            unknown=unknown,
            zero=zero,
            swapped=swapped,
            holes=pages - present - zero - swapped,
            huge=None if self.huge is None else int(self.huge[row]),
            shared=int(self.shared[row]),
            unmovable=0 if movable else present,
        )


@dataclass(slots=True)
class _Pieces:
    """Runs of pages cut at the bounds of mappings, one element a piece in each array; `owner` is the mapping's row."""

    start: NDArray[np.uint64]
    end: NDArray[np.uint64]
    owner: NDArray[np.intp]
    categories: NDArray[np.int64]

    def having(self, mask: Category, value: Category) -> _Pieces:
        chosen = self.categories & mask == value
        return _Pieces(self.start[chosen], self.end[chosen], self.owner[chosen], self.categories[chosen])

    def pages_by_owner(self, owners: int) -> NDArray[np.int64]:
        sums = np.zeros(owners, dtype=np.int64)
        np.add.at(sums, self.owner, ((self.end - self.start) // np.uint64(PAGE_SIZE)).astype(np.int64))
        return sums


def _tally(process: Process, bounds: NDArray[np.uint64]) -> _Tally:
    rows = len(bounds)
    runs, knows_huge = occupied(process, bounds[bounds[:, 1] <= _USER])
    pieces = _cut(runs, bounds)
    present = pieces.having(Category.PRESENT | Category.PFNZERO, Category.PRESENT)
    by_node, unknown = _count_nodes(process, present, rows)
    return _Tally(
        by_node,
        unknown,
        zero=pieces.having(Category.PFNZERO, Category.PFNZERO).pages_by_owner(rows),
        swapped=pieces.having(Category.SWAPPED, Category.SWAPPED).pages_by_owner(rows),
        huge=present.having(Category.HUGE, Category.HUGE).pages_by_owner(rows) if knows_huge else None,
        shared=_count_shared(process, present, rows),
    )


def _cut(runs: NDArray[np.void], bounds: NDArray[np.uint64]) -> _Pieces:
    # Between two neighbouring edges nothing changes: a stretch lies in one run and in one mapping, or outside.
    edges = np.sort(np.concatenate((runs["start"], runs["end"], bounds.ravel())))
    start, end = edges[:-1], edges[1:]
    run = np.searchsorted(runs["start"], start, side="right") - 1
    owner = np.searchsorted(bounds[:, 0], start, side="right") - 1
    inside = (start < end) & (run >= 0) & (owner >= 0)
    inside[inside] = (start[inside] < runs["end"][run[inside]]) & (start[inside] < bounds[owner[inside], 1])
    return _Pieces(start[inside], end[inside], owner[inside], runs["categories"][run[inside]])


def _count_nodes(process: Process, pieces: _Pieces, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    by_node = np.zeros((rows, 1), dtype=np.int64)
    unknown = np.zeros(rows, dtype=np.int64)
    for addresses, owner, pages in _samples(pieces, _steps(pieces)):
        status = nodes_of(process, addresses)
        known = status >= 0
        more = int(status.max()) + 1 - by_node.shape[1]
        by_node = np.pad(by_node, ((0, 0), (0, max(more, 0))))
        np.add.at(by_node, (owner[known], status[known]), pages[known])
        np.add.at(unknown, owner[~known], pages[~known])
    return by_node, unknown


def _count_shared(process: Process, pieces: _Pieces, rows: int) -> NDArray[np.int64]:
    shared = np.zeros(rows, dtype=np.int64)
    for addresses, owner, _ in _samples(pieces, np.full(len(pieces.start), PAGE_SIZE, dtype=np.uint64)):
        np.add.at(shared, owner[mapped_often(process, addresses)], 1)
    return shared


def _steps(pieces: _Pieces) -> NDArray[np.uint64]:
    # All of a huge page is on one node: one question is enough. The smallest size there is divides all others.
    sizes = [int(d.name[10:-2]) * 1024 for d in Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB")]
    transparent = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
    with suppress(OSError, ValueError):  # not in this kernel, or masked
        sizes.append(int(transparent.read_text()))
    size = np.uint64(min(sizes, default=PAGE_SIZE))
    whole = (pieces.start % size == 0) & (pieces.end % size == 0) & (pieces.categories & Category.HUGE != 0)
    return np.where(whole, size, np.uint64(PAGE_SIZE))


def _samples(
    pieces: _Pieces, steps: NDArray[np.uint64]
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.intp], NDArray[np.int64]]]:
    """Give addresses `steps` bytes apart within each piece, their owners, and the pages each stands for, in batches."""
    counts = ((pieces.end - pieces.start) // steps).astype(np.int64)
    ends = np.cumsum(counts)
    for first in range(0, int(counts.sum()), _BATCH):
        index = np.arange(first, min(first + _BATCH, int(ends[-1])))
        piece = np.searchsorted(ends, index, side="right")
        steps_in = (index - (ends - counts)[piece]).astype(np.uint64)
        pages = (steps[piece] // np.uint64(PAGE_SIZE)).astype(np.int64)
        yield pieces.start[piece] + steps_in * steps[piece], pieces.owner[piece], pages


def _total(counts: list[Counts]) -> Counts:
    by_node: Counter[int] = Counter()
    for part in counts:
        by_node.update(part.by_node)
    names = [field.name for field in fields(Counts) if field.name not in {"by_node", "huge"}]
    sums = {name: sum(getattr(part, name) for part in counts) for name in names}
    huge = [part.huge for part in counts if part.huge is not None]
    return Counts(by_node=dict(sorted(by_node.items())), huge=sum(huge) if len(huge) == len(counts) else None, **sums)


def _table(total: Counts) -> str:
    rows = [(f"node {node}", count, f"{count / total.present:.1%}") for node, count in sorted(total.by_node.items())]
    others = (
        ("no node", total.unknown),
        ("zero page", total.zero),
        ("swapped", total.swapped),
        ("untouched", total.holes),
    )
    rows += [(name, count, "") for name, count in others if count]
    lines = [f"{'':12}{'pages':>14}{'size':>12}{'of present':>12}"]
    lines += [
        f"{name:12}{format_count(n):>14}{format_size(n * PAGE_SIZE):>12}{share:>12}".rstrip() for name, n, share in rows
    ]
    marks = (("huge", total.huge or 0), ("shared", total.shared), ("unmovable", total.unmovable))
    notes = [f"{name} {format_size(count * PAGE_SIZE)}" for name, count in marks if count]
    return "\n".join(lines + ([f"of present: {', '.join(notes)}"] if notes else []))
