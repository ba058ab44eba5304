"""What a lazy migration is made of: pagers, the thread that watches them, and what is done when they have ended.

The pagers in C do the work. What is here starts them, waits for their end in a thread of its own, moves eagerly what no
trap can be set for, and counts. No code here runs while a page fault waits.

Until all is given back, whether the `Migration` is kept or not, what is under way is held by `registry.running`, and
with it the buffer: memory must not be collected while it is armed.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import FeatureMissing, KernelError, NexttouchError, NoSuchProcess
from ..linux import procfs
from ..linux.mounts import check_proc
from ..linux.occupied import in_swap, mapped_often
from ..linux.syscall import PAGE_SIZE
from ..topology import topology
from . import eager, exits, registry
from .descriptor import Acquired
from .latch import Latch
from .mechanisms import named
from .options import Options, Service
from .pages import Pages
from .plan import Part, Plan
from .reason import Reason
from .stats import Phase, Stats
from .target import wanted_nodes

__all__ = ["Running"]

_SERVING, _DONE = _core.PHASES["serving"], _core.PHASES["done"]
_PHASES: tuple[Phase, ...] = ("arming", "arming", "serving", "done")
_MOVED_FAULT, _MOVED_SWEEP = _core.STATES["moved_fault"], _core.STATES["moved_sweep"]
_DUMP_PAUSE = 0.01  # seconds between two looks whether a program begins to dump its core
_WAITING_STATES = sorted({*_core.STATES.values()} - {_MOVED_FAULT, _MOVED_SWEEP})


class Running:
    """A migration that `begin` begins, and that then runs by itself.

    It knows nothing of the `Migration` by which its owner watches it, so that may go.

    Attributes:
        plan: what it sets out to do.
        options: how.
        gone: whether the process that it was attached to had ended, or become another program, before it was done.
    """

    def __init__(self, plan: Plan, options: Options, *, keep: object = None, attached: Acquired | None = None) -> None:
        self.plan = plan
        self.options = options
        self.gone = False
        self._keep = keep
        self._uffd = attached.uffd if attached else -1
        self._process = plan.process
        self._stopped = attached.stopped if attached else 0.0
        self._cancelled = False
        self._error: NexttouchError | None = None
        self._eager: eager.MoveResult | None = None
        self._corrections: Counter[Reason] = Counter()
        self._looking, self._looked = threading.Lock(), Latch()
        self._ending, self._finished = threading.Lock(), Latch()
        self._pagers: list[_core.Pager] = []

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
        waiting = int(states[_WAITING_STATES].sum())
        pending = 0 if eagerly else sum(pages.count for pages in self.plan.eager)
        return Stats(
            phase=self._phase(),
            pages=self.plan.pages,
            waiting=waiting + pending,
            moved_by_touch=int(states[_MOVED_FAULT]),
            moved_by_sweep=int(states[_MOVED_SWEEP]),
            moved_eagerly=eagerly.moved if eagerly else 0,
            left={reason: left[reason] for reason in sorted(left)},
            **{name: counts[name] for name in ("faults", "hole_faults", "windows", "sweeps", "moves", "events")},
            arm_seconds=counts["arm_ns"] / 1e9,
            service_seconds=counts["service_ns"] / 1e9,
            sweep_seconds=counts["sweep_ns"] / 1e9,
            move_seconds=counts["move_ns"] / 1e9,
            longest_service=longest / 1e9,
            latency={bound / 1e9: latency[bound] for bound in sorted(latency)},
            stopped=self._stopped,
        )

    def touches(self) -> tuple[Pages, NDArray[np.int16]]:
        """What was trapped, on the nodes where it was; and of each the node whose thread touched it, or STAY."""
        pages = [_units(part) for part in self.plan.parts]
        wanted = [
            np.frombuffer(pager.wanted, np.int16)[np.cumsum(units.units) - units.units]
            for pager, units in zip(self._pagers, pages, strict=True)
        ]
        return Pages.joined(pages), np.concatenate([np.empty(0, np.int16), *wanted])

    @property
    def shadow(self) -> list[tuple[int, int]]:
        """Address and bytes of each range that still holds pages which could not be put back (Reason.STRANDED)."""
        return [shadow for pager in self._pagers if (shadow := pager.shadow)[1]]

    def begin(self) -> None:
        """Arm, and have it watched.

        Raises:
            FeatureMissing, KernelError: it could not begin, and everything was given back.
        """
        taken, self._uffd = self._uffd, -1
        self._pagers = self._start(taken)
        registry.running.add(self)
        self._have_watched()

    def wait(self, seconds: float) -> bool:
        """As `Migration.wait`."""
        finished = self._finished.wait(seconds)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return finished

    def wait_armed(self, seconds: float) -> bool:
        """As `Migration.wait_armed`."""
        until = time.monotonic() + seconds
        served = all(pager.wait(_SERVING, until - time.monotonic()) for pager in self._pagers)
        return served and (self._process.own or self._looked.wait(until - time.monotonic()))

    def cancel(self) -> None:
        """As `Migration.cancel`."""
        self.ask_to_end()
        self._watch()  # exceptions out of signal handlers can have kept every thread from it
        self._finished.wait()

    def ask_to_end(self) -> None:
        """Have it cancelled, and do not wait for that; may be called in a finalizer, by whichever thread runs it."""
        self._cancelled = True
        for pager in self._pagers:
            pager.cancel()

    def forget(self) -> None:
        """Take it for done, in a forked child: the pagers and the threads that watch them are the parent's."""
        self._ending.acquire(blocking=False)
        self._finished.set()
        if not self._looked.is_set:
            self._looked.set()

    # ---- starting ----

    def _start(self, uffd: int) -> list[_core.Pager]:
        pagers: list[_core.Pager] = []
        forks = registry.forks()
        cpu_nodes = np.array([] if self.plan.targets else topology().cpu_nodes(), dtype=np.int32)
        try:
            for part in self.plan.parts:
                taken, uffd = uffd, -1  # the pager closes it, even if it cannot be made
                pager = self._pager(part, cpu_nodes, taken)
                pagers.append(pager)
                if registry.forks() != forks:  # no call between this and the next, so no signal handler either
                    raise OSError("fork", errno.EAGAIN, "a signal handler forked while the migration began")
                pager.start()
        except BaseException as error:
            pagers.clear()  # which gives everything back
            self._release()
            if isinstance(error, OSError):
                raise _start_error(error, self.options.service) from None
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
            self.ask_to_end()
            self._watch()
            if isinstance(error, RuntimeError):
                detail = f"{error}; everything was given back; raise the limit of threads (ulimit -u, pids.max)"
                raise KernelError("pthread_create", errno.EAGAIN, detail) from None
            raise

    def _pager(self, part: Part, cpu_nodes: np.ndarray[Any, np.dtype[np.int32]], uffd: int) -> _core.Pager:
        options = self.options
        inline = options.service == "inline" and named(part.mechanism).inline
        if not inline and not self.plan.targets:
            _check_threads_can_be_found()
        return _core.Pager(
            runs=part.runs,
            ranges=part.ranges,
            origins=part.origins,
            wanted=part.wanted,
            nodes=np.array(self.plan.targets, dtype=np.int32),
            cpu_nodes=cpu_nodes,
            mechanism=_core.MECHANISMS[part.mechanism],
            service=_core.SERVICES["inline" if inline else "thread"],
            pid=self._process.number,
            uffd=uffd,
            alive_fd=self._process.pidfd,
            user_mode=inline,  # its system calls fail on armed pages in any case; so no privilege is needed
            observe=options.observe,
            window=int(options.window),
            rate=math.inf if options.rate is None else options.rate,
            deadline=math.inf if options.deadline is None else options.deadline,
        )

    # ---- the end ----

    def _watch(self) -> None:
        """Wait until all is armed, and for the pagers' end; the first to see either does what comes after."""
        self._reach(_SERVING)
        if not self._process.own and self._looking.acquire(blocking=False):
            self._look_again()
        self._reach(_DONE)
        if not self._ending.acquire(blocking=False):
            return
        try:
            self._settle()
        except NexttouchError as error:
            self._error = error
        finally:
            self.gone = not self._process.there
            self._release()
            registry.running.discard(self)
            self._finished.set()

    # A page that may not be read is a hole in a core dump. The kernel tells of no dump, but takes its time to begin it.
    def _reach(self, phase: int) -> None:
        pause = _DUMP_PAUSE if self._traps_loads and not self._process.own else math.inf
        for pager in self._pagers:
            while not pager.wait(phase, pause):
                with suppress(NexttouchError):  # it has ended
                    if procfs.dumps_core(self._process):
                        self.ask_to_end()

    @property
    def _traps_loads(self) -> bool:
        return any(named(part.mechanism).traps == "any touch" for part in self.plan.parts)

    def _look_again(self) -> None:
        try:
            with suppress(NexttouchError, OSError):  # as in `_settle`
                runs = [part.runs for part in self.plan.parts]
                runs_of_all = np.concatenate([np.empty((0, 3), np.uint64), *runs])
                exits.look_again(self._process, runs_of_all, by_touch=self._traps_loads)
        finally:
            self._looked.set()

    def _release(self) -> None:
        self._process.close()
        self._keep = None

    def _settle(self) -> None:
        """Move what no trap could be set for, and find out what kept busy pages."""
        if not self._process.own:
            self._looked.wait()
            with suppress(NexttouchError, OSError):  # the process has ended, or becomes another program at this moment
                exits.heal(self._process)
        self._eager = result = self._moved_eagerly()
        with suppress(NoSuchProcess):
            corrections: Counter[Reason] = Counter()
            for part, pager in zip(self.plan.parts, self._pagers, strict=True):
                corrections.update(self._corrected(part, pager))
            self._corrections = corrections
        if result.ended is not None and not isinstance(result.ended, NoSuchProcess):
            self._error = result.ended

    def _moved_eagerly(self) -> eager.MoveResult:
        pages = Pages.joined(self.plan.eager)
        if len(pages) and self.plan.targets and not self._cancelled:
            try:
                return eager.move_pages(self._process, pages, wanted_nodes(pages, self.plan.targets))
            except NexttouchError as error:  # before the first page
                return eager.MoveResult(pages.count, left=Counter({Reason.UNREACHED: pages.count}), ended=error)
        result = eager.MoveResult()
        if len(pages):
            result.left[Reason.CANCELLED if self._cancelled else Reason.UNTRAPPED] = pages.count
        return result

    def _corrected(self, part: Part, pager: _core.Pager) -> Counter[Reason]:
        """Find what the pager could not: whether busy pages are another process's too, and lost ones in swap."""
        found: Counter[Reason] = Counter()
        states = np.frombuffer(memoryview(pager), np.uint8)
        for told, meant, test in ((Reason.BUSY, Reason.SHARED, mapped_often), (Reason.ABSENT, Reason.SWAPPED, in_swap)):
            count = int(test(self._process, _addresses(part, np.flatnonzero(states == told))).sum())
            found.update({meant: count, told: -count})
        return found

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
        left.update(self._corrections)
        return +left


