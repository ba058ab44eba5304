"""What hardware does, one step at a time: translations, accessed and dirty bits, and the way into the fault handler."""

from __future__ import annotations

from typing import Any

import pytest
from machines import LOAD, MIGRATE, STORE, Run, machine

from nexttouch.model import access
from nexttouch.model.entry import NOTHING, Entry, Kind
from nexttouch.model.machine import Worker
from nexttouch.model.thread import Operation, Thread
from nexttouch.model.violation import Violation
from nexttouch.model.vm import UNMAPPED, VM, Translation

PRESENT = Entry(Kind.PRESENT, 0, write=True)


def run(*operations: Operation, entry: Entry | None = PRESENT, **options: Any) -> Run:
    """One thread on its own; `entry` is the page's, at first neither accessed nor dirty; None: the one it has."""
    one = Run(machine(Worker(operations), **options))
    if entry:
        one.set_entry(entry)
    return one


def entry_of(one: Run) -> Entry:
    return one.vm.entry(0, 0)


def tlb_of(one: Run, cpu: int = 0) -> Translation | None:
    return one.vm.tlbs[cpu][0]


# ---- filling the TLB ----


def test_a_load_that_misses_fills_the_tlb_and_sets_accessed() -> None:
    one = run(LOAD)
    one.step()
    assert entry_of(one) == PRESENT._replace(accessed=True)
    assert tlb_of(one) == Translation(0, write=True, dirty=False)
    assert one.vm.touched[0][0]
    assert one.thread().results == ()
    one.step()
    assert one.thread().results == ("done",)
    assert one.names == ["load", "load"]


def test_a_store_that_misses_sets_dirty_as_well() -> None:
    one = run(STORE)
    one.step()
    assert entry_of(one) == PRESENT._replace(accessed=True, dirty=True)
    assert tlb_of(one) == Translation(0, write=True, dirty=True)
    assert one.vm.frames[0].words == (1, 2)
    one.step()
    assert one.vm.frames[0].words == one.vm.true_words(0, 0) == (11, 2)
    assert one.names == ["store", "store"]


@pytest.mark.parametrize("entry", [PRESENT, PRESENT._replace(dirty=True), PRESENT._replace(write=False, accessed=True)])
def test_a_translation_says_what_its_entry_says(entry: Entry) -> None:
    one = run(LOAD, entry=entry)
    one.step()
    assert tlb_of(one) == Translation(0, entry.write, entry.dirty)
    assert entry_of(one) == entry._replace(accessed=True)


def test_bits_that_are_set_are_not_written_again() -> None:
    one = run(LOAD, entry=PRESENT._replace(accessed=True))
    one.step()
    assert one.machine.events["bits_set"] == 0
    assert one.machine.events["page_table_writes"] == 1  # the one that `run` made
    one = run(LOAD)
    one.step()
    assert one.machine.events["bits_set"] == 1


def test_a_load_does_not_walk_while_there_is_a_translation() -> None:
    """Also if the entry has changed since: that is what flushes are for."""
    one = run(LOAD, LOAD)
    one.step(count=2)
    one.set_entry(PRESENT)
    one.step()
    assert one.thread().results == ("done", "done")
    assert entry_of(one) == PRESENT


def test_each_cpu_has_a_tlb_of_its_own() -> None:
    one = Run(machine(Worker((LOAD,)), Worker((LOAD,))))
    one.step(1)
    assert (tlb_of(one, 0), tlb_of(one, 1)) == (None, Translation(0, True, False))


# ---- the first store ----


def test_the_first_store_through_a_clean_translation_sets_dirty() -> None:
    one = run(LOAD, STORE)
    one.step(count=2)
    assert tlb_of(one) == Translation(0, write=True, dirty=False)
    one.step()
    assert entry_of(one) == PRESENT._replace(accessed=True, dirty=True)
    assert tlb_of(one) == Translation(0, write=True, dirty=True)
    assert one.vm.frames[0].words == (1, 2)
    one.step()
    assert one.vm.frames[0].words == (11, 2)


def test_the_next_store_does_not_look() -> None:
    one = run(STORE, Operation("store", word=1, value=12))
    one.step(count=2)
    one.set_entry(PRESENT)
    one.step()
    assert one.thread().results == ("done", "done")
    assert entry_of(one) == PRESENT
    assert one.vm.frames[0].words == (11, 12)


