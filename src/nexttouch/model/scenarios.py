"""Scenarios: one page, and the operations that race for it.

Each has a migration or a mark pass by thread 0, and threads that do something else to the page meanwhile. Small
scopes: two nodes, four frames, two words a page, at most two address spaces and three threads show every race known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .arch import ARCHES, Arch
from .design import Design
from .entry import Kind
from .machine import Machine, Page, Worker
from .thread import Operation

__all__ = ["KINDS", "SCENARIOS", "Scenario", "cases"]

KINDS = ("anonymous", "private", "shared")
"""Kinds of pages: anonymous memory, a private mapping of a file, a shared mapping of a file."""

_FIRST = {
    "migrate": Worker((Operation("migrate", node=1),), node=0),
    "mark": Worker((Operation("mark"),), node=0),
    "mark twice": Worker((Operation("mark"), Operation("mark")), node=0),
    "mark and load": Worker((Operation("load"), Operation("mark"), Operation("load")), node=0),
    "both": Worker((Operation("mark"),), node=0),
}


def _load(word: int = 0, va: int = 0) -> Operation:
    return Operation("load", va, word)


def _store(word: int, value: int, va: int = 0) -> Operation:
    return Operation("store", va, word, value)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One race.

    Attributes:
        name: what it is called.
        sentence: what happens.
        workers: the threads beside the first one, which migrates or marks.
        kinds: of which pages.
        mappers, spaces, addresses, unmapped, stack, frames: as of `Page`.
        first: what thread 0 does: "migrate", "mark", "mark twice", "mark and load", or "both": it marks, and another
            thread migrates.
        dirty: whether the page is dirty in the beginning.
        free: nothing stands in the migration's way but its own waiters (and copy-on-write): it has to succeed.
        outside: the migration holds no mmap_sem, as that of compaction or of hot-unplug: else none that holds one could
            overlap with a system call that changes the address space.
        sometimes: marks that have to be come upon, or the race was not entered.
    """

    name: str
    sentence: str
    workers: tuple[Worker, ...]
    kinds: tuple[str, ...] = KINDS
    mappers: int = 1
    spaces: int = 1
    addresses: int = 1
    unmapped: int = 0
    stack: bool = False
    frames: tuple[int, ...] = (2, 2)
    first: str = "migrate"
    dirty: bool = False
    free: bool = False
    outside: bool = False
    sometimes: tuple[str, ...] = ()

    def applies(self, design: Design) -> bool:
        """Whether the design does what the scenario needs."""
        needs_eager = self.first in ("migrate", "both") or any(
            operation.name == "migrate" for worker in self.workers for operation in worker.script
        )
        needs_lazy = self.first != "migrate"
        swaps = any(operation.name == "reclaim" for worker in self.workers for operation in worker.script)
        if swaps and design.slot_kind is not Kind.SWAP:  # the migration cache's way into swap is not modelled
            return False
        return (design.eager or not needs_eager) and (design.lazy or not needs_lazy)

    def machine(self, design: Design, kind: str, arch: Arch | None = None) -> Machine:
        """The scenario under a design, with a page of one kind."""
        if self.outside and design.rules.anon_vma_safe == "mmap_sem":
            design = design.with_rules(anon_vma_safe="reference")
        page = Page(
            kind,
            self.mappers,
            self.spaces,
            self.addresses,
            unmapped=self.unmapped,
            stack=self.stack,
            dirty=self.dirty,
            frames=self.frames,
        )
        first = _FIRST[self.first]
        return Machine(design, page, (first, *self.workers), self.free and kind != "private", arch or ARCHES["x86-64"])


_TWO_WRITERS = (
    Worker((_store(0, 11), _load(1))),
    Worker((_store(1, 12), _load(0))),
)
_FORK = (
    Worker((_store(0, 11), Operation("fork", mm=1), _store(0, 13))),
    Worker((_load(0), _store(1, 12)), mm=1),
)
_EXIT = (
    Worker((_store(0, 11), _load(1))),
    Worker((_store(1, 12), Operation("exit")), mm=1),
)
_MUNMAP = (Worker((_store(0, 11), Operation("munmap"))), Worker((_store(1, 12),)))
_PROTECT = (Worker((_store(0, 11), Operation("mprotect", value=0), _load(0))), Worker((_store(1, 12),)))
_REMAP = (Worker((_store(0, 11), Operation("mremap", value=1), _load(0, va=1), _store(1, 12, va=1))),)
_TRUNCATE = (Worker((_store(0, 11), Operation("truncate"))), Worker((_store(1, 12),)))
_WRITE = (Worker((Operation("write", word=0, value=11), Operation("read", word=1))), Worker((_store(1, 12), _load(0))))
_PIN = (Worker((Operation("pin", word=0, value=11), _load(0))), Worker((_store(1, 12), _load(0))))
_LATE_MUNMAP = (Worker((Operation("munmap"),)), Worker((_store(0, 11), _load(1)), mm=1))
_LATE_TRUNCATE = (Worker((Operation("truncate"),)), Worker((_store(1, 12),), mm=1))
_TRUNCATE_FILE = (
    Worker((Operation("truncate"),)),
    Worker((Operation("write", word=0, value=11), Operation("read", word=1))),
)
_RECLAIM = (Worker((Operation("reclaim"),), node=0), Worker((_store(0, 11), _load(0))))


