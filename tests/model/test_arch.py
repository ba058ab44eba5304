from __future__ import annotations

import pickle
import random
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexttouch.errors import InvalidArgument, NexttouchError
from nexttouch.model.arch import ARCHES, Arch, Unrepresentable
from nexttouch.model.distinguish import Support, confusions, support, supports
from nexttouch.model.entry import NOTHING, Entry, Kind
from nexttouch.model.word import Field

SMALL = 2**20
NOW = {"x86-64", "arm64", "ia64", "ppc64"}
TAGGED = [name for name in ARCHES if name != "ppc64-2006"]
each_arch = pytest.mark.parametrize("arch", ARCHES.values(), ids=ARCHES)
each_tagged = pytest.mark.parametrize("arch", [ARCHES[name] for name in TAGGED], ids=TAGGED)
flags = st.tuples(st.booleans(), st.booleans(), st.booleans())
present = st.builds(lambda frame, bits: Entry(Kind.PRESENT, frame, *bits), st.integers(0, SMALL - 1), flags)


def fits(arch: Arch, entry: Entry) -> bool:
    """Whether `arch` has to have a word for `entry`, said without looking at any word."""
    now, (write, accessed, dirty) = arch.name in NOW, entry[2:]
    if entry.kind is Kind.NONE:
        return entry == NOTHING
    if entry.kind is Kind.PRESENT:
        return True
    if entry.kind is Kind.VALID_NONPRESENT:
        return arch.name in TAGGED
    if entry.kind is Kind.MIGRATION:
        return now or not (accessed or dirty)
    if write or accessed or dirty:
        return False
    if entry.kind is Kind.FILE:
        return not now
    # Area 0, slot 0 is all zeroes, unless offsets are inverted or each entry carries a bit that says entry.
    return entry.kind is Kind.CACHE or entry.number > 0 or arch.name in ("x86-64", "ppc64")


def every_entry(numbers: list[int]) -> list[Entry]:
    return [
        Entry(kind, number, *bits) for kind, number, bits in product(Kind, numbers, product([False, True], repeat=3))
    ]


NUMBERS = [*range(9), 63, 64, 511, 512, 4095, 4096, SMALL - 2, SMALL - 1]


def test_names() -> None:
    assert {name: arch.name for name, arch in ARCHES.items()} == {name: name for name in ARCHES}
    assert set(ARCHES) == NOW | {"x86-64-2006", "ia64-2006", "ppc64-2006"}
    assert all(arch.source for arch in ARCHES.values())


@each_arch
def test_every_entry_comes_back_or_has_no_word(arch: Arch) -> None:
    words: dict[int, Entry] = {}
    for entry in every_entry(NUMBERS):
        if fits(arch, entry):
            word = arch.encode(entry)
            assert 0 <= word < 2**64
            assert arch.decode(word) == entry
            assert words.setdefault(word, entry) == entry
        else:
            with pytest.raises(Unrepresentable) as raised:
                arch.encode(entry)
            assert (raised.value.arch, raised.value.kind) == (arch.name, entry.kind)


@each_arch
@given(kind=st.sampled_from(Kind), number=st.integers(0, SMALL - 1), bits=flags)
def test_round_trip(arch: Arch, kind: Kind, number: int, bits: tuple[bool, bool, bool]) -> None:
    entry = Entry(kind, number, *bits)
    if fits(arch, entry):
        assert arch.decode(arch.encode(entry)) == entry


@each_arch
@given(word=st.integers(0, 2**64 - 1))
def test_any_word_is_read_and_written_again_as_the_same(arch: Arch, word: int) -> None:
    entry = arch.decode(word)
    assert (entry.kind is Kind.PRESENT) == arch.hardware_present(word)
    try:
        again = arch.encode(entry)
    except Unrepresentable:
        assert entry.kind is Kind.SWAP or (arch.tag is None and entry.kind is Kind.VALID_NONPRESENT)
    else:
        assert arch.decode(again) == entry


