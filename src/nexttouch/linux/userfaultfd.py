"""userfaultfd(2): page faults of registered memory as events on a descriptor, and the ioctls that resolve them.

The constants are written out here because the headers of stable distributions lag: Debian 12's know neither
UFFDIO_MOVE nor the asynchronous modes. They are those of include/uapi/linux/userfaultfd.h of Linux 7.3. Whether this
kernel has a feature is asked with `available_features`.

Addresses and lengths are bytes, multiples of the page size, in the address space of the process that made the
descriptor. A descriptor that another process uses works on the memory of its maker, with one exception:
UFFDIO_MOVE has to be called in the address space it changes.
"""

from __future__ import annotations

import ctypes
import errno
import os
from enum import IntFlag
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import FeatureMissing, InvalidArgument, KernelError
from .syscall import try_call

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "DEVICE",
    "DEVICE_NEW",
    "Event",
    "Fault",
    "FaultFlag",
    "Feature",
    "Fork",
    "Mode",
    "RangeIoctl",
    "Remap",
    "Remove",
    "Unmap",
    "Userfaultfd",
    "available_features",
    "parse_event",
]

API = 0xAA
USER_MODE_ONLY = 1
EVENT_SIZE = 32  # struct uffd_msg

DEVICE = Path("/dev/userfaultfd")
"""The device that makes descriptors for users who may open it (commit 2d5de004e009, Linux 6.1)."""


class Feature(IntFlag):
    """What a descriptor is asked to do (`UFFD_FEATURE_*`), and what a kernel answers it can.

    >>> Feature.MOVE | Feature.THREAD_ID
    <Feature.THREAD_ID|MOVE: 65792>
    """

    PAGEFAULT_FLAG_WP = 1 << 0
    EVENT_FORK = 1 << 1
    EVENT_REMAP = 1 << 2
    EVENT_REMOVE = 1 << 3
    MISSING_HUGETLBFS = 1 << 4
    MISSING_SHMEM = 1 << 5
    EVENT_UNMAP = 1 << 6
    SIGBUS = 1 << 7
    THREAD_ID = 1 << 8
    MINOR_HUGETLBFS = 1 << 9
    MINOR_SHMEM = 1 << 10
    EXACT_ADDRESS = 1 << 11
    WP_HUGETLBFS_SHMEM = 1 << 12
    WP_UNPOPULATED = 1 << 13
    POISON = 1 << 14
    WP_ASYNC = 1 << 15
    MOVE = 1 << 16
    RWP = 1 << 17  # since Linux 7.3
    RWP_ASYNC = 1 << 18  # with RWP in the same handshake


class Mode(IntFlag):
    """What a registered range reports (`UFFDIO_REGISTER_MODE_*`)."""

    MISSING = 1 << 0
    WP = 1 << 1
    MINOR = 1 << 2
    RWP = 1 << 3  # behind Feature.RWP; not together with WP


class RangeIoctl(IntFlag):
    """The ioctls that a registered range takes: bit n stands for the ioctl with number n."""

    WAKE = 1 << 0x02
    COPY = 1 << 0x03
    ZEROPAGE = 1 << 0x04
    MOVE = 1 << 0x05
    WRITEPROTECT = 1 << 0x06
    CONTINUE = 1 << 0x07
    POISON = 1 << 0x08
    RWPROTECT = 1 << 0x09


class FaultFlag(IntFlag):
    """Why a page faulted (`UFFD_PAGEFAULT_FLAG_*`); none set: a read of a missing page."""

    WRITE = 1 << 0
    WP = 1 << 1
    MINOR = 1 << 2
    RWP = 1 << 3


class Fault(NamedTuple):
    """A thread stands still at `address`; `thread` is its id with Feature.THREAD_ID, else 0."""

    flags: FaultFlag
    address: int
    thread: int


class Fork(NamedTuple):
    """The process forked; `descriptor` is a new userfaultfd of this process, for the child's memory."""

    descriptor: int


class Remap(NamedTuple):
    """mremap(2) took `length` bytes from `old` to `new`."""

    old: int
    new: int
    length: int


class Remove(NamedTuple):
    """madvise(2) drops the pages in `start` <= address < `end`; the mapping stays."""

    start: int
    end: int


class Unmap(NamedTuple):
    """munmap(2) takes `start` <= address < `end` away."""

    start: int
    end: int


Event = Fault | Fork | Remap | Remove | Unmap


class _Api(ctypes.Structure):
    _fields_ = (("api", ctypes.c_uint64), ("features", ctypes.c_uint64), ("ioctls", ctypes.c_uint64))


