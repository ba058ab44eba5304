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


def test_the_numbers_are_those_of_the_core() -> None:
    """The core's `enum nt_reason` counts on from NT_REASON; reasons that only Python gives follow it."""
    text = re.sub(r"/\*.*?\*/", "", (HEADERS / "internal.h").read_text(), flags=re.DOTALL)
    found = re.search(r"enum nt_reason \{(.*?)\}", text, re.DOTALL)
    first = re.search(r"NT_REASON = (\d+)", (HEADERS / "pager.h").read_text())
    assert found
    assert first
    names = re.findall(r"NT_(\w+)", found[1].replace("= NT_REASON", ""))
    assert {name: int(first[1]) + number for number, name in enumerate(names)} == {
        each.name: each.value for each in Reason if each < Reason.PARTIAL
    }
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
