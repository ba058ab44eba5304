"""Page table entries as 64-bit words: how an `Entry` is written into the bits of an architecture, and read back.

The email's design needs "arch support for clearing and setting the present bit". What that asks for is seen only in the
words: a word without its present bit is read by other rules (swap entry, migration entry, file offset), so whether it
can be known for a valid one depends on which bits those rules look at. `distinguish` draws the conclusions.

Words are those of a page of a user's data, not executable. What the kernel distinguishes and an `Entry` does not
(soft-dirty, userfaultfd and exclusive markers, protection keys) is left clear by `encode` and ignored by `decode`.
The architectures themselves are in `arch`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ..errors import InvalidArgument, NexttouchError
from .entry import NOTHING, Entry, Kind

__all__ = ["Arch", "Field", "SwapTypes", "Unrepresentable"]

_WORD = (1 << 64) - 1


class Unrepresentable(NexttouchError):
    """Architecture `arch` has no word for an entry, of kind `kind`, that was asked for.

    >>> str(Unrepresentable("ppc64-2006", Kind.VALID_NONPRESENT))
    'ppc64-2006 has no word for a valid-nonpresent entry'
    """

    def __init__(self, arch: str, kind: Kind, detail: str = "") -> None:
        what = kind.name.lower().replace("_", "-")
        super().__init__(f"{arch} has no word for a {what} entry" + (f": {detail}" if detail else ""))
        self.arch = arch
        self.kind = kind


class Field(NamedTuple):
    """`bits` neighbouring bits of a word, the lowest of which is bit `shift`.

    >>> Field(12, 4).holding(5) == 0x5000, Field(12, 4).of(0xF5FFF)
    (True, 5)
    """

    shift: int
    bits: int

    @property
    def mask(self) -> int:
        """The field's bits in place."""
        return ((1 << self.bits) - 1) << self.shift

    def of(self, word: int) -> int:
        """The number this field has in `word`."""
        return (word & self.mask) >> self.shift

    def holding(self, number: int) -> int:
        """A word with `number` in this field and all else clear; what does not fit is cut off."""
        return number << self.shift & self.mask


_NO_FIELD = Field(0, 0)


class SwapTypes(NamedTuple):
    """How the numbers of swap areas are shared out; `shift` is where swp_entry_t, the form without an arch, has them.

    `migration_read` to `migration_write` are migration entries, the last of them the writable one.
    """

    shift: int
    cache: int
    migration_read: int
    migration_write: int


