"""System calls on the file: read, write, truncate."""

from __future__ import annotations

from .access import write_word
from .entry import Kind
from .locks import lock_page, unlock_page, unlock_rmap, walk_rmap
from .space import zap
from .thread import WAIT, Thread, Wait
from .tlb import flush
from .violation import Broken
from .vm import DIRTY, NO_FRAME, REFERENCED, UPTODATE, VM

__all__ = ["read", "truncate", "write"]

TRUNCATING, TRUNCATED = 0, -1
"""Values of VM.file_size; 1 is a file with its page."""


def read(vm: VM, thread: Thread) -> Wait | None:
    """Read: find the page, wait until its contents are there, copy a word, all without its lock."""
    if not _find(vm, thread):
        return None
    thread.then(_read_word if vm.has(thread.frame, UPTODATE) else _wait_until_read)
    return None


def _find(vm: VM, thread: Thread) -> bool:
    if vm.file_size <= 0 or vm.page_cache == NO_FRAME:
        thread.finish("end of file")
        return False
    thread.frame = vm.page_cache
    vm.get(thread.frame, "a lookup in the page cache")
    return True


def _wait_until_read(vm: VM, thread: Thread) -> Wait | None:
    if not lock_page(vm, thread.id, thread.frame):
        vm.mark("a lookup waits for the page lock")
        return WAIT
    unlock_page(vm, thread.id, thread.frame)
    if vm.has(thread.frame, UPTODATE):
        thread.then(_read_word)
    else:
        vm.put(thread.frame)
        thread.begin_again()
    return None


def _read_word(vm: VM, thread: Thread) -> None:
    found, word = vm.alive_frame(thread.frame, "read"), thread.operation.word
    if not found.flags & UPTODATE:
        raise Broken("I-UPTODATE", f"read copies from frame {thread.frame}, whose contents are not there yet")
    if vm.page_cache != NO_FRAME and found.words[word] != vm.file_words[word]:
        raise Broken("I-STALE", f"read returns {found.words[word]}, where {vm.file_words[word]} was written")
    vm.flag(thread.frame, on=REFERENCED)
    vm.put(thread.frame)
    thread.finish("done")


def write(vm: VM, thread: Thread) -> Wait | None:
    """Write: find the page, lock it, make sure that it still is the file's, store a word."""
    if _find(vm, thread):
        thread.then(_write_locked)
    return None


def _write_locked(vm: VM, thread: Thread) -> Wait | None:
    if not lock_page(vm, thread.id, thread.frame):
        vm.mark("a lookup waits for the page lock")
        return WAIT
    if vm.page_cache == thread.frame:
        thread.then(_write_word)
    else:
        vm.mark("a page has left the file")
        unlock_page(vm, thread.id, thread.frame)
        vm.put(thread.frame)
        thread.begin_again()
    return None


def _write_word(vm: VM, thread: Thread) -> None:
    operation = thread.operation
    assert operation.value is not None
    write_word(vm, thread.frame, operation.word, operation.value)
    words = vm.file_words
    vm.file_words = (*words[: operation.word], operation.value, *words[operation.word + 1 :])
    vm.dirtied = True
    vm.flag(thread.frame, on=DIRTY)
    unlock_page(vm, thread.id, thread.frame)
    vm.put(thread.frame)
    thread.finish("done")


# ---- truncate ----


def truncate(vm: VM, thread: Thread) -> Wait | None:
    """ftruncate(2) to nothing: the size first, then the entries, then the page."""
    vm.file_size = TRUNCATING
    vm.dirtied = False
    thread.then(_lock_to_unmap, _find_to_remove)
    return None


def _lock_to_unmap(vm: VM, thread: Thread) -> Wait | None:
    return walk_rmap(vm, thread, _unmap_next)


def _unmap_next(vm: VM, thread: Thread) -> Wait | None:
    while thread.position < len(vm.order):
        mm, va = vm.order[thread.position]
        if vm.areas[mm][va].linked and vm.areas[mm][va].file and vm.entry(mm, va).kind is not Kind.NONE:
            break
        thread.position += 1
    else:
        unlock_rmap(vm)
        return None
    if vm.spinlocks[mm]:
        return WAIT
    thread.position += 1
    if not vm.entry(mm, va).mapped:  # zap_pte_range with details: other entries are passed over
        vm.mark("truncate passes over an entry that is not present")
        thread.then(_unmap_next)
        return None
    thread.new = zap(vm, mm, va)
    flush(vm, thread, (mm, va), _release_unmapped, _unmap_next)
    return None


def _release_unmapped(vm: VM, thread: Thread) -> None:
    if thread.new != NO_FRAME:
        vm.put(thread.new)


def _find_to_remove(vm: VM, thread: Thread) -> None:
    thread.frame = vm.page_cache
    vm.get(thread.frame, "truncate")
    thread.then(_lock_to_remove)


def _lock_to_remove(vm: VM, thread: Thread) -> Wait | None:
    if not lock_page(vm, thread.id, thread.frame):
        vm.mark("truncate waits for the page lock")
        return WAIT
    if vm.page_cache != thread.frame:
        unlock_page(vm, thread.id, thread.frame)
        vm.put(thread.frame)
        thread.then(_find_to_remove)
    elif vm.frames[thread.frame].maps and vm.design.rules.truncate_unmaps_again:
        thread.then(_lock_to_unmap, _remove)
    else:
        thread.then(_remove)
    return None


def _remove(vm: VM, thread: Thread) -> None:
    vm.page_cache = NO_FRAME
    vm.drop_cache_reference(thread.frame)
    vm.flag(thread.frame, off=DIRTY)
    vm.change(thread.frame, mapping=0)
    unlock_page(vm, thread.id, thread.frame)
    vm.put(thread.frame)
    vm.file_size = TRUNCATED
    thread.finish("done")
