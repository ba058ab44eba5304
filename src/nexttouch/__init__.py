"""Lazy page migration for Linux: memory moves to the right NUMA node when it is next touched.

>>> import nexttouch as nt
>>> with nt.next_touch(array): run_workers(array)    # each page goes to the node of the thread that touches it next
>>> with nt.lazy(array, to=1): run_workers(array)    # each goes to node 1 when it is touched; a sweep takes the rest
>>> nt.move(array, to=0).moved                       # all pages go to node 0 now
1024
>>> nt.attach(pid, to=1).wait()                      # the memory of a running program goes to node 1 as it is written
True

Importing the package loads none of these: each comes in when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .errors import (
    FeatureMissing,
    InvalidArgument,
    KernelError,
    LabError,
    NexttouchError,
    NodeUnavailable,
    NoSuchNode,
    NoSuchProcess,
    NotPermitted,
    TargetRefused,
)
from .topology import Topology, topology  # now: later the submodule would take the function's name

if TYPE_CHECKING:
    from .allocate import empty, zeros
    from .live.attach import attach
    from .live.eager import MoveResult, move
    from .live.lazy import lazy, next_touch
    from .live.migration import Migration, migrations
    from .live.reason import Reason
    from .live.stats import Stats
    from .placement import Placement, where

__version__ = "0.1.0"

_HOMES = {
    "Migration": "live.migration",
    "MoveResult": "live.eager",
    "Placement": "placement",
    "Reason": "live.reason",
    "Stats": "live.stats",
    "attach": "live.attach",
    "empty": "allocate",
    "lazy": "live.lazy",
    "migrations": "live.migration",
    "move": "live.eager",
    "next_touch": "live.lazy",
    "where": "placement",
    "zeros": "allocate",
}

__all__ = [
    "FeatureMissing",
    "InvalidArgument",
    "KernelError",
    "LabError",
    "Migration",
    "MoveResult",
    "NexttouchError",
    "NoSuchNode",
    "NoSuchProcess",
    "NodeUnavailable",
    "NotPermitted",
    "Placement",
    "Reason",
    "Stats",
    "TargetRefused",
    "Topology",
    "attach",
    "empty",
    "lazy",
    "migrations",
    "move",
    "next_touch",
    "topology",
    "where",
    "zeros",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nexttouch' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
