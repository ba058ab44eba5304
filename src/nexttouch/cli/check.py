"""`nexttouch check`: every interleaving of every design, and the shortest one that breaks a promise."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path as File
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InvalidArgument
from ..quantities import format_count
from .paragraphs import Paragraphs

if TYPE_CHECKING:
    from ..check.alone import Cost
    from ..check.counterexample import Path
    from ..check.explorer import Result
    from ..check.suite import Case, MutationVerdict, Verdict
    from ..check.walks import Walk
    from ..model.machine import Machine

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Explore every interleaving of every page migration design in an executable model of the VM: frames, page tables,
TLBs, caches and locks. It says which design keeps its promises, and shows the shortest interleaving in which one does
not.

Without arguments all designs run in all scenarios that apply to them (about a minute on two CPUs). With a DESIGN, or
the id of a mutation (a design with one rule broken), only that; with a SCENARIO only that one.

verdicts: passes: every state was visited, and every promise held. refuted: it breaks a promise that it made, as is
known. BROKEN: it breaks one, as is not. INCOMPLETE: the search was cut short, so nothing is known. EMPTY: the race that
the scenario is about was never entered. What a design loses, and did not claim to keep, is listed as its costs."""

_EXAMPLES = """\
examples:
  nexttouch check --quick
  nexttouch check B lazy-fork
  nexttouch check --mutations
  nexttouch check T26 --explain
  nexttouch check D4-V1 access --explain --html lost-write.html
  nexttouch check T26 --replay 0,0,0,0,0
  nexttouch check B --rule counts_entries=no
  nexttouch check --costs
  nexttouch check A --random 1000 --seed 7

exit status: 0 all is as it should be; 1 a promise is broken, or a search is incomplete; 2 misuse."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `commands`."""
    parser = commands.add_parser(
        "check",
        help="explore every interleaving of the migration designs",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=Paragraphs,
    )
    parser.add_argument("design", nargs="?", metavar="DESIGN", help="a design, or the id of a mutation")
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO", help="a scenario")
    parser.add_argument("--kind", metavar="KIND", help="only pages of this kind: anonymous, private, shared")
    parser.add_argument("--arch", default="x86-64", metavar="ARCH", help="whose page table entries (default x86-64)")
    parser.add_argument(
        "--rule", action="append", default=[], metavar="RULE=VALUE", help="change a rule of the design: yes or no"
    )
    parser.add_argument("--quick", action="store_true", help="leave the largest cases out: some ten seconds")
    parser.add_argument(
        "--mutations", action="store_true", help="every known race, each as a design with one rule broken"
    )
    parser.add_argument(
        "--costs", action="store_true", help="count what each design does to a page with 1, 2, 8 mappers"
    )
    parser.add_argument(
        "--most-states",
        type=int,
        default=5_000_000,
        metavar="N",
        help="give a case up after N states, about 200 bytes each (default 5000000)",
    )
    parser.add_argument("--random", type=int, metavar="N", help="N random walks with 4 threads and 3 pages instead")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="where the random walks begin (default 0)")
    parser.add_argument("--explain", action="store_true", help="print the shortest counterexample, a lane a thread")
    parser.add_argument("--html", type=File, metavar="FILE", help="write it as a page to step through")
    parser.add_argument(
        "--replay", metavar="CHOICES", help="print this path instead: the threads that go, as in 0,0,1,2"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object; see docs/designs.md for its keys")
    parser.set_defaults(run=run, usual=parser.get_default)


def run(options: argparse.Namespace) -> int:
    """Do what `options` say; return the exit status.

    Raises:
        InvalidArgument: there is no such design, scenario, kind, architecture or path.
    """
    if options.most_states < 1:
        raise InvalidArgument("--most-states", f"is {options.most_states}, but has to be at least 1")
    mode, takes, do = _mode(options)
    for argument, value in vars(options).items():
        if argument not in takes | _ALWAYS and value != options.usual(argument):
            name = argument.upper() if argument in ("design", "scenario") else f"--{argument.replace('_', '-')}"
            raise InvalidArgument(name, f"does not go with {mode}")
    try:
        return do(options)
    finally:
        _progress("")


_ALWAYS = {"costs", "mutations", "json"}  # the first two are ways of running it, in the order of `_mode`


# The way of running it: whether it is meant, its name, what it takes, and what does it.
def _mode(options: argparse.Namespace) -> tuple[str, set[str], Callable[[argparse.Namespace], int]]:
    one = {"design", "scenario", "kind", "arch", "rule", "most_states"}
    own = f"{options.design}, which has its own: --explain takes another"
    ways: tuple[tuple[bool, str, set[str], Callable[[argparse.Namespace], int]], ...] = (
        (options.costs, "--costs", {"design"}, _costs),
        (options.mutations, "--mutations", set(), _mutations),
        (options.random is not None, "--random", {"design", "rule", "random", "seed"}, _random),
        (options.replay is not None, "--replay", one | {"explain", "html", "replay"}, _replay),
        (bool(options.explain or options.html), "--explain and --html", one | {"explain", "html"}, _explain),
        (_is_mutation(options.design), own, {"design"}, _mutation),
        (True, "a search of designs", one | {"quick"}, _check),
    )
    return next((name, takes, do) for meant, name, takes, do in ways if meant)


# ---- designs in scenarios ----

_HEADER = f"{'design':9} {'scenario':14} {'page':10} {'states':>9} {'steps':>9} {'depth':>5} {'time':>8}  verdict"


def _check(options: argparse.Namespace) -> int:
    from ..check.suite import all_cases, check_case, run_all

    cases, rules = _chosen(options, all_cases(quick=options.quick)), _rules(options)
    verdicts: list[Verdict] = []
    for verdict in run_all(partial(check_case, rules=rules, arch=options.arch, most_states=options.most_states), cases):
        verdicts.append(verdict)
        _progress(f"{len(verdicts)} of {len(cases)} cases")
        if not options.json:
            _print(*([_HEADER] * (len(verdicts) == 1)), _case_line(verdict))
    _progress("")
    good = all(verdict.good for verdict in verdicts)
    if options.json:
        print(json.dumps({"good": good, "cases": [verdict.to_dict() for verdict in verdicts]}))
    else:
        print("\n".join(["", *_summary(verdicts)]))
    return 0 if good else 1


def _rules(options: argparse.Namespace) -> dict[str, bool | str]:
    from ..model.design import parse_rule

    return dict(map(parse_rule, options.rule))


def _chosen(options: argparse.Namespace, cases: Sequence[Case]) -> list[Case]:
    from ..model.designs import DESIGNS
    from ..model.scenarios import KINDS, SCENARIOS

    _known("DESIGN", options.design, (*DESIGNS, "or a mutation: nexttouch check --mutations"))
    _known("SCENARIO", options.scenario, SCENARIOS)
    _known("--kind", options.kind, KINDS)
    _known_arch(options.arch)
    chosen = [
        case
        for case in cases
        if options.design in (None, case.design)
        and options.scenario in (None, case.scenario)
        and options.kind in (None, case.kind)
    ]
    if not chosen:
        raise InvalidArgument("SCENARIO", f"{options.scenario} does not apply to {options.design} in this way")
    return chosen


def _known(argument: str, value: str | None, names: Iterable[str]) -> None:
    if value is not None and value not in names:
        raise InvalidArgument(argument, f"is {value!r}, but has to be one of {', '.join(names)}")


def _known_arch(arch: str) -> None:
    from ..model.arch import ARCHES

    _known("--arch", arch, ARCHES)


def _case_line(verdict: Verdict) -> str:
    case = verdict.case
    numbers = f"{format_count(verdict.states):>9} {format_count(verdict.transitions):>9} {verdict.depth:5}"
    line = f"{case.design:9} {case.scenario:14} {case.kind:10} {numbers} {verdict.seconds:7.2f}s  {verdict.verdict}"
    if verdict.violation:
        line += f": {verdict.violation.invariant}, {verdict.violation.sentence}"
    if verdict.missing:
        line += f": never came upon {', '.join(verdict.missing)}"
    return line


def _summary(verdicts: Sequence[Verdict]) -> Iterable[str]:
    from ..model.designs import DESIGNS

    for name, design in DESIGNS.items():
        mine = [verdict for verdict in verdicts if verdict.case.design == name]
        if not mine:
            continue
        count = {
            word: sum(verdict.verdict == word for verdict in mine) for word in dict.fromkeys(v.verdict for v in mine)
        }
        yield f"{name}: {design.title}"
        yield "  " + ", ".join(f"{number} {word}" for word, number in count.items())
        for invariant, reason in design.refuted.items():
            if count.get("refuted"):
                yield f"  refuted: {invariant}: {reason}"
        for cost in sorted({cost for verdict in mine for cost in verdict.costs}):
            yield f"  cost: {cost}"
    states = sum(verdict.states for verdict in verdicts)
    seconds = sum(verdict.seconds for verdict in verdicts)
    yield f"{format_count(len(verdicts))} cases, {format_count(states)} states in {seconds:.0f} s of search"


# ---- mutations ----


def _mutations(options: argparse.Namespace) -> int:
    from ..check.mutations import INEXPRESSIBLE, MUTATIONS
    from ..check.suite import check_mutation, run_all

    verdicts: list[MutationVerdict] = []
    if not options.json:
        _print(
            f"{'race':12} {'design':9} {'scenario':14} {'page':10} {'breaks':12} {'after':>8}  "
            "the design itself; the race"
        )
    for verdict in run_all(check_mutation, list(MUTATIONS)):
        verdicts.append(verdict)
        _progress(f"{len(verdicts)} of {len(MUTATIONS)} mutations")
        if not options.json:
            _print(_mutation_line(verdict))
    _progress("")
    good = all(verdict.good for verdict in verdicts)
    if options.json:
        found = [verdict.to_dict() for verdict in verdicts]
        print(json.dumps({"good": good, "mutations": found, "inexpressible": INEXPRESSIBLE}))
        return 0 if good else 1
    print("\nnot to be seen as a mutation:")
    for name, reason in INEXPRESSIBLE.items():
        print(f"  {name:6} {reason}")
    caught = sum(verdict.good for verdict in verdicts)
    print(f"\n{caught} of {len(verdicts)} races are found, and not in the design that keeps the rule")
    return 0 if good else 1


def _mutation_line(verdict: MutationVerdict) -> str:
    mutation = verdict.mutation
    after = f"{len(verdict.path)} steps" if verdict.violation else "NEVER"
    where = f"{mutation.design:9} {mutation.scenario:14} {mutation.kind:10}"
    return f"{mutation.name:12} {where} {mutation.breaks:12} {after:>8}  {verdict.fixed}; {mutation.title}"


def _is_mutation(name: str | None) -> bool:
    from ..check.mutations import MUTATIONS

    return name in MUTATIONS


def _mutation(options: argparse.Namespace) -> int:
    from ..check.suite import check_mutation

    verdict = check_mutation(options.design)
    if options.json:
        print(json.dumps(verdict.to_dict()))
        return 0 if verdict.good else 1
    print(_mutation_line(verdict))
    if verdict.violation:
        print(f"{verdict.violation.invariant}: {verdict.violation.sentence}")
        print(f"nexttouch check {options.design} --explain shows how")
    return 0 if verdict.good else 1


# ---- one path ----


def _replay(options: argparse.Namespace) -> int:
    from ..check.counterexample import trace
    from ..check.explorer import Choice

    chosen = _machines(options)[0]
    return _show(trace(chosen.machine, Choice.parse(options.replay), chosen.title, cause=chosen.cause), options)


def _explain(options: argparse.Namespace) -> int:
    from ..check.counterexample import trace
    from ..check.explorer import explore

    searched: list[dict[str, Any]] = []
    for chosen in _machines(options):
        result = explore(
            chosen.machine,
            most_states=options.most_states,
            only=lambda violation: violation.invariant in chosen.promises,  # noqa: B023 (called in this turn only)
        )
        if result.violation:
            path = trace(chosen.machine, result.path, chosen.title, result.violation, cause=chosen.cause)
            return _show(path, options)
        searched.append({"title": chosen.title, "states": result.states, "complete": result.complete})
        if not options.json:
            print(f"{chosen.title}: {_unbroken(chosen, result)}")
    if options.json:
        print(json.dumps({"violation": None, "searched": searched}))
    elif options.html:
        print(f"{options.html} is not written")
    return 0 if all(search["complete"] for search in searched) else 1


def _unbroken(chosen: _Chosen, result: Result) -> str:
    states = format_count(result.states)
    if not result.complete:
        return f"nothing was broken in the first {states} states; the search was cut short"
    what = "every promise holds" if len(chosen.promises) > 1 else f"{min(chosen.promises)} holds"
    return f"{what} in all {states} states; there is no counterexample"


def _show(path: Path, options: argparse.Namespace) -> int:
    from ..model.invariants import INVARIANTS
    from ..report.lanes import text
    from ..report.page import page

    if options.html:
        try:
            options.html.write_text(page(path, INVARIANTS), encoding="utf-8")
        except OSError as error:
            raise InvalidArgument("--html", f"cannot be written: {error}") from None
        _progress("")
        print(f"wrote {options.html}", file=sys.stderr)
    if options.json:
        print(json.dumps(path.to_dict()))
    elif options.explain or options.replay:
        import shutil

        print(text(path, shutil.get_terminal_size((100, 24)).columns, INVARIANTS))
    return 1 if path.violation else 0


class _Chosen(NamedTuple):
    """One machine to explain: what it is, the promises to look for, and, of a mutation, what it breaks."""

    machine: Machine
    title: str
    promises: frozenset[str]
    cause: str


def _machines(options: argparse.Namespace) -> list[_Chosen]:
    """Each kind of page of a scenario, or of a mutation the one that it is about."""
    from ..check.mutations import MUTATIONS
    from ..check.suite import all_cases
    from ..model.arch import ARCHES
    from ..model.designs import DESIGNS
    from ..model.invariants import INVARIANTS
    from ..model.scenarios import KINDS, SCENARIOS

    _known_arch(options.arch)
    if options.design is None:
        raise InvalidArgument("DESIGN", "has to be given: which design or mutation is to be explained?")
    mutation, cause = MUTATIONS.get(options.design), ""
    if mutation:
        _known("SCENARIO", options.scenario, SCENARIOS)
        _known("--kind", options.kind, KINDS)
        scenario = SCENARIOS[options.scenario or mutation.scenario]
        kind = options.kind or (mutation.kind if mutation.kind in scenario.kinds else scenario.kinds[0])
        if kind not in scenario.kinds or not scenario.applies(mutation.broken_design):
            raise InvalidArgument("SCENARIO", f"{scenario.name} does not apply to {mutation.design} in this way")
        places = [(scenario.name, kind)]
        design, promises = mutation.broken_design, frozenset({mutation.breaks})
        rules = ", ".join(f"{rule}={_value(value)}" for rule, value in {**mutation.context, **mutation.broken}.items())
        cause = f"{mutation.design} with {rules}: {mutation.title}."
    else:
        cases = _chosen(options, all_cases())
        if options.scenario is None:
            raise InvalidArgument("SCENARIO", f"has to be given, one of {', '.join(SCENARIOS)}")
        places = [(case.scenario, case.kind) for case in cases]
        design = DESIGNS[options.design]()
        promises = frozenset(INVARIANTS) - set(design.weaknesses)
    design = design.with_rules(**_rules(options))
    return [
        _Chosen(
            SCENARIOS[name].machine(design, kind, ARCHES[options.arch]),
            f"{options.design}, {name}, {kind} page",
            promises,
            cause,
        )
        for name, kind in places
    ]


def _value(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


# ---- costs ----

_COLUMNS = {
    "page_table_writes": "entries",
    "tlb_flushes": "flushes",
    "atomics": "atomics",
    "rmap_steps": "rmap",
    "faults": "faults",
    "words_copied": "copies",
    "allocations": "frames",
    "slots": "slots",
}


def _costs(options: argparse.Namespace) -> int:
    from ..check.alone import MAPPERS, costs_of
    from ..model.designs import DESIGNS

    _known("DESIGN", options.design, DESIGNS)
    found = [
        costs_of(name, kind, mappers, way)
        for kind in ("anonymous", "shared")
        for mappers in MAPPERS
        for name, design in DESIGNS.items()
        for way, has in (("eager", design.eager), ("lazy", design.lazy))
        if has and options.design in (None, name) and kind in design.kinds
    ]
    if options.json:
        print(json.dumps({"costs": [cost.to_dict() for cost in found]}))
        return 0
    print("\n".join(_cost_table(found)))
    return 0


def _cost_table(found: Sequence[Cost]) -> Iterable[str]:
    for kind, mappers in dict.fromkeys((cost.kind, cost.mappers) for cost in found):
        touch = "store" if kind == "shared" or mappers == 1 else "load"
        yield f"a page of {kind} memory, {mappers} mapper{'s' * (mappers > 1)}; then a {touch} by each"
        names = "".join(f"{name:>9}" for name in _COLUMNS.values())
        yield f"  {'design':9} {'':6}{names}   afterwards: what the touches take more"
        for cost in found:
            if (cost.kind, cost.mappers) == (kind, mappers):
                yield _cost_line(cost)
        yield ""


def _cost_line(cost: Cost) -> str:
    moving, later = cost.moving.to_dict(), cost.later.to_dict()
    counts = "".join(f"{_in_pages(name, moving[name]):>9}" for name in _COLUMNS)
    more = [f"{_in_pages(name, later[name]):+} {word}" for name, word in _COLUMNS.items() if later[name]]
    if later["bits_set"]:
        more.append(f"{later['bits_set']:+} bits set by hardware")
    return f"  {cost.design:9} {cost.way:6}{counts}   {', '.join(more) or '-'}"


# Words are counted, two a page.
def _in_pages(name: str, count: int) -> int:
    return count // 2 if name == "words_copied" else count


# ---- random walks ----


def _random(options: argparse.Namespace) -> int:
    from ..check.walks import large_machine, walk
    from ..model.designs import DESIGNS

    _known("DESIGN", options.design, DESIGNS)
    if options.random < 1:
        raise InvalidArgument("--random", f"is {options.random}, but has to be at least 1")
    outcome: dict[str, Any] = {}
    broken = 0
    for name, design in DESIGNS.items():
        if options.design not in (None, name):
            continue
        steps, found = 0, []
        for seed in range(options.seed, options.seed + options.random):
            gone = walk(large_machine(design().with_rules(**_rules(options)), seed), seed)
            steps += gone.steps
            if gone.violation and gone.violation.invariant not in design.refuted:
                found.append(gone)
            _progress(f"{name}: {seed - options.seed + 1} of {options.random} walks")
        broken += len(found)
        outcome[name] = {"walks": options.random, "steps": steps, "broken": [_walk_dict(gone) for gone in found]}
        _progress("")
        if not options.json:
            print(f"{name:9} {format_count(options.random)} walks, {format_count(steps)} steps: {len(found)} broken")
            for gone in found[:3]:
                print(f"  seed {gone.seed}, step {gone.steps}: {': '.join(gone.violation or ())}")
    if options.json:
        print(json.dumps({"seed": options.seed, "designs": outcome}))
    return 1 if broken else 0


def _walk_dict(gone: Walk) -> dict[str, Any]:
    return {
        "seed": gone.seed,
        "steps": gone.steps,
        "broken": gone.violation and gone.violation._asdict(),
        "path": ",".join(map(str, gone.path)),
    }


# ---- printing ----


def _print(*lines: str) -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    print(*lines, sep="\n", flush=True)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
