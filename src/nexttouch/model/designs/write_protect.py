"""A, the email's first idea: forbid writing; the thread that writes moves the page, by copying it."""

from __future__ import annotations

from ..design import Design, Rules
from ..entry import Entry, Kind
from ..thread import Thread
from ..vm import ANON, SWAPCACHE, VM

__all__ = ["WriteProtect"]


class WriteProtect(Design):
    """Lazy only: the copy is do_wp_page's, into a frame of the node that the writer runs on."""

    name = "A"
    title = "forbid writing (the email's first idea)"
    source = "linux-mm, 5 April 2006"
    claims = frozenset({"dirty", "dirty entries", "accessed", "file entries"})
    eager = False
    lazy = True

    @classmethod
    def usual_rules(cls) -> Rules:
        """No thread may store in place to a page that is being copied: a second mark would hide it from pte_same."""
        return Rules(copies_locked=True)

    def mark_entry(self, vm: VM, mm: int, va: int, entry: Entry) -> Entry:
        """Only the write permission goes; no bit says why."""
        return entry._replace(write=False)

    def is_trap(self, entry: Entry) -> bool:
        """Read-only: nothing tells why."""
        return entry.kind is Kind.PRESENT and not entry.write

    def moves_at_store(self, vm: VM, thread: Thread, frame: int) -> bool:
        """An anonymous page of our own on another node, to which there is no reference."""
        found = vm.frames[frame]
        references = found.maps + bool(found.flags & SWAPCACHE)
        if found.mapping != ANON or found.node == thread.node:
            return False
        if self.rules.checks_pins and found.refs != references:
            vm.mark("a store finds its page held, and leaves it where it is")
            return False
        vm.mark("a store moves the page")
        return True
