"""The engine's protocols, by the names of the command line: sets of rules with what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .rules import Rules

__all__ = ["ENGINES", "Engine"]


@dataclass(frozen=True, slots=True)
class Engine:
    """One protocol.

    Attributes:
        name, title: what it is called, and what it is.
        rules: what its pagers keep.
        refuted: promises that it makes and breaks, with why.
        weaknesses: promises that it does not make; there are none.
    """

    name: str
    title: str
    rules: Rules
    refuted: Mapping[str, str] = field(default_factory=dict)
    weaknesses: Mapping[str, str] = field(default_factory=dict)

    def with_rules(self, **changed: Any) -> Engine:  # noqa: ANN401 (as `Design.with_rules`)
        """Return it with some rules changed."""
        return replace(self, rules=replace(self.rules, **changed))


_ONE = Rules(descriptor_each=False, adds_up=False)

_ALL = (
    Engine(
        "relocate-0.1",
        "the live engine of nexttouch 0.1: one descriptor, each event taken as it comes",
        replace(
            _ONE,
            unmap_is_certain=True,
            uproots=False,
            follows_done=False,
            newcomer_settles=False,
            keeps_watching=False,
            carries_moved_ranges=False,
            closes=False,
        ),
        {
            "E-BYTES": "events come in another order than the changes; unmappings fail; addresses grow stale",
            "E-STATE": "for the same reasons a page is said to be stranded",
        },
    ),
    Engine(
        "relocate-one",
        "what one descriptor can do: it follows all mappings, and knows that events come late",
        _ONE,
        {"E-BYTES": "which mapping an address means is not to be told when an event comes two calls late"},
    ),
    Engine("relocate", "a descriptor for each mapping: an event cannot mean another one", Rules()),
)

ENGINES: dict[str, Engine] = {engine.name: engine for engine in _ALL}
"""Protocols by name, from what is to what should be."""
