"""The core's files stand on floors: each calls only what the ones above it in internal.h declare."""

from __future__ import annotations

import re
from pathlib import Path

import nexttouch

CORE = Path(nexttouch.__file__).parent / "_core"
HEADER = (CORE / "internal.h").read_text()
FILES = re.findall(r"^/\* (\w+\.c)\b", HEADER, re.MULTILINE)
"""In the order in which internal.h declares what they have."""

MECHANISMS = ("relocate.c", "write_protect.c", "rwp.c", "mechanisms.c")
"""They declare tables, not functions, and stand on what is above the first file that uses a table."""


def code(name: str) -> str:
    text = re.sub(r"/\*.*?\*/", "", (CORE / name).read_text(), flags=re.DOTALL)
    return re.sub(r'"(\\.|[^"\\])*"', '""', text)


def declared() -> dict[str, str]:
    """Functions by the file that has them."""
    found: dict[str, str] = {}
    for name, after in zip(FILES, [*FILES[1:], None], strict=True):
        start = HEADER.index(f"/* {name}")
        end = HEADER.index(f"/* {after}") if after else len(HEADER)
        section = re.sub(r"/\*.*?\*/", "", HEADER[start:end], flags=re.DOTALL)
        found |= dict.fromkeys(re.findall(r"(\w+)\(", re.sub(r"\([^()]*\)", "(", section)), name)
    return found


def calls(name: str) -> set[str]:
    return set(re.findall(r"(?<![.>\w])(\w+)\b", code(name)))  # not fields of tables


def test_every_file_has_its_floor() -> None:
    files = {path.name for path in CORE.glob("*.c")} - {"module.c", *MECHANISMS}
    assert len(FILES) == len(set(FILES))
    assert files == set(FILES)


def test_a_file_calls_only_those_above_it() -> None:
    homes = declared()
    for name in FILES:
        above = FILES[: FILES.index(name) + 1]
        wrong = {called: homes[called] for called in calls(name) & homes.keys() if homes[called] not in above}
        assert not wrong, f"{name} calls what stands below it"


def test_mechanisms_know_no_loop_no_events_and_no_process() -> None:
    homes = declared()
    above = FILES[: FILES.index("sweep_pace.c")]
    for name in MECHANISMS:
        wrong = {called: homes[called] for called in calls(name) & homes.keys() if homes[called] not in above}
        assert not wrong, f"{name} calls what stands below it"


def test_no_file_asks_which_mechanism_it_is() -> None:
    for path in CORE.glob("*.c"):
        if path.name not in ("module.c", "mechanisms.c"):
            assert not re.search(r"NT_(RELOCATE|WRITE_PROTECT|RWP)\b", code(path.name)), path.name
            assert "options.mechanism" not in code(path.name), path.name
