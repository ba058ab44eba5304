"""What this kernel can do for page migration, and lets this process do: found out by doing it, never by its version.

Nothing here changes anything: what is tried is tried on a page made for it, or asks for what is the case already.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import FeatureMissing, KernelError, NotPermitted
from ..printable import printable
from . import mempolicy, nodes, procfs
from .mounts import check_proc
from .pidfd import pidfd_getfd, pidfd_open
from .process import SELF
from .ptrace import INSTRUCTIONS, restriction
from .syscall import MACHINE, PAGE_SIZE, forbidden, read_file, try_call
from .userfaultfd import DEVICE, Feature, Mode, Userfaultfd, available_features

__all__ = ["Condition", "Probe", "conditions", "probe"]


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing the kernel can do, or cannot: then `reason` says why, and `remedy` what to do (both else "").

    `purpose` is what nexttouch needs it for.
    """

    name: str
    purpose: str
    available: bool
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Condition:
    """One circumstance of this machine: its `value`, and what follows from it (`note`, "" if nothing does).

    `fine` is false if it is in the way of migrating pages or of keeping them where they were put.
    """

    name: str
    value: str
    fine: bool
    note: str = ""


def probe() -> tuple[Probe, ...]:
    """Try everything that nexttouch builds on.

    >>> [found.name for found in probe() if not found.available]
    ['userfaultfd RWP']
    """
    bits = _userfaultfd_bits()
    return (*(_try(*attempt) for attempt in _PERMISSIONS), *bits, *(_try(*attempt) for attempt in _CALLS))


def conditions() -> tuple[Condition, ...]:
    """Look at what surrounds a migration: nodes, cpuset, automatic balancing, huge pages, swap, control group.

    >>> next(condition for condition in conditions() if condition.name == "swap")
    Condition(name='swap', value='none', fine=True, note='')
    """
    return (_nodes(), _cpuset(), _balancing(), _huge_pages(), _swap(), _confinement(), _control_group())


# ---- Page faults ------------------------------------------------------------------------------------------------


def _userfaultfd_bits() -> list[Probe]:
    try:
        available = available_features()
    except (FeatureMissing, KernelError) as error:
        reason, remedy = _why(error)
        return [_bit_probe(bit, purpose, reason, remedy) for bit, (purpose, _) in _BITS.items()]
    return [
        _try(_bit_name(bit), purpose, _TRIALS.get(bit, _nothing))
        if bit & available
        else _bit_probe(bit, purpose, "this kernel lacks it", remedy)
        for bit, (purpose, remedy) in _BITS.items()
    ]


def _bit_probe(bit: Feature, purpose: str, reason: str, remedy: str) -> Probe:
    return Probe(_bit_name(bit), purpose, False, reason, remedy)


def _bit_name(bit: Feature) -> str:
    return f"userfaultfd {bit.name}"


_BITS = {
    Feature.MOVE: ("move a page's entry away, so that any touch faults (relocate)", "use Linux 6.8 or newer"),
    Feature.PAGEFAULT_FLAG_WP: ("catch stores to anonymous memory (write_protect)", "use Linux 5.7 or newer"),
    Feature.WP_HUGETLBFS_SHMEM: ("catch stores to shared memory and huge pages", "use Linux 5.19 or newer"),
    Feature.WP_UNPOPULATED: ("catch the first store to a page not there yet", "use Linux 6.4 or newer"),
    Feature.WP_ASYNC: ("record stores without stopping them, in any mapping", "use Linux 6.7 or newer"),
    Feature.MINOR_SHMEM: ("catch any touch of shared memory", "use Linux 5.14 or newer"),
    Feature.THREAD_ID: ("know which thread touched a page (next-touch)", "use Linux 4.14 or newer"),
    Feature.SIGBUS: ("let the touching thread serve itself (service inline)", "use Linux 4.14 or newer"),
    Feature.EVENT_FORK: ("follow a program's children", "use Linux 4.11 or newer"),
    Feature.EVENT_REMAP: ("follow mremap", "use Linux 4.11 or newer"),
    Feature.EVENT_REMOVE: ("follow madvise(MADV_DONTNEED)", "use Linux 4.11 or newer"),
    Feature.EVENT_UNMAP: ("follow munmap", "use Linux 4.11 or newer"),
    Feature.POISON: ("make a lost page fail loudly instead of reading zeros", "use Linux 6.6 or newer"),
    Feature.RWP: (
        "catch any touch of any process's memory (rwp)",
        "use Linux 7.3 or newer; until then relocate and write_protect do its work",
    ),
}


