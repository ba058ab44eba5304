"""The architectures whose page table entries are modelled, bit by bit: in 2006 and now.

"2006" is Linux 2.6.16 to 2.6.18 with the migration entries of 2.6.18; there was no arm64. "Now" is Linux up to 6.18, as
far as it could be read (each `source` says so); for ia64, removed in 6.7, it is the last version. `word` says what the
fields mean and turns entries into words.
"""

from __future__ import annotations

from dataclasses import replace

from .word import Arch, Field, SwapTypes, Unrepresentable

__all__ = ["ARCHES", "Arch", "Unrepresentable"]

_OLD_TYPES = SwapTypes(shift=59, cache=29, migration_read=30, migration_write=31)
"""MAX_SWAPFILES is 32 less two migration types: include/linux/swap.h and swapops.h of 2.6.18, patches of 28 April 2006.

The migration cache takes MAX_SWAPFILES - 1, as in the patches of Tosatti (2004) and Schermerhorn (V8, February 2006).
"""
_NEW_TYPES = SwapTypes(shift=58, cache=23, migration_read=25, migration_write=27)
"""With all options of 2025: 24 areas, poison 24, migration 25 to 27, device memory 28 to 30, markers 31.

include/linux/swap.h, where the numbers depend on the configuration and the year (read in pieces; a patch of late 2025
wants three more for devices), and swapops.h. Migration type 26 is read-only and exclusive. A migration cache was never
merged: its type is where the old patches would put it today.
"""

_X86_64_2006 = Arch(
    name="x86-64-2006",
    source=(
        "include/asm-x86_64/pgtable.h and page.h, read in 2.6.15 and in Red Hat's 2.6.18, which agree. _PAGE_FILE "
        "is the dirty bit, _PAGE_PROTNONE that of large pages; pte_present takes PRESENT or PROTNONE."
    ),
    present=1 << 0,
    always=1 << 2 | 1 << 63,  # USER, NX
    frame=Field(12, 34),
    write=1 << 1,
    accessed=1 << 5,
    dirty=(1 << 6, 1 << 6),
    tag=1 << 7,
    swap_type=Field(1, 6),
    swap_offset=Field(8, 56),
    types=_OLD_TYPES,
    file=1 << 6,
    file_offset=Field(12, 34),
)

_X86_64 = Arch(
    name="x86-64",
    source=(
        "arch/x86/include/asm/pgtable_types.h, pgtable_64.h, pgtable.h, pgtable-invert.h, sparsemem.h, read in "
        "pieces of several trees and patches of 2018 to 2025, none whole at 6.18. _PAGE_PROTNONE is the global bit; "
        "a dirty read-only entry has _PAGE_SAVED_DIRTY (bit 58, since 2023). Four-level tables. A processor with "
        "L1TF may have its swap offsets cut too short for accessed and dirty in migration entries: not modelled."
    ),
    present=1 << 0,
    always=1 << 2 | 1 << 63,  # USER, NX
    frame=Field(12, 40),
    write=1 << 1,
    accessed=1 << 5,
    dirty=(1 << 58, 1 << 6),
    tag=1 << 8,
    inverted=True,
    swap_type=Field(59, 5),
    swap_offset=Field(9, 50),
    types=_NEW_TYPES,
    frame_bits=46 - 12,
    ignored=1 << 5 | 1 << 6,  # _PAGE_KNL_ERRATUM_MASK
)

_ARM64 = Arch(
    name="arm64",
    source=(
        "arch/arm64/include/asm/pgtable-hwdef.h, pgtable-prot.h and pgtable.h after the series of May 2024 (6.10): "
        "PTE_PRESENT_INVALID is the nG bit, which each page of a user has anyway. 4 KiB pages, 48 address bits, "
        "memory type 0 (MT_NORMAL; that number was not looked up). The tag alone is pte_present; NUMA balancing "
        "also takes PTE_USER away, without which pte_protnone is false and no handler would set PTE_VALID again."
    ),
    present=1 << 0,
    always=1 << 1 | 1 << 6 | 3 << 8 | 1 << 11 | 1 << 53 | 1 << 54,  # page, USER, SHARED, NG, PXN, UXN
    frame=Field(12, 36),
    write=1 << 51,
    accessed=1 << 10,
    dirty=(1 << 55, 1 << 55),
    clean=1 << 7,  # PTE_RDONLY
    tag=1 << 11,
    swap_type=Field(6, 5),
    swap_offset=Field(12, 50),
    types=_NEW_TYPES,
    frame_bits=48 - 12,
)