@each_arch
def test_words_of_all_shapes_are_read(arch: Arch) -> None:
    chance = random.Random(7)
    few = [sum(1 << bit for bit in chance.sample(range(64), count)) for count in range(9) for _ in range(200)]
    many = [chance.getrandbits(64) for _ in range(3000)]
    for word in [*range(4096), *few, *many, *(2**64 - 1 - word for word in few)]:
        assert isinstance(arch.decode(word), Entry)


@each_arch
@pytest.mark.parametrize("word", [-1, 2**64])
def test_words_have_64_bits(arch: Arch, word: int) -> None:
    with pytest.raises(InvalidArgument, match="entries have 64 bits"):
        arch.decode(word)


@each_arch
@pytest.mark.parametrize("number", [-1, 2**62])
@pytest.mark.parametrize("kind", [Kind.PRESENT, Kind.SWAP, Kind.MIGRATION, Kind.CACHE, Kind.FILE])
def test_numbers_that_fit_nowhere(arch: Arch, kind: Kind, number: int) -> None:
    if kind is Kind.SWAP and number > 0:
        return  # an area above 0: there are such
    with pytest.raises(Unrepresentable):
        arch.encode(Entry(kind, number))


def test_what_has_no_word_is_said_in_words() -> None:
    with pytest.raises(
        NexttouchError, match=r"^x86-64 has no word for a file entry: nonlinear mappings went"
    ) as raised:
        ARCHES["x86-64"].encode(Entry(Kind.FILE, 3))
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    with pytest.raises(Unrepresentable, match=r"^ia64-2006 has no word for a swap entry: .*write=True.* read as"):
        ARCHES["ia64-2006"].encode(Entry(Kind.SWAP, 3, write=True))


