"""Lazy migration of a running program's memory, from outside and without its cooperation."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import SupportsIndex

from ..errors import KernelError, NoSuchProcess, TargetRefused
from ..linux import procfs
from ..linux.process import process_id
from ..linux.userfaultfd import Feature
from ..topology import check_target
from .descriptor import TAKEN, acquire, check
from .migration import Migration
from .options import Options
from .plan import make_plan

__all__ = ["attach"]

_FEATURES = Feature.PAGEFAULT_FLAG_WP | Feature.THREAD_ID


def attach(
    pid: SupportsIndex,
    to: SupportsIndex | Iterable[SupportsIndex],
    *,
    rate: float | None = None,
    deadline: float | None = None,
    window: int = 64,
    always: bool = False,
    lend_device: bool = False,
) -> Migration:
    """Move the memory of process `pid` to node `to` as the program writes to it, and the rest by a sweep.

    The program is stopped once, for some milliseconds, whatever its size. After that its pages are write-protected: a
    store waits until its page may be written to again, and the page moves right after it; loads go on undisturbed. What
    cannot be protected (files, read-only memory) is moved eagerly at the end. What pins pages for a device and cannot
    wait (registering memory with AF_XDP) fails in the program with EFAULT on a page that is protected. If this process
    dies, the kernel takes back every protection: the program runs on and loses nothing; so, too, if what is returned is
    dropped, which cancels. Arguments as `lazy`; `rate=0` and no deadline leaves unwritten pages where they are until
    `cancel`. With `always`, pages that are on a target node already are trapped as well, and found to be there when
    their turn comes: to see what attaching costs a program without moving anything.

    The program opens a userfaultfd for it, so it has to have the right: run as root or with CAP_SYS_PTRACE, or by the
    sysctl vm.unprivileged_userfaultfd or the mode of /dev/userfaultfd. With `lend_device` it gets this process's open
    /dev/userfaultfd for the moment. That gives something away: a process of the program's user that watches for it can
    copy and keep the device, and with it hold up the kernel in any system call for as long as it likes, which
    attacks on the kernel are made of. For programs of users who are trusted with that.

    >>> with nt.attach(pid, to=1) as migration:
    ...     migration.wait()
    True
    >>> nt.where(pid).by_node[1] >= migration.stats.moved > 0
    True

    Raises:
        InvalidArgument: naming the argument.
        NoSuchNode, NodeUnavailable: about `to`.
        NoSuchProcess: it does not exist, or ended meanwhile.
        NotPermitted: it is somebody else's, or its user may have no userfaultfd.
        TargetRefused: it is in a state in which attaching could harm it; it was left as it was.
        FeatureMissing: the kernel lacks what this needs, or /proc is of another pid namespace.
    """
    options = Options("thread", window, rate, deadline)
    options.check()
    pid = process_id(pid)
    try:
        return _attach(pid, check_target(to), options, always, lend_device)
    except NoSuchProcess as error:
        if error.pid == pid:
            raise
        raise NoSuchProcess(pid, "while it was attached to") from None  # the thread that stood in for its main thread


def _attach(pid: int, targets: tuple[int, ...], options: Options, always: bool, lend: bool) -> Migration:
    check(pid)
    targets = check_target(targets, pid=pid)
    acquired = acquire(pid, features=_FEATURES, wanted=Feature.WP_HUGETLBFS_SHMEM, lend=lend)
    # The plan is made after that: by now the descriptors say which process it is, even if its number is used again.
    try:
        plan = make_plan(procfs.with_memory(pid), None, targets, always=always)
    except BaseException:
        acquired.close()
        raise
    try:
        return Migration(plan, options, attached=acquired)
    except KernelError as error:
        if error.errno == errno.EBUSY:  # since `check`
            raise TargetRefused(pid, TAKEN) from None
        raise