def _units(part: Part) -> Pages:
    """What moves together in `part`, on the nodes of which the plan knew."""
    counts = part.runs[:, 1] // part.runs[:, 2]
    units = np.repeat(part.runs[:, 2], counts.astype(np.intp)).astype(np.uint32)
    ends = np.cumsum(units.astype(np.uint64))
    firsts = ends - units
    starts = np.repeat(part.runs[:, 0], counts.astype(np.intp))
    before = np.repeat(np.cumsum(part.runs[:, 1]) - part.runs[:, 1], counts.astype(np.intp))
    addresses = starts + (firsts - before) * np.uint64(PAGE_SIZE)
    return Pages(addresses, units, part.origins[firsts.astype(np.intp)].astype(np.int32))


def _addresses(part: Part, chosen: NDArray[np.intp]) -> NDArray[np.uint64]:
    """Addresses of the pages of `part` that have these positions, ascending."""
    ends = np.cumsum(part.runs[:, 1]).astype(np.int64)
    run = np.searchsorted(ends, chosen, side="right")
    within = (chosen - (ends - part.runs[:, 1].astype(np.int64))[run]).astype(np.uint64)
    return np.sort(part.runs[run, 0] + within * np.uint64(PAGE_SIZE))


# The thread of the pager looks up in /proc on which CPU that of a fault was last.
def _check_threads_can_be_found() -> None:
    try:
        check_proc()
    except FeatureMissing as error:
        remedy = f"{error.remedy}, or use service='inline' for private anonymous memory"
        raise FeatureMissing("the node of a thread that touches", error.reason, remedy) from None


def _start_error(error: OSError, service: Service) -> NexttouchError:
    (call, number), detail = error.args[:2], error.filename  # where OSError keeps a third argument
    if number == errno.EPERM and call == "userfaultfd":
        remedy = "run with CAP_SYS_PTRACE, set vm.unprivileged_userfaultfd=1, or use service='inline'"
        return FeatureMissing("userfaultfd", "this user may not serve the faults of system calls", remedy)
    if call in ("userfaultfd", "UFFDIO_API"):
        return FeatureMissing("userfaultfd", os.strerror(number), "see `nexttouch doctor`")
    return KernelError(str(call), int(number), str(detail or f"the {service} service could not begin"))
