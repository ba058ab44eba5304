"""What /proc says of a process: mappings, their sizes and policies, state (proc(5), fs/proc/task_mmu.c).

Every function raises NoSuchProcess when the process has ended, and NotPermitted when its memory belongs to another
user. Sizes are bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

from ..errors import FeatureMissing, KernelError, NoSuchProcess, NotPermitted
from .nodes import parse_list
from .process import SELF, Process
from .syscall import PAGE_SIZE, read_file

__all__ = [
    "Kind",
    "Mapping",
    "NumaMap",
    "Smap",
    "Status",
    "argument_spans",
    "dumps_core",
    "mappings",
    "numa_maps",
    "smaps",
    "start_time",
    "status",
    "swap_is_used",
]

_PF_KTHREAD = 0x200000  # include/linux/sched.h


class Kind(StrEnum):
    """What lies behind a mapping."""

    ANONYMOUS = "anonymous"
    HEAP = "heap"
    STACK = "stack"
    FILE = "file"
    SHMEM = "shmem"
    HUGETLB = "hugetlb"
    DEVICE = "device"
    SECRET = "secret"
    SPECIAL = "special"

    @property
    def movable(self) -> bool:
        """False for what the kernel never migrates: memory of drivers, of its own (vdso, vvar), and memfd_secret(2)."""
        return self not in {Kind.DEVICE, Kind.SECRET, Kind.SPECIAL}


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps: addresses [start, end).

    `offset` is in bytes, `device` as `st_dev` of os.stat, `path` as the kernel prints it (" (deleted)" included), ""
    for memory without a name. SHMEM is memfd, tmpfs, System V and shared anonymous memory.
    """

    start: int
    end: int
    readable: bool
    writable: bool
    executable: bool
    shared: bool
    offset: int
    device: int
    inode: int
    path: str
    kind: Kind

    @property
    def pages(self) -> int:
        """Virtual pages, populated or not."""
        return (self.end - self.start) // PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Smap:
    """A mapping with its sizes from /proc/PID/smaps, and `flags`, the two-letter VmFlags ("lo" is locked).

    `shmem_huge` is what huge entries map of shared memory.
    """

    mapping: Mapping
    rss: int
    shmem_huge: int
    kernel_page_size: int
    locked: int
    swap: int
    flags: frozenset[str]


@dataclass(frozen=True, slots=True)
class NumaMap:
    """One line of /proc/PID/numa_maps.

    `pages` is pages of PAGE_SIZE by node (the file counts a page of hugetlb as one, this does not); zero pages are in
    none.
    """

    start: int
    policy: str
    kernel_page_size: int
    pages: dict[int, int]


@dataclass(frozen=True, slots=True)
class Status:
    """The fields of /proc/PID/status that decide whether and how a process may be migrated.

    `state` is one letter ("Z" is a zombie); `tracer` 0 when it is not traced; `seccomp` 0 off, 1 strict, 2 filter;
    `uid` the effective one; sizes 0 for a process without memory.
    """

    name: str
    state: str
    tracer: int
    uid: int
    threads: int
    seccomp: int
    rss: int
    swap: int
    locked: int
    mems_allowed: tuple[int, ...]


def mappings(process: Process = SELF, start: int = 0, end: int = 1 << 64) -> list[Mapping]:
    """Return the mappings of `process` that overlap [start, end), by ascending address, none overlapping another.

    The kernel tells of them piece by piece, while they change: what lies where another one was met already is left out.

    Raises:
        NoSuchProcess: also for a zombie, which has no memory any more.
        NotPermitted: see the head of the module; also for a kernel thread, which has no memory of its own.
    """
    kinds, found, last = _file_kinds(process), list[Mapping](), 0
    for line in _lines(process, "maps"):
        low, high = _bounds(line)
        if low >= end:
            break
        if start < high and low >= last:
            found.append(_mapping(line, kinds))
            last = high
    process.check()  # the list of one that ends meanwhile ends somewhere, without an error
    return found


def smaps(process: Process = SELF, start: int = 0, end: int = 1 << 64) -> list[Smap]:
    """Return the mappings of `process` that overlap [start, end) with their sizes, as `mappings` does.

    The kernel walks the page tables of all that lies below `end` for it: 30 ns a page.

    Raises:
        NoSuchProcess, NotPermitted: as `mappings`.
    """
    kinds, found, last = _file_kinds(process), list[Smap](), 0
    lines = _lines(process, "smaps")
    for head in lines:
        low, high = _bounds(head)
        if low >= end:
            break
        fields: dict[str, str] = {}
        for line in lines:
            if line.startswith(_OF_SMAPS if start < high else _LAST_OF_SMAPS):
                key, _, value = line.partition(":")
                fields[key] = value
                if key == _LAST_OF_SMAPS:
                    break
        if start < high and low >= last and _LAST_OF_SMAPS in fields:
            found.append(_smap(_mapping(head, kinds), fields))
            last = high
    process.check()  # the list of one that ends meanwhile ends somewhere, without an error
    return found


