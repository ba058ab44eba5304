"""A state in words: every field that can change, by a name that people know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .entry import Entry, Kind
from .move import State
from .vm import (
    ACTIVE,
    ANON,
    DIRTY,
    FILE,
    FREE,
    ISOLATED,
    LRU,
    NO_FRAME,
    NO_SLOT,
    PINNED,
    REFERENCED,
    SWAPCACHE,
    UPTODATE,
    Frame,
)

if TYPE_CHECKING:
    from .machine import Machine, Worker

__all__ = ["fields", "script_of", "step_of"]

_FLAGS = {
    UPTODATE: "uptodate",
    DIRTY: "dirty",
    LRU: "lru",
    ACTIVE: "active",
    REFERENCED: "referenced",
    SWAPCACHE: "swapcache",
    ISOLATED: "isolated",
    PINNED: "pinned",
}
_KINDS = {
    Kind.PRESENT: "present",
    Kind.VALID_NONPRESENT: "valid, not present",
    Kind.SWAP: "swap",
    Kind.MIGRATION: "migration",
    Kind.CACHE: "cache",
    Kind.FILE: "file",
}


def fields(machine: Machine, shared: State) -> dict[str, str]:
    """Return the state, field by field: "frame 0 refcount" -> "2", "page table 0:0" -> "present frame 0 W A"."""
    vm = machine.vm(shared)
    found: dict[str, str] = {}
    for (mm, va), entry in vm.entries():
        found[f"page table {mm}:{va}"] = _entry_text(entry)
    for cpu, tlb in enumerate(vm.tlbs):
        for va, translation in enumerate(tlb):
            words = "-"
            if translation:
                words = f"frame {translation.frame}{' W' * translation.write}{' D' * translation.dirty}"
            found[f"TLB of CPU {cpu}, {vm.running[cpu]}:{va}"] = words
    for number, frame in enumerate(vm.frames):
        found[f"frame {number} node"] = str(frame.node)
        found |= {f"frame {number} {name}": text for name, text in _frame(frame).items()}
    if machine.page.kind != "anonymous":
        found["page cache"] = "-" if vm.page_cache == NO_FRAME else f"frame {vm.page_cache}"
    for number, slot in enumerate(vm.slots[1:], 1):
        cached = "" if slot.frame == NO_FRAME else f", cached in frame {slot.frame}"
        disk = "" if slot.disk is None else f", on disk {slot.disk}"
        found[f"slot {number}"] = f"count {slot.entries}{cached}{disk}" if slot.entries or cached or disk else "-"
    for mm in range(len(vm.tables)):
        sem = vm.sems[mm]
        found[f"mmap_sem {mm}"] = _holders(sem)
        found[f"page table lock {mm}"] = _holder(vm.spinlocks[mm])
        found[f"rss {mm}"] = str(vm.rss[mm])
        for va, area in enumerate(vm.areas[mm]):
            rights = "-" if not area.mapped else "RW" if area.write else "R"
            found[f"area {mm}:{va}"] = f"{rights}{'' if area.settled else ', changing'}"
    found["rmap lock"] = _holder(vm.rmap_lock)
    return found


def _entry_text(entry: Entry) -> str:
    """An entry in words."""
    if entry.kind is Kind.NONE:
        return "-"
    what = {Kind.SWAP: "slot", Kind.CACHE: "id", Kind.FILE: "offset"}.get(entry.kind, "frame")
    bits = "".join(letter for letter, bit in zip("WAD", entry[2:], strict=True) if bit)
    return f"{_KINDS[entry.kind]} {what} {entry.number}{' ' * bool(bits)}{' '.join(bits)}"


def step_of(machine: Machine, number: int, local: State) -> str:
    """What a thread is about to do, in words; "-" if it has ended."""
    at, _, results, _ = local
    script = machine.workers[number].script
    if at == len(script):
        return f"ended: {', '.join(results)}"
    operation = script[at]
    value = "" if operation.value is None else f" = {operation.value}"
    word = f"[{operation.word}]" if operation.name in ("load", "store", "read", "write", "pin") else ""
    return f"{operation.name}{word}{value}"


def script_of(number: int, worker: Worker) -> str:
    """What a thread is to do: "thread 1, address space 0, node 1: store[0] = 11, load[1]"."""
    words = []
    for operation in worker.script:
        touches = operation.name in ("load", "store", "read", "write", "pin")
        word = f"[{operation.word}]" if touches else ""
        value = "" if operation.value is None else f" = {operation.value}"
        at = f" at {operation.va}" if operation.va else ""
        words.append(f"{operation.name}{word}{value}{at}")
    return f"thread {number}, address space {worker.mm}, node {worker.node}: {', '.join(words)}"


def _frame(frame: Frame) -> dict[str, str]:
    if frame.flags & FREE:
        return {"state": "free", "refcount": "-", "mapcount": "-", "page lock": "-", "contents": "-"}
    flags = [name for flag, name in _FLAGS.items() if frame.flags & flag]
    mapping = {ANON: "anonymous", FILE: "file"}.get(frame.mapping, "no mapping")
    slot = "" if frame.private == NO_SLOT else f", slot {frame.private}"
    return {
        "state": f"{mapping}{slot}{'; ' * bool(flags)}{' '.join(flags)}",
        "refcount": str(frame.refs),
        "mapcount": str(frame.maps),
        "page lock": _holder(frame.locked_by),
        "contents": " ".join(map(str, frame.words)),
    }


def _holders(sem: int) -> str:
    if sem > 0:
        return f"{sem} reader{'s' * (sem > 1)}"
    return f"thread {-sem - 1} writes" if sem else "-"


def _holder(lock: int) -> str:
    return "-" if not lock else f"thread {lock - 1}"