class _Range(ctypes.Structure):
    _fields_ = (("start", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _RangeMode(ctypes.Structure):  # uffdio_writeprotect, uffdio_rwprotect
    _fields_ = (*_Range._fields_, ("mode", ctypes.c_uint64))


class _RangeAnswer(ctypes.Structure):  # uffdio_register, _zeropage, _continue, _poison
    _fields_ = (*_RangeMode._fields_, ("answer", ctypes.c_int64))


class _Transfer(ctypes.Structure):  # uffdio_copy, _move
    _fields_ = (
        ("destination", ctypes.c_uint64),
        ("source", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("answer", ctypes.c_int64),
    )


class _SetMode(ctypes.Structure):
    _fields_ = (("enable", ctypes.c_uint64), ("disable", ctypes.c_uint64))


_WRITE, _READ = 1, 2  # as include/uapi/asm-generic/ioctl.h has them, for x86-64 and arm64


def _request(direction: int, number: int, structure: type[ctypes.Structure]) -> int:
    return direction << 30 | ctypes.sizeof(structure) << 16 | API << 8 | number


DEVICE_NEW: int = API << 8
"""The ioctl of `DEVICE` that makes a descriptor; its argument is the flags of userfaultfd(2)."""

_API = _request(_READ | _WRITE, 0x3F, _Api)
_REGISTER = _request(_READ | _WRITE, 0x00, _RangeAnswer)
_UNREGISTER = _request(_READ, 0x01, _Range)
_WAKE = _request(_READ, 0x02, _Range)
_COPY = _request(_READ | _WRITE, 0x03, _Transfer)
_ZEROPAGE = _request(_READ | _WRITE, 0x04, _RangeAnswer)
_MOVE = _request(_READ | _WRITE, 0x05, _Transfer)
_WRITEPROTECT = _request(_READ | _WRITE, 0x06, _RangeMode)
_CONTINUE = _request(_READ | _WRITE, 0x07, _RangeAnswer)
_POISON = _request(_READ | _WRITE, 0x08, _RangeAnswer)
_RWPROTECT = _request(_READ | _WRITE, 0x09, _RangeMode)
_SET_MODE = _request(_WRITE, 0x0A, _SetMode)

# Modes of the ioctls. DONTWAKE is bit 0 where there is nothing else to say, and bit 1 beside a protection bit.
_DONTWAKE = 1 << 0
_COPY_WP = 1 << 1
_CONTINUE_WP = 1 << 1
_MOVE_ALLOW_SRC_HOLES = 1 << 1
_PROTECT = 1 << 0
_PROTECT_DONTWAKE = 1 << 1

_ioctl = ctypes.CDLL(None, use_errno=True).ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


class Userfaultfd:
    """A userfaultfd and its ioctls; owns the descriptor, and closes it when the `with` block ends.

    The last close of a descriptor, in whichever process, ends every registration and wakes every waiter.

    >>> with Userfaultfd.open() as uffd:
    ...     there = uffd.api(Feature.MOVE)
    ...     ioctls = uffd.register(address, length, Mode.MISSING)
    ...     uffd.move(address, source, length)
    4096
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def open(cls, *, user_mode_only: bool = False) -> Userfaultfd:
        """Make a descriptor for this process: non-blocking, closed on exec; `api` has to follow.

        Args:
            user_mode_only: every user may have such a descriptor, but a system call that touches a trapped page of it
                fails with EFAULT instead of waiting.

        Raises:
            FeatureMissing: neither the system call nor /dev/userfaultfd may be used; the remedy says what helps.
            KernelError: any other failure, such as EMFILE.
        """
        flags = os.O_CLOEXEC | os.O_NONBLOCK | (USER_MODE_ONLY if user_mode_only else 0)
        descriptor, error = try_call("userfaultfd", flags)
        if error in (errno.EPERM, errno.ENOSYS):
            descriptor = _from_device(flags)
            if descriptor < 0:
                raise FeatureMissing("userfaultfd", *_explain(error))
        elif error:
            raise KernelError("userfaultfd", error)
        return cls(descriptor)

    def fileno(self) -> int:
        """Return the descriptor's number.

        Raises:
            InvalidArgument: it is closed.
        """
        if self._descriptor < 0:
            raise InvalidArgument("userfaultfd", "is closed")
        return self._descriptor

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def detach(self) -> int:
        """Give the descriptor's number away: the caller owns it from now on."""
        descriptor = self.fileno()
        self._descriptor = -1
        return descriptor

    def __enter__(self) -> Userfaultfd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def api(self, features: int = 0) -> Feature:
        """Shake hands (UFFDIO_API), switching `features` on; return all features the kernel has.

        Goes once a descriptor: to ask first and switch on afterwards takes two (see `available_features`).

        Raises:
            KernelError: EINVAL if the kernel lacks one of `features` or the handshake was done before; EPERM if
                EVENT_FORK is asked for without CAP_SYS_PTRACE.
        """
        answer = _Api(API, features, 0)
        self._call("UFFDIO_API", _API, answer)
        return Feature(answer.features)

    def register(self, start: int, length: int, mode: Mode) -> RangeIoctl:
        """Report faults of kind `mode` in `length` bytes from `start`; return the ioctls this memory takes.

        Raises:
            KernelError: EBUSY if another descriptor has it; EINVAL if the memory is of a kind that cannot be registered
                or is not mapped; EPERM if the file behind it may not be written.
        """
        answer = _RangeAnswer(start, length, mode, 0)
        self._call("UFFDIO_REGISTER", _REGISTER, answer)
        return RangeIoctl(answer.answer)

    def unregister(self, start: int, length: int) -> None:
        """End the registration of a range: protections go, waiters wake.

        Raises:
            KernelError: EINVAL.
        """
        self._call("UFFDIO_UNREGISTER", _UNREGISTER, _Range(start, length))

    def wake(self, start: int, length: int) -> None:
        """Wake the threads that wait for a page of the range: each does its access again.

        Raises:
            KernelError: EINVAL.
        """
        self._call("UFFDIO_WAKE", _WAKE, _Range(start, length))

    def copy(
        self, destination: int, source: int, length: int, *, write_protect: bool = False, wake: bool = True
    ) -> int:
        """Fill missing pages at `destination` with bytes of this process at `source`; return the bytes done.

        As with write(2) that may be less than `length`; calling again for the rest tells why.

        Raises:
            KernelError: nothing was done: EEXIST (a page is there), EAGAIN (the mapping is changing), ENOENT, ENOMEM,
                ESRCH (the process is gone), EFAULT (`source`).
        """
        mode = (_COPY_WP if write_protect else 0) | (0 if wake else _DONTWAKE)
        return self._progress("UFFDIO_COPY", _COPY, _Transfer(destination, source, length, mode, 0))

    def zeropage(self, start: int, length: int, *, wake: bool = True) -> int:
        """Fill missing pages with zeros; return the bytes done, as `copy` does.

        Raises:
            KernelError: nothing was done, as for `copy`.
        """
        mode = 0 if wake else _DONTWAKE
        return self._progress("UFFDIO_ZEROPAGE", _ZEROPAGE, _RangeAnswer(start, length, mode, 0))

    def move(self, destination: int, source: int, length: int, *, allow_holes: bool = False, wake: bool = True) -> int:
        """Move pages, frames and all, from `source` to missing pages at `destination`; return the bytes done.

        Both are private anonymous memory of this very process (commit adef440691ba, Linux 6.8).

        Args:
            destination: registered with Mode.MISSING.
            source: where the pages are now.
            length: bytes.
            allow_holes: count pages that `source` does not have as moved instead of stopping there.
            wake: wake the threads that wait for `destination`.

        Raises:
            KernelError: nothing was done: EEXIST (a page is at the destination), ENOENT (none at the source), EBUSY
                (it is shared with a child or pinned), EAGAIN (try again), EINVAL (the mappings do not fit together).
        """
        mode = (_MOVE_ALLOW_SRC_HOLES if allow_holes else 0) | (0 if wake else _DONTWAKE)
        return self._progress("UFFDIO_MOVE", _MOVE, _Transfer(destination, source, length, mode, 0))

    def write_protect(self, start: int, length: int, *, protect: bool = True, wake: bool = True) -> None:
        """Forbid (or, with `protect` false, allow again) writing to the pages of a range registered with Mode.WP.

        Raises:
            KernelError: ENOENT (not registered so), EAGAIN (the mapping is changing), EFAULT.
        """
        mode = _PROTECT if protect else (0 if wake else _PROTECT_DONTWAKE)
        self._call("UFFDIO_WRITEPROTECT", _WRITEPROTECT, _RangeMode(start, length, mode))

    def continue_(self, start: int, length: int, *, write_protect: bool = False, wake: bool = True) -> int:
        """Map pages that are in the page cache already (minor faults); return the bytes done, as `copy` does.

        Raises:
            KernelError: nothing was done: EEXIST (mapped), EFAULT (not in the cache), and as for `copy`.
        """
        mode = (_CONTINUE_WP if write_protect else 0) | (0 if wake else _DONTWAKE)
        return self._progress("UFFDIO_CONTINUE", _CONTINUE, _RangeAnswer(start, length, mode, 0))

    def poison(self, start: int, length: int, *, wake: bool = True) -> int:
        """Mark missing pages so that touching one raises SIGBUS (Linux 6.6); return the bytes done, as `copy` does.

        Raises:
            KernelError: nothing was done: EEXIST (a page is there), and as for `copy`.
        """
        mode = 0 if wake else _DONTWAKE
        return self._progress("UFFDIO_POISON", _POISON, _RangeAnswer(start, length, mode, 0))

    def rw_protect(self, start: int, length: int, *, protect: bool = True, wake: bool = True) -> None:
        """Forbid (or allow again) any access to the pages of a range registered with Mode.RWP; they stay resident.

        Only on kernels that have Feature.RWP.

        Raises:
            KernelError: EINVAL (this kernel has no such ioctl), ENOENT (not registered so), EAGAIN.
        """
        mode = _PROTECT if protect else (0 if wake else _PROTECT_DONTWAKE)
        self._call("UFFDIO_RWPROTECT", _RWPROTECT, _RangeMode(start, length, mode))

    def set_mode(self, *, enable: int = 0, disable: int = 0) -> None:
        """Switch Feature.RWP_ASYNC on or off on a descriptor in use.

        Raises:
            KernelError: EINVAL (this kernel has no such ioctl, or another feature is named).
        """
        self._call("UFFDIO_SET_MODE", _SET_MODE, _SetMode(enable, disable))

    def read_events(self, most: int = 64) -> list[Event]:
        """Read up to `most` events, at least one; an empty list if none waits.

        A thread that unmaps, remaps or discards registered memory waits until its event is read.

        Raises:
            KernelError: EINVAL before the handshake.
        """
        try:
            messages = os.read(self.fileno(), most * EVENT_SIZE)
        except BlockingIOError:
            return []
        except OSError as error:
            raise KernelError("read", error.errno or 0, "of a userfaultfd") from error
        return [parse_event(messages[at : at + EVENT_SIZE]) for at in range(0, len(messages), EVENT_SIZE)]

    def _try(self, request: int, argument: ctypes.Structure) -> int:
        ctypes.set_errno(0)
        return 0 if _ioctl(self.fileno(), request, ctypes.byref(argument)) == 0 else ctypes.get_errno()

    def _call(self, name: str, request: int, argument: ctypes.Structure) -> None:
        error = self._try(request, argument)
        if error:
            raise KernelError(name, error)

    def _progress(self, name: str, request: int, argument: _Transfer | _RangeAnswer) -> int:
        # The kernel answers the bytes done, or the negative errno; the call itself fails with EAGAIN when some but not
        # all bytes are done. What it did before must not be taken for nothing done.
        error = self._try(request, argument)
        if error and argument.answer <= 0:
            raise KernelError(name, error)
        return int(argument.answer)


def parse_event(message: bytes) -> Event:
    """Read one struct uffd_msg.

    >>> parse_event(bytes([0x16]) + bytes(7) + (4096).to_bytes(8, "little") + (8192).to_bytes(8, "little") + bytes(8))
    Unmap(start=4096, end=8192)

    Raises:
        InvalidArgument: the message is not of 32 bytes, or of an unknown kind.
    """
    if len(message) != EVENT_SIZE:
        raise InvalidArgument("message", f"has {len(message)} bytes instead of {EVENT_SIZE}")
    first, second, third = (int.from_bytes(message[at : at + 8], "little") for at in (8, 16, 24))
    match message[0]:
        case 0x12:
            return Fault(FaultFlag(first), second, third & 0xFFFFFFFF)
        case 0x13:
            return Fork(first & 0xFFFFFFFF)
        case 0x14:
            return Remap(first, second, third)
        case 0x15:
            return Remove(first, second)
        case 0x16:
            return Unmap(first, second)
    raise InvalidArgument("message", f"is of the unknown kind {message[0]:#x}")


def available_features() -> Feature:
    """Return what userfaultfd can do here: asked with a descriptor that every user may have.

    >>> Feature.MOVE in available_features()
    True

    Raises:
        FeatureMissing: there is no userfaultfd at all.
        KernelError: such as EMFILE.
    """
    with Userfaultfd.open(user_mode_only=True) as uffd:
        return uffd.api()


def _from_device(flags: int) -> int:
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        return int(_ioctl(device, DEVICE_NEW, flags))
    finally:
        os.close(device)


def _explain(error: int) -> tuple[str, str]:
    if error == errno.ENOSYS:
        return "this kernel has no userfaultfd(2)", "use a kernel built with CONFIG_USERFAULTFD"
    # Every user may have a descriptor for faults of user mode, unless the call itself is forbidden.
    descriptor, error = try_call("userfaultfd", os.O_CLOEXEC | USER_MODE_ONLY)
    if error:
        return (
            "a seccomp filter, such as a container's default profile, forbids userfaultfd(2)",
            "allow it in the container's seccomp profile (docker run --security-opt seccomp=PROFILE), or give the "
            f"container {DEVICE}",
        )
    os.close(descriptor)
    return (
        "this user may not catch faults of system calls",
        "run as root or with CAP_SYS_PTRACE, set the sysctl vm.unprivileged_userfaultfd=1, or let this user open "
        f"{DEVICE}",
    )
