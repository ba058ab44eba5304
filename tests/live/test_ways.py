"""What is concluded from the probes: which ways to move pages there are."""

from __future__ import annotations

import pytest

from nexttouch.linux.features import Probe, probe
from nexttouch.live.mechanisms import MECHANISMS
from nexttouch.live.mechanisms.ways import Way, suffices, ways

NAMES = [found.name for found in probe()]
RWP = ["rwp", "rwp inline"]
RELOCATE = ["relocate", "relocate inline"]
PROTECT = ["write_protect", "write_protect shared"]


def made_up(**available: bool) -> list[Probe]:
    return [
        Probe(name, "", True) if available.get(name, True) else Probe(name, "", False, "cause", "do this")
        for name in NAMES
    ]


def working(*lacking: str) -> list[str]:
    return [way.name for way in ways(made_up(**dict.fromkeys(lacking, False))) if way.available]


def test_every_mechanism_is_a_way() -> None:
    names = [way.name for way in ways(made_up())]
    assert names == ["eager", *RWP, *RELOCATE, *PROTECT, "attach"]
    assert {mechanism.name for mechanism in MECHANISMS} < set(names)


@pytest.mark.parametrize(
    ("lacking", "left"),
    [
        (["move_pages"], []),
        (["pagemap"], []),
        (["userfaultfd"], ["eager", "rwp inline", "relocate inline"]),
        (["userfaultfd, user mode"], ["eager", "rwp", "relocate", *PROTECT, "attach"]),
        (["ptrace"], ["eager", *RWP, *RELOCATE, *PROTECT]),
        (["userfaultfd RWP"], ["eager", *RELOCATE, *PROTECT, "attach"]),
        (["userfaultfd MOVE"], ["eager", *RWP, *PROTECT, "attach"]),
        (["userfaultfd SIGBUS"], ["eager", "rwp", "relocate", *PROTECT, "attach"]),
        (["userfaultfd PAGEFAULT_FLAG_WP"], ["eager", *RWP, *RELOCATE, "attach"]),
        (["userfaultfd RWP", "userfaultfd PAGEFAULT_FLAG_WP"], ["eager", *RELOCATE]),
        (["userfaultfd WP_HUGETLBFS_SHMEM"], ["eager", *RWP, *RELOCATE, "write_protect", "attach"]),
    ],
    ids=" and ".join,
)
def test_a_way_needs_what_it_is_made_of(lacking: list[str], left: list[str]) -> None:
    assert working(*lacking) == left


@pytest.mark.parametrize(
    ("lacking", "enough"),
    [
        ([], True),
        (["userfaultfd RWP"], True),
        (["userfaultfd MOVE"], True),
        (["userfaultfd RWP", "userfaultfd MOVE"], False),
        (["userfaultfd RWP", "userfaultfd PAGEFAULT_FLAG_WP"], False),
        (["move_pages"], False),
    ],
)
def test_what_is_enough(lacking: list[str], enough: bool) -> None:
    assert suffices(ways(made_up(**dict.fromkeys(lacking, False)))) == enough


def test_attaching_says_what_it_sees() -> None:
    def purpose(*lacking: str) -> str:
        return ways(made_up(**dict.fromkeys(lacking, False)))[-1].purpose

    assert purpose() == "another program's memory, when it is touched"
    assert purpose("userfaultfd RWP") == "another program's memory, when it is written"


@pytest.mark.parametrize(
    ("lacking", "remedy"),
    [
        (["userfaultfd"], 'do this; or use service="inline", which works here'),
        (["userfaultfd", "userfaultfd, user mode"], "do this"),
        (["userfaultfd MOVE"], "do this"),
    ],
)
def test_the_remedy_for_who_may_not_serve_system_calls(lacking: list[str], remedy: str) -> None:
    found = {way.name: way for way in ways(made_up(**dict.fromkeys(lacking, False)))}
    assert found["relocate"].remedy == remedy


def test_a_way_names_what_it_lacks() -> None:
    eager = next(iter(ways(made_up(move_pages=False))))
    assert eager == Way("eager", "everything movable, now", False, "move_pages: cause", "do this")
