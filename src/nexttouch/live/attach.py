"""Lazy migration of a running program's memory, from outside and without its cooperation."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, SupportsIndex

from ..errors import InvalidArgument, KernelError, TargetRefused
from ..linux.process import Process
from ..topology import check_target
from .descriptor import TAKEN, acquire, check
from .mechanisms import Mechanism, foreign
from .migration import Migration
from .options import Options
from .plan import make_plan

__all__ = ["attach", "observe"]


def attach(
    pid: SupportsIndex,
    to: SupportsIndex | Iterable[SupportsIndex] | Literal["toucher"],
    *,
    rate: float | None = None,
    deadline: float | None = None,
    window: int = 64,
    mechanism: str | None = None,
    always: bool = False,
    lend_device: bool = False,
) -> Migration:
    """Move the memory of process `pid` to node `to` as the program touches it, and the rest by a sweep.

    The program is stopped once, for some milliseconds, whatever its size. After that its pages are traps: an access
    waits until its page is accessible again, and the page moves right after it. Since Linux 7.3 any touch is caught
    ("rwp"); before that only stores are ("write_protect"), and loads go on undisturbed. What cannot be trapped (files)
    is moved eagerly at the end. What pins pages for a device and cannot wait (registering memory with AF_XDP) fails in
    the program with EFAULT on a page that is a trap. If this process dies, the kernel gives back every permission: the
    program runs on and loses nothing; so, too, if what is returned is dropped, which cancels.

    Args:
        pid: the process.
        to: target node, or several, interleaved; "toucher": each page goes to the node of the thread that touches it
            next. Then there is no sweep, and what cannot be trapped stays (Reason.UNTRAPPED).
        rate: bytes a second that the sweep moves: None as fast as it goes, 0 no sweep: without a deadline untouched
            pages then stay where they are until `cancel`.
        deadline: seconds after which what is left is moved at full speed ("toucher": stays); None: never.
        window: most pages that one touch moves.
        mechanism: "rwp" or "write_protect" instead of the best that this kernel has.
        always: trap pages that are on a target node already as well, and find them there when their turn comes: to see
            what attaching costs a program without moving anything.
        lend_device: see below.

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
        NotPermitted: it is another user's, or its user may have no userfaultfd.
        TargetRefused: it is in a state in which attaching could harm it; it was left as it was.
        FeatureMissing: the kernel lacks what this needs, or /proc is of another pid namespace.
    """
    options = Options("thread", window, rate, deadline)
    options.check()
    by_toucher = isinstance(to, str) and to == "toucher"  # an array compares element by element
    if by_toucher:
        if rate:
            raise InvalidArgument("rate", f"is {rate!r}, but without a target node there is no sweep; leave it out")
        options = replace(options, rate=0)
    trap = foreign(mechanism)
    targets = () if by_toucher else check_target(to)  # type: ignore[arg-type]
    process = Process.open(pid, needs_pidfd=True)
    try:
        return _attach(process, targets, options, trap, always=always, lend=lend_device)
    except BaseException:
        process.close()
        raise


def observe(process: Process, *, window: int = 64, mechanism: str | None = None) -> Migration:
    """Note which node's threads touch which pages of `process`, from now on until it is cancelled; nothing moves.

    It closes `process` at its end. Arguments as `attach`, and so the errors.
    """
    options = Options("thread", window, rate=0, observe=True)
    options.check()
    return _attach(process, (), options, foreign(mechanism), always=False, lend=False)


# What is returned closes `process` at its end.
def _attach(
    process: Process, targets: tuple[int, ...], options: Options, mechanism: Mechanism, *, always: bool, lend: bool
) -> Migration:
    check(process)
    targets = check_target(targets, process=process) if targets else ()
    acquired = acquire(process, features=mechanism.features, wanted=mechanism.more_features, lend=lend)
    try:
        words = (acquired.exit_word,)
        plan = make_plan(process, None, targets, traps=(mechanism,), always=always, exit_words=words)
    except BaseException:
        acquired.close()
        raise
    try:
        return Migration(plan, options, attached=acquired)
    except KernelError as error:
        if error.errno == errno.EBUSY:  # since `check`
            raise TargetRefused(process.pid, TAKEN) from None
        raise