# Words written out by hand from the kernels' headers, bit by bit.
WORDS = [
    ("x86-64-2006", Entry(Kind.PRESENT, 5, True, True, True), 1 << 63 | 5 << 12 | 0b110_0111),
    ("x86-64-2006", Entry(Kind.VALID_NONPRESENT, 5, True), 1 << 63 | 5 << 12 | 0b1000_0110),
    ("x86-64-2006", Entry(Kind.SWAP, 5), 5 << 8),
    ("x86-64-2006", Entry(Kind.CACHE, 5), 29 << 1 | 5 << 8),
    ("x86-64-2006", Entry(Kind.MIGRATION, 5), 30 << 1 | 5 << 8),
    ("x86-64-2006", Entry(Kind.MIGRATION, 5, write=True), 31 << 1 | 5 << 8),
    ("x86-64-2006", Entry(Kind.FILE, 5), 5 << 12 | 0x40),
    ("ia64-2006", Entry(Kind.PRESENT, 5, True, True, True), 1 << 52 | 5 << 14 | 2 << 9 | 3 << 7 | 0b110_0001),
    ("ia64-2006", Entry(Kind.VALID_NONPRESENT, 5), 1 << 63 | 1 << 52 | 5 << 14 | 3 << 7),
    ("ia64-2006", Entry(Kind.SWAP, 5), 5 << 9),
    ("ia64-2006", Entry(Kind.MIGRATION, 5, write=True), 31 << 2 | 5 << 9),
    ("ia64-2006", Entry(Kind.FILE, 5), 5 << 2 | 0b10),
    ("ppc64-2006", Entry(Kind.PRESENT, 5, True, True, True), 5 << 17 | 0x200 | 0x100 | 0x80 | 0x10 | 0x2 | 0x1),
    ("ppc64-2006", Entry(Kind.SWAP, 5), 5 << 8 << 17),
    ("ppc64-2006", Entry(Kind.MIGRATION, 5), (30 << 1 | 5 << 8) << 17),
    ("ppc64-2006", Entry(Kind.FILE, 5), 5 << 17 | 0x2),
    ("x86-64", Entry(Kind.PRESENT, 5, True, True, True), 1 << 63 | 5 << 12 | 0b110_0111),
    ("x86-64", Entry(Kind.PRESENT, 5, dirty=True), 1 << 63 | 1 << 58 | 5 << 12 | 0b101),
    ("x86-64", Entry(Kind.VALID_NONPRESENT, 5), 1 << 63 | (2**40 - 6) << 12 | 1 << 8 | 0b100),
    ("x86-64", Entry(Kind.SWAP, 5), (2**50 - 6) << 9),
    ("x86-64", Entry(Kind.MIGRATION, 5, True, True, True), 27 << 59 | (2**50 - 1 - (3 << 34 | 5)) << 9),
    ("arm64", Entry(Kind.PRESENT, 5, True, True, True), 0b111 << 53 | 1 << 51 | 5 << 12 | 0xF43),
    ("arm64", Entry(Kind.PRESENT, 5, True), 0b11 << 53 | 1 << 51 | 5 << 12 | 0xBC3),
    ("arm64", Entry(Kind.PRESENT, 5, dirty=True), 0b111 << 53 | 5 << 12 | 0xBC3),
    ("arm64", Entry(Kind.VALID_NONPRESENT, 5), 0b11 << 53 | 5 << 12 | 0xBC2),
    ("arm64", Entry(Kind.SWAP, 5), 5 << 12),
    ("arm64", Entry(Kind.MIGRATION, 5, accessed=True), (1 << 36 | 5) << 12 | 25 << 6),
    ("ia64", Entry(Kind.PRESENT, 5, True, True, True), 1 << 52 | 5 << 14 | 2 << 9 | 3 << 7 | 0b110_0001),
    ("ia64", Entry(Kind.SWAP, 5), 5 << 8),
    ("ia64", Entry(Kind.CACHE, 5), 23 << 1 | 5 << 8),
    ("ppc64", Entry(Kind.PRESENT, 5, True, True, True), 0xC000_0000_0000_0000 | 5 << 16 | 0x180 | 0b110),
    ("ppc64", Entry(Kind.VALID_NONPRESENT, 5, True), 0x6000_0000_0000_0000 | 5 << 16 | 0b110),
    ("ppc64", Entry(Kind.SWAP, 5), 0x4000_0000_0000_0000 | 5 << 16),
    ("ppc64", Entry(Kind.MIGRATION, 5, dirty=True), 0x4000_0000_0000_0000 | (1 << 36 | 5) << 16 | 25),
]


@pytest.mark.parametrize(("name", "entry", "word"), WORDS)
def test_words_by_hand(name: str, entry: Entry, word: int) -> None:
    assert hex(ARCHES[name].encode(entry)) == hex(word)


# Words that `encode` never makes, but hardware, other options or other code paths do.
READ = [
    ("x86-64-2006", 0b1111_1110, Entry(Kind.VALID_NONPRESENT, 0, True, True, True)),  # PROTNONE comes before FILE
    ("x86-64-2006", 32 + 5 << 1 | 9 << 8, Entry(Kind.FILE, 0)),  # a sixth bit of the type is pte_file
    ("ia64-2006", 32 + 5 << 2 | 9 << 9, Entry(Kind.SWAP, 5 << 59 | 9)),  # swp_entry_t has five bits for seven
    ("ppc64-2006", 0x8000, NOTHING),  # traces of a hash table entry
    ("ppc64-2006", 0x11, Entry(Kind.PRESENT)),  # PROT_NONE: no user bit, but present
    ("x86-64", 0x60, NOTHING),  # the erratum: accessed and dirty set in an empty entry
    ("x86-64", 26 << 59 | (2**50 - 6) << 9, Entry(Kind.MIGRATION, 5)),  # readable, exclusive
    ("x86-64", 31 << 59 | (2**50 - 2) << 9, Entry(Kind.SWAP, 31 << 58 | 1)),  # a marker
    ("x86-64", 1 << 63 | (2**40 - 6) << 12 | 1 << 8, Entry(Kind.VALID_NONPRESENT, 5)),  # PAGE_NONE: no user bit
    ("arm64", 0b11 << 53 | 1 << 51 | 5 << 12 | 0xF43, Entry(Kind.PRESENT, 5, True, True, True)),  # dirty by hardware
    ("arm64", 1 << 54 | 5 << 12 | 0xC82, Entry(Kind.VALID_NONPRESENT, 5, accessed=True)),  # pte_protnone
    ("ppc64", 0x180, NOTHING),  # a late writeback into an empty entry
    ("ppc64", 0xC000_0000_0000_0100 | 5 << 16, Entry(Kind.VALID_NONPRESENT, 5, accessed=True)),  # pte_protnone
    ("ppc64", 0x8000_0000_0000_0002 | 5 << 16, Entry(Kind.SWAP, 2 << 58 | 5)),  # without _PAGE_PTE not pte_present
]


