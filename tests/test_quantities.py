"""Sizes, rates and durations: what is printed can be read again, and what is no quantity is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexttouch.errors import InvalidArgument
from nexttouch.quantities import (
    format_count,
    format_duration,
    format_rate,
    format_size,
    is_number,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("4k", 4096),
        ("4K", 4096),
        ("4KB", 4096),
        ("4KiB", 4096),
        ("4kib", 4096),
        (" 4 KiB ", 4096),
        ("1.5GiB", 3 << 29),
        ("0.5k", 512),
        ("1M", 1 << 20),
        ("2G", 2 << 30),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert type(parse_size(text)) is int


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "k",
        "B",
        "-1",
        "+1",
        "1e3",
        "1,000",
        "1.",
        ".5",
        "1 k B",
        "1KiBs",
        "1P",
        "0x10",
        "nan",
        "inf",
        "٣",
        "1/s",
        "9" * 400,
    ],
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^memory is ") as caught:
        parse_size(text, argument="memory")
    assert caught.value.argument == "memory"
    assert repr(text) in str(caught.value)


@given(st.integers(0, 1 << 50), st.sampled_from(["", "B", "K", "k", "KiB", "KB", "M", "MiB", "G", "gib", "T", "TB"]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str) -> None:
    power = " kmgt".index(unit[0].lower()) if unit and unit[0] != "B" else 0
    assert parse_size(f"{number}{unit}") == pytest.approx(number * 1024**power)
    if number < 1 << 53:  # a float is exact up to here
        assert parse_size(str(number)) == number


@given(st.integers(0, (1 << 53) - 1))
def test_a_printed_size_is_the_size_within_its_digit(size: int) -> None:
    text = format_size(size)
    number, unit = text.split(" ")
    step = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert abs(parse_size(text) - size) <= 0.05 * step + 1
    assert float(number) >= 1 or size == 0
    assert float(number) <= 1024 or unit == "TiB"


@given(st.integers(0, 40), st.integers(1, 1023))
def test_whole_units_are_printed_and_read_exactly(power: int, number: int) -> None:
    size = number << power // 10 * 10
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "rate"), [("1", 1.0), ("500MiB/s", 500 * 2.0**20), (" 1 GiB/s ", 2.0**30), ("2k", 2048.0)]
)
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == rate
    assert type(parse_rate(text)) is float


@pytest.mark.parametrize("text", ["", "0", "0MiB/s", "-1", "fast", "1MiB/h", "1/s/s", "/s", "nan"])
def test_no_rates(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^--rate is .* not a rate") as caught:
        parse_rate(text, argument="--rate")
    assert caught.value.argument == "--rate"


@given(st.integers(1, 1 << 50))
def test_a_printed_rate_can_be_read(rate: int) -> None:
    text = format_rate(rate)
    assert text == f"{format_size(rate)}/s"
    assert parse_rate(text) == parse_size(format_size(rate))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("3", 3.0),
        ("3s", 3.0),
        ("3 s", 3.0),
        ("2.5min", 150.0),
        ("1h", 3600.0),
        ("20ms", 0.02),
        ("7us", 7e-6),
        ("250ns", 250e-9),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1m", "1 day", "1S", "1min30s", "1e3", "inf", "nan", "٣s", "9" * 400])
def test_no_durations(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^deadline is .* not a duration") as caught:
        parse_duration(text, argument="deadline")
    assert caught.value.argument == "deadline"


@given(st.floats(1e-9, 59.9))
def test_a_printed_duration_is_right_to_three_digits(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=0.0051)


@given(st.floats(60, 1e7))
def test_minutes_are_printed_to_the_second(seconds: float) -> None:
    minutes, rest = format_duration(seconds).removesuffix(" s").split(" min ")
    assert int(minutes) * 60 + int(rest) == round(seconds)
    assert int(rest) < 60


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 ns"),
        (1e-9, "1.00 ns"),
        (9.994e-4, "999 us"),
        (9.996e-4, "1.00 ms"),
        (0.99996, "1.00 s"),
        (9.996, "10.0 s"),
        (99.96e-3, "100 ms"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (60, "1 min 0 s"),
        (3600, "60 min 0 s"),
    ],
)
def test_durations_at_the_edges(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1024**2 - 1, "1 MiB"),
        (1024**2, "1 MiB"),
        (1536, "1.5 KiB"),
        (1 << 50, "1024 TiB"),
    ],
)
def test_sizes_at_the_edges(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1 << 64))
def test_counts(count: int) -> None:
    text = format_count(count)
    assert int(text.replace(",", "")) == count
    assert all(len(part) == 3 for part in text.split(",")[1:])


@pytest.mark.parametrize("number", [0, -3, 0.5, float("inf"), np.int8(3), np.float32(0.5), np.uint64(1 << 63)])
def test_numbers(number: object) -> None:
    assert is_number(number)


@pytest.mark.parametrize("other", [True, np.True_, "3", None, 1j, b"3", [3], np.array(3), 10**400])
def test_no_numbers(other: object) -> None:
    assert not is_number(other)