def _full_userfaultfd() -> None:
    Userfaultfd.open().close()


def _device() -> None:
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        remedy = "use Linux 6.1 or newer; give a container the device (docker run --device /dev/userfaultfd)"
        raise FeatureMissing(str(DEVICE), "it does not exist", remedy) from None
    except PermissionError:
        remedy = f"run as root, or let a group open it (chgrp GROUP {DEVICE}; chmod g+rw {DEVICE})"
        raise FeatureMissing(str(DEVICE), "this user may not open it", remedy) from None


def _user_mode() -> None:
    Userfaultfd.open(user_mode_only=True).close()


def _move_a_page() -> None:
    with _memory(2) as (memory, address), Userfaultfd.open(user_mode_only=True) as uffd:
        memory[PAGE_SIZE : PAGE_SIZE + 4] = b"page"
        uffd.api(Feature.MOVE)
        uffd.register(address, PAGE_SIZE, Mode.MISSING)
        uffd.move(address, address + PAGE_SIZE, PAGE_SIZE)
        if memory[:4] != b"page":
            raise FeatureMissing("UFFDIO_MOVE", "a moved page lost its contents", "report this kernel")


def _catch_a_store() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"store")
        caught = _is_caught(Feature.PAGEFAULT_FLAG_WP, Mode.WP, Userfaultfd.write_protect, os.readv, reader)
    finally:
        os.close(reader)
        os.close(writer)
    if not caught:
        raise FeatureMissing("UFFDIO_WRITEPROTECT", "a store to a protected page was not caught", "report this kernel")


def _catch_a_touch() -> None:
    reader, writer = os.pipe()
    try:
        caught = _is_caught(Feature.RWP, Mode.RWP, Userfaultfd.rw_protect, os.writev, writer)
    finally:
        os.close(reader)
        os.close(writer)
    if not caught:
        raise FeatureMissing("UFFDIO_RWPROTECT", "a load from a protected page was not caught", "report this kernel")


# Whether a system call fails on a page that is a trap: with a descriptor for faults of user mode it does, with EFAULT,
# and no thread has to wait for a fault here.
def _is_caught(
    feature: Feature,
    mode: Mode,
    protect: Callable[[Userfaultfd, int, int], None],
    access: Callable[[int, list[mmap.mmap]], int],
    descriptor: int,
) -> bool:
    with _memory(1) as (memory, address), Userfaultfd.open(user_mode_only=True) as uffd:
        memory[0] = 1
        uffd.api(feature)
        uffd.register(address, PAGE_SIZE, mode)
        protect(uffd, address, PAGE_SIZE)
        try:
            access(descriptor, [memory])
        except OSError as error:
            if error.errno == errno.EFAULT:
                return True
            raise KernelError(access.__name__, error.errno or 0) from None
    return False


def _nothing() -> None:
    """Be content with the kernel's word."""


_TRIALS: dict[Feature, Callable[[], None]] = {
    Feature.MOVE: _move_a_page,
    Feature.PAGEFAULT_FLAG_WP: _catch_a_store,
    Feature.RWP: _catch_a_touch,
}


# ---- Moving pages and looking at them ---------------------------------------------------------------------------