@pytest.mark.parametrize(
    "changed",
    [
        PRESENT._replace(write=False),
        PRESENT._replace(kind=Kind.VALID_NONPRESENT),
        Entry(Kind.PRESENT, 1, write=True),
        NOTHING,
        Entry(Kind.SWAP, 1),
    ],
)
def test_setting_dirty_walks_again_and_sees_that_the_entry_has_changed(changed: Entry) -> None:
    """The translation goes, nothing is written, and the store begins again."""
    one = run(LOAD, STORE)
    one.step(count=2)
    one.set_entry(changed)
    local = one.locals[0]
    (move,) = one.machine.moves(one.shared, 0, local)
    vm = one.machine.vm(move.shared)
    assert move.name == "store"
    assert move.local == local
    assert vm.tlbs[0][0] is None
    assert vm.entry(0, 0) == changed
    assert vm.frames[0].words == (1, 2)


def test_a_store_through_a_translation_from_before_the_entry_became_read_only_faults() -> None:
    """As the translation is clean; it comes back with the permission that the page's sole owner gets."""
    one = run(LOAD, STORE)
    one.step(count=2)
    one.set_entry(PRESENT._replace(write=False, accessed=True))
    one.step()
    assert tlb_of(one) is None
    one.finish()
    assert one.names[2:] == ["store", "store", "store: fault write", "store", "store"]
    assert entry_of(one) == PRESENT._replace(accessed=True, dirty=True)


def test_a_store_through_a_read_only_translation_walks_without_a_fault_if_the_entry_allows_it() -> None:
    """A stale translation that allows too little does no harm."""
    one = run(LOAD, STORE, entry=PRESENT._replace(write=False))
    one.step(count=2)
    assert tlb_of(one) == Translation(0, write=False, dirty=False)
    one.set_entry(PRESENT._replace(accessed=True))
    one.step()
    assert tlb_of(one) == Translation(0, write=True, dirty=True)
    assert entry_of(one) == PRESENT._replace(accessed=True, dirty=True)
    assert one.machine.events["faults"] == 0
    one.step()
    assert one.vm.frames[0].words == (11, 2)


def test_a_stale_translation_that_allows_too_much_is_used_and_noticed() -> None:
    one = run(STORE, STORE)
    one.step(count=2)
    one.set_entry(PRESENT._replace(write=False, accessed=True, dirty=True))
    one.change(lambda vm: vm.set_area(0, 0, vm.areas[0][0]._replace(write=False)))
    one.step()
    assert one.broken == Violation("I-PROT", "thread 0 stores to a page that has been made read-only")


def test_while_mprotect_is_under_way_such_a_store_is_no_fault() -> None:
    one = run(STORE, STORE)
    one.step(count=2)
    one.change(lambda vm: vm.set_area(0, 0, vm.areas[0][0]._replace(write=False, settled=False)))
    one.step()
    assert one.broken is None
    assert one.thread().results == ("done", "done")


def test_hardware_that_forgets_the_accessed_bit_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken on purpose: the TLB is filled without a look at the entry's bits."""

    def walk(vm: VM, thread: Thread, store: bool) -> None:
        entry = vm.entry(thread.mm, thread.operation.va)
        vm.set_translation(thread.id, thread.operation.va, Translation(entry.number, entry.write, entry.dirty))

    monkeypatch.setattr(access, "_walk", walk)
    for test in (
        test_a_load_that_misses_fills_the_tlb_and_sets_accessed,
        test_a_store_that_misses_sets_dirty_as_well,
        test_a_store_through_a_read_only_translation_walks_without_a_fault_if_the_entry_allows_it,
    ):
        with pytest.raises(AssertionError):
            test()


