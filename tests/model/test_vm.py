"""The VM as a value and as what a step changes: it comes back whole, and each count is minded."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import Run, machine, vm_of

from nexttouch.model.designs import DESIGNS
from nexttouch.model.entry import NOTHING, Entry, Kind
from nexttouch.model.machine import Machine
from nexttouch.model.scenarios import SCENARIOS, cases
from nexttouch.model.violation import Broken
from nexttouch.model.vm import (
    ANON,
    DIRTY,
    FREE,
    LRU,
    NO_FRAME,
    NO_SLOT,
    SWAPCACHE,
    UPTODATE,
    VM,
    Frame,
    Slot,
    Translation,
)

ALL_CASES = [(name, scenario.name, kind) for name, design in DESIGNS.items() for scenario, kind in cases(design())]


@contextmanager
def broken(invariant: str, sentence: str) -> Iterator[None]:
    """The step has to break this promise."""
    with pytest.raises(Broken) as caught:
        yield
    assert caught.value.violation == (invariant, sentence)
    assert str(caught.value) == sentence


def put_frame(vm: VM, number: int, **fields: Any) -> None:
    """Make a frame that is in use."""
    vm.frames[number] = Frame(**{"flags": UPTODATE, "node": vm.frames[number].node, **fields})


# ---- freezing ----


@given(st.sampled_from(ALL_CASES), st.lists(st.integers(0, 2), max_size=60))
def test_what_is_thawed_freezes_to_the_same(case: tuple[str, str, str], turns: list[int]) -> None:
    """In any state that some order of the threads leads to; the threads as well."""
    design, scenario, kind = case
    run = Run(SCENARIOS[scenario].machine(DESIGNS[design](), kind))
    for turn in turns:
        if run.broken is None and not run.waits(thread := turn % len(run.locals)):
            run.step(thread)
    assert run.vm.frozen() == run.shared
    assert hash(run.vm.frozen()) == hash(run.shared)
    for number, local in enumerate(run.locals):
        assert run.thread(number).frozen() == local
        assert hash(run.thread(number).frozen()) == hash(local)


ELSEWHERE = {"arch", "design", "events", "running"}  # the machine's
OF_A_STEP = {"complaint", "marks", "stepping"}

CHANGES: dict[str, Callable[[VM], object]] = {
    "alive": lambda vm: vm.alive.__setitem__(0, False),
    "areas": lambda vm: vm.set_area(0, 0, vm.areas[0][0]._replace(write=False)),
    "dirtied": lambda vm: setattr(vm, "dirtied", True),
    "file_size": lambda vm: setattr(vm, "file_size", -1),
    "file_words": lambda vm: setattr(vm, "file_words", (8, 9)),
    "forking": lambda vm: vm.forking.__setitem__(0, 0),
    "frames": lambda vm: vm.change(0, refs=2),
    "order": lambda vm: setattr(vm, "order", ()),
    "page_cache": lambda vm: setattr(vm, "page_cache", 1),
    "rmap_lock": lambda vm: setattr(vm, "rmap_lock", 1),
    "rss": lambda vm: vm.rss.__setitem__(0, 7),
    "sems": lambda vm: vm.sems.__setitem__(0, 1),
    "slots": lambda vm: vm.slots.__setitem__(0, Slot(entries=1)),
    "spinlocks": lambda vm: vm.spinlocks.__setitem__(0, 1),
    "tables": lambda vm: vm.set_entry(0, 0, NOTHING),
    "tlbs": lambda vm: vm.set_translation(0, 0, Translation(0, True, False)),
    "touched": lambda vm: vm.set_touched(0, 0, False),
    "truth": lambda vm: vm.set_truth(0, 0, (8, 9)),
}


def test_every_field_has_its_change() -> None:
    assert set(VM.__slots__) == CHANGES.keys() | ELSEWHERE | OF_A_STEP


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_tells_two_states_apart(field: str) -> None:
    """And a change of what was thawed changes nothing else that was thawed."""
    one = machine()
    start = one.initial()[0]
    vm, other = one.vm(start), one.vm(start)
    CHANGES[field](vm)
    assert vm.frozen() != start
    assert other.frozen() == start == one.initial()[0]
    again = one.vm(vm.frozen())
    assert again.frozen() == vm.frozen()
    assert getattr(again, field) == getattr(vm, field) != getattr(other, field)


def test_a_state_is_made_of_plain_values() -> None:
    state = machine(kind="shared", mappers=2, spaces=3, addresses=2).initial()[0]
    assert pickle.loads(pickle.dumps(state)) == state


def test_a_field_that_is_forgotten_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken on purpose: the accessed bits that the checker keeps are left out."""
    whole = VM.frozen

    def partial(self: VM) -> tuple[Any, ...]:
        state = whole(self)
        return (*state[:6], Machine.initial(machine())[0][6], *state[7:])

    monkeypatch.setattr(VM, "frozen", partial)
    with pytest.raises(AssertionError):
        test_every_field_tells_two_states_apart("touched")


