"""Reasons: the same numbers in Python and C, and a sentence for each."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from nexttouch import Reason
from nexttouch.live import reason
from nexttouch.live.reason import describe, keyed

HEADERS = Path(reason.__file__).parents[1] / "_core"

PYTHONS_OWN = {"PARTIAL", "UNTRAPPED", "NOT_MAPPED", "UNREACHED"}
"""Reasons that the core never gives."""


def test_the_numbers_are_those_of_the_core() -> None:
    """The core's `enum nt_reason` counts on from NT_REASON, or says the number; Python alone has some more."""
    text = re.sub(r"/\*.*?\*/", "", (HEADERS / "internal.h").read_text(), flags=re.DOTALL)
    found = re.search(r"enum nt_reason \{(.*?)\}", text, re.DOTALL)
    first = re.search(r"NT_REASON = (\d+)", (HEADERS / "pager.h").read_text())
    assert found
    assert first
    numbers, following = {}, int(first[1])
    for name, given in re.findall(r"NT_(\w+)(?: = (\w+))?", found[1]):
        numbers[name] = int(given) if given.isdecimal() else following
        following = numbers[name] + 1
    assert numbers.items() <= {each.name: each.value for each in Reason}.items()
    assert {each.name for each in Reason} - numbers.keys() == PYTHONS_OWN
    assert max(each.value for each in Reason) < 256


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
