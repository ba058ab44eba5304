"""A lazy migration under way: watch it, wait for it, cancel it.

The pagers in C do the work. What is here starts them, waits for their end in a thread of its own, moves eagerly what no
trap can be set for, and answers questions. No code here runs while a page fault waits.
"""

from __future__ import annotations

import atexit
import errno
import math
import os
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from .. import _core
from ..errors import FeatureMissing, InvalidArgument, KernelError, NexttouchError, NoSuchProcess
from ..linux import pagemap
from ..linux.syscall import PAGE_SIZE
from ..quantities import is_number
from ..topology import topology
from . import eager, exits
from .descriptor import Acquired
from .latch import Latch
from .pages import Pages
from .plan import Part, Plan
from .reason import Reason, keyed

__all__ = ["Migration", "Options", "Stats"]

Service = Literal["thread", "inline"]
Phase = Literal["arming", "serving", "done"]

_SERVING, _DONE = 2, 3
_PHASES: tuple[Phase, ...] = ("arming", "arming", "serving", "done")
_ARMED_STATES = (0, 1, 2, 3)  # planned, arming, armed, moving: the pages without a final state
_MOVED_FAULT, _MOVED_SWEEP = 4, 5


@dataclass(frozen=True, slots=True)
class Options:
    """How pages are served and swept; checked by `check`.

    Attributes:
        service: "thread", or "inline": the faulting thread serves itself.
        window: most pages that one touch moves.
        rate: bytes a second that the sweep moves: None as fast as it goes, 0 no sweep.
        deadline: seconds after arming at which what is left is moved at once (without a target: given back); None:
            never.
    """

    service: Service = "thread"
    window: int = 64
    rate: float | None = None
    deadline: float | None = None

    def check(self) -> None:
        """Raise InvalidArgument if one of the values makes no sense."""
        if self.service not in ("thread", "inline"):
            raise InvalidArgument("service", f"is {self.service!r}, but has to be 'thread' or 'inline'")
        whole = is_number(self.window) and isinstance(self.window, Integral)
        if not whole or not 1 <= self.window <= 1 << 20:
            raise InvalidArgument("window", f"is {self.window!r}, but has to be a number of pages from 1 to 1048576")
        if self.rate is not None and not (is_number(self.rate) and self.rate >= 0):
            raise InvalidArgument("rate", f"is {self.rate!r}, but has to be 0 (no sweep) or more bytes a second")
        if self.deadline is not None and not (is_number(self.deadline) and self.deadline >= 0):
            raise InvalidArgument("deadline", f"is {self.deadline!r}, but has to be 0 or more seconds")

    @property
    def ends_itself(self) -> bool:
        """Whether every page is dealt with some day even if nobody touches it."""
        return self.rate != 0 or self.deadline not in (None, math.inf)


@dataclass(frozen=True, slots=True)
class Stats:
    """What a migration has done so far. Durations in seconds, sizes in pages.

    Attributes:
        phase: "arming", "serving" or "done".
        pages: pages of the plan: the sum of `waiting`, `moved` and `left`.
        waiting: not dealt with yet.
        moved_by_touch, moved_by_sweep, moved_eagerly: moved, by what made them move. A touch takes a window along.
        left: pages that stay where they are, by reason.
        faults: page faults served.
        hole_faults: of these, touches of pages that were not there yet.
        windows, sweeps: runs of pages moved for a fault, and by the sweep.
        events: unmappings, moves and discards of memory that the program did meanwhile.
        arm_seconds, service_seconds, sweep_seconds: time spent on each.
        longest_service: the longest service of one fault.
        latency: services by upper bound of their duration in seconds, ascending.
        stopped: how long the program stood still to be attached to; 0 for memory of this process.
    """

    phase: Phase
    pages: int
    waiting: int
    moved_by_touch: int
    moved_by_sweep: int
    moved_eagerly: int
    left: dict[Reason, int]
    faults: int
    hole_faults: int
    windows: int
    sweeps: int
    events: int
    arm_seconds: float
    service_seconds: float
    sweep_seconds: float
    longest_service: float
    latency: dict[float, int]
    stopped: float

    @property
    def moved(self) -> int:
        """Pages moved in all."""
        return self.moved_by_touch + self.moved_by_sweep + self.moved_eagerly

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the attributes and `moved`, reasons by name, latency as pairs [upper bound, count]."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values |= {"moved": self.moved, "left": keyed(self.left)}
        values["latency"] = [[bound, count] for bound, count in self.latency.items()]
        return values