# ---- looking ----


def test_entries_in_order() -> None:
    vm = vm_of(spaces=2, addresses=2)
    hidden = Entry(Kind.VALID_NONPRESENT, 3)
    vm.set_entry(1, 0, hidden)
    assert vm.entries() == [((0, 0), vm.entry(0, 0)), ((0, 1), NOTHING), ((1, 0), hidden), ((1, 1), NOTHING)]


def test_entries_are_read_as_they_were_written() -> None:
    vm = vm_of(spaces=2)
    assert vm.entry(0, 0) == Entry(Kind.PRESENT, 0, write=True, accessed=True)
    assert vm.entry(1, 0) == NOTHING
    hidden = Entry(Kind.VALID_NONPRESENT, 3, dirty=True)
    vm.set_entry(1, 0, hidden)
    assert vm.entry(1, 0) == hidden
    assert vm.tables[1] == (vm.arch.encode(hidden),)


def test_an_entry_whose_table_somebody_else_has_locked_is_left_alone_but_by_hardware() -> None:
    vm = vm_of()
    vm.spinlocks[0] = 2
    with broken("I-LOCK", "an entry changes whose page table thread 1 has locked"):
        vm.set_entry(0, 0, NOTHING)
    vm.set_bits(0, 0, NOTHING)
    vm.stepping = 2
    vm.set_entry(0, 0, NOTHING)


def test_mappings_are_entries_that_hold_the_frame() -> None:
    vm = vm_of(mappers=2, spaces=4)
    assert vm.mappings(0) == [(0, 0), (1, 0)]
    vm.set_entry(1, 0, Entry(Kind.VALID_NONPRESENT, 0))
    vm.set_entry(2, 0, Entry(Kind.MIGRATION, 0))
    vm.set_entry(3, 0, Entry(Kind.SWAP, 1))
    assert vm.mappings(0) == [(0, 0), (1, 0)]
    assert vm.mappings(1) == []


def test_translating_are_cpus_that_run_the_address_space() -> None:
    vm = vm_of(spaces=2)
    vm.running = (0, 1, 0)
    vm.tlbs = ((Translation(0, True, False),), (Translation(0, True, False),), (None,))
    assert vm.translating(0, 0) == [0]
    assert vm.translating(1, 0) == [1]


def test_true_words_of_a_page_are_its_own_or_the_file_s() -> None:
    vm = vm_of(kind="private")
    assert vm.true_words(0, 0) == vm.file_words == (1, 2)
    vm.set_truth(0, 0, (5, 6))
    assert vm.true_words(0, 0) == (5, 6)


def test_marks_are_kept_once_in_order() -> None:
    vm = vm_of()
    for name in ("b", "a", "b"):
        vm.mark(name)
    assert vm.marks == ["b", "a"]