def _move_pages(flags: int = mempolicy.MOVE) -> None:
    with _memory(1) as (memory, address):
        memory[0] = 1
        pages, status = (ctypes.c_void_p * 1)(address), (ctypes.c_int * 1)(-errno.EBUSY)
        _call("move_pages", 0, 1, pages, None, status, 0)
        _call("move_pages", 0, 1, pages, (ctypes.c_int * 1)(status[0]), status, flags)
        if status[0] < 0:
            raise KernelError("move_pages", -status[0])


def _move_shared_pages() -> None:
    try:
        _move_pages(mempolicy.MOVE_ALL)
    except FeatureMissing as error:
        if try_call("move_pages", 0, 0, None, None, None, mempolicy.MOVE)[1]:
            raise
        remedy = "run as root or with CAP_SYS_NICE"
        raise FeatureMissing(error.feature, "this user lacks CAP_SYS_NICE", remedy) from None


def _mbind() -> None:
    with _memory(1) as (_, address):
        _call("mbind", ctypes.c_void_p(address), PAGE_SIZE, mempolicy.Mode.DEFAULT, None, 0, 0)


def _migrate_pages() -> None:
    # From no node to all: there is nothing to move.
    empty, allowed = (ctypes.c_ulong * 16)(), (ctypes.c_ulong * 16)()
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    for node in mempolicy.mems_allowed():
        allowed[node // bits] |= 1 << node % bits
    _call("migrate_pages", 0, 16 * bits, empty, allowed)


def _get_mempolicy() -> None:
    _call("get_mempolicy", None, None, 0, None, 0)


def _set_mempolicy() -> None:
    try:
        mempolicy.set_mempolicy(*mempolicy.get_mempolicy())
    except KernelError as error:
        raise _forbidden("set_mempolicy", error.errno or 0) from None


def _populate() -> None:
    with _memory(1) as (memory, _):
        try:
            memory.madvise(_MADV_POPULATE_WRITE)
        except OSError:
            raise FeatureMissing("MADV_POPULATE_WRITE", "this kernel lacks it", "use Linux 5.14 or newer") from None


def _process_madvise() -> None:
    with _memory(1) as (_, address):
        pidfd = pidfd_open(os.getpid())
        try:
            vector = (ctypes.c_ulong * 2)(address, PAGE_SIZE)
            _call("process_madvise", pidfd, vector, 1, _MADV_COLD, 0)
        finally:
            os.close(pidfd)


_MADV_COLD, _MADV_POPULATE_WRITE = 20, 23


def _take_descriptor() -> None:
    pidfd = pidfd_open(os.getpid())
    try:
        os.close(pidfd_getfd(pidfd, pidfd, pid=os.getpid()))
    except NotPermitted:  # its own descriptors a process may always take
        raise _forbidden("pidfd_getfd", errno.EPERM) from None
    finally:
        os.close(pidfd)


def _trace() -> None:
    if MACHINE not in INSTRUCTIONS:
        raise FeatureMissing("ptrace", f"attaching is not written for {MACHINE}", f"use {' or '.join(INSTRUCTIONS)}")
    reason, _, remedy = restriction().partition("; ")
    if reason:
        raise FeatureMissing("ptrace", reason, remedy)


def _pagemap() -> None:
    with _memory(1) as (memory, address):
        memory[0] = 1
        if not _page_entry(address) >> 63:
            raise FeatureMissing("pagemap", "a page that is there is not shown", "report this kernel")


def _frame_numbers() -> None:
    with _memory(1) as (memory, address):
        memory[0] = 1
        if not _page_entry(address) & (1 << 55) - 1:
            remedy = "run as root or with CAP_SYS_ADMIN"
            raise FeatureMissing("frame numbers", "the kernel blanks them without CAP_SYS_ADMIN", remedy)


def _page_entry(address: int) -> int:
    with _opened_pagemap() as pagemap:
        return int.from_bytes(os.pread(pagemap, 8, address // PAGE_SIZE * 8), "little")


def _scan() -> None:
    with _memory(1) as (memory, address), _opened_pagemap() as pagemap:
        memory[0] = 1
        runs = (ctypes.c_uint64 * 3)()
        # struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, all, any, return
        vector = ctypes.addressof(runs)
        words = (96, 0, address, address + PAGE_SIZE, 0, vector, 1, 0, 0, _IS_PRESENT, 0, _IS_PRESENT)
        try:
            found = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, (ctypes.c_uint64 * 12)(*words))
        except OSError:
            found = 0
        if found != 1:
            raise FeatureMissing(
                "PAGEMAP_SCAN", "this kernel lacks it", "use Linux 6.7 or newer; until then it is slow"
            )


@contextmanager
def _opened_pagemap() -> Iterator[int]:
    try:
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        reason = "this process is protected from its own user (not dumpable)"
        raise FeatureMissing("pagemap", reason, "start it as the user it runs as, or run as root") from None
    except FileNotFoundError as error:
        raise SELF.access_error(error) from None
    except OSError as error:
        raise KernelError("pagemap", error.errno or 0) from None
    try:
        yield pagemap
    finally:
        os.close(pagemap)


_PAGEMAP_SCAN, _IS_PRESENT = 0xC0606610, 1 << 3  # include/uapi/linux/fs.h


def _numa_maps() -> None:
    check_proc()
    if not Path("/proc/self/numa_maps").exists():
        raise FeatureMissing("numa_maps", "this kernel knows no NUMA nodes", "use a kernel with CONFIG_NUMA")


def _list_nodes() -> None:
    for read in (nodes.online, nodes.possible, nodes.has_memory):
        read()


_PROC, _SYS = "/proc", "/sys"
_PERMISSIONS: tuple[tuple[str, str, Callable[[], None]], ...] = (
    ("userfaultfd", "catch page faults, those of system calls too", _full_userfaultfd),
    (str(DEVICE), "catch page faults of programs without privileges (attach)", _device),
    ("userfaultfd, user mode", "catch page faults where system calls never touch the memory", _user_mode),
)
_CALLS: tuple[tuple[str, str, Callable[[], None]], ...] = (
    (_PROC, "name processes, and see their memory", check_proc),
    (_SYS, "know which nodes there are", _list_nodes),
    ("move_pages", "move pages, and ask where they are", _move_pages),
    ("move_pages MOVE_ALL", "move pages that several processes map", _move_shared_pages),
    ("migrate_pages", "compare with what migratepages(8) does", _migrate_pages),
    ("mbind", "choose the node of new frames, mapping by mapping", _mbind),
    ("get_mempolicy", "keep a thread's own policy", _get_mempolicy),
    ("set_mempolicy", "choose the node of new frames, thread by thread", _set_mempolicy),
    ("MADV_POPULATE_WRITE", "make frames on the target node ahead of the faults", _populate),
    ("process_madvise", "advise about another process's memory", _process_madvise),
    ("pidfd_getfd", "take a descriptor out of another process (attach)", _take_descriptor),
    ("ptrace", "make a program open a userfaultfd (attach)", _trace),
    ("pagemap", "see which pages are there", _pagemap),
    ("frame numbers", "see which frame a page has", _frame_numbers),
    ("PAGEMAP_SCAN", "find pages without reading every entry", _scan),
    ("numa_maps", "see where a process's pages are", _numa_maps),
)


def _try(name: str, purpose: str, attempt: Callable[[], None]) -> Probe:
    try:
        attempt()
    except (FeatureMissing, KernelError) as error:
        return Probe(name, purpose, False, *_why(error))
    return Probe(name, purpose, True)


def _why(error: FeatureMissing | KernelError) -> tuple[str, str]:
    if isinstance(error, FeatureMissing):
        return error.reason, error.remedy
    return str(error), "report this, with the output of nexttouch doctor --json"


def _call(name: str, *arguments: object) -> None:
    _, error = try_call(name, *arguments)
    if error:
        raise _forbidden(name, error)


def _forbidden(name: str, error: int) -> FeatureMissing | KernelError:
    if error == errno.EPERM:
        return forbidden(name)
    if error == errno.ENOSYS:
        return FeatureMissing(
            name, "this kernel does not have it", "use a kernel with CONFIG_NUMA and CONFIG_MIGRATION"
        )
    return KernelError(name, error)


@contextmanager
def _memory(pages: int) -> Iterator[tuple[mmap.mmap, int]]:
    memory = mmap.mmap(-1, pages * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with memory:
        yield memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


# ---- Circumstances ----------------------------------------------------------------------------------------------


def _nodes() -> Condition:
    try:
        found = nodes.has_memory()
    except FeatureMissing as error:
        return Condition("nodes with memory", "unknown", False, f"{error.reason}; {error.remedy}")
    note = "" if len(found) > 1 else "nothing to migrate between; nexttouch lab starts a virtual machine with four"
    return Condition("nodes with memory", nodes.format_list(found), len(found) > 1, note)


def _cpuset() -> Condition:
    try:
        allowed = mempolicy.mems_allowed()
    except (FeatureMissing, KernelError) as error:
        return Condition("nodes allowed (cpuset)", "unknown", False, str(error))
    with suppress(FeatureMissing):
        forbidden = tuple(node for node in nodes.has_memory() if node not in allowed)
        if forbidden:
            out = nodes.format_list(forbidden)
            note = f"node {out} is out of reach; add it to cpuset.mems of this process's control group"
            return Condition("nodes allowed (cpuset)", nodes.format_list(allowed), False, note)
    return Condition("nodes allowed (cpuset)", nodes.format_list(allowed), True)


def _balancing() -> Condition:
    value = _first_line("/proc/sys/kernel/numa_balancing")
    if value in ("", "0"):
        return Condition("NUMA balancing", "off" if value else _absent("/proc/sys/kernel"), True)
    note = "the kernel moves pages to who uses them, also back; sysctl kernel.numa_balancing=0 stops it"
    return Condition("NUMA balancing", "on" if value == "1" else f"mode {value}", False, note)


def _huge_pages() -> Condition:
    words = _first_line("/sys/kernel/mm/transparent_hugepage/enabled")
    value = words.partition("[")[2].partition("]")[0] or _absent("/sys/kernel/mm")
    note = "a lazy move splits huge pages that are not moved as a whole" if value == "always" else ""
    return Condition("transparent huge pages", value, True, note)


def _swap() -> Condition:
    text = _text("/proc/swaps")
    areas = text.count("\n") - 1
    if not text:
        return Condition("swap", _absent("/proc/meminfo"), True)
    if areas <= 0:
        return Condition("swap", "none", True)
    note = "pages that are swapped out have no node; they come back where the policy says"
    return Condition("swap", f"{areas} area{'s' * (areas > 1)}", True, note)


def _confinement() -> Condition:
    try:
        confined = procfs.status().seccomp != 0
    except FeatureMissing:
        return Condition("seccomp filter", _UNKNOWN, True)
    note = "system calls may be forbidden; what is, is listed above" if confined else ""
    return Condition("seccomp filter", "yes" if confined else "no", not confined, note)


def _control_group() -> Condition:
    lines = _text("/proc/self/cgroup").split("\n")
    path = next((line[3:] for line in lines if line.startswith("0::")), "")
    limit = _first_line(f"/sys/fs/cgroup{path}/memory.max")
    note = f"memory.max is {limit} bytes: frames for relocating count too" if limit.isdigit() else ""
    return Condition("control group", printable(path) or "none", True, note)


_UNKNOWN = "unknown"


def _absent(place: str) -> str:
    """What it means that a file is not there: a kernel without it shows `place`, a masked /proc or /sys does not."""
    return "not in this kernel" if Path(place).exists() else _UNKNOWN


def _first_line(path: str) -> str:
    return _text(path).partition("\n")[0].strip()


def _text(path: str) -> str:
    """What the file holds; nothing where it is not there, or not for this user."""
    try:
        return os.fsdecode(read_file(path))
    except OSError:
        return ""
