"""What hardware does: translate, set accessed and dirty bits, load, store; and the way into the fault handler."""

from __future__ import annotations

from .entry import Entry, Kind
from .locks import read_lock, read_unlock
from .thread import WAIT, Step, Thread, Wait
from .violation import Broken
from .vm import VM, Translation

__all__ = ["access", "fault", "redo", "replace_entry", "store_truth", "write_word"]


def access(vm: VM, thread: Thread) -> Wait | None:
    """Load or store one word. A miss fills the TLB and begins again; what cannot be translated is a fault."""
    operation = thread.operation
    store = operation.value is not None
    translation = vm.tlbs[thread.id][operation.va]
    if translation is None or (store and not translation.write):
        return _walk(vm, thread, store)
    if store and not translation.dirty:
        return _set_dirty(vm, thread, translation)
    if store:
        _store(vm, thread, translation.frame)
    else:
        _load(vm, thread, translation.frame)
    thread.finish("done")
    return None


def redo(vm: VM, thread: Thread) -> None:
    """Leave the fault handler: the operation begins again, with what is there by now."""
    read_unlock(vm, thread.mm)
    thread.begin_again()


def replace_entry(vm: VM, thread: Thread, entry: Entry) -> None:
    """Set the entry of the page that a fault is about, which has to be what the fault has read of it."""
    mm, va = thread.mm, thread.operation.va
    if vm.entry(mm, va) != thread.entry:
        raise Broken("I-RETRY", f"thread {thread.id} sets an entry that has changed while it waited")
    vm.set_entry(mm, va, entry)


# The page table is read, the accessed bit set and the TLB filled in one go: hardware does it with a locked cycle.
def _walk(vm: VM, thread: Thread, store: bool) -> Wait | None:
    va = thread.operation.va
    entry = vm.entry(thread.mm, va)
    if entry.kind is not Kind.PRESENT or (store and not entry.write):
        return fault(vm, thread, store)
    if not entry.accessed or (store and not entry.dirty):
        vm.events["bits_set"] += 1
        vm.set_bits(thread.mm, va, entry._replace(accessed=True, dirty=entry.dirty or store))
    vm.set_touched(thread.mm, va, True)
    vm.set_translation(thread.id, va, Translation(entry.number, entry.write, store or entry.dirty))
    return None


# The first store through a clean translation walks again, and faults if the entry does not allow it any more.
def _set_dirty(vm: VM, thread: Thread, translation: Translation) -> Wait | None:
    va = thread.operation.va
    entry = vm.entry(thread.mm, va)
    if entry.kind is not Kind.PRESENT or not entry.write or entry.number != translation.frame:
        vm.set_translation(thread.id, va, None)
        return None
    vm.events["bits_set"] += 1
    vm.set_bits(thread.mm, va, entry._replace(accessed=True, dirty=True))
    vm.set_touched(thread.mm, va, True)
    vm.set_translation(thread.id, va, translation._replace(dirty=True))
    return None


def _load(vm: VM, thread: Thread, frame: int) -> None:
    operation, mm = thread.operation, thread.mm
    area = vm.areas[mm][operation.va]
    found = vm.alive_frame(frame, f"the TLB of CPU {thread.id}")
    if not area.mapped and area.settled:
        raise Broken("I-TLB", f"thread {thread.id} loads from a page that has been unmapped")
    true = vm.true_words(mm, operation.va)[operation.word]
    if area.mapped and found.words[operation.word] != true:
        raise Broken(
            "I-STALE",
            f"thread {thread.id} loads {found.words[operation.word]} from word {operation.word}, and {true} was stored",
        )


def _store(vm: VM, thread: Thread, frame: int) -> None:
    operation, mm = thread.operation, thread.mm
    area = vm.areas[mm][operation.va]
    vm.alive_frame(frame, f"the TLB of CPU {thread.id}")
    if area.settled and not area.mapped:
        raise Broken("I-TLB", f"thread {thread.id} stores to a page that has been unmapped")
    if area.settled and not area.write:
        raise Broken("I-PROT", f"thread {thread.id} stores to a page that has been made read-only")
    assert operation.value is not None
    write_word(vm, frame, operation.word, operation.value)
    store_truth(vm, mm, operation.va, operation.word, operation.value)
    child = vm.forking[mm]
    for other, va in vm.mappings(frame):
        if other not in (mm, child) and not vm.areas[other][va].shared:
            raise Broken("I-COW", f"what thread {thread.id} stores can be seen in address space {other}")


def write_word(vm: VM, frame: int, word: int, value: int) -> None:
    """Write one word of a frame."""
    words = vm.frames[frame].words
    vm.change(frame, words=(*words[:word], value, *words[word + 1 :]))


def store_truth(vm: VM, mm: int, va: int, word: int, value: int) -> None:
    """Remember that `value` was stored; a child that is being forked has it too, as its pages are not its own yet."""
    if vm.areas[mm][va].shared:
        vm.file_words = (*vm.file_words[:word], value, *vm.file_words[word + 1 :])
        vm.dirtied = True
        return
    for space in (mm, vm.forking[mm]):
        if space >= 0:
            words = vm.true_words(space, va)
            vm.set_truth(space, va, (*words[:word], value, *words[word + 1 :]))


def fault(vm: VM, thread: Thread, store: bool) -> Wait | None:
    """Enter the fault handler."""
    mm, va = thread.mm, thread.operation.va
    if not read_lock(vm, thread.id, mm):
        return WAIT
    vm.set_translation(thread.id, va, None)
    vm.events["faults"] += 1
    area = vm.areas[mm][va]
    if not area.mapped or (store and not area.write):
        read_unlock(vm, mm)
        thread.finish("SIGSEGV")
        return None
    thread.entry = vm.entry(mm, va)
    thread.then(_handler(vm, thread, store))
    return None


def _handler(vm: VM, thread: Thread, store: bool) -> Step:
    if thread.entry.kind is Kind.PRESENT:
        if store and not thread.entry.write:
            return vm.design.write_fault
        return redo
    return vm.design.handlers[thread.entry.kind]