def test_hardware_that_does_not_walk_again_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken on purpose: the first store makes the translation dirty, whatever the entry says by now."""

    def set_dirty(vm: VM, thread: Thread, translation: Translation) -> None:
        vm.set_translation(thread.id, thread.operation.va, translation._replace(dirty=True))

    monkeypatch.setattr(access, "_set_dirty", set_dirty)
    with pytest.raises(AssertionError):
        test_the_first_store_through_a_clean_translation_sets_dirty()
    with pytest.raises(AssertionError):
        test_setting_dirty_walks_again_and_sees_that_the_entry_has_changed(NOTHING)


# ---- what a load and a store promise ----


def test_a_load_sees_what_was_stored_last() -> None:
    one = run(LOAD)
    one.step()
    one.change(lambda vm: vm.set_truth(0, 0, (5, 2)))
    (move,) = one.machine.moves(one.shared, 0, one.locals[0])
    assert move.broken is not None
    assert move.broken.invariant == "I-STALE"
    assert move.broken.sentence.startswith("thread 0 loads 1 from word 0, ")
    assert move.fatal
    assert (move.shared, move.local) == (one.shared, one.locals[0])


@pytest.mark.parametrize(("operation", "does"), [(LOAD, "loads from"), (STORE, "stores to")])
def test_a_page_that_has_been_unmapped_is_not_there(operation: Operation, does: str) -> None:
    one = run(operation)
    one.step()
    one.change(lambda vm: vm.set_area(0, 0, UNMAPPED))
    one.step()
    assert one.broken == Violation("I-TLB", f"thread 0 {does} a page that has been unmapped")


@pytest.mark.parametrize("operation", [LOAD, STORE])
def test_while_unmapping_is_under_way_the_page_may_be_used(operation: Operation) -> None:
    one = run(operation)
    one.step()
    one.change(lambda vm: vm.set_area(0, 0, vm.areas[0][0]._replace(mapped=False, settled=False)))
    one.step()
    assert one.broken is None
    assert one.thread().results == ("done",)


@pytest.mark.parametrize("operation", [LOAD, STORE])
def test_a_frame_that_is_free_is_not_used(operation: Operation) -> None:
    one = run(operation)
    one.step()
    one.change(lambda vm: vm.set_translation(0, 0, Translation(1, write=True, dirty=True)))
    (move,) = one.machine.moves(one.shared, 0, one.locals[0])
    assert move.broken == Violation("I-UAF", "the TLB of CPU 0 uses frame 1, which is free")


def test_a_store_to_a_private_page_is_seen_by_nobody_else() -> None:
    one = run(STORE, entry=PRESENT._replace(accessed=True, dirty=True), mappers=2, spaces=2)
    one.change(lambda vm: vm.set_translation(0, 0, Translation(0, write=True, dirty=True)))
    (move,) = one.machine.moves(one.shared, 0, one.locals[0])
    assert move.broken == Violation("I-COW", "what thread 0 stores can be seen in address space 1")


def test_a_store_to_a_shared_page_is_the_file_s() -> None:
    one = Run(machine(Worker((STORE,)), kind="shared", mappers=2, spaces=2))
    one.finish()
    assert one.vm.file_words == one.vm.frames[0].words == one.vm.true_words(1, 0) == (11, 2)
    assert one.vm.dirtied


def test_a_store_during_fork_is_the_child_s_too() -> None:
    """Until its entries are made it has none, so whatever the parent's frame gets will be in the child's."""
    one = run(STORE, spaces=2)
    one.change(lambda vm: vm.forking.__setitem__(0, 1))
    one.change(lambda vm: vm.set_truth(1, 0, (1, 2)))
    one.step(count=2)
    assert one.broken is None
    assert one.vm.truth == (((11, 2),), ((11, 2),))


# ---- the way into the fault handler ----


def take_page(one: Run) -> None:
    """Let there be no page, and nothing that was stored to it."""

    def change(vm: VM) -> None:
        vm.set_entry(0, 0, NOTHING)
        vm.set_touched(0, 0, False)
        vm.rss[0] = 0
        vm.set_truth(0, 0, (0, 0))
        vm.unmap(0)

    one.change(change)


def after_fault(one: Run, thread: int = 0) -> str:
    """The name of the step that follows the fault."""
    one.step(thread)
    assert one.vm.sems == [1] * len(one.vm.sems)
    assert one.thread(thread).entry == entry_of(one)
    assert tlb_of(one, thread) is None
    (move,) = one.machine.moves(one.shared, thread, one.locals[thread])
    return move.name


@pytest.mark.parametrize("operation", [LOAD, STORE])
def test_nothing_there(operation: Operation) -> None:
    one = run(operation, entry=None)
    take_page(one)
    assert after_fault(one) == f"{operation.name}: fault missing"
    one.finish()
    assert one.vm.rss == [1]
    assert one.vm.frames[entry_of(one).number].node == 1  # where the thread runs


@pytest.mark.parametrize(("frames", "results", "node"), [((2, 0), ("done",), 0), ((1, 0), ("SIGKILL",), None)])
def test_nothing_there_and_no_room_on_the_node(
    frames: tuple[int, ...], results: tuple[str, ...], node: int | None
) -> None:
    """Then a page of zeros comes from another node; if there is none either the thread is killed, as for a copy."""
    one = Run(machine(Worker((LOAD,), mm=1, node=1), spaces=2, unmapped=1, frames=frames))
    assert one.finish() == results
    entry = one.vm.entry(1, 0)
    assert (one.vm.frames[entry.number].node if entry.mapped else None) == node


def test_a_store_to_what_is_read_only() -> None:
    one = run(STORE, entry=PRESENT._replace(write=False, accessed=True))
    assert after_fault(one) == "store: fault write"


def test_a_load_of_what_is_read_only_is_no_fault() -> None:
    one = run(LOAD, entry=PRESENT._replace(write=False))
    one.step()
    assert tlb_of(one) == Translation(0, write=False, dirty=False)


@pytest.mark.parametrize(
    ("design", "kind", "handler"),
    [
        ("B", Kind.VALID_NONPRESENT, "fault valid"),
        ("mainline", Kind.VALID_NONPRESENT, "fault hint"),
        ("D4", Kind.MIGRATION, "wait for migration"),
        ("mainline", Kind.MIGRATION, "wait for migration"),
        ("D1", Kind.SWAP, "fault slot"),
        ("D2", Kind.CACHE, "fault slot"),
    ],
)
def test_each_kind_of_entry_has_its_handler(design: str, kind: Kind, handler: str) -> None:
    """The state is taken as it is: an entry of this kind without what would belong to it."""
    one = Run(machine(Worker((LOAD,)), design=design))
    one.set_entry(Entry(kind, 1))
    (move,) = one.machine.moves(one.shared, 0, one.locals[0])
    one.shared, one.locals[0] = move.shared, move.local
    (step,) = one.thread().steps
    assert step.__name__.strip("_").replace("_", " ") == handler


def test_a_fault_waits_for_whoever_changes_the_address_space() -> None:
    one = run(STORE, entry=PRESENT._replace(write=False, accessed=True))
    one.change(lambda vm: vm.sems.__setitem__(0, -2))
    assert one.waits()
    one.change(lambda vm: vm.sems.__setitem__(0, 3))
    one.step()
    assert one.vm.sems == [4]


def test_a_fault_that_waits_changes_nothing() -> None:
    """Nor does it mark or count anything."""
    one = run(STORE, entry=PRESENT._replace(write=False, accessed=True))
    one.change(lambda vm: vm.sems.__setitem__(0, -2))
    one.change(lambda vm: vm.set_translation(0, 0, Translation(0, False, False)))
    before = one.shared
    events = dict(one.machine.events)
    assert one.waits()
    assert one.shared == before
    assert {name: count for name, count in one.machine.events.items() if count} == events


@pytest.mark.parametrize(
    ("operation", "write", "mapped", "result"),
    [(STORE, False, True, "SIGSEGV"), (LOAD, True, False, "SIGSEGV"), (STORE, True, False, "SIGSEGV")],
)
def test_what_the_area_does_not_allow(operation: Operation, write: bool, mapped: bool, result: str) -> None:
    one = run(operation, entry=None)
    take_page(one)
    one.change(lambda vm: vm.set_area(0, 0, vm.areas[0][0]._replace(write=write, mapped=mapped)))
    assert one.finish() == (result,)
    assert one.names == [operation.name]
    assert one.vm.sems == [0]


def test_a_page_that_has_been_repaired_meanwhile_is_just_used() -> None:
    """Between the walk and the look of the handler another CPU was faster."""
    one = run(STORE, entry=PRESENT._replace(write=False, accessed=True))
    one.step()
    one.set_entry(PRESENT)
    one.step()
    assert one.vm.sems == [0]
    assert one.thread().results == ()
    one.step(count=2)
    assert one.thread().results == ("done",)


def test_redo_begins_the_operation_again() -> None:
    one = Run(machine(Worker((MIGRATE,), node=0), Worker((STORE,)), design="mainline"))
    while one.vm.entry(0, 0).kind is not Kind.MIGRATION:
        one.step(0)
    one.step(1)
    assert one.thread(1).entry.kind is Kind.MIGRATION
    assert one.waits(1)
    one.finish(0)
    one.step(1)
    assert one.locals[1] == Thread.beginning()
    assert one.finish(1) == ("done",)
    assert one.vm.frames[one.vm.entry(0, 0).number].node == 1