@dataclass(frozen=True, slots=True, eq=False)
class Arch:
    """The bits of one architecture's entries, as masks and fields, and what follows from them.

    >>> from nexttouch.model.arch import ARCHES
    >>> arch = ARCHES["x86-64-2006"]
    >>> word = arch.encode(Entry(Kind.PRESENT, 5, write=True, accessed=True, dirty=True))
    >>> hex(word), hex(arch.hide(word)), arch.decode(arch.hide(word)).kind.name
    ('0x8000000000005067', '0x80000000000050e6', 'VALID_NONPRESENT')
    >>> arch.decode(arch.clear_present(word))
    Entry(kind=<Kind.FILE: 6>, number=5, write=False, accessed=False, dirty=False)
    """

    name: str
    source: str
    """Where the positions come from, and what about them could not be verified."""

    present: int
    """The bit whose clearing makes hardware fault."""
    always: int
    """What a present entry of a user's data page has set besides."""
    frame: Field
    write: int
    accessed: int
    dirty: tuple[int, int]
    """What says dirty in a read-only entry, and in a writable one."""
    swap_type: Field
    swap_offset: Field
    types: SwapTypes

    tag: int | None = None
    """The bit that keeps an entry valid (pte_present) when `present` is clear; None where there is no such bit."""
    leaf: int = 0
    """What every entry of a last-level table has, present or not; without it a word is not pte_present."""
    rights: int = 0
    """Bits of which a present entry needs one to let a user's access through; 0: not looked at."""
    clean: int = 0
    """What every entry has set unless it is both writable and dirty (arm64: hardware sets dirty by clearing it)."""
    inverted: bool = False
    """Whether frame and swap offset are stored inverted when not present (against L1TF, 2018)."""
    file: int = 0
    """What says that an entry that is not present is a file offset (pte_file); 0 from Linux 4.0 on."""
    file_offset: Field = _NO_FIELD
    frame_bits: int = 0
    """SWP_PFN_BITS: above so many bits of its offset a migration entry has accessed and dirty. 0: before 6.1."""
    ignored: int = 0
    """Bits that pte_none does not look at."""

    def encode(self, entry: Entry) -> int:
        """The word of `entry`.

        Raises:
            Unrepresentable: this architecture has no such kind, or no place for one of the entry's fields. Swap slot 0,
                the header of a swap area, has no word of its own on most.
        """
        return _encoded(self, entry)

    def decode(self, word: int) -> Entry:
        """What the kernel takes `word` for, asking pte_present, pte_none, pte_file and the swap type in its order.

        The number of a SWAP entry is its swp_entry_t: the slot, and above it the number of the swap area (0 in small
        numbers). Types that no kind has (poisoned pages, device memory, markers) come out as if they were areas.

        Raises:
            InvalidArgument: `word` is not a number of 64 bits.
        """
        return _decoded(self, word)

    def clear_present(self, word: int) -> int:
        """The email's words taken literally: `word` without its present bit and else unchanged."""
        return word & ~self.present

    def hide(self, word: int) -> int:
        """Make the present entry `word` valid but not present, tagged so that it stays known for what it is.

        Keeps write, accessed and dirty, which `unhide` brings back. Not all of the kernel's own ways do: PAGE_NONE
        (mprotect, NUMA balancing) takes write permission away and leaves it to the vma to know better.

        Raises:
            Unrepresentable: there is no tag on this architecture.
            InvalidArgument: `word` is not a present entry.
        """
        if self.tag is None:
            raise Unrepresentable(self.name, Kind.VALID_NONPRESENT, "it has no bit that says valid but not present")
        if not self.hardware_present(word):
            raise InvalidArgument("word", f"is {word:#x}, which is not a present entry of {self.name}")
        return self._turned(word & ~self.present | self.tag)

    def unhide(self, word: int) -> int:
        """Set the present bit again: the inverse of `hide`.

        Raises:
            InvalidArgument: `word` is not a valid entry that is not present.
        """
        if word & self.present or not self._valid(word):
            raise InvalidArgument("word", f"is {word:#x}, which is not a hidden entry of {self.name}")
        return self._turned(word & ~((self.tag or 0) & ~self.always) | self.present)

    def hardware_present(self, word: int) -> bool:
        """Whether the memory management unit would walk through `word`, for a user's read at least."""
        needed = self.present | self.leaf
        return word & needed == needed and bool(not self.rights or word & self.rights)

    def _valid(self, word: int) -> bool:
        """pte_present: whether the kernel counts `word` as mapping its frame, whatever hardware does with it."""
        if word & self.leaf != self.leaf:
            return False
        return bool(word & (self.present | (self.tag or 0)))

    def _turned(self, word: int) -> int:
        """Store the frame the other way round where presence changes how it is stored."""
        return word ^ self.frame.mask if self.inverted else word

    def _mapping_word(self, entry: Entry) -> int:
        word = self.present | self.leaf | self.always | self.frame.holding(entry.number)
        word |= self.write * entry.write | self.accessed * entry.accessed | self.dirty[entry.write] * entry.dirty
        return word if entry.write and entry.dirty else word | self.clean

    def _mapping(self, kind: Kind, word: int) -> Entry:
        turned = self.inverted and not word & self.present
        write = bool(word & self.write)
        dirty = bool(word & (self.dirty[0] | self.dirty[1]) or (write and self.clean and not word & self.clean))
        return Entry(kind, self.frame.of(~word if turned else word), write, bool(word & self.accessed), dirty)

    def _swap_word(self, kind: int, offset: int) -> int:
        stored = ~offset if self.inverted else offset
        return self.leaf | self.swap_type.holding(kind) | self.swap_offset.holding(stored)

    def _swap(self, word: int) -> Entry:
        """Read `word` as a swap entry, through swp_entry_t and its narrower type as pte_to_swp_entry does."""
        types = self.types
        offset = self.swap_offset.of(~word if self.inverted else word)
        value = (self.swap_type.of(word) << types.shift | offset & (1 << types.shift) - 1) & _WORD
        kind = value >> types.shift
        if kind == types.cache:
            return Entry(Kind.CACHE, offset)
        if types.migration_read <= kind <= types.migration_write:
            return self._migration(offset, write=kind == types.migration_write)
        return Entry(Kind.SWAP, value)

    def _migration(self, offset: int, *, write: bool) -> Entry:
        if not self.frame_bits:
            return Entry(Kind.MIGRATION, offset, write)
        young, dirty = offset >> self.frame_bits & 1, offset >> self.frame_bits + 1 & 1
        return Entry(Kind.MIGRATION, offset & (1 << self.frame_bits) - 1, write, bool(young), bool(dirty))

    def _migration_word(self, entry: Entry) -> int:
        offset = entry.number
        if self.frame_bits:
            offset |= entry.accessed << self.frame_bits | entry.dirty << self.frame_bits + 1
        return self._swap_word(self.types.migration_write if entry.write else self.types.migration_read, offset)


# Keyed by the architecture's identity: comparing all of its fields would cost more than decoding.
@lru_cache(maxsize=1 << 16)
def _encoded(arch: Arch, entry: Entry) -> int:
    word = _word(arch, entry)
    # What does not come back has no word: a number too large, a bit without a place, a word that means something else.
    if _decoded(arch, word) != entry:
        raise Unrepresentable(arch.name, entry.kind, f"{entry} would be read as {_decoded(arch, word)}")
    return word


def _word(arch: Arch, entry: Entry) -> int:
    kind, number = entry.kind, entry.number
    if kind is Kind.NONE:
        return 0
    if entry.mapped:
        word = arch._mapping_word(entry)
        return word if kind is Kind.PRESENT else arch.hide(word)
    if kind is Kind.SWAP:
        return arch._swap_word(number >> arch.types.shift, number)
    if kind is Kind.MIGRATION:
        return arch._migration_word(entry)
    if kind is Kind.CACHE:
        return arch._swap_word(arch.types.cache, number)
    if not arch.file:
        raise Unrepresentable(arch.name, kind, "nonlinear mappings went with Linux 4.0")
    return arch.file | arch.file_offset.holding(number)


@lru_cache(maxsize=1 << 16)
def _decoded(arch: Arch, word: int) -> Entry:
    if not 0 <= word <= _WORD:
        raise InvalidArgument("word", f"is {word:#x}, but entries have 64 bits")
    if arch.hardware_present(word):
        return arch._mapping(Kind.PRESENT, word)
    if arch._valid(word):
        return arch._mapping(Kind.VALID_NONPRESENT, word)
    if not word & ~arch.ignored:
        return NOTHING
    if word & arch.file:
        return Entry(Kind.FILE, arch.file_offset.of(word))
    return arch._swap(word)
