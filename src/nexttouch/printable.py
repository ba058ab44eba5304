"""Text of the kernel's as it may be shown: paths, names of processes and control groups are whatever a program says."""

from __future__ import annotations

__all__ = ["printable"]

_ESCAPED_BYTES = range(0xDC80, 0xDD00)  # what surrogateescape makes of bytes that are no UTF-8


def printable(text: str) -> str:
    r"""Return `text` with all that a terminal would not show as a character written out: \x1b, \xff, \u202e.

    So nothing in it moves the cursor, changes colours or the direction of what follows, or is no UTF-8. A backslash
    stays as it is, as in what the kernel escapes itself (a newline in a path is \012).

    >>> print(printable("/tmp/\x1b[31mred\udcff"))
    /tmp/\x1b[31mred\xff
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if code in _ESCAPED_BYTES else character.encode("unicode_escape").decode("ascii")
