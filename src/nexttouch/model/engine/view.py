"""A state in words, by names that people know."""

from __future__ import annotations

from .pager import Pager, Phase
from .program import Progress, Thread
from .world import EMPTY, UNKNOWN, UNREGISTERED, Mapping, World, name_of

__all__ = ["about", "fields"]


def fields(world: World) -> dict[str, str]:
    """Return the state, field by field: "address 0" -> "a, registered with 0, word 10"."""
    found = {f"address {address}": _mapping(mapping) for address, mapping in enumerate(world.mappings)}
    found |= {f"shadow of {name_of(page)}": _word(word) for page, word in enumerate(world.parked)}
    for page, state in enumerate(world.states):
        doubt = ", uprooted" if page in world.uprooted else ", unmapped or not" if page in world.doubted else ""
        place = "" if world.at[page] == UNKNOWN else f" at {world.at[page]}"
        found[f"page {name_of(page)}"] = f"{state.value}{place}{doubt}"
    for number, queue in enumerate(world.queues):
        found[f"mmap_changing {number}"] = str(world.changing[number])
        found[f"queue {number}"] = ", ".join(map(str, queue)) or "-"
        found[f"faults {number}"] = _addresses(world.faults[number])
        found[f"moved {number}"] = _addresses(world.moved[number])
        found[f"descriptor {number}"] = "closed" if world.ended[number] else "open"
    return found


def _mapping(mapping: Mapping | None) -> str:
    if mapping is None:
        return "-"
    watched = "not registered" if mapping.descriptor == UNREGISTERED else f"registered with {mapping.descriptor}"
    return f"{name_of(mapping.name)}, {watched}, {_word(mapping.word)}"


def _word(word: int) -> str:
    return "-" if word == EMPTY else str(word)


def _addresses(addresses: tuple[int, ...]) -> str:
    return " ".join(map(str, addresses)) or "-"


def about(actor: Thread | Pager, local: Progress | Phase) -> str:
    """What a thread or a pager is about to do, in words; "-" if it has ended."""
    if isinstance(local, Phase):
        return local.name
    assert isinstance(actor, Thread)
    return "-" if actor.ended(local) else f"{actor.script[local.at]}{f': {local.stage}' if local.stage else ''}"
