"""Sizes, rates and durations: read from what people type, printed as people read them.

Sizes are bytes (int), rates bytes per second (float), durations seconds (float). Binary prefixes only: a page is
4 KiB, never 4.096 kB.
"""

from __future__ import annotations

import math
import re
from numbers import Real

from .errors import InvalidArgument

__all__ = [
    "format_count",
    "format_duration",
    "format_rate",
    "format_size",
    "is_number",
    "parse_duration",
    "parse_rate",
    "parse_size",
]

_PREFIXES = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt]?)(?:i?b)?)", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ns|us|ms|s|min|h)?", re.ASCII)
_SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_DURATION_UNITS = (("ns", 1e9), ("us", 1e6), ("ms", 1e3), ("s", 1.0))
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


def parse_size(text: str, *, argument: str = "size") -> int:
    """Bytes in `text`: digits with an optional unit (B, K, KiB, KB, M, ..., T; all binary).

    >>> parse_size("128MiB"), parse_size("4k"), parse_size("1.5 GiB")
    (134217728, 4096, 1610612736)

    Raises:
        InvalidArgument: naming `argument`, when the text is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    size = float(match[1]) * 1024 ** _PREFIXES[match[2].lower()] if match else math.inf
    if not math.isfinite(size):
        raise InvalidArgument(argument, f"is {text!r}, which is not a size such as 4096, 64KiB or 1.5GiB")
    return int(size)


def parse_rate(text: str, *, argument: str = "rate") -> float:
    """Bytes a second in `text`: a size, with or without "/s".

    >>> parse_rate("500MiB/s")
    524288000.0

    Raises:
        InvalidArgument: naming `argument`, when the text is no rate or is zero.
    """
    try:
        rate = float(parse_size(text.strip().removesuffix("/s"), argument=argument))
    except InvalidArgument:
        rate = 0.0
    if rate <= 0:
        raise InvalidArgument(argument, f"is {text!r}, which is not a rate such as 500MiB/s")
    return rate


def parse_duration(text: str, *, argument: str = "duration") -> float:
    """Seconds in `text`: a number with ns, us, ms, s (the default), min or h.

    >>> parse_duration("20ms"), parse_duration("3"), parse_duration("2min")
    (0.02, 3.0, 120.0)

    Raises:
        InvalidArgument: naming `argument`, when the text is no duration.
    """
    match = _DURATION.fullmatch(text.strip())
    duration = float(match[1]) * _SECONDS[match[2] or "s"] if match else math.inf
    if not math.isfinite(duration):
        raise InvalidArgument(argument, f"is {text!r}, which is not a duration such as 20ms, 3s or 2min")
    return duration


def is_number(value: object) -> bool:
    """Whether `value` is a real number, of Python or NumPy, that a float can hold; True and False are none.

    >>> is_number(3), is_number(0.5), is_number(10**400), is_number(True), is_number("3")
    (True, True, False, False, False)
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def format_size(size: float) -> str:
    """`size` bytes with the largest binary unit that keeps it at 1 or more.

    >>> format_size(0), format_size(4096), format_size(134217728), format_size(1.5 * 2**30)
    ('0 B', '4 KiB', '128 MiB', '1.5 GiB')
    """
    number, power = float(size), 0
    while abs(round(number, 1)) >= 1024 and power < len(_SIZE_UNITS) - 1:
        number, power = number / 1024, power + 1
    return f"{number:.1f}".removesuffix(".0") + f" {_SIZE_UNITS[power]}"


def format_rate(rate: float) -> str:
    """`rate` bytes a second.

    >>> format_rate(524288000)
    '500 MiB/s'
    """
    return f"{format_size(rate)}/s"


def format_duration(seconds: float) -> str:
    """`seconds` with three significant digits and the unit that fits.

    >>> format_duration(0.0000123), format_duration(0.0204), format_duration(3.5), format_duration(150)
    ('12.3 us', '20.4 ms', '3.50 s', '2 min 30 s')
    """
    if round(seconds, 1) >= 60:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    for unit, scale in _DURATION_UNITS:
        for decimals, limit in ((2, 10), (1, 100), (0, 1000)):
            if round(seconds * scale, decimals) < limit:
                return f"{seconds * scale:.{decimals}f} {unit}"
    return f"{seconds:.1f} s"


def format_count(count: int) -> str:
    """`count` with thousands separated.

    >>> format_count(262144)
    '262,144'
    """
    return f"{count:,}"