@pytest.mark.parametrize(("name", "word", "entry"), READ)
def test_words_of_others_are_read_as_the_kernel_reads_them(name: str, word: int, entry: Entry) -> None:
    assert ARCHES[name].decode(word) == entry


@each_tagged
@given(entry=present)
def test_hiding_keeps_all_and_can_be_undone_bit_by_bit(arch: Arch, entry: Entry) -> None:
    word = arch.encode(entry)
    hidden = arch.hide(word)
    assert arch.hardware_present(word)
    assert not arch.hardware_present(hidden)
    assert arch.decode(hidden) == entry._replace(kind=Kind.VALID_NONPRESENT)
    assert arch.encode(arch.decode(hidden)) == hidden
    assert arch.unhide(hidden) == word
    assert not hidden & arch.present


@each_arch
@given(entry=present)
def test_clearing_changes_one_bit(arch: Arch, entry: Entry) -> None:
    word = arch.encode(entry)
    cleared = arch.clear_present(word)
    assert (word ^ cleared).bit_count() == 1
    assert not arch.hardware_present(cleared)
    assert arch.clear_present(cleared) == cleared


def test_powerpc_of_2006_cannot_hide() -> None:
    arch = ARCHES["ppc64-2006"]
    word = arch.encode(Entry(Kind.PRESENT, 5))
    with pytest.raises(Unrepresentable, match="ppc64-2006 has no word for a valid-nonpresent entry: it has no bit"):
        arch.hide(word)
    with pytest.raises(Unrepresentable):
        arch.encode(Entry(Kind.VALID_NONPRESENT, 5))
    with pytest.raises(Unrepresentable):
        confusions(arch, Arch.hide)
    assert {name for name in ARCHES if ARCHES[name].tag is None} == {"ppc64-2006"}


@each_tagged
def test_only_present_entries_are_hidden_and_only_hidden_ones_shown(arch: Arch) -> None:
    word = arch.encode(Entry(Kind.PRESENT, 5, write=True))
    for other in (0, arch.hide(word), arch.encode(Entry(Kind.SWAP, 5))):
        with pytest.raises(InvalidArgument, match=f"{other:#x}, which is not a present entry of {arch.name}"):
            arch.hide(other)
    for other in (0, word, arch.encode(Entry(Kind.SWAP, 5))):
        with pytest.raises(InvalidArgument, match=f"{other:#x}, which is not a hidden entry of {arch.name}"):
            arch.unhide(other)


def test_a_protnone_word_of_powerpc_was_not_hidden_by_its_present_bit() -> None:
    with pytest.raises(InvalidArgument, match="not a hidden entry"):
        ARCHES["ppc64"].unhide(0xC000_0000_0000_0000 | 5 << 16)


def test_literal_clearing_on_x86_makes_a_swap_entry_bit_by_bit() -> None:
    arch = ARCHES["x86-64-2006"]
    cleared = arch.clear_present(arch.encode(Entry(Kind.PRESENT, 5, write=True, accessed=True)))
    swap = arch.decode(cleared)
    assert swap == Entry(Kind.SWAP, 19 << 59 | 1 << 55 | 5 << 4)  # writable 1, user 2, accessed 16: area 19
    assert arch.encode(swap) == cleared
    dirty = arch.clear_present(arch.encode(Entry(Kind.PRESENT, 5, dirty=True)))
    assert arch.decode(dirty) == Entry(Kind.FILE, 5)