def test_the_first_complaint_is_kept() -> None:
    vm = vm_of()
    assert vm.complaint is None
    vm.complain("I-TLB", "one")
    vm.complain("I-UAF", "two")
    assert vm.complaint == ("I-TLB", "one")


def test_flags_are_set_and_cleared() -> None:
    vm = vm_of()
    vm.flag(0, on=DIRTY, off=LRU | UPTODATE)
    assert vm.has(0, DIRTY)
    assert not vm.has(0, LRU)
    assert not vm.has(0, DIRTY | LRU)
    vm.flag(0, on=LRU, off=LRU)
    assert vm.has(0, LRU)


# ---- frames ----


def test_allocate_takes_the_first_free_frame_of_the_node() -> None:
    vm = vm_of(frames=(2, 3))
    assert [vm.allocate(1) for _ in range(4)] == [2, 3, 4, NO_FRAME]
    assert [vm.allocate(0), vm.allocate(0), vm.allocate(2)] == [1, NO_FRAME, NO_FRAME]
    assert vm.frames[2] == Frame(refs=1, held=1, flags=0, node=1, words=(0, 0))


def test_allocated_frames_know_nothing_of_their_past() -> None:
    vm = vm_of()
    vm.frames[2] = Frame(node=1, words=(7, 7), private=2, mapping=ANON)
    assert vm.frames[vm.allocate(1)] == Frame(refs=1, held=1, flags=0, node=1, words=(0, 0))


def test_get_and_put() -> None:
    vm = vm_of()
    before = vm.frames[0]
    vm.get(0, "a test")
    assert vm.frames[0] == before._replace(refs=2, held=1)
    vm.put(0)
    assert vm.frames[0] == before


def test_the_last_reference_frees_the_frame() -> None:
    vm = vm_of()
    frame = vm.allocate(1)
    vm.change(frame, words=(3, 4))
    vm.put(frame)
    assert vm.frames[frame] == Frame(flags=FREE, node=1, words=(0, 0))
    assert vm.allocate(1) == frame


def test_free_frames_are_not_to_be_used() -> None:
    vm = vm_of()
    for use, what in (
        (lambda: vm.get(1, "a test"), "a test"),
        (lambda: vm.put(1), "a thread that drops a reference"),
        (lambda: vm.map(1), "an entry"),
        (lambda: vm.unmap(1), "an entry"),
        (lambda: vm.add_cache_reference(1), "a cache"),
        (lambda: vm.drop_cache_reference(1), "a thread that drops a reference"),
        (lambda: vm.alive_frame(1, "a test"), "a test"),
    ):
        with broken("I-UAF", f"{what} uses frame 1, which is free"):
            use()


def test_map_counts_an_entry() -> None:
    vm = vm_of()
    before = vm.frames[0]
    vm.map(0)
    assert vm.frames[0] == before._replace(refs=2, maps=2)
    vm.unmap(0)
    assert vm.frames[0] == before


def test_map_can_take_the_thread_s_reference_and_unmap_leave_it() -> None:
    vm = vm_of()
    frame = vm.allocate(1)
    vm.map(frame, from_held=True)
    assert vm.frames[frame][:3] == (1, 1, 0)  # refs, maps, held
    vm.unmap(frame, to_held=True)
    assert vm.frames[frame][:3] == (1, 0, 1)
    vm.put(frame)
    assert vm.has(frame, FREE)


def test_unmapping_the_last_entry_frees_a_frame_that_nobody_else_has() -> None:
    vm = vm_of()
    vm.unmap(0)
    assert vm.has(0, FREE)


def test_a_mapcount_does_not_become_negative() -> None:
    vm = vm_of()
    put_frame(vm, 1, refs=1)
    with broken("I-MAP", "the mapcount of frame 1 would become negative"):
        vm.unmap(1)


def test_a_refcount_does_not_become_negative() -> None:
    vm = vm_of()
    put_frame(vm, 1)
    with broken("I-REF", "the refcount of frame 1 would become negative"):
        vm.put(1)


