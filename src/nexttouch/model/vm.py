"""The VM's state: frames, page tables, TLBs, caches, locks, and what a checker has to know beside them.

`VM` is what a step changes; `VM.frozen()` is the same as a value: hashable, and the one thing that distinguishes two
states. The terms are the kernel's of 2006. Beside what a kernel would have it keeps `truth`: what each page has to
contain if no store is lost, and who holds which reference.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .entry import Entry
from .violation import Broken, Violation

if TYPE_CHECKING:
    from .arch import Arch
    from .design import Design

__all__ = [
    "ACTIVE",
    "ANON",
    "DIRTY",
    "FILE",
    "FREE",
    "ISOLATED",
    "LRU",
    "NO_FRAME",
    "NO_SLOT",
    "PINNED",
    "REFERENCED",
    "SWAPCACHE",
    "UNMAPPED",
    "UPTODATE",
    "VM",
    "Area",
    "Frame",
    "Slot",
    "Translation",
    "Words",
]

_T = TypeVar("_T")

Words = tuple[int, ...]
"""The contents of a page: as few words as show that it is not copied at one moment."""

NO_FRAME = -1
NO_SLOT = -1

# Flags of a frame. The checker alone knows ISOLATED (a thread took it off the LRU) and PINNED (a device writes to it).
UPTODATE, DIRTY, LRU, ACTIVE, REFERENCED, SWAPCACHE, ISOLATED, PINNED, FREE = (1 << bit for bit in range(9))

ANON, FILE = 1, 2
"""What a frame's mapping is; 0: it has none."""


class Frame(NamedTuple):
    """One frame and its struct page.

    Attributes:
        refs, maps: its refcount and mapcount.
        held: of the references, those that threads hold for a while.
        flags: UPTODATE and so on.
        locked_by: the thread that holds the page lock, + 1; 0: none.
        node: NUMA node.
        mapping: ANON, FILE, or 0.
        private: its slot in the swap or migration cache.
        words: contents.
    """

    refs: int = 0
    maps: int = 0
    held: int = 0
    flags: int = FREE
    locked_by: int = 0
    node: int = 0
    mapping: int = 0
    private: int = NO_SLOT
    words: Words = (0, 0)

    def counted(self, refs: int = 0, maps: int = 0, held: int = 0) -> Frame:
        """The frame with so many more references and entries, and references that threads hold."""
        return Frame(self.refs + refs, self.maps + maps, self.held + held, *self[3:])


class Area(NamedTuple):
    """What one address of an address space is: a vma of one page.

    Attributes:
        mapped: whether it exists.
        shared: VM_SHARED: stores go to the file.
        write: VM_WRITE.
        file: whether it maps the file; else it is anonymous.
        settled: no system call is changing it; what `write` says has been true since before this moment.
        linked: whether the reverse map knows it.
        temporary: exec has not put the stack yet where it will be.
    """

    mapped: bool = False
    shared: bool = False
    write: bool = True
    file: bool = False
    settled: bool = True
    linked: bool = False
    temporary: bool = False


UNMAPPED = Area()


class Translation(NamedTuple):
    """An entry of a TLB."""

    frame: int
    write: bool
    dirty: bool


class Slot(NamedTuple):
    """A slot of swap, or an id of the migration cache.

    Attributes:
        entries: how many entries name it.
        frame: the frame that the cache has for it.
        disk: what was written out; None: nothing.
    """

    entries: int = 0
    frame: int = NO_FRAME
    disk: Words | None = None


