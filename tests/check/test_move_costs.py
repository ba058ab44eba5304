"""What designs do when nobody disturbs them: the table of costs."""

from __future__ import annotations

import pytest

from nexttouch.check.move_costs import MAPPERS, costs_of
from nexttouch.costs import EventCounts
from nexttouch.errors import InvalidArgument
from nexttouch.model.designs import DESIGNS

EAGER = [name for name, design in DESIGNS.items() if design.eager]


@pytest.mark.parametrize("mappers", MAPPERS)
@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("kind", ["anonymous", "shared"])
def test_an_eager_move(name: str, kind: str, mappers: int) -> None:
    moving = costs_of(name, kind, mappers, "eager").moving
    removes = kind == "shared" and name in ("D1", "D2")
    assert moving.page_table_writes == mappers * (1 if removes else 2)
    assert moving.tlb_flushes == (1 if name in ("B", "B-F1", "mainline") else mappers)
    assert moving.rmap_steps == 2 * mappers
    assert (moving.words_copied, moving.allocations, moving.faults) == (2, 1, 0)
    assert moving.slots == (name in ("D1", "D2") and kind == "anonymous")


@pytest.mark.parametrize("mappers", MAPPERS)
def test_faults_that_come_later(mappers: int) -> None:
    def faults(name: str, kind: str) -> int:
        return costs_of(name, kind, mappers, "eager").later.faults

    assert faults("D1", "shared") == faults("D4-V1", "shared") == mappers
    assert faults("D4", "shared") == faults("B", "shared") == faults("mainline", "shared") == 0
    assert faults("D1", "anonymous") == (mappers == 1)  # with several mappers the touch is a load
    assert costs_of("D4", "anonymous", mappers, "eager").later.bits_set == (mappers if mappers > 1 else 0)
    assert costs_of("B", "anonymous", mappers, "eager").later == EventCounts()


@pytest.mark.parametrize("mappers", MAPPERS)
def test_a_lazy_move(mappers: int) -> None:
    marked = costs_of("B", "anonymous", mappers, "lazy")
    assert marked.moving == EventCounts(page_table_writes=mappers, tlb_flushes=mappers)
    assert (marked.later.faults, marked.later.words_copied, marked.later.allocations) == (1, 2, 1)
    unmapped = costs_of("D3", "anonymous", mappers, "lazy")
    assert (unmapped.moving.slots, unmapped.later.faults, unmapped.later.words_copied) == (1, mappers, 2)
    assert unmapped.later.rmap_steps == 0
    protected = costs_of("A", "anonymous", mappers, "lazy")
    assert protected.later.words_copied == (2 if mappers == 1 else 0)


def test_a_way_that_a_design_has_not() -> None:
    with pytest.raises(InvalidArgument, match="way is 'lazy', which D4 has not"):
        costs_of("D4", "shared", 1, "lazy")


def test_counts_add_up() -> None:
    one, two = EventCounts(faults=1, slots=2), EventCounts(faults=3)
    assert one + two - two == one
    assert EventCounts.of({"faults": 1, "slots": 2, "something else": 5}) == one
    assert list(one.to_dict()) == list(EventCounts.names())
