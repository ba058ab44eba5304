"""What Linux does today: migration entries that keep all bits, and hinting faults on entries without access."""

from __future__ import annotations

from ..access import redo, replace_entry
from ..design import Rules
from ..entry import Entry, Kind
from ..locks import lock_page
from ..migrate import move_locked
from ..thread import WAIT, Step, Thread, Wait
from ..vm import VM
from .migration_entries import MigrationEntries, wait_for_migration

__all__ = ["Mainline"]


class Mainline(MigrationEntries):
    """The email's second idea marks the pages (PROT_NONE, since 3.8), migration entries move them."""

    name = "mainline"
    title = "migration entries with accessed and dirty bits, hinting faults (6.x)"
    source = "mm/migrate.c, mm/memory.c (6.10)"
    claims = frozenset({"write", "accessed", "dirty", "dirty entries", "file entries"})
    lazy = True
    gives_up = ""
    flushes_each = False

    @classmethod
    def usual_rules(cls) -> Rules:
        """Waiters hold nothing (ffa65753c431), anon_vmas are referenced (3f6c82728f4e), file pages mapped locked."""
        return Rules(anon_vma_safe="reference", missing_locks_page=True)

    def faults(self) -> dict[Kind, Step]:
        """do_numa_page beside migration_entry_wait."""
        return {Kind.MIGRATION: wait_for_migration, Kind.VALID_NONPRESENT: _fault_hint}

    def mark_entry(self, vm: VM, mm: int, va: int, entry: Entry) -> Entry:
        """change_prot_numa: no access, but everything else is kept."""
        return entry._replace(kind=Kind.VALID_NONPRESENT)

    def is_trap(self, entry: Entry) -> bool:
        """Without access."""
        return entry.kind is Kind.VALID_NONPRESENT

    def migration_entry(self, entry: Entry) -> Entry:
        """SWP_MIG_YOUNG and SWP_MIG_DIRTY (6.1)."""
        return entry._replace(kind=Kind.MIGRATION) if self.rules.keeps_bits else super().migration_entry(entry)


def _fault_hint(vm: VM, thread: Thread) -> Wait | None:
    """do_numa_page: the entry is checked under its lock; a page that is misplaced and not locked is migrated."""
    mm, va = thread.mm, thread.operation.va
    if vm.spinlocks[mm]:
        return WAIT
    entry = vm.entry(mm, va)
    if entry != thread.entry:
        redo(vm, thread)
        return None
    frame = vm.frames[entry.number]
    if frame.node != thread.node and not frame.locked_by:
        thread.frame = entry.number
        lock_page(vm, thread.id, thread.frame)
        vm.get(thread.frame, "a fault")
        vm.mark("a fault moves the page")
        move_locked(vm, thread)
        if thread.lazy:
            return None
        vm.change(thread.frame, locked_by=0)
        vm.put(thread.frame)
    write = entry.write and vm.design.rules.keeps_write
    replace_entry(vm, thread, entry._replace(kind=Kind.PRESENT, write=write, accessed=True))
    vm.set_touched(mm, va, True)
    redo(vm, thread)
    return None