def test_a_mapped_frame_is_not_freed() -> None:
    vm = vm_of()
    with broken("I-MAP", "frame 0 is freed while its mapcount is 1"):
        vm.put(0)


def test_a_locked_frame_is_not_freed() -> None:
    vm = vm_of()
    put_frame(vm, 1, refs=1, held=1, locked_by=3)
    with broken("I-UAF", "frame 1 is freed while thread 2 holds its page lock"):
        vm.put(1)


def test_a_frame_that_a_tlb_maps_is_not_freed() -> None:
    vm = vm_of()
    vm.tlbs = ((None,), (Translation(0, False, False),))
    with broken("I-TLB", "frame 0 is freed while the TLB of CPU 1 still maps it"):
        vm.unmap(0)


def test_the_references_of_a_cache_are_no_thread_s() -> None:
    vm = vm_of()
    before = vm.frames[0]
    vm.add_cache_reference(0)
    assert vm.frames[0] == before._replace(refs=2)
    vm.drop_cache_reference(0)
    assert vm.frames[0] == before


# ---- slots ----


def test_a_frame_in_the_cache_has_a_slot_a_reference_and_is_dirty() -> None:
    """Slot 0 of swap is its header."""
    vm = vm_of()
    before = vm.frames[0]
    assert vm.cache_frame(0) == 1
    assert vm.frames[0] == before._replace(refs=2, private=1, flags=before.flags | SWAPCACHE | DIRTY)
    assert vm.slots == [Slot(), Slot(frame=0), Slot()]


def test_there_are_two_slots() -> None:
    vm = vm_of()
    for number in (1, 2, 3):
        put_frame(vm, number, refs=1)
    assert [vm.cache_frame(number) for number in (1, 2, 3)] == [1, 2, NO_SLOT]
    assert vm.frames[3].refs == 1
    assert not vm.has(3, SWAPCACHE)


def test_a_slot_that_somebody_names_is_not_given_away() -> None:
    vm = vm_of()
    vm.cache_frame(0)
    vm.count_slot(1, 1)
    vm.uncache_frame(0)
    assert vm.slots[1] == Slot(entries=1)
    assert vm.cache_frame(0) == 2


def test_a_slot_with_contents_on_disk_is_forgotten_with_its_last_entry() -> None:
    vm = vm_of()
    vm.slots[1] = Slot(entries=1, disk=(3, 4))
    vm.count_slot(1, -1)
    assert vm.slots[1] == Slot()


def test_uncaching_is_the_reverse_but_for_the_dirty_flag() -> None:
    vm = vm_of()
    before = vm.frames[0]
    vm.cache_frame(0)
    vm.uncache_frame(0)
    assert vm.frames[0] == before._replace(flags=before.flags | DIRTY)
    assert vm.slots[1] == Slot()


def test_uncaching_a_frame_that_only_the_cache_has_frees_it() -> None:
    vm = vm_of()
    put_frame(vm, 1)
    vm.cache_frame(1)
    vm.uncache_frame(1)
    assert vm.has(1, FREE)


def test_a_slot_is_kept_while_a_frame_or_an_entry_is_in_it() -> None:
    vm = vm_of()
    vm.cache_frame(0)
    vm.count_slot(1, 2)
    vm.count_slot(1, -2)
    assert vm.slots[1] == Slot(frame=0)
    vm.count_slot(1, 1)
    vm.uncache_frame(0)
    vm.count_slot(1, -1)
    assert vm.slots[1] == Slot()


@pytest.mark.parametrize(("design", "invariant"), [("D1", "I-SWAP"), ("D2", "I-CACHE")])
def test_the_count_of_a_slot_does_not_become_negative(design: str, invariant: str) -> None:
    vm = vm_of(design)
    vm.cache_frame(0)
    with broken(invariant, "the count of slot 1 would become negative"):
        vm.count_slot(1, -1)
