"""What the engine promises, and looking whether it is kept."""

from __future__ import annotations

from ..violation import Violation
from .world import UNREGISTERED, PageState, World, name_of

__all__ = ["PROMISES", "broken_at_the_end"]

PROMISES: dict[str, str] = {
    "E-BYTES": "every word that the program has, reads, or hands to a child is what it wrote",
    "E-STATE": "what is said of a page in the end is true",
    "E-WATCH": "at the end nothing is registered any more",
}
"""What is promised, by name; beside it no thread waits or is busy for ever."""


def broken_at_the_end(world: World) -> Violation | None:
    """Return the first promise that does not hold now that all threads and pagers have ended."""
    for address, mapping in enumerate(world.mappings):
        if mapping and mapping.descriptor != UNREGISTERED:
            return Violation("E-WATCH", f"{name_of(mapping.name)} at {address} is still registered")
    for address, mapping in enumerate(world.mappings):
        if mapping and max(mapping.word, 0) != world.contents[mapping.name]:
            has, wrote = max(mapping.word, 0), world.contents[mapping.name]
            return Violation("E-BYTES", f"in the end {name_of(mapping.name)} at {address} has {has}, not {wrote}")
    for page, state in enumerate(world.states):
        gone = world.contents[page] is None
        if state is PageState.STRANDED or (state is PageState.UNMAPPED and not gone):
            return Violation(
                "E-STATE", f"{name_of(page)} is said to be {state.value}, and is {'gone' * gone or 'mapped'}"
            )
    return None
