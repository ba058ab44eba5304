from __future__ import annotations

from pathlib import Path

import pytest

from nexttouch.errors import LabError
from nexttouch.lab.sources import (
    for_suites,
    main_archive,
    parse_deb822,
    parse_lines,
    system_stanzas,
    write_deb822,
)

LINES = """\
# deb http://off.example/debian bookworm main
deb http://mirror.example/debian bookworm main contrib # the release
deb-src http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/keys/a.gpg] https://other.example/apt stable tools
deb\thttp://flat.example/ ./
nonsense
"""
SOURCES = """\
Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Enabled: no
Types: deb
URIs: http://off.example
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example
Suites: bookworm
Components: main
"""


def test_lines_give_binary_archives_with_their_options() -> None:
    first, second, flat = parse_lines(LINES)
    assert first == {
        "types": "deb",
        "uris": "http://mirror.example/debian",
        "suites": "bookworm",
        "components": "main contrib",
    }
    assert second["architectures"] == "amd64"
    assert second["signed-by"] == "/keys/a.gpg"
    assert (flat["suites"], flat["components"]) == ("./", "")


def test_deb822_gives_enabled_binary_archives_with_embedded_keys() -> None:
    (stanza,) = parse_deb822(SOURCES)
    assert stanza["suites"] == "bookworm bookworm-updates"
    assert stanza["signed-by"] == "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc"


def test_written_stanzas_read_the_same() -> None:
    stanzas = parse_deb822(SOURCES) + parse_lines(LINES)
    assert parse_deb822(write_deb822(stanzas)) == stanzas


def test_the_archive_of_the_release_is_used_for_other_suites_with_its_address_and_key() -> None:
    archive = main_archive(parse_lines(LINES) + parse_deb822(SOURCES), "bookworm")
    assert archive["components"] == "main contrib"
    archive = main_archive(parse_deb822(SOURCES), "bookworm")
    newer, own = for_suites(archive, ["stable", "bookworm"])
    assert (newer["suites"], own["suites"]) == ("stable", "bookworm")
    assert newer["types"] == "deb"
    assert newer["components"] == "main"
    assert newer["uris"] == archive["uris"]
    assert newer["signed-by"] == archive["signed-by"]


def test_an_archive_of_another_release_or_another_component_will_not_do() -> None:
    with pytest.raises(LabError, match=r"no source for suite bookworm .* --kernel"):
        main_archive(parse_lines("deb http://m.example trixie main\ndeb http://m.example bookworm contrib"), "bookworm")


def test_both_kinds_of_files_are_read_and_others_are_not(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://one.example a main\n")
    (parts / "b.sources").write_text(SOURCES)
    (parts / "a.list").write_text("deb http://two.example b main\n")
    (parts / "c.list.save").write_text("deb http://off.example c main\n")
    addresses = [stanza["uris"] for stanza in system_stanzas(tmp_path)]
    assert addresses == ["http://one.example", "http://two.example", "http://mirror.example/debian"]


def test_no_files_no_archives(tmp_path: Path) -> None:
    assert system_stanzas(tmp_path) == []
