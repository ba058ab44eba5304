"""A race as a design with one rule broken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .subjects import SUBJECTS, Subject

__all__ = ["Mutation"]


@dataclass(frozen=True, slots=True)
class Mutation:
    """One race.

    Attributes:
        name: id.
        title: what goes wrong.
        design: name of the design, or of the engine's protocol.
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
    def fixed_design(self) -> Subject:
        """The design with the rule kept."""
        return SUBJECTS[self.design]().with_rules(**self.context)

    @property
    def broken_design(self) -> Subject:
        """The design with the rule broken."""
        return SUBJECTS[self.design]().with_rules(**{**self.context, **self.broken})
