"""Every design, by name."""

from __future__ import annotations

from ..design import Design
from .mainline import Mainline
from .migrate_on_fault import MigrateOnFault
from .migration_entries import MigrationEntries, SwaplessV1, SwaplessV2
from .present_bit import PresentBit, PresentBitMappingFirst
from .swap_entries import MigrationCache, SwapEntries
from .write_protect import WriteProtect

__all__ = ["DESIGNS"]

_ALL: tuple[type[Design], ...] = (
    SwapEntries,
    MigrationCache,
    MigrateOnFault,
    SwaplessV1,
    SwaplessV2,
    MigrationEntries,
    WriteProtect,
    PresentBit,
    PresentBitMappingFirst,
    Mainline,
)

DESIGNS: dict[str, type[Design]] = {design.name: design for design in _ALL}
"""Designs by the names of the command line, in the order of their time."""