def test_literal_clearing_on_powerpc_of_2006_makes_a_file_entry_of_every_page() -> None:
    arch = ARCHES["ppc64-2006"]
    for confusion in confusions(arch, Arch.clear_present):
        assert confusion.after == Entry(Kind.FILE, confusion.before.number)


def test_arm64_is_told_by_a_bit_that_was_there_anyway() -> None:
    arch = ARCHES["arm64"]
    word = arch.encode(Entry(Kind.PRESENT, 5, True, True, True))
    assert arch.clear_present(word) == arch.hide(word)


def kinds(line: Support) -> tuple[str, list[str], list[str] | None]:
    literal = [confusion.after.kind.name for confusion in line.literal]
    return line.arch, literal, None if line.tagged is None else [confusion.after.kind.name for confusion in line.tagged]


def test_the_table() -> None:
    assert [(*kinds(line), line.needs_tag, line.works) for line in supports()] == [
        ("x86-64-2006", ["SWAP", "FILE"], [], True, True),
        ("ia64-2006", ["SWAP"], [], True, True),
        ("ppc64-2006", ["FILE"], None, True, False),
        ("x86-64", ["SWAP"], [], True, True),
        ("arm64", [], [], False, True),
        ("ia64", ["SWAP"], [], True, True),
        ("ppc64", ["SWAP"], [], True, True),
    ]


AREAS = {
    "x86-64-2006": {2: 92, 3: 92, 18: 92, 19: 92},
    "ia64-2006": {0: 184, 8: 184, 16: 184, 24: 184},
    "ppc64-2006": {},
    "x86-64": {16: 736},
    "arm64": {},
    "ia64": {0: 184, 16: 184, 32: 184, 48: 184},
    "ppc64": {4: 368, 6: 368},
}


@each_arch
def test_swap_areas_that_cleared_entries_seem_to_be_in(arch: Arch) -> None:
    areas: dict[int, int] = {}
    for confusion in confusions(arch, Arch.clear_present):
        if confusion.after.kind is Kind.SWAP:
            area = confusion.after.number >> arch.types.shift
            areas[area] = areas.get(area, 0) + 1
    assert areas == AREAS[arch.name]


def test_a_confusion_shows_its_word() -> None:
    first = support(ARCHES["ppc64-2006"]).literal[0]
    assert first == (Entry(Kind.PRESENT), 0x12, Entry(Kind.FILE))


def with_tag(arch: Arch, tag: int) -> Arch:
    return replace(arch, name="wrong", tag=tag)


def test_a_tag_among_the_bits_of_the_frame_loses_frames() -> None:
    wrong = with_tag(ARCHES["ia64-2006"], 1 << 14)
    found = confusions(wrong, Arch.hide)
    assert {confusion.before.number % 2 for confusion in found} == {0}
    assert {(confusion.after.kind, confusion.after.number - confusion.before.number) for confusion in found} == {
        (Kind.VALID_NONPRESENT, 1)
    }
    assert [confusion.after.kind for confusion in support(wrong).tagged or ()] == [Kind.VALID_NONPRESENT]
    assert not support(wrong).works


def test_a_tag_among_the_bits_of_the_swap_type_takes_swap_entries() -> None:
    wrong = with_tag(ARCHES["x86-64-2006"], 1 << 3)
    assert confusions(wrong, Arch.hide) == ()
    with pytest.raises(Unrepresentable, match=r"would be read as .*VALID_NONPRESENT"):
        wrong.encode(Entry(Kind.MIGRATION, 5))


def test_fields_cut_off_what_does_not_fit() -> None:
    field = Field(4, 8)
    assert (field.mask, field.holding(0x1FF), field.of(0xFFFF)) == (0xFF0, 0xFF0, 0xFF)
