"""The package archives the system is configured for, read from apt's source lists (sources.list(5)).

Both formats are read into the fields of the newer one (deb822): a stanza is a dict of its fields, names in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import LabError

__all__ = ["Stanza", "for_suites", "main_archive", "parse_deb822", "parse_lines", "system_stanzas", "write_deb822"]

Stanza = dict[str, str]

_LINE = re.compile(r"(?P<types>deb)\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uris>\S+)\s+(?P<suites>\S+)(?P<components>.*)")
_OPTION_FIELDS = {"arch": "architectures", "lang": "languages", "target": "targets"}


def parse_lines(text: str) -> list[Stanza]:
    """Read the binary archives of a *.list file: one `deb [options] uri suite components` a line.

    >>> parse_lines("deb [signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib")
    [{'types': 'deb', 'uris': 'http://mirror.example/debian', 'suites': 'bookworm', 'components': 'main contrib',
      'signed-by': '/k.gpg'}]
    """
    stanzas = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line.partition("#")[0].strip())
        if match:
            stanza = {name: match[name].strip() for name in ("types", "uris", "suites", "components")}
            options = (option.partition("=") for option in (match["options"] or "").split())
            stanza |= {_OPTION_FIELDS.get(name.lower(), name.lower()): value for name, _, value in options}
            stanzas.append(stanza)
    return stanzas


def parse_deb822(text: str) -> list[Stanza]:
    """Read the enabled binary archives of a *.sources file; a field may go on in indented lines, as a key does."""
    stanzas: list[Stanza] = [{}]
    field = ""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if not line.strip():
            stanzas.append({})
        elif line[0] in " \t":
            stanzas[-1][field] = stanzas[-1].get(field, "") + "\n" + line
        else:
            name, _, value = line.partition(":")
            field = name.strip().lower()
            stanzas[-1][field] = value.strip()
    return [s for s in stanzas if "deb" in s.get("types", "").split() and s.get("enabled", "yes").lower() != "no"]


def write_deb822(stanzas: Iterable[Stanza]) -> str:
    """Write the text of a *.sources file with `stanzas`."""
    return "\n".join("".join(f"{name}: {value}\n" for name, value in stanza.items()) for stanza in stanzas)


def system_stanzas(etc: Path = Path("/etc/apt")) -> list[Stanza]:
    """All archives the system is configured for, in apt's order."""
    parts = sorted((etc / "sources.list.d").glob("*"))
    stanzas = []
    for path in [etc / "sources.list", *parts]:
        if path.suffix == ".list" and path.is_file():
            stanzas += parse_lines(path.read_text(errors="replace"))
        elif path.suffix == ".sources" and path.is_file():
            stanzas += parse_deb822(path.read_text(errors="replace"))
    return stanzas


def main_archive(stanzas: Iterable[Stanza], codename: str) -> Stanza:
    """Find the archive that has suite `codename` with component main: where the release itself comes from.

    Raises:
        LabError: there is none.
    """
    for stanza in stanzas:
        if codename in stanza.get("suites", "").split() and "main" in stanza.get("components", "").split():
            return stanza
    raise LabError(
        f"apt has no source for suite {codename} with component main, where a guest kernel could be fetched from; "
        "add it to /etc/apt/sources.list.d, or give a kernel of your own with --kernel"
    )


def for_suites(archive: Stanza, suites: Iterable[str]) -> list[Stanza]:
    """`archive`, its address and its key, but with `suites` and component main."""
    return [archive | {"types": "deb", "suites": suite, "components": "main"} for suite in suites]
