"""What entries have lost of what a design says that it keeps: before and after, where only the design changed them.

"We could also preserve the dirty bits and accessed bits in the pte", says the email: requirement E12.
"""

from __future__ import annotations

from .entry import Entry
from .violation import Violation
from .vm import VM

__all__ = ["LEAVE_ENTRIES", "lost_of_entries"]

LEAVE_ENTRIES = frozenset({"migrate", "mark", "load", "pin"})
"""Operations that take nothing from an entry: what is lost beside them, the design has lost."""


def lost_of_entries(before: VM, after: VM, *, failed: bool) -> Violation | None:
    """Return what an entry has lost of what the design claims to keep; if the migration `failed`, it is a rollback."""
    for place, old in before.entries():
        found = _lost(before, after, place, old)
        if found:
            invariant, what = found
            name = "I-ROLLBACK" if failed else invariant
            return Violation(name, f"the entry of address space {place[0]} has lost {what}")
    return None


def _lost(before: VM, after: VM, place: tuple[int, int], old: Entry) -> tuple[str, str] | None:
    claims, new = before.design.claims, after.entry(*place)
    if old.mapped and not new.mapped:
        of_file = before.areas[place[0]][place[1]].file
        return ("I-MAPPING", "its page of the file") if of_file and "file entries" in claims else None
    if old.write and not new.write and "write" in claims:
        return "I-PROT", "its write permission"
    if old.accessed and not new.accessed and "accessed" in claims:
        return "I-ACC", "its accessed bit"
    if old.dirty and not new.dirty and "dirty entries" in claims:
        return "I-DIRTY", "its dirty bit"
    return None