_IA64_2006 = Arch(
    name="ia64-2006",
    source=(
        "include/asm-ia64/pgtable.h of that time (commit 70ac4385a13f) and of Red Hat's 2.6.18, which agree. 16 KiB "
        "pages (that this was the default was not looked up). pte_write also takes access rights 4 to 6, which no "
        "user's page has: here it is bit 10."
    ),
    present=1 << 0,
    always=3 << 7 | 1 << 52,  # PL_3, ED
    frame=Field(14, 36),
    write=2 << 9,
    accessed=1 << 5,
    dirty=(1 << 6, 1 << 6),
    tag=1 << 63,
    swap_type=Field(2, 7),
    swap_offset=Field(9, 54),
    types=_OLD_TYPES,
    file=1 << 1,
    file_offset=Field(2, 61),
)

_IA64 = replace(
    _IA64_2006,
    name="ia64",
    source=(
        "arch/ia64/include/asm/pgtable.h and sparsemem.h before their removal in 6.7: the stored file is older than "
        "the exclusive marker of 2023 and was completed by that patch. ia64 had neither NUMA balancing nor device "
        "memory, so its swap types would be others; those of all options are used. Else as in 2006, without file "
        "entries."
    ),
    swap_type=Field(1, 6),
    swap_offset=Field(8, 55),
    types=_NEW_TYPES,
    frame_bits=50 - 14,
    file=0,
)

_PPC64_2006 = Arch(
    name="ppc64-2006",
    source=(
        "include/asm-powerpc/pgtable.h of that time (commit 45c091bb2d45), the same in Red Hat's 2.6.18, with "
        "pgtable-4k.h of the latter. Hardware walks a hash table; _PAGE_PRESENT is what lets it be filled from "
        "these words. _PAGE_FILE is the user bit, and no bit tags an entry that is not present, though bits 2 to 16 "
        "of swap and file entries are free for one. PAGE_NONE keeps PRESENT and takes USER away, which traps too "
        "(later NUMA balancing used that, a version not looked up), but clears no present bit and would have needed "
        "a pte_protnone that 2006 did not have."
    ),
    present=1 << 0,
    always=1 << 1 | 1 << 4,  # USER, COHERENT
    frame=Field(17, 47),
    write=1 << 9,
    accessed=1 << 8,
    dirty=(1 << 7, 1 << 7),
    swap_type=Field(18, 6),
    swap_offset=Field(25, 39),
    types=_OLD_TYPES,
    file=1 << 1,
    file_offset=Field(17, 47),
    ignored=0xFC00,  # _PAGE_HPTEFLAGS of 4 KiB pages
)

_PPC64 = Arch(
    name="ppc64",
    source=(
        "arch/powerpc/include/asm/book3s/64/pgtable.h and radix.h, read before and after the swap patches of 2022, "
        "not whole at 6.18. Radix, 64 KiB pages. There are two ways to be valid but not accessible: PRESENT without "
        "any of read, write, execute (pte_protnone, which forgets write), and _PAGE_INVALID in place of PRESENT (of "
        "ptep_set_access_flags and of splitting huge pages, which keeps all). `decode` knows both, `hide` takes the "
        "second, for which NUMA balancing has no fault handler."
    ),
    present=1 << 63,
    always=1 << 2,  # READ
    leaf=1 << 62,  # _PAGE_PTE
    rights=0b111,
    frame=Field(16, 37),
    write=1 << 1,
    accessed=1 << 8,
    dirty=(1 << 7, 1 << 7),
    tag=1 << 61,
    swap_type=Field(0, 5),
    swap_offset=Field(16, 37),
    types=_NEW_TYPES,
    frame_bits=51 - 16,
    ignored=1 << 7 | 1 << 8,  # RADIX_PTE_NONE_MASK
)

ARCHES: dict[str, Arch] = {
    arch.name: arch for arch in (_X86_64_2006, _IA64_2006, _PPC64_2006, _X86_64, _ARM64, _IA64, _PPC64)
}
"""The architectures by name: those of 2006 (x86-64, ia64, ppc64), then those of now (x86-64, arm64, ia64, ppc64)."""