_LAST_OF_SMAPS = "VmFlags"
_OF_SMAPS = ("Rss:", "ShmemPmdMapped:", "KernelPageSize:", "Locked:", "Swap:", _LAST_OF_SMAPS)


def swap_is_used() -> bool:
    """Whether anything on this machine is in swap; True, too, where /proc/swaps is hidden.

    >>> swap_is_used() in (True, False)
    True
    """
    try:
        _, *areas = os.fsdecode(read_file("/proc/swaps")).splitlines()
    except (OSError, ValueError):
        return True
    return any(area.split()[-2] != "0" for area in areas)  # file name, type, size, used, priority


def numa_maps(process: Process = SELF) -> list[NumaMap]:
    """Pages by node and the policy of each mapping of `process`; walks all its page tables.

    Raises:
        NoSuchProcess, NotPermitted: as `mappings`.
    """
    found = [_numa_map(line) for line in _lines(process, "numa_maps")]
    process.check()
    return found


def status(process: Process = SELF) -> Status:
    """State, owner, sizes and allowed nodes of `process`; a zombie has these too.

    >>> status().state
    'R'
    """
    fields = dict(line.split(":\t", 1) for line in _text(process, "status").split("\n") if ":\t" in line)
    return Status(
        name=fields["Name"],
        state=fields["State"][0],
        tracer=int(fields["TracerPid"]),
        uid=int(fields["Uid"].split()[1]),
        threads=int(fields["Threads"]),
        seccomp=int(fields.get("Seccomp", "0")),
        rss=_kib(fields.get("VmRSS")),
        swap=_kib(fields.get("VmSwap")),
        locked=_kib(fields.get("VmLck")),
        mems_allowed=parse_list(fields["Mems_allowed_list"]),
    )


def start_time(process: Process = SELF) -> int:
    """When `process` started, in clock ticks since boot: with the pid it names one process for ever."""
    return int(_stat(process)[22 - 3])


def argument_spans(process: Process = SELF) -> list[tuple[int, int]]:
    """Return where the arguments and the environment of `process` are, as spans of addresses.

    >>> len(argument_spans())
    2

    Raises:
        NoSuchProcess: it has ended.
    """
    arguments, arguments_end, environment, environment_end = map(int, _stat(process)[48 - 3 : 52 - 3])
    return sorted([(arguments, arguments_end), (environment, environment_end)])


def dumps_core(process: Process) -> bool:
    """Whether `process` writes its core dump at this moment.

    >>> dumps_core(SELF)
    False

    Raises:
        NoSuchProcess: it has ended.
    """
    return "\nCoreDumping:\t1" in _text(process, "status")


def _text(process: Process, name: str) -> str:
    return os.fsdecode(process.read(name))


# Fields of /proc/PID/stat from the third on: the second is a name in parentheses, which may contain any of them.
def _stat(process: Process) -> list[str]:
    return _text(process, "stat").rpartition(")")[2].split()


# Lines, read as they are asked for: the kernel need not find out what is not asked for. The file is empty for a kernel
# thread and for a zombie (ESRCH from some kernels, for both).
def _lines(process: Process, name: str) -> Iterator[str]:
    try:
        with (process.directory / name).open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            first = lines.readline()
            if first:
                yield first[:-1]
                yield from (line[:-1] for line in lines)
                return
    except (FileNotFoundError, ProcessLookupError):
        pass
    except OSError as error:
        raise process.access_error(error) from None
    raise _without_memory(process)


def _without_memory(process: Process) -> NoSuchProcess | NotPermitted:
    if int(_stat(process)[9 - 3]) & _PF_KTHREAD:
        return NotPermitted(process.pid, "it is a kernel thread, which has no memory of its own")
    return NoSuchProcess(process.pid, "and has no memory any more")


def _bounds(line: str) -> tuple[int, int]:
    start, _, end = line.partition(" ")[0].partition("-")
    return int(start, 16), int(end, 16)


def _mapping(line: str, kinds: dict[int, Kind]) -> Mapping:
    _, access, offset, device, inode, *path = line.split(None, 5)
    major, _, minor = device.partition(":")
    number, name = os.makedev(int(major, 16), int(minor, 16)), path[0] if path else ""
    return Mapping(
        *_bounds(line),
        access[0] == "r",
        access[1] == "w",
        access[2] == "x",
        access[3] == "s",
        int(offset, 16),
        number,
        int(inode),
        name,
        _kind(name, number, kinds),
    )