_MOVED = "migrate: moved"

_ALL: tuple[Scenario, ...] = (
    Scenario("alone", "no other thread is there", (), dirty=True, free=True, sometimes=(_MOVED,)),
    Scenario(
        "access",
        "two threads store and load",
        _TWO_WRITERS,
        free=True,
        sometimes=("store while the page moves", "load while the page moves", _MOVED),
    ),
    Scenario(
        "mappers",
        "two processes that map the page store and load",
        (Worker((_store(0, 11), _load(1))), Worker((_load(1), _store(1, 12)), mm=1)),
        mappers=2,
        spaces=2,
        sometimes=("store while the page moves", "load while the page moves", _MOVED),
    ),
    Scenario(
        "three",
        "three processes that map the page touch it",
        (Worker((_store(0, 11),)), Worker((_load(0),), mm=1), Worker((_load(1),), mm=2)),
        kinds=("anonymous", "shared"),
        mappers=3,
        spaces=3,
        sometimes=("store while the page moves", "load while the page moves", _MOVED),
    ),
    Scenario(
        "fork",
        "a process forks; parent and child store",
        _FORK,
        spaces=2,
        outside=True,
        sometimes=("fork while the page moves", "store while the page moves", _MOVED),
    ),
    Scenario(
        "exit",
        "one of two processes that map the page exits",
        _EXIT,
        mappers=2,
        spaces=2,
        sometimes=("exit while the page moves", _MOVED),
    ),
    Scenario(
        "last-exit",
        "the only process that maps the page exits",
        (Worker((_store(0, 11), Operation("exit"))),),
        sometimes=("exit: done", "migrate: ENOENT", _MOVED),
    ),
    Scenario(
        "munmap",
        "the page is unmapped while another thread stores",
        _MUNMAP,
        outside=True,
        sometimes=("munmap while the page moves", "store: SIGSEGV", "migrate: ENOENT", _MOVED),
    ),
    Scenario(
        "mprotect",
        "the page is made read-only while another thread stores",
        _PROTECT,
        outside=True,
        sometimes=("mprotect while the page moves", "store: SIGSEGV", _MOVED),
    ),
    Scenario(
        "late",
        "a process that maps the file touches the page for the first time",
        (Worker((_store(0, 11), _load(1))), Worker((_store(1, 12), _load(0)), mm=1)),
        kinds=("shared",),
        spaces=2,
        unmapped=1,
        sometimes=("a lookup waits for the page lock", _MOVED),
    ),
    Scenario(
        "late-munmap",
        "one process unmaps the page while another one touches it for the first time",
        _LATE_MUNMAP,
        kinds=("shared",),
        spaces=2,
        unmapped=1,
        outside=True,
        sometimes=("munmap while the page moves", "store while the page moves", _MOVED),
    ),
    Scenario(
        "exec",
        "exec moves a stack to where it will be",
        (Worker((Operation("exec", value=1), _load(0, va=1))),),
        kinds=("anonymous",),
        addresses=2,
        stack=True,
        sometimes=("exec while the page moves", _MOVED),
    ),
    Scenario(
        "mremap",
        "the page is moved to another address",
        _REMAP,
        addresses=2,
        outside=True,
        sometimes=("mremap while the page moves", _MOVED),
    ),
    Scenario(
        "truncate",
        "the file is truncated while another thread stores",
        _TRUNCATE,
        kinds=("shared",),
        sometimes=("truncate waits for the page lock", "store: SIGBUS", "migrate: gone", _MOVED),
    ),
    Scenario(
        "truncate-late",
        "the file is truncated while a process touches the page for the first time",
        _LATE_TRUNCATE,
        kinds=("shared",),
        spaces=2,
        unmapped=1,
        sometimes=("truncate while the page moves", "a page has left the file", "store: SIGBUS", _MOVED),
    ),
    Scenario(
        "truncate-file",
        "the file is truncated beside write(2) and read(2)",
        _TRUNCATE_FILE,
        kinds=("shared",),
        sometimes=("truncate while the page moves", "a page has left the file", "write: end of file", _MOVED),
    ),
    Scenario(
        "file",
        "write(2) and read(2) beside stores through a mapping",
        _WRITE,
        kinds=("shared",),
        sometimes=(
            "write while the page moves",
            "read while the page moves",
            "a lookup waits for the page lock",
            _MOVED,
        ),
    ),
    Scenario(
        "pin",
        "a device writes to the page",
        _PIN,
        kinds=("anonymous", "shared"),
        sometimes=("a page is pinned", "a migration finds the page in use", "migrate: EAGAIN", _MOVED),
    ),
    Scenario(
        "pin-alone",
        "a device writes to the page, and no thread touches it afterwards",
        (Worker((Operation("pin", word=0, value=11),)),),
        kinds=("anonymous", "shared"),
        sometimes=("a page is pinned", "migrate: EAGAIN", _MOVED),
    ),
    Scenario(
        "reclaim",
        "reclaim swaps the page out",
        _RECLAIM,
        kinds=("anonymous",),
        sometimes=("reclaim: swapped out", "reclaim while the page moves", "migrate while the page moves", _MOVED),
    ),
    Scenario(
        "twice",
        "two threads migrate the page, another one stores",
        (Worker((Operation("migrate", node=1),), node=0), Worker((_store(0, 11), _load(0)))),
        sometimes=("migrate: EBUSY", _MOVED),
    ),
    Scenario(
        "full",
        "there is no room on the target node",
        (Worker((_store(0, 11), _load(1))),),
        frames=(3, 0),
        sometimes=("migrate: ENOMEM",),
    ),
    Scenario(
        "lazy-loads",
        "two threads on different nodes load from marked pages",
        (Worker((_load(0),), node=0), Worker((_load(1),), node=1)),
        first="mark",
        dirty=True,
        sometimes=("load while the page is marked",),
    ),
    Scenario(
        "lazy-access",
        "two threads touch marked pages",
        _TWO_WRITERS,
        first="mark",
        sometimes=("store while the page is marked", "load while the page is marked"),
    ),
    Scenario(
        "lazy-reader",
        "one thread reads marked pages while two store",
        (Worker((_store(1, 12),)), Worker((_store(0, 11),))),
        first="mark and load",
        sometimes=("load while the page is marked", "store while the page is marked"),
    ),
    Scenario(
        "lazy-again",
        "the page is marked twice while threads on both nodes store",
        (Worker((_store(0, 11),), node=0), Worker((_store(1, 12),), node=1)),
        first="mark twice",
        sometimes=("mark while the page is marked", "store while the page is marked"),
    ),
    Scenario(
        "lazy-nodes",
        "two threads on different nodes touch marked pages",
        (Worker((_store(0, 11), _load(1)), node=0), Worker((_load(0), _store(1, 12)), node=1)),
        first="mark",
        sometimes=("store while the page is marked", "load while the page is marked"),
    ),
    Scenario(
        "lazy-mappers",
        "two processes touch pages of which one marks its entries",
        (Worker((_store(0, 11), _load(1))), Worker((_load(1), _store(1, 12)), mm=1)),
        mappers=2,
        spaces=2,
        first="mark",
        sometimes=("store while the page is marked", "load while the page is marked"),
    ),
    Scenario(
        "lazy-fork",
        "a process forks while its pages are marked",
        _FORK,
        spaces=2,
        first="mark",
        sometimes=("fork while the page is marked", "store while the page is marked"),
    ),
    Scenario(
        "lazy-exit",
        "one of two processes exits while pages are marked",
        _EXIT,
        mappers=2,
        spaces=2,
        first="mark",
        sometimes=("exit while the page is marked",),
    ),
    Scenario(
        "lazy-munmap",
        "a page is unmapped while it is marked",
        _MUNMAP,
        first="mark",
        sometimes=("munmap while the page is marked", "store: SIGSEGV"),
    ),
    Scenario(
        "lazy-mprotect",
        "a page is made read-only while it is marked",
        _PROTECT,
        first="mark",
        sometimes=("mprotect while the page is marked", "store: SIGSEGV"),
    ),
    Scenario(
        "lazy-mremap",
        "a page is moved to another address while it is marked",
        _REMAP,
        addresses=2,
        first="mark",
        sometimes=("mremap while the page is marked",),
    ),
    Scenario(
        "lazy-truncate",
        "the file is truncated while pages are marked",
        _TRUNCATE,
        kinds=("shared",),
        first="mark",
        sometimes=("truncate while the page is marked", "store: SIGBUS"),
    ),
    Scenario(
        "lazy-file",
        "write(2) and read(2) beside marked pages",
        _WRITE,
        kinds=("shared",),
        first="mark",
        sometimes=("write while the page is marked", "read while the page is marked"),
    ),
    Scenario(
        "lazy-pin",
        "a device writes to a page that is marked",
        _PIN,
        kinds=("anonymous", "shared"),
        first="mark",
        sometimes=("pin while the page is marked", "a page is pinned"),
    ),
    Scenario(
        "lazy-reclaim",
        "reclaim meets a marked page",
        _RECLAIM,
        kinds=("anonymous",),
        first="mark",
        sometimes=("reclaim while the page is marked", "reclaim: swapped out"),
    ),
    Scenario(
        "lazy-eager",
        "a marked page is migrated at once by another thread",
        (Worker((Operation("migrate", node=1),), node=0), Worker((_store(0, 11), _load(0)))),
        first="both",
        sometimes=(
            "migrate while the page is marked",
            "a fault has moved the page",
            "a fault waits for a migration",
            _MOVED,
        ),
    ),
)

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
"""Scenarios by the names of the command line."""


def cases(design: Design) -> Iterator[tuple[Scenario, str]]:
    """Every scenario that applies to a design, with each kind of page."""
    for scenario in SCENARIOS.values():
        if scenario.applies(design):
            for kind in scenario.kinds:
                if kind in design.kinds:
                    yield scenario, kind
