"""Every design in every scenario that applies to it, and every mutation beside the design that it breaks."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from ..linux.prctl import end_with
from ..model.violation import Violation
from .explorer import Choice, Result, explore
from .mutation import Mutation
from .mutations import MUTATIONS
from .subjects import SUBJECTS, Subject, machine_of, places_of, sometimes_of

__all__ = ["Case", "MutationVerdict", "Verdict", "all_cases", "check_case", "check_mutation", "run_all"]

# With anonymous pages, as they copy on write; and programs with two calls in each of two threads.
_LARGE = frozenset({"exit", "mappers", "fork", "lazy-exit", "pin", "twice", "move-both", "discard-late", "unmap-armed"})
_COST = "cost: "


class Case(NamedTuple):
    """One search: the names of a design, a scenario (of an engine's protocol: a program), and a kind of page."""

    design: str
    scenario: str
    kind: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a search says.

    Attributes:
        case: of what.
        verdict: "passes"; "refuted": it breaks a promise, and is known to; "BROKEN": it breaks one; "INCOMPLETE": it
            was cut short, so nothing is known; "EMPTY": the race that the scenario is about was never entered.
        states, transitions, depth, seconds: of the search.
        violation: the broken promise.
        path: how.
        costs: what the design loses, or cannot do, and does not claim to.
        missing: marks of the scenario that were not come upon.
    """

    case: Case
    verdict: str
    states: int
    transitions: int
    depth: int
    seconds: float
    violation: Violation | None = None
    path: tuple[Choice, ...] = ()
    costs: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether it is as it should be."""
        return self.verdict in ("passes", "refuted")

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the attributes; path as `--replay` reads it."""
        broken = self.violation and {"invariant": self.violation.invariant, "sentence": self.violation.sentence}
        return {
            **self.case._asdict(),
            "verdict": self.verdict,
            "states": self.states,
            "transitions": self.transitions,
            "depth": self.depth,
            "seconds": self.seconds,
            "violation": broken,
            "path": ",".join(map(str, self.path)),
            "costs": list(self.costs),
            "missing": list(self.missing),
        }


def all_cases(*, quick: bool = False) -> list[Case]:
    """Every case; with `quick` without private mappings of files, and without the largest of anonymous pages."""
    return [
        Case(name, scenario, kind)
        for name, subject in SUBJECTS.items()
        for scenario, kind in places_of(subject())
        if not quick or not (kind == "private" or (kind == "anonymous" and scenario in _LARGE))
    ]


def check_case(
    case: Case,
    *,
    rules: Mapping[str, Any] = MappingProxyType({}),
    arch: str = "x86-64",
    most_states: int = 5_000_000,
) -> Verdict:
    """Search one case, with some rules of the design changed."""
    design = SUBJECTS[case.design]().with_rules(**rules)
    machine = machine_of(design, case.scenario, case.kind, arch)
    result = explore(machine, most_states=most_states, only=_claimed(design))
    missing = tuple(mark for mark in sometimes_of(case.scenario) if mark not in result.marks)
    costs = [mark.removeprefix(_COST) for mark in sorted(result.marks) if mark.startswith(_COST)]
    costs += [design.weaknesses[invariant] for invariant in result.passed_over]
    return Verdict(
        case,
        _verdict(result, design, missing),
        result.states,
        result.transitions,
        result.depth,
        result.seconds,
        result.violation,
        tuple(result.path),
        tuple(costs),
        missing if result.passed else (),
    )


def _claimed(design: Subject) -> Callable[[Violation], bool]:
    return lambda violation: violation.invariant not in design.weaknesses


def _verdict(result: Result, design: Subject, missing: Sequence[str]) -> str:
    if result.violation:
        return "refuted" if result.violation.invariant in design.refuted else "BROKEN"
    if not result.complete:
        return "INCOMPLETE"
    return "EMPTY" if missing else "passes"


@dataclass(frozen=True, slots=True)
class MutationVerdict:
    """What the searches of a mutation say.

    Attributes:
        mutation: which one.
        violation, path: the promise that the broken design breaks, and the shortest way there.
        states, seconds: of the search.
        fixed: of the design with the rule kept, in the same scenario: "passes" or what else.
        fixed_states: states of that search.
    """

    mutation: Mutation
    violation: Violation | None
    path: tuple[Choice, ...]
    states: int
    seconds: float
    fixed: str
    fixed_states: int

    @property
    def good(self) -> bool:
        """Whether the mutation is caught and the design is not."""
        return self.violation is not None and self.fixed == "passes"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        mutation = self.mutation
        return {
            "mutation": mutation.name,
            "title": mutation.title,
            "design": mutation.design,
            "scenario": mutation.scenario,
            "kind": mutation.kind,
            "source": mutation.source,
            "broken": dict(mutation.broken),
            "context": dict(mutation.context),
            "breaks": mutation.breaks,
            "sentence": self.violation.sentence if self.violation else None,
            "path": ",".join(map(str, self.path)),
            "steps": len(self.path),
            "states": self.states,
            "seconds": self.seconds,
            "fixed": self.fixed,
            "fixed_states": self.fixed_states,
            "good": self.good,
        }


def check_mutation(name: str) -> MutationVerdict:
    """Search a mutation for the promise it is to break, and the design that it is made of for any."""
    mutation = MUTATIONS[name]
    broken = explore(
        machine_of(mutation.broken_design, mutation.scenario, mutation.kind),
        only=lambda violation: violation.invariant == mutation.breaks,
    )
    design = mutation.fixed_design
    weak = set(design.weaknesses) - {mutation.breaks}
    fixed = explore(
        machine_of(design, mutation.scenario, mutation.kind), only=lambda violation: violation.invariant not in weak
    )
    said = "passes" if fixed.passed else fixed.violation.sentence if fixed.violation else "incomplete"
    return MutationVerdict(
        mutation,
        broken.violation,
        tuple(broken.path),
        broken.states,
        broken.seconds + fixed.seconds,
        said,
        fixed.states,
    )


def run_all(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Yield function(item) for each item, in order, computed on all CPUs; by processes that end with this one."""
    workers = min(os.cpu_count() or 1, len(items))
    if workers < 2:
        yield from map(function, items)
        return
    fork = multiprocessing.get_context("fork")  # the worker's parent is this process
    with ProcessPoolExecutor(workers, fork, end_with, (os.getpid(),)) as executor:
        yield from executor.map(function, items)