def _kind(path: str, device: int, kinds: dict[int, Kind]) -> Kind:
    if path.startswith("/") and not _DEVICE.match(path):
        return kinds.get(device) or _UNMOUNTED.get(path.removesuffix(" (deleted)"), Kind.FILE)
    if not path or path.startswith("[anon:") or path == "/dev/zero":
        return Kind.ANONYMOUS
    return _NAMED.get(path.partition(":")[0]) or (Kind.SPECIAL if path.startswith("[") else Kind.DEVICE)


# A driver's file: below /dev, except shared memory and huge pages that are mounted there. "/dev/zero (deleted)" is what
# the kernel calls shared anonymous memory. Files without a folder ("anon_inode:[perf_event]") are drivers' too.
_DEVICE = re.compile(r"/dev/(?!shm/|hugepages|zero \(deleted\))|/dmabuf:")
# Files of the kernel's own file systems that are mounted nowhere: elsewhere these are names like any other.
_UNMOUNTED = {"/secretmem": Kind.SECRET, "/[kvm-gmem]": Kind.DEVICE}
_NAMED = {"[heap]": Kind.HEAP, "[stack]": Kind.STACK, "[stack": Kind.STACK, "[anon_shmem": Kind.SHMEM}


def _file_kinds(process: Process) -> dict[int, Kind]:
    """Kind by device, for the kernel's own file systems in memory and for all that the process sees mounted.

    /proc/PID/maps does not say what a file is, and names do not either: a memfd can be of huge pages.
    """
    kinds = dict(_kernel_mounts())
    try:
        lines = _text(process, "mountinfo").split("\n")
    except (FeatureMissing, NoSuchProcess, NotPermitted, KernelError):
        return kinds  # a zombie has no mounts; what follows will say so
    for line in lines:
        before, _, after = line.partition(" - ")
        if after:
            major, _, minor = before.split(" ")[2].partition(":")
            kinds[os.makedev(int(major), int(minor))] = _OF_SYSTEMS.get(after.partition(" ")[0], Kind.FILE)
    return kinds


# What of these can be mapped at all is memory of devices or of the kernel: a card's registers, a trace's buffer.
_OF_THE_KERNEL = ("sysfs", "proc", "tracefs", "debugfs", "selinuxfs", "resctrl", "bpf", "configfs", "binder")
_OF_SYSTEMS = {"tmpfs": Kind.SHMEM, "devtmpfs": Kind.SHMEM, "hugetlbfs": Kind.HUGETLB} | dict.fromkeys(
    _OF_THE_KERNEL, Kind.DEVICE
)


@cache
def _kernel_mounts() -> dict[int, Kind]:
    # Mounts inside the kernel are in no list, but files can be made on them; making one reserves no memory.
    kinds = dict.fromkeys(_memfd_device(0), Kind.SHMEM)
    for size in Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB"):
        exponent = (int(size.name[10:-2]) * 1024).bit_length() - 1
        kinds |= dict.fromkeys(_memfd_device(os.MFD_HUGETLB | exponent << os.MFD_HUGE_SHIFT), Kind.HUGETLB)
    return kinds


def _memfd_device(flags: int) -> Iterator[int]:
    try:
        descriptor = os.memfd_create("nexttouch-probe", os.MFD_CLOEXEC | flags)
    except OSError:
        return
    yield os.fstat(descriptor).st_dev
    os.close(descriptor)


def _smap(mapping: Mapping, fields: dict[str, str]) -> Smap:
    return Smap(
        mapping,
        _kib(fields["Rss"]),
        _kib(fields.get("ShmemPmdMapped")),
        _kib(fields["KernelPageSize"]),
        _kib(fields.get("Locked")),
        _kib(fields.get("Swap")),
        frozenset(fields["VmFlags"].split()),
    )


def _kib(value: str | None) -> int:
    return int(value.split()[0]) * 1024 if value else 0


# "START POLICY [file=NAME|heap|stack] [huge] KEY=COUNT...": a policy may contain spaces ("prefer (many):0").
_NUMA_LINE = re.compile(r"([0-9a-f]+) (.+?)(?: (?:file=[^ ]*|heap|stack))?(?: huge)?((?: \w+=\d+)*) *")


def _numa_map(line: str) -> NumaMap:
    match = _NUMA_LINE.fullmatch(line)
    if not match:
        raise KernelError("numa_maps", 71, f"a line that nexttouch cannot read: {line!r}")
    counts = {key: int(value) for key, _, value in (word.partition("=") for word in match[3].split())}
    size = counts.get("kernelpagesize_kB", PAGE_SIZE // 1024) * 1024
    each = size // PAGE_SIZE
    pages = {int(key[1:]): count * each for key, count in counts.items() if key[0] == "N"}
    return NumaMap(int(match[1], 16), match[2], size, pages)
