"""Reasons: the same numbers in Python and C, and a sentence for each."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from nexttouch import Reason, _core
from nexttouch.live import reason
from nexttouch.live.reason import describe, keyed

HEADERS = Path(reason.__file__).parents[1] / "_core"

PYTHONS_OWN = {"PARTIAL", "UNTRAPPED", "NOT_MAPPED", "UNREACHED"}
"""Reasons that the core never gives."""


def test_the_numbers_are_those_of_the_core() -> None:
    numbers = {name.upper(): number for name, number in _core.REASONS.items()}
    assert numbers.items() <= {each.name: each.value for each in Reason}.items()
    assert {each.name for each in Reason} - numbers.keys() == PYTHONS_OWN
    assert len({*_core.REASONS.values(), *_core.STATES.values()}) == len(_core.REASONS) + len(_core.STATES)
    assert max(each.value for each in Reason) < 256


def test_the_core_exports_every_reason_that_it_has() -> None:
    text = re.sub(r"/\*.*?\*/", "", (HEADERS / "pager.h").read_text(), flags=re.DOTALL)
    found = re.search(r"enum nt_reason \{(.*?)\}", text, re.DOTALL)
    assert found
    assert {name.lower() for name in re.findall(r"^\s*NT_(\w+)", found[1], re.MULTILINE)} == _core.REASONS.keys()


@pytest.mark.parametrize("each", Reason, ids=lambda each: each.name)
def test_every_reason_has_a_sentence(each: Reason) -> None:
    assert each.sentence
    assert each.sentence[0].islower()
    assert not each.sentence.endswith(".")


def test_no_two_reasons_say_the_same() -> None:
    assert len({each.sentence for each in Reason}) == len(Reason)


def test_describe_puts_the_most_frequent_first_and_leaves_out_what_is_not() -> None:
    left = Counter({Reason.BUSY: 1, Reason.AT_HOME: 1234567, Reason.SHARED: 0})
    assert describe(left) == [
        "1,234,567 pages: on the right node already",
        "1 page: pinned for a device or in use by the kernel; try again later",
    ]
    assert describe({}) == []


def test_keyed_is_in_the_order_of_the_reasons() -> None:
    left = {Reason.PARTIAL: 2, Reason.ABSENT: 1, Reason.UNTOUCHED: 0, Reason.TARGET_FULL: 3}
    assert list(keyed(left).items()) == [("absent", 1), ("target_full", 3), ("partial", 2)]
