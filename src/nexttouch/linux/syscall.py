"""Raw system calls: the numbers of this architecture, and one function that turns -1 into an exception.

The C library wraps few of the calls that page migration needs (userfaultfd, pidfd_getfd, move_pages are not in
Debian 12's), so they are made by number. `ctypes` releases the interpreter lock around each call.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (arm64).
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from ..errors import FeatureMissing, KernelError

__all__ = ["MACHINE", "NUMBERS", "PAGE_SIZE", "call", "forbidden", "read_file", "try_call"]

PAGE_SIZE: int = os.sysconf("SC_PAGE_SIZE")
"""Bytes a page, as the kernel's page tables have it (4096 on x86-64; 4096, 16384 or 65536 on arm64)."""

MACHINE: str = os.uname().machine

_X86_64 = {
    "capget": 125,
    "close": 3,
    "get_robust_list": 274,
    "madvise": 28,
    "mincore": 27,
    "mbind": 237,
    "set_mempolicy": 238,
    "get_mempolicy": 239,
    "migrate_pages": 256,
    "move_pages": 279,
    "process_madvise": 440,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "userfaultfd": 323,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
}
_ARM64 = {
    "capget": 90,
    "close": 57,
    "get_robust_list": 100,
    "madvise": 233,
    "mincore": 232,
    "mbind": 235,
    "get_mempolicy": 236,
    "set_mempolicy": 237,
    "migrate_pages": 238,
    "move_pages": 239,
    "process_madvise": 440,
    "process_vm_readv": 270,
    "process_vm_writev": 271,
    "userfaultfd": 282,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
}
NUMBERS: dict[str, dict[str, int]] = {"x86_64": _X86_64, "aarch64": _ARM64}
"""System call numbers by machine name as `uname -m` prints it, then by call."""

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def try_call(name: str, *arguments: Any) -> tuple[int, int]:  # noqa: ANN401 (whatever ctypes converts)
    """Make system call `name`; return (result, errno), errno being 0 unless the result is -1.

    Integers are passed as 64-bit words; pointers as ctypes or None.

    Raises:
        KernelError: ENOSYS, on an architecture whose numbers are not known here.
    """
    try:
        number = NUMBERS[MACHINE][name]
    except KeyError:
        raise KernelError(name, 38, f"its number on {MACHINE} is not known to nexttouch") from None
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    ctypes.set_errno(0)
    result = int(_syscall(ctypes.c_long(number), *words))
    return result, ctypes.get_errno() if result == -1 else 0


def call(name: str, *arguments: Any) -> int:  # noqa: ANN401
    """Make system call `name` and return its result.

    >>> call("close", call("pidfd_open", os.getpid(), 0))
    0

    Raises:
        KernelError: with the call's name and errno.
    """
    result, errno = try_call(name, *arguments)
    if errno:
        raise KernelError(name, errno)
    return result


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return what a file of /proc or /sys holds.

    Python's own files ask for size, position and kind first, and each call may wait for the interpreter lock: 5 ms
    while another thread computes.

    >>> read_file("/proc/sys/kernel/ostype").split()
    [b'Linux']

    Raises:
        OSError: as open(2) and read(2) do.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b""))
    finally:
        os.close(descriptor)


def forbidden(name: str) -> FeatureMissing:
    """Make the error for system call `name` that failed with EPERM where the kernel itself never says so."""
    return FeatureMissing(
        name,
        "a seccomp filter, such as a container's default profile, forbids it",
        "allow it in the container's seccomp profile (docker run --security-opt seccomp=PROFILE; the default one "
        "allows some of these calls with --cap-add SYS_NICE)",
    )