class VM:
    """The state while a step changes it. Lists by frame, address space (mm), address, CPU.

    CPU n runs thread n and nothing else.
    """

    __slots__ = (
        "alive",
        "arch",
        "areas",
        "complaint",
        "design",
        "dirtied",
        "events",
        "file_size",
        "file_words",
        "forking",
        "frames",
        "marks",
        "order",
        "page_cache",
        "rmap_lock",
        "rss",
        "running",
        "sems",
        "slots",
        "spinlocks",
        "stepping",
        "tables",
        "tlbs",
        "touched",
        "truth",
    )

    def __init__(
        self, frozen: tuple[Any, ...], design: Design, arch: Arch, running: tuple[int, ...], events: Counter[str]
    ) -> None:
        (
            frames,
            tables,
            areas,
            tlbs,
            slots,
            truth,
            touched,
            sems,
            spinlocks,
            rss,
            alive,
            order,
            forking,
            (self.page_cache, self.file_words, self.file_size, self.dirtied, self.rmap_lock),
        ) = frozen
        self.frames: list[Frame] = list(frames)
        self.tables: tuple[tuple[int, ...], ...] = tables
        self.areas: tuple[tuple[Area, ...], ...] = areas
        self.tlbs: tuple[tuple[Translation | None, ...], ...] = tlbs
        self.slots: list[Slot] = list(slots)
        self.truth: tuple[tuple[Words | None, ...], ...] = truth
        self.touched: tuple[tuple[bool, ...], ...] = touched
        self.sems: list[int] = list(sems)
        self.spinlocks: list[int] = list(spinlocks)
        self.rss: list[int] = list(rss)
        self.alive: list[bool] = list(alive)
        self.order: tuple[tuple[int, int], ...] = order
        self.forking: list[int] = list(forking)
        self.design = design
        self.arch = arch
        self.running = running
        self.events = events
        self.stepping = 0
        """The thread that takes a step, + 1; 0: none does."""
        self.marks: list[str] = []
        self.complaint: Violation | None = None

    def frozen(self) -> tuple[Any, ...]:
        """Return the state as a value, from which `VM` makes it again."""
        return (
            tuple(self.frames),
            self.tables,
            self.areas,
            self.tlbs,
            tuple(self.slots),
            self.truth,
            self.touched,
            tuple(self.sems),
            tuple(self.spinlocks),
            tuple(self.rss),
            tuple(self.alive),
            self.order,
            tuple(self.forking),
            (self.page_cache, self.file_words, self.file_size, self.dirtied, self.rmap_lock),
        )

    # ---- page tables ----

    def entry(self, mm: int, va: int) -> Entry:
        """Read an entry; a thread without the page table's lock sees what is there at this moment."""
        return self.arch.decode(self.tables[mm][va])

    def set_entry(self, mm: int, va: int, entry: Entry) -> None:
        """Write an entry, as the kernel does.

        Raises:
            Broken: I-LOCK: another thread holds the lock of the page table.
        """
        if self.spinlocks[mm] not in (0, self.stepping):
            raise Broken("I-LOCK", f"an entry changes whose page table thread {self.spinlocks[mm] - 1} has locked")
        self.set_bits(mm, va, entry)

    def set_bits(self, mm: int, va: int, entry: Entry) -> None:
        """Write an entry, as hardware does: it asks for no lock."""
        self.tables = _with(self.tables, mm, va, self.arch.encode(entry))
        self.events["page_table_writes"] += 1

    def entries(self) -> list[tuple[tuple[int, int], Entry]]:
        """Every place, (mm, va), and its entry."""
        decode = self.arch.decode
        return [((mm, va), decode(word)) for mm, table in enumerate(self.tables) for va, word in enumerate(table)]

    def mappings(self, frame: int) -> list[tuple[int, int]]:
        """The places whose entries map `frame`."""
        return [place for place, entry in self.entries() if entry.mapped and entry.number == frame]

    # ---- what is kept as it is frozen: most steps leave it as it was ----

    def set_translation(self, cpu: int, va: int, translation: Translation | None) -> None:
        """Fill an entry of a TLB, or empty it."""
        self.tlbs = _with(self.tlbs, cpu, va, translation)

    def set_touched(self, mm: int, va: int, touched: bool) -> None:
        """Say whether an address has been accessed since its entry was made."""
        self.touched = _with(self.touched, mm, va, touched)

    def set_area(self, mm: int, va: int, area: Area) -> None:
        """Give an address another area."""
        self.areas = _with(self.areas, mm, va, area)

    def set_truth(self, mm: int, va: int, words: Words | None) -> None:
        """Say what a page has to contain; None: what the file does."""
        self.truth = _with(self.truth, mm, va, words)

    # ---- frames ----

    def change(self, frame: int, **fields: Any) -> None:  # noqa: ANN401 (of as many types as a frame has fields)
        """Give fields of a frame new values."""
        self.frames[frame] = self.frames[frame]._replace(**fields)

    def flag(self, frame: int, on: int = 0, off: int = 0) -> None:
        """Set and clear flags."""
        self.change(frame, flags=self.frames[frame].flags & ~off | on)

    def has(self, frame: int, flags: int) -> bool:
        """Whether all of `flags` are set."""
        return self.frames[frame].flags & flags == flags

    def alive_frame(self, frame: int, what: str) -> Frame:
        """Return the frame, of which the caller says that it has a right to it.

        Raises:
            Broken: I-UAF: it is free.
        """
        found = self.frames[frame]
        if found.flags & FREE:
            raise Broken("I-UAF", f"{what} uses frame {frame}, which is free")
        return found

    def allocate(self, node: int) -> int:
        """Return a fresh frame of `node`, held by the caller; NO_FRAME if there is none."""
        for number, frame in enumerate(self.frames):
            if frame.flags & FREE and frame.node == node:
                self.frames[number] = Frame(refs=1, held=1, flags=0, node=node, words=(0,) * len(frame.words))
                self.events["allocations"] += 1
                return number
        return NO_FRAME

    def allocate_near(self, node: int) -> int:
        """Return a fresh frame of `node`, or else of another node; NO_FRAME if there is none anywhere."""
        nodes = sorted({frame.node for frame in self.frames}, key=lambda other: (other != node, other))
        return next((frame for other in nodes if (frame := self.allocate(other)) != NO_FRAME), NO_FRAME)

    def get(self, frame: int, what: str) -> None:
        """Take a reference."""
        found = self.alive_frame(frame, what)
        self.frames[frame] = found.counted(refs=1, held=1)
        self.events["atomics"] += 1

    def put(self, frame: int) -> None:
        """Drop a reference that a thread holds; the last one frees the frame."""
        self._drop(frame, held=1)

    def map(self, frame: int, *, from_held: bool = False) -> None:
        """Count an entry: a reference and the mapcount; `from_held` hands over a reference that the thread holds."""
        found = self.alive_frame(frame, "an entry")
        extra = 0 if from_held else 1
        self.frames[frame] = found.counted(refs=extra, maps=1, held=extra - 1)
        self.events["atomics"] += 1 + extra

    def unmap(self, frame: int, *, to_held: bool = False) -> None:
        """Uncount an entry; `to_held` leaves its reference with the thread."""
        found = self.alive_frame(frame, "an entry")
        if not found.maps:
            raise Broken("I-MAP", f"the mapcount of frame {frame} would become negative")
        self.frames[frame] = found.counted(maps=-1, held=int(to_held))
        self.events["atomics"] += 1
        if not to_held:
            self._drop(frame)

    def drop_cache_reference(self, frame: int) -> None:
        """Drop the reference of a cache that has just let go of the frame."""
        self._drop(frame)

    def add_cache_reference(self, frame: int) -> None:
        """Take the reference of a cache that has just taken the frame in."""
        found = self.alive_frame(frame, "a cache")
        self.frames[frame] = found.counted(refs=1)
        self.events["atomics"] += 1

    def _drop(self, frame: int, held: int = 0) -> None:
        found = self.alive_frame(frame, "a thread that drops a reference")
        self.events["atomics"] += 1
        if not found.refs:
            raise Broken("I-REF", f"the refcount of frame {frame} would become negative")
        self.frames[frame] = found.counted(refs=-1, held=-held)
        if found.refs == 1:
            self._free(frame)

    def _free(self, frame: int) -> None:
        found = self.frames[frame]
        if found.maps:
            raise Broken("I-MAP", f"frame {frame} is freed while its mapcount is {found.maps}")
        if found.locked_by:
            raise Broken("I-UAF", f"frame {frame} is freed while thread {found.locked_by - 1} holds its page lock")
        for cpu, tlb in enumerate(self.tlbs):
            if any(translation and translation.frame == frame for translation in tlb):
                raise Broken("I-TLB", f"frame {frame} is freed while the TLB of CPU {cpu} still maps it")
        self.frames[frame] = Frame(flags=FREE, node=found.node, words=(0,) * len(found.words))

    # ---- the swap cache and the migration cache ----

    def cache_frame(self, frame: int) -> int:
        """Give a frame a slot and put it into the cache; NO_SLOT if there is none."""
        for number, slot in enumerate(self.slots[1:], 1):  # slot 0 of swap is its header
            if slot == Slot():
                self.slots[number] = Slot(frame=frame)
                self.flag(frame, on=SWAPCACHE | DIRTY)
                self.change(frame, private=number)
                self.add_cache_reference(frame)
                self.events["slots"] += 1
                return number
        return NO_SLOT

    def uncache_frame(self, frame: int) -> None:
        """Take a frame out of the cache; from now on its contents are nowhere else."""
        slot = self.frames[frame].private
        self.slots[slot] = self.slots[slot]._replace(frame=NO_FRAME)
        self._forget_unused(slot)
        self.flag(frame, on=DIRTY, off=SWAPCACHE)
        self.change(frame, private=NO_SLOT)
        self.drop_cache_reference(frame)

    def count_slot(self, slot: int, by: int) -> None:
        """Count entries of a slot; without any, and no page in the cache, it is free."""
        found = self.slots[slot]
        if found.entries + by < 0:
            raise Broken(self.design.slot_invariant, f"the count of slot {slot} would become negative")
        self.slots[slot] = found._replace(entries=found.entries + by)
        self.events["atomics"] += 1
        self._forget_unused(slot)

    def _forget_unused(self, slot: int) -> None:
        if not self.slots[slot].entries and self.slots[slot].frame == NO_FRAME:
            self.slots[slot] = Slot()

    def copy_word(self, old: int, new: int, word: int) -> bool:
        """Copy one word of a page; whether it was the last."""
        copied, words = self.alive_frame(old, "a copy").words, self.frames[new].words
        self.change(new, words=(*words[:word], copied[word], *words[word + 1 :]))
        self.events["words_copied"] += 1
        return word + 1 == len(words)

    # ---- marks ----

    def mark(self, name: str) -> None:
        """Say that this step has come upon something: a race window, a cost."""
        if name not in self.marks:
            self.marks.append(name)

    def complain(self, invariant: str, sentence: str) -> None:
        """Say that the step breaks a promise, and let it go on: what comes of it may be worth seeing."""
        self.complaint = self.complaint or Violation(invariant, sentence)

    # ---- looking ----

    def translating(self, mm: int, va: int) -> list[int]:
        """The CPUs whose TLB has a translation of (mm, va)."""
        return [cpu for cpu, at in enumerate(self.running) if at == mm and self.tlbs[cpu][va] is not None]

    def true_words(self, mm: int, va: int) -> Words:
        """What the page at (mm, va) has to contain."""
        words = self.truth[mm][va]
        return self.file_words if words is None else words


def _with(table: tuple[tuple[_T, ...], ...], row: int, column: int, value: _T) -> tuple[tuple[_T, ...], ...]:
    old = table[row]
    if old[column] == value:
        return table
    return (*table[:row], (*old[:column], value, *old[column + 1 :]), *table[row + 1 :])