class Migration:
    """A lazy migration, returned by `lazy`, `next_touch` and `attach`; it runs by itself.

    As a context manager it is over when the block is: the end of the block waits for a migration that ends by itself,
    cancels one that does not, and an exception cancels either. It keeps the buffer alive until then.

    Attributes:
        plan: what it set out to do.
    """

    def __init__(self, plan: Plan, options: Options, *, keep: object = None, attached: Acquired | None = None) -> None:
        self.plan = plan
        self._options = options
        self._keep = keep
        self._pidfd = attached.pidfd if attached else -1
        self._stopped = attached.stopped if attached else 0.0
        self._cancelled = False
        self._error: NexttouchError | None = None
        self._eager: eager.MoveResult | None = None
        self._shared = 0
        self._looking, self._looked = threading.Lock(), Latch()
        self._ending, self._finished = threading.Lock(), Latch()
        self._pagers = self._start(attached.uffd if attached else -1)
        _live.add(self)
        self._have_watched()

    @property
    def done(self) -> bool:
        """Whether every page is dealt with and nothing is armed any more."""
        return self._finished.is_set

    @property
    def armed(self) -> bool:
        """Whether a page may still be a trap; not so from the end on, or from a fork on that gave all pages back."""
        return not self.done and any(pager.phase != _DONE for pager in self._pagers)

    @property
    def stats(self) -> Stats:
        """What has been done up to now; may be asked at any time, also afterwards."""
        counts: Counter[str] = Counter()
        latency: Counter[int] = Counter()
        longest = 0
        for pager in self._pagers:
            numbers = pager.stats()
            latency.update(numbers.pop("latency"))
            longest = max(longest, numbers.pop("longest_ns"))
            counts.update(numbers)
        states, eagerly = self._states(), self._eager  # looked at once, so that every page is counted once
        left = self._left(states, eagerly)
        waiting = int(states[list(_ARMED_STATES)].sum())
        pending = 0 if eagerly else sum(pages.count for pages in self.plan.eager)
        return Stats(
            phase=self._phase(),
            pages=self.plan.pages,
            waiting=waiting + pending,
            moved_by_touch=int(states[_MOVED_FAULT]),
            moved_by_sweep=int(states[_MOVED_SWEEP]),
            moved_eagerly=eagerly.moved if eagerly else 0,
            left={reason: left[reason] for reason in sorted(left)},
            **{name: counts[name] for name in ("faults", "hole_faults", "windows", "sweeps", "events")},
            arm_seconds=counts["arm_ns"] / 1e9,
            service_seconds=counts["service_ns"] / 1e9,
            sweep_seconds=counts["sweep_ns"] / 1e9,
            longest_service=longest / 1e9,
            latency={bound / 1e9: latency[bound] for bound in sorted(latency)},
            stopped=self._stopped,
        )

    @property
    def shadow(self) -> list[tuple[int, int]]:
        """Address and bytes of each range that still holds pages which could not be put back (Reason.STRANDED)."""
        return [shadow for pager in self._pagers if (shadow := pager.shadow)[1]]

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is done, at most `timeout` seconds (None: for ever); return whether it is.

        Raises:
            InvalidArgument: `timeout` is no number.
            NexttouchError: what kept the pages that no trap can be set for from being moved at the end.
        """
        finished = self._finished.wait(_seconds(timeout))
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return finished

    def wait_armed(self, timeout: float | None = None) -> bool:
        """Wait until every page of the plan is a trap or dealt with; return whether that is so.

        Until then a touch of a page that is not armed yet goes unnoticed. `timeout` as in `wait`.

        Raises:
            InvalidArgument: `timeout` is no number.
        """
        until = time.monotonic() + _seconds(timeout)
        served = all(pager.wait(_SERVING, until - time.monotonic()) for pager in self._pagers)
        return served and (not self.plan.pid or self._looked.wait(until - time.monotonic()))

    def cancel(self) -> None:
        """Give back every page that was not moved yet, and return when nothing is armed any more."""
        self._ask_to_end()
        self._watch()  # exceptions out of signal handlers can have kept every thread from it
        self._finished.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None or not self._options.ends_itself:
            self.cancel()
        try:
            self.wait()
        except BaseException:
            self.cancel()
            raise

    def __repr__(self) -> str:
        stats = self.stats
        return f"<Migration {stats.phase}: {stats.moved} of {stats.pages} pages moved, {stats.waiting} waiting>"

    # ---- starting ----

    def _start(self, uffd: int) -> list[_core.Pager]:
        pagers: list[_core.Pager] = []
        forks = _forks
        cpu_nodes = np.array([] if self.plan.targets else topology().cpu_nodes(), dtype=np.int32)
        try:
            for part in self.plan.parts:
                taken, uffd = uffd, -1  # the pager closes it, even if it cannot be made
                pager = self._pager(part, cpu_nodes, taken)
                pagers.append(pager)
                if _forks != forks:  # no call between this and the next, so no signal handler either
                    raise OSError("fork", errno.EAGAIN, "a signal handler forked while the migration began")
                pager.start()
        except BaseException as error:
            pagers.clear()  # which gives everything back
            self._release()
            if isinstance(error, OSError):
                raise _start_error(error, self._options.service) from None
            raise
        finally:
            if uffd >= 0:
                _core.forget(uffd)
                os.close(uffd)
        return pagers

    def _have_watched(self) -> None:
        try:
            threading.Thread(target=self._watch, name="nexttouch-watch", daemon=True).start()
        except BaseException as error:
            self._ask_to_end()
            self._watch()
            if isinstance(error, RuntimeError):
                detail = f"{error}; everything was given back; raise the limit of threads (ulimit -u, pids.max)"
                raise KernelError("pthread_create", errno.EAGAIN, detail) from None
            raise

    def _pager(self, part: Part, cpu_nodes: np.ndarray[Any, np.dtype[np.int32]], uffd: int) -> _core.Pager:
        options = self._options
        inline = options.service == "inline" and part.mechanism == "relocate"
        if not inline and not self.plan.targets:
            _check_threads_can_be_found()
        return _core.Pager(
            runs=part.runs,
            ranges=part.ranges,
            origins=part.origins,
            nodes=np.array(self.plan.targets, dtype=np.int32),
            cpu_nodes=cpu_nodes,
            relocate=part.mechanism == "relocate",
            inline=inline,
            pid=self.plan.pid,
            uffd=uffd,
            alive_fd=self._pidfd,
            user_mode=inline,  # its system calls fail on armed pages in any case; so no privilege is needed
            toucher=not self.plan.targets,
            staged=part.staged,
            window=int(options.window),
            rate=math.inf if options.rate is None else options.rate,
            deadline=math.inf if options.deadline is None else options.deadline,
        )

    # ---- the end ----

    def _ask_to_end(self) -> None:
        self._cancelled = True
        for pager in self._pagers:
            pager.cancel()

    def _watch(self) -> None:
        """Wait until all is armed, and for the pagers' end; the first to see either does what comes after."""
        self._reach(_SERVING)
        if self.plan.pid and self._looking.acquire(blocking=False):
            self._look_again()
        self._reach(_DONE)
        if not self._ending.acquire(blocking=False):
            return
        try:
            self._settle()
        except NexttouchError as error:
            self._error = error
        finally:
            self._release()
            _live.discard(self)
            self._finished.set()

    def _reach(self, phase: int) -> None:
        for pager in self._pagers:
            pager.wait(phase, math.inf)

    def _look_again(self) -> None:
        try:
            with suppress(NexttouchError):  # the process has ended
                runs = [part.runs for part in self.plan.parts]
                exits.look_again(self.plan.pid, self._pidfd, np.concatenate([np.empty((0, 3), np.uint64), *runs]))
        finally:
            self._looked.set()

    def _release(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd, self._keep = -1, None

    def _settle(self) -> None:
        """Move what no trap could be set for, and find out what kept busy pages."""
        if self.plan.pid:
            self._looked.wait()
            with suppress(NexttouchError):  # the process has ended
                exits.heal(self.plan.pid, self._pidfd)
        pages = Pages.joined(self.plan.eager)
        result = eager.MoveResult()
        if len(pages) and self.plan.targets and not self._cancelled:
            result = eager.move_pages(self.plan.pid, pages, self.plan.targets)
        elif len(pages):
            result.left[Reason.CANCELLED if self._cancelled else Reason.UNTRAPPED] = pages.count
        self._eager = result
        with suppress(NoSuchProcess):
            self._shared = sum(
                self._count_shared(part, pager) for part, pager in zip(self.plan.parts, self._pagers, strict=True)
            )

    def _count_shared(self, part: Part, pager: _core.Pager) -> int:
        """Of the pages that were busy, those that another process maps: the kernel says EBUSY of them as well."""
        busy = np.flatnonzero(np.frombuffer(memoryview(pager), np.uint8) == Reason.BUSY)
        ends = np.cumsum(part.runs[:, 1])
        shared = 0
        for index in busy:
            run = int(np.searchsorted(ends, index, side="right"))
            page = int(index) - int(ends[run] - part.runs[run, 1])
            word = pagemap.entries(self.plan.pid, int(part.runs[run, 0]) + page * PAGE_SIZE, 1)[0]
            shared += bool(word & pagemap.PRESENT) and not word & pagemap.EXCLUSIVE
        return shared

    # ---- looking ----

    def _phase(self) -> Phase:
        if self.done:
            return "done"
        slowest = min((pager.phase for pager in self._pagers), default=_DONE)
        return _PHASES[min(slowest, _SERVING)]

    def _states(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        counts = np.zeros(256, dtype=np.int64)
        for pager in self._pagers:
            counts += np.bincount(np.frombuffer(memoryview(pager), np.uint8), minlength=256)
        return counts

    def _left(self, states: np.ndarray[Any, np.dtype[np.int64]], eagerly: eager.MoveResult | None) -> Counter[Reason]:
        left = Counter(self.plan.left) + Counter({reason: int(states[reason]) for reason in Reason})
        left += eagerly.left if eagerly else Counter()
        left[Reason.BUSY] -= self._shared
        left[Reason.SHARED] += self._shared
        return +left


_forks = 0
"""Of these processes each is the next one's child: by it, one that was forked off in the middle of a start knows."""


def _seconds(timeout: float | None) -> float:
    if timeout is None:
        return math.inf
    if not is_number(timeout) or math.isnan(timeout):
        raise InvalidArgument("timeout", f"is {timeout!r}, but has to be a number of seconds, or None")
    return timeout


_live: set[Migration] = set()
"""Migrations under way: nobody else may hold them, and they must not be collected while memory is armed."""


# The thread of the pager looks up in /proc on which CPU that of a fault was last.
def _check_threads_can_be_found() -> None:
    try:
        here = Path("/proc/self").readlink().name
    except OSError:
        here = ""
    if here != str(os.getpid()):
        raise FeatureMissing(
            "the node of a thread that touches",
            "/proc is not of the pid namespace that this process is in",
            "mount it (unshare --mount-proc), or use service='inline' for private anonymous memory",
        )


def _start_error(error: OSError, service: Service) -> NexttouchError:
    (call, number), detail = error.args[:2], error.filename  # where OSError keeps a third argument
    if number == errno.EPERM and call == "userfaultfd":
        remedy = "run with CAP_SYS_PTRACE, set vm.unprivileged_userfaultfd=1, or use service='inline'"
        return FeatureMissing("userfaultfd", "this user may not serve the faults of system calls", remedy)
    if call in ("userfaultfd", "UFFDIO_API"):
        return FeatureMissing("userfaultfd", os.strerror(number), "see `nexttouch doctor`")
    return KernelError(str(call), int(number), str(detail or f"the {service} service could not begin"))


def _cancel_all() -> None:
    for migration in list(_live):
        migration.cancel()


def _forget_all() -> None:
    """In a forked child: the pagers and the threads that watch them are the parent's."""
    global _forks  # noqa: PLW0603 (of the process, as the fork is)
    _forks += 1
    for migration in list(_live):
        migration._ending.acquire(blocking=False)
        migration._finished.set()
        if not migration._looked.is_set:
            migration._looked.set()
    _live.clear()


atexit.register(_cancel_all)
os.register_at_fork(after_in_child=_forget_all)
