"""What can be checked: designs of a kernel in scenarios of its memory, and the live engine's protocols in programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import InvalidArgument
from ..model.arch import ARCHES
from ..model.design import Design
from ..model.design import parse_rule as parse_rule_of_design
from ..model.designs import DESIGNS
from ..model.engine.engines import ENGINES, Engine
from ..model.engine.programs import PROGRAMS
from ..model.engine.promises import PROMISES as PROMISES_OF_ENGINES
from ..model.engine.rules import parse_rule as parse_rule_of_engine
from ..model.invariants import INVARIANTS
from ..model.scenarios import SCENARIOS, cases
from .counterexample import Readable

__all__ = ["PROMISES", "SUBJECTS", "Subject", "machine_of", "parse_rules", "places_of", "scenarios_of", "sometimes_of"]

Subject = Design | Engine

SUBJECTS: dict[str, Callable[[], Subject]] = {
    **DESIGNS,
    **{name: engine.with_rules for name, engine in ENGINES.items()},
}
"""What makes each design, then each protocol, by the names of the command line."""

PROMISES: dict[str, str] = INVARIANTS | PROMISES_OF_ENGINES
"""What is promised, by name."""


def places_of(subject: Subject) -> list[tuple[str, str]]:
    """The scenarios (of an engine: the programs) that a subject is checked in, each with a kind of page."""
    if isinstance(subject, Engine):
        return [(program, "anonymous") for program in PROGRAMS]
    return [(scenario.name, kind) for scenario, kind in cases(subject)]


def scenarios_of(name: str | None) -> Sequence[str]:
    """Names of scenarios: of the subject of that name, of all for None."""
    if name is None:
        return (*SCENARIOS, *PROGRAMS)
    return tuple(PROGRAMS if name in ENGINES else SCENARIOS)


def sometimes_of(scenario: str) -> tuple[str, ...]:
    """Marks that a search of a scenario or program has to come upon."""
    return PROGRAMS[scenario].sometimes if scenario in PROGRAMS else SCENARIOS[scenario].sometimes


def machine_of(subject: Subject, scenario: str, kind: str, arch: str = "x86-64") -> Readable:
    """The model of a subject in one of its places.

    Raises:
        InvalidArgument: an engine's protocol is the same on all architectures.
    """
    if isinstance(subject, Engine):
        if arch != "x86-64":
            raise InvalidArgument("--arch", f"does not go with {subject.name}, which has no page table entries")
        return PROGRAMS[scenario].machine(subject.rules)
    return SCENARIOS[scenario].machine(subject, kind, ARCHES[arch])


def parse_rules(subject: str | None, texts: Sequence[str]) -> dict[str, bool | str]:
    """Read rules as the command line gives them: those of a protocol if `subject` names one, else those of designs.

    Raises:
        InvalidArgument: there is no such rule, or no such value.
    """
    if subject in ENGINES:
        return dict(map(parse_rule_of_engine, texts))
    return dict(map(parse_rule_of_design, texts))
