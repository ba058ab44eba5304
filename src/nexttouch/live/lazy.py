"""Lazy migration of memory of this process."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import SupportsIndex

import numpy as np

from .. import placement
from ..errors import InvalidArgument, KernelError
from ..linux import procfs
from ..linux.process import SELF
from ..topology import check_target
from . import registry
from .attach import attach
from .mechanisms import asked_for, userfaultfd_features, working
from .migration import Migration
from .options import Options, Service
from .plan import make_plan
from .plan_lock import planning

__all__ = ["lazy", "next_touch"]

# A mapping that changes or goes while it is planned, or before it is registered: plan again, so often.
_ATTEMPTS = 3
_CHANGED = {errno.EAGAIN, errno.ENOENT, errno.EINVAL, errno.ENOMEM, errno.EFAULT}


def lazy(
    x: object,
    to: SupportsIndex | Iterable[SupportsIndex],
    *,
    rate: float | None = None,
    deadline: float | None = None,
    window: int = 64,
    service: Service = "thread",
    mechanism: str | None = None,
    always: bool = False,
) -> Migration:
    """Move the pages of `x` to node `to` when they are next touched, and the untouched ones by a sweep.

    Returns when it is known where the pages are, about half a microsecond a page; the rest happens while the program
    goes on, for as long as what is returned is kept: dropped, it is cancelled (ResourceWarning). Whole pages move; the
    first and the last page, if `x` covers only a part of them, stay (Reason.PARTIAL).

    Meanwhile the contents hang on a descriptor of this process: do not close what you did not open (`os.closerange`),
    or pages that wait for their move read as zeros.

    Args:
        x: an array, or anything with the buffer protocol, in writable memory; a read-only view of such is as good.
        to: target node, or several: pages are interleaved over them, and those that are on one of them stay.
        rate: bytes a second that the sweep moves: None as fast as it goes, 0 no sweep.
        deadline: seconds after which what is left is moved at full speed; None: never.
        window: most pages that one touch moves; windows grow and shrink with the pattern of touches.
        service: "thread" serves faults in a thread of the engine. System calls wait for a page as the program does; but
            what pins pages for a device and cannot wait (registering memory with AF_XDP) fails on one that is armed,
            with EFAULT. "inline" lets the faulting thread serve itself, in a SIGBUS handler, which is several times
            faster for single pages and needs no privilege. But no system call waits then: one whose first page is
            armed fails with EFAULT, and one that comes to an armed page later ends there, as read(2), which returns
            **fewer bytes than asked for, without an error** (`readinto`, `recv_into`, `numpy.fromfile` into the
            array). And a thread that blocks SIGBUS dies of its first touch of an armed page. Stores that
            "write_protect" traps are not served inline: for them there is the thread, with the privilege that it needs.
        mechanism: "rwp" (any touch moves a page; Linux 7.3), "relocate" (the same for private anonymous memory) or
            "write_protect" (only a store does) instead of the best that each mapping allows.
        always: move pages that are on a target node already, too, into other frames of it. Those that are
            write-protected, or whose mapping has a memory policy of its own, keep their frames, but count as moved.

    >>> array = nt.zeros((1024, 512), node=0)
    >>> array[:] = 1
    >>> with nt.lazy(array, to=1) as migration:
    ...     float(array.sum())
    524288.0
    >>> migration.stats.moved, nt.where(array).by_node
    (1024, {1: 1024})

    Raises:
        InvalidArgument: naming the argument; `x`, too, if another migration is moving a part of it.
        NoSuchNode, NodeUnavailable: about `to`.
        FeatureMissing: the kernel or the permission lacks something; the message says what would give it.
        KernelError: registering the memory failed, for example as another userfaultfd watches it.
    """
    options = Options(service, window, rate, deadline)
    return _begin(x, check_target(to), options, mechanism, always)


def next_touch(
    x: object,
    *,
    deadline: float | None = None,
    window: int = 64,
    service: Service = "thread",
    mechanism: str | None = None,
) -> Migration:
    """Move each page of `x` to the node of the thread that touches it next.

    For data that one thread filled and others work on: after their first pass each part is where its worker is. A page
    that no thread touches waits until `deadline`, and then stays where it is (Reason.UNTOUCHED); without a deadline
    until the migration is cancelled, which the end of a `with` block does. So stay, too, pages whose touch cannot be
    caught (Reason.UNTRAPPED). Keep what is returned: dropped, it is cancelled (ResourceWarning).

    Args:
        x: as in `lazy`; or the id of another process, all of whose memory it is then, as with
            `attach(x, to="toucher")`. Where the kernel has no RWP (before 7.3) the next touch of another process's page
            is the next store to it.
        deadline: seconds after which what is left stays; None: never.
        window: most pages that one touch moves.
        service: as in `lazy`, with what that says of system calls; another process's memory is not served inline.
        mechanism: as in `lazy`.

    >>> array = nt.zeros((1024, 512), node=2)
    >>> array[:] = 1
    >>> os.sched_setaffinity(0, nt.topology().node(1).cpus)
    >>> with nt.next_touch(array) as migration:
    ...     migration.wait_armed()
    ...     float(array[:512].sum())
    True
    262144.0
    >>> nt.where(array).by_node
    {1: 512, 2: 512}

    Raises:
        As `lazy`; of a process as `attach`.
    """
    if isinstance(x, int) and not isinstance(x, bool):
        if service != "thread":
            raise InvalidArgument("service", f"is {service!r}, but another process's memory is served by a thread")
        return attach(x, "toucher", deadline=deadline, window=window, mechanism=mechanism)
    return _begin(x, (), Options(service, window, 0, deadline), mechanism, False)


def _begin(x: object, targets: tuple[int, ...], options: Options, name: str | None, always: bool) -> Migration:
    options.check()
    mechanism = None if name is None else asked_for(name)
    start, end = _writable_span(x)
    keep = x if isinstance(x, np.ndarray) else memoryview(x)  # type: ignore[arg-type]
    with planning():
        registry.refuse_overlap(start, end)
        with registry.beginning(start, end):
            for attempt in range(_ATTEMPTS):
                try:
                    plan = make_plan(SELF, [(start, end)], targets, mechanism=mechanism, always=always)
                    migration = Migration(plan, options, keep=keep)
                    break
                except KernelError as error:
                    if error.errno not in _CHANGED or attempt == _ATTEMPTS - 1:
                        raise
            registry.remember(migration._running, start, end)
    return migration


def _writable_span(x: object) -> tuple[int, int]:
    if isinstance(x, int | np.generic):
        raise InvalidArgument("x", f"is {x!r}, but has to be an array; use `attach` for a process")
    span = placement.span(x)
    writable = x.flags.writeable if isinstance(x, np.ndarray) else not memoryview(x).readonly  # type: ignore[arg-type]
    # A view that forbids writing can be of memory that does not, or that a mechanism is for all the same.
    if not writable and not _can_be_trapped(*span):
        raise InvalidArgument("x", "is in read-only memory, so its pages cannot be trapped; use `move`")
    return span


def _can_be_trapped(start: int, end: int) -> bool:
    features = userfaultfd_features()
    traps = working(features)
    return any(trap.can_trap(smap, features) for smap in procfs.smaps(SELF, start, end) for trap in traps)
