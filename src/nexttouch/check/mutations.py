"""The races of page migration, each as a design with one rule broken; and those that are no mutation, with why.

The ids are those of docs/designs.md. History tells of some of the races (the source is a commit or a mail); others were
found by reading code, and the checker confirms or refutes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..model.design import Design
from ..model.designs import DESIGNS

__all__ = ["INEXPRESSIBLE", "MUTATIONS", "Mutation"]


@dataclass(frozen=True, slots=True)
class Mutation:
    """One race.

    Attributes:
        name: id.
        title: what goes wrong.
        design: name of the design.
        broken: the rule, and what it is instead.
        breaks: the invariant.
        scenario, kind: where to see it.
        context: rules that both the broken and the fixed design have, where they are not the design's own.
        source: where it comes from.
    """

    name: str
    title: str
    design: str
    broken: Mapping[str, Any]
    breaks: str
    scenario: str
    kind: str = "anonymous"
    source: str = "derived"
    context: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fixed_design(self) -> Design:
        """The design with the rule kept."""
        return DESIGNS[self.design]().with_rules(**self.context)

    @property
    def broken_design(self) -> Design:
        """The design with the rule broken."""
        return DESIGNS[self.design]().with_rules(**{**self.context, **self.broken})


_FAULTS_OF_2006 = {"missing_locks_page": False}  # which map a page of a file that they have not locked
_NO_SEM = {"anon_vma_safe": "reference"}  # a migration that holds no mmap_sem, as compaction and hot-unplug do

_ALL = (
    Mutation(
        "T01",
        "a waiter uses the frame of a migration entry that it read without the page table lock",
        "D4",
        {"waiter_locks_table": False},
        "I-UAF",
        "access",
        source="linux-mm, 14-18 April 2006",
    ),
    Mutation(
        "T02",
        "faults on a migration entry are redone until it is gone",
        "mainline",
        {"waiter_sleeps": False},
        "I-PROGRESS",
        "access",
        source="linux-mm, 13 April 2006 (V2)",
    ),
    Mutation(
        "T03",
        "references of waiters make the commit test fail until the migration gives up",
        "mainline",
        {"waiter_holds_reference": True},
        "I-PROGRESS",
        "access",
        source="9a1ea439b16b (2018), ffa65753c431 (2022)",
    ),
    Mutation(
        "T04",
        "the last process exits, and the migration walks an anon_vma that is gone",
        "D4",
        {"anon_vma_safe": "nothing"},
        "I-UAF",
        "last-exit",
        source="67b9509b2c68, 3f6c82728f4e (2010)",
    ),
    Mutation(
        "T05",
        "walk 2 looks for the entry without the lock while mremap moves it",
        "D4",
        {"looks_under_lock": False},
        "I-COMPLETE",
        "mremap",
        source="486cf46f3f9b (2011)",
    ),
    Mutation(
        "T06",
        "the new area stands before the old one in the reverse map: walk 2 misses the entry that moves",
        "D4",
        {"child_behind": False},
        "I-COMPLETE",
        "mremap",
        source="948f017b0900 (2011)",
    ),
    Mutation(
        "T07",
        "exec has moved the area of a stack, but not yet its entries",
        "D4",
        {"skips_unfinished_stack": False},
        "I-COMPLETE",
        "exec",
        source="a8bef8ff6ea1 (2010)",
        context=_NO_SEM,
    ),
    Mutation(
        "T08",
        "fork copies an entry that comes back writable in parent and child",
        "D4",
        {"demotes_in_child": False},
        "I-COW",
        "fork",
        source="linux-mm, 14-18 April 2006",
    ),
    Mutation(
        "T09",
        "migration entries drop write permission, and each store afterwards faults",
        "D4",
        {"keeps_write": False},
        "I-PROT",
        "alone",
        source="linux-mm, 3 April 2006 (V1)",
    ),
    Mutation(
        "T10",
        "walk 2 restores the permission that the entry had, after mprotect took it away",
        "D4",
        {"keeps_area_protection": False, "protects_hidden": False},
        "I-PROT",
        "mprotect",
        source="4.9: vm_page_prot against rmap walks (2016), in the form that one area allows",
    ),
    Mutation(
        "T12",
        "unmap does not count an entry out whose page is moving",
        "D4",
        {"counts_rss": False},
        "I-RSS",
        "last-exit",
        source="9f9f1acd713d (3.3)",
        context=_NO_SEM,
    ),
    Mutation(
        "T13",
        "the page is unlocked to be written out while its entries are concealed",
        "D4",
        {"keeps_lock": False},
        "I-LOCK",
        "alone",
        source="linux-mm, 28 April 2006",
    ),
    Mutation(
        "T15",
        "a page is moved whose entries were marked, but whose TLBs were not flushed yet",
        "B",
        {"minds_pending_flush": False},
        "I-LOSTWRITE",
        "lazy-nodes",
        source="20841405940e (2013)",
    ),
    Mutation(
        "T16",
        "walk 1 drops the dirty bit",
        "D4",
        {"pushes_dirty": False},
        "I-DIRTY",
        "access",
        "shared",
        source="fd35ca3d12cc (6.1)",
    ),
    Mutation(
        "T17",
        "the new page is dirty before its contents are there",
        "D4",
        {"dirty_with_contents": False},
        "I-UPTODATE",
        "access",
        "shared",
        source="42cb14b110a5 (4.5)",
    ),
    Mutation(
        "T18",
        "restoring the dirty bit makes the entry writable",
        "mainline",
        {"marks_dirty_writable": True},
        "I-COW",
        "fork",
        source="sparc64, 2023",
    ),
    Mutation(
        "T20",
        "the fault handler moves the page under the page table lock",
        "D3",
        {"sleeps_outside": False},
        "I-SLEEP",
        "lazy-access",
        source="linux-mm, 9 March 2006 (V0.1)",
    ),
    Mutation(
        "T21-count",
        "two faults drop their entries of an id, and one of the two is lost",
        "D2",
        {"counts_atomically": False},
        "I-CACHE",
        "mappers",
        source="migration cache V8",
    ),
    Mutation(
        "T21-self",
        "dropping an entry of the migration cache locks the page that the fault has locked",
        "D2",
        {"knows_locked": False},
        "I-DEADLOCK",
        "access",
        source="lhms-devel, October 2004",
    ),
    Mutation(
        "T21-leak",
        "the last entry of an id goes while somebody has the page locked, and the id stays",
        "D2",
        {"rechecks_count": False},
        "I-CACHE",
        "exit",
        source="lhms-devel, 21 October 2004",
    ),
    Mutation(
        "T21-reuse",
        "a fault maps what it found by an id that has been freed, or used again, since it read it",
        "D2",
        {"rereads_entry": False, "redoes_lookup": False},
        "I-RETRY",
        "access",
        source="linux-mm, February 2006",
    ),
    Mutation(
        "T24",
        "a hinting fault drops write permission, and each store afterwards faults",
        "mainline",
        {"keeps_write": False},
        "I-PROT",
        "lazy-loads",
        source="b191f9b106ea (4.0)",
    ),
    Mutation(
        "T26",
        "a fault maps the old page of a file between walk 1 and the change of the mapping; refcount and mapcount agree",
        "B",
        {"counts_entries": False},
        "I-LOSTWRITE",
        "late",
        "shared",
        context=_FAULTS_OF_2006,
    ),
    Mutation(
        "T27",
        "the dirty bit of an entry is handed to the page it names, which has been replaced",
        "B",
        {"pushes_dirty": False},
        "I-DIRTY",
        "last-exit",
        "shared",
    ),
    Mutation(
        "T29",
        "unmap takes an entry that is valid and not present for one of swap",
        "B",
        {"understands_valid": False},
        "I-LEAK",
        "lazy-munmap",
    ),
    Mutation(
        "T30",
        "mprotect passes over an entry that is valid and not present",
        "B",
        {"understands_valid": False},
        "I-PROT",
        "lazy-mprotect",
    ),
    Mutation(
        "T31",
        "a hot page: whoever waits for it raises its refcount, and it never moves",
        "B",
        {"waiter_holds_reference": True},
        "I-PROGRESS",
        "access",
    ),
    Mutation(
        "T32",
        "the copy is mapped before the old translation is flushed: another CPU reads the past",
        "A",
        {"copy_clears_first": False},
        "I-STALE",
        "lazy-reader",
        source="4ce072f1faf2 (2006), of copy-on-write",
    ),
    Mutation(
        "T33",
        "a page that a device writes to is copied away from it",
        "A",
        {"checks_pins": False},
        "I-PIN",
        "lazy-pin",
        source="derived; CVE-2020-29374 is of the family",
    ),
    Mutation(
        "T35",
        "walk 2 restores an entry that it read before it took the lock: what was unmapped since comes back",
        "D4",
        {"looks_again": False},
        "I-TRUNC",
        "munmap",
        source="linux-mm, 3 April 2006 (V1), whose walks did",
    ),
    Mutation(
        "T41",
        "walk 2 of the first version is refused, as the new page is not mapped yet: the entries stay",
        "D4-V1",
        {"restores_unmapped": False},
        "I-COMPLETE",
        "alone",
        source="linux-mm, 3 April 2006 (V1)",
    ),
    Mutation(
        "T37",
        "the mapping gets the old page again, not the new one",
        "D4",
        {"inserts_new": False},
        "I-MAPPING",
        "alone",
        "private",
        source="linux-mm, 9 March 2006 (V0.1), of migrate-on-fault",
    ),
    Mutation(
        "T39", "flags of the page are left behind", "D4", {"moves_flags": False}, "I-FLAGS", "alone", source="4.5"
    ),
    Mutation(
        "T40", "a migration that fails leaves its entries", "D4", {"walks_back": False}, "I-COMPLETE", "pin", "shared"
    ),
    Mutation(
        "B-H1",
        "walk 1 does not flush before the copy",
        "B",
        {"flushes_first": False},
        "I-LOSTWRITE",
        "access",
    ),
    Mutation(
        "B-H2",
        "walk 1 clears an entry that it read before, and loses what hardware has set since",
        "B",
        {"clears_atomically": False},
        "I-DIRTY",
        "access",
        "shared",
    ),
    Mutation(
        "B-H4",
        "the same as T27 by munmap",
        "B",
        {"pushes_dirty": False},
        "I-DIRTY",
        "munmap",
        "shared",
    ),
    Mutation(
        "B-H6",
        "an unmap and a late fault cancel out: as many entries as walk 1 met, but another one, which is present",
        "B",
        {"missing_locks_page": False},
        "I-LOSTWRITE",
        "late-munmap",
        "shared",
        source="derived; found by the checker in spite of the count that closes T26",
    ),
    Mutation(
        "B-H8",
        "walk 2 is not repeated though the old page still has an entry",
        "B",
        {"walks_again": False},
        "I-COMPLETE",
        "mremap",
        context={"child_behind": False},
    ),
    Mutation(
        "B-H11",
        "all processes exit: without the mapcount nothing says that the anon_vma is gone",
        "B",
        {"anon_vma_safe": "nothing"},
        "I-UAF",
        "last-exit",
    ),
    Mutation(
        "B-H13",
        "a fault sets the present bit without the page lock, while the page is copied",
        "B",
        {"repairs_locked": False},
        "I-LOSTWRITE",
        "access",
        "shared",
    ),
    Mutation(
        "recheck",
        "the present bit is set without a second look at the entry",
        "B",
        {"rereads_entry": False},
        "I-RETRY",
        "lazy-access",
        context={"waiter_holds_reference": True},
    ),
    Mutation(
        "A-flush",
        "a store copies a page while another CPU still stores to it: it was marked, but not flushed",
        "A",
        {"minds_pending_flush": False},
        "I-LOSTWRITE",
        "lazy-access",
        source="found by the checker; userfaultfd had it until 5.12",
    ),
    Mutation(
        "A-again",
        "a copy is set in place of an entry that was made writable, stored through, and marked again meanwhile",
        "A",
        {"copies_locked": False},
        "I-LOSTWRITE",
        "lazy-again",
        source="found by the checker",
    ),
    Mutation(
        "batch-flush",
        "munmap finds an entry that is not present, and returns before the batch of walk 1 is flushed",
        "mainline",
        {"minds_batched_flush": False},
        "I-TLB",
        "munmap",
        source="found by the checker; 60bae7370896 (6.1) is of the family",
    ),
    Mutation(
        "truncate",
        "truncate passes over migration entries, and the page comes back when they are restored",
        "D4",
        {"truncate_unmaps_again": False},
        "I-TRUNC",
        "truncate",
        "shared",
        source="2.6.18; answered by the checker",
    ),
    Mutation(
        "commit-lock",
        "a page cache lookup comes between the commit test and the change of the mapping",
        "D4",
        {"checks_under_lock": False},
        "I-STALE",
        "late",
        "shared",
    ),
    Mutation(
        "pin",
        "a page is moved away from a device",
        "D4",
        {"checks_references": False},
        "I-PIN",
        "pin",
        source="derived",
    ),
    Mutation(
        "file-refs",
        "the commit test does not look at the refcount, and a fault maps the old page of a file",
        "D1",
        {"checks_references": False},
        "I-SHARE",
        "late",
        "shared",
        source="derived from a3351e525e47",
    ),
    Mutation("swap-count", "the same as T21-count of swap", "D1", {"counts_atomically": False}, "I-SWAP", "mappers"),
    Mutation("swap-insert", "the same as T37 of the swap cache", "D1", {"inserts_new": False}, "I-REF", "alone"),
    Mutation(
        "lazy-map",
        "the same as T29, as the mapcount sees it",
        "B",
        {"understands_valid": False},
        "I-MAP",
        "lazy-truncate",
        "shared",
    ),
    Mutation("bits", "migration entries drop the accessed bit", "mainline", {"keeps_bits": False}, "I-ACC", "access"),
    Mutation("order", "the reverse map is locked before the page", "D4", {"locks_in_order": False}, "I-ORDER", "alone"),
    Mutation("isolate", "a page that moves stays on the LRU", "D4", {"isolates": False}, "I-FRAMES", "alone"),
    Mutation(
        "rollback", "a migration that fails leaves traps behind", "B", {"walks_back": False}, "I-ROLLBACK", "pin-alone"
    ),
)

MUTATIONS: dict[str, Mutation] = {mutation.name: mutation for mutation in _ALL}
"""Races by id."""

INEXPRESSIBLE: dict[str, str] = {
    "T11": "nonlinear mappings (remap_file_pages) are not modelled: an area has one page at its own offset",
    "T19": "refuted: the old page, if a fault maps it at all, has the same contents; else see file-refs",
    "T22": "batches of several locked pages are not modelled: a scenario has one page",
    "T23": "huge pages and their splitting are not modelled",
    "T25": "exclusive anonymous pages (5.19) are not modelled; that a pinned page stays is (pin)",
    "T38": "using a translation again after a fault would be hardware's: the CPUs of the model walk again",
    "B-H3": "the same as T31",
    "B-H5": "the same as T26",
    "B-H9": "a page that reclaim cannot unmap is a cost, no broken promise",
    "B-H10": "areas without any access are not modelled",
    "B-H12": "the reverse map is walked by area here, whatever the new page says of itself",
    "B-H14": "locked memory (mlock) changes nothing in the steps that are modelled",
    "B-H15": "second MMUs (KVM, IOMMU) are not modelled: they would be further CPUs without faults",
}
"""Races that no mutation shows, and why."""
