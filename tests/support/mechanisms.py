"""The mechanisms of the registry as parameters of tests: a new one is tested for having its line there."""

from __future__ import annotations

from typing import Any

import pytest

from nexttouch.live.mechanisms import MECHANISMS, Mechanism, named, userfaultfd_features, working

__all__ = ["WAYS", "foreign", "service", "traps_touches", "way"]

_WORKING = working(userfaultfd_features())


def _parameter(value: object, mechanism: Mechanism, name: str) -> Any:
    lacks = pytest.mark.skipif(mechanism not in _WORKING, reason=f"this kernel has no {mechanism.name}")
    return pytest.param(value, id=name, marks=lacks)


def _parameters(mechanisms: tuple[Mechanism, ...]) -> list[Any]:
    return [
        _parameter({"mechanism": each.name, "service": who}, each, each.name + suffix)
        for each in mechanisms
        for who, suffix in (("thread", ""), *[("inline", "-inline")] * each.inline)
    ]


way = pytest.mark.parametrize("options", _parameters(MECHANISMS))
"""`options` of `lazy`: each mechanism with each service that it has."""

service = pytest.mark.parametrize("options", _parameters((named("relocate"),)))
"""`options` of `lazy`: the mechanism that is told of changes of mappings, with each of its services."""

WAYS: list[dict[str, Any]] = [parameter.values[0] for parameter in _parameters(_WORKING)]
"""The options of all that this kernel can do."""

foreign = pytest.mark.parametrize("trap", [_parameter(each, each, each.name) for each in MECHANISMS if each.foreign])
"""`trap`: each mechanism that works on another process."""


def traps_touches(options: dict[str, Any]) -> bool:
    """Whether the mechanism of these options of `lazy` traps loads, too."""
    return any(each.name == options["mechanism"] and each.traps == "any touch" for each in MECHANISMS)
