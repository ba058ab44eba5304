"""Figures for people: a table, with what each ratio was made of below it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nexttouch.quantities import format_duration, format_size

from .figures import UNSTABLE, Figure, Series
from .suite import Results

__all__ = ["render"]

_IDLE = 0.5  # load


def render(results: Results) -> str:
    """Return the whole report as text."""
    return "\n".join(_lines(results)) + "\n"


def _lines(results: Results) -> Iterator[str]:
    for where, machine in results.machines.items():
        yield from _machine_lines(where, machine)
        for figure in results.figures:
            if figure.where == where:
                yield ""
                yield from _figure_lines(figure)
        yield ""
    met = sum(figure.met for figure in results.figures)
    yield f"{met} of {len(results.figures)} floors met"


def _machine_lines(where: str, machine: dict[str, Any]) -> Iterator[str]:
    kind = "virtual machine" if machine["hypervisor"] else "machine"
    nodes = f"{machine['nodes']} node{'s' * (machine['nodes'] > 1)}"
    yield f"{where}: {machine['cpu']} ({kind}), {machine['cpus']} CPUs, {nodes}, {format_size(machine['memory'])}"
    yield (
        f"    Linux {machine['kernel']}, huge pages {machine['transparent_huge_pages']}, "
        f"NUMA balancing {machine['numa_balancing'] or 'not there'}"
    )
    yield f"    Python {machine['python']}, nexttouch {machine['nexttouch']} {(machine['commit'] or '')[:12]}".rstrip()
    yield f"    load {machine['load'][0]:.2f} at the begin, {machine['load_after'][0]:.2f} at the end"
    if machine["load"][0] > _IDLE:
        yield "    WARNING: the machine was not idle when this began; figures may be off"


def _figure_lines(figure: Figure) -> Iterator[str]:
    verdict = "met" if figure.met else "MISSED"
    if not figure.certain:
        verdict += " (uncertain: the quartiles lie on both sides)"
    yield f"{figure.name}: {figure.title}"
    yield f"    {_quantity(figure.value)}    floor {_bound(figure)}    {verdict}"
    for side in figure.sides:
        yield f"    {_quantity(side)}    {side.label}"
    if figure.value.unstable:
        yield f"    WARNING: unstable: the quartiles are more than {UNSTABLE:.0%} of the median apart"
    if figure.note:
        yield f"    {figure.note}"


def _quantity(series: Series) -> str:
    low, high = series.quartiles
    text = f"{_number(series, series.median)} ({_number(series, low)} .. {_number(series, high)})"
    return f"{text} {series.unit if series.unit != 's' else ''}".rstrip().ljust(44)


def _number(series: Series, value: float) -> str:
    return format_duration(value) if series.unit == "s" else f"{value:.3g}"


def _bound(figure: Figure) -> str:
    sign = "<=" if figure.at_most else ">="
    return f"{sign} {_number(figure.value, figure.floor)}"
