from __future__ import annotations

import os
from pathlib import Path

import pytest

from nexttouch.errors import LabError
from nexttouch.lab import fetch as module
from nexttouch.lab.fetch import fetch, newest, read_codename, suites_to_try
from nexttouch.lab.sources import parse_lines

OFFERS = {
    "oldrel": "6.1.0-50-amd64 6.1.0-47-amd64",
    "oldrel-backports": "6.12.9+deb12-amd64 6.12.10+deb12-amd64 6.12.10+deb12-cloud-amd64 6.12.11+deb12-amd64-dbg",
    "stable": "6.12.12+deb13-amd64 6.12.12+deb13-rt-amd64 6.12.13+deb13-amd64-unsigned",
    "newrel-backports": "7.3.4+deb13-amd64 7.4.1+deb13-amd64 7.2.9+deb13-amd64",
    "testing": "7.4.2+deb14-amd64",
}

# In place of apt: it knows of each suite what OFFERS says, and of all but one that there is an archive.
APT = r"""#!/bin/sh
suite=$(basename "$PWD")
case "$*" in
*update*) echo "$suite" >>ASKED; if [ "$suite" = unstable ]; then echo "E: no such suite" >&2; exit 100; fi ;;
*pkgnames*) for release in $(cat "OFFERS/$suite"); do echo "linux-image-$release"; done; echo linux-image-amd64 ;;
*indextargets*) echo newrel ;;
*depends*) printf '  Depends: linux-base\n  Depends: linux-modules-7.3.4+deb13-amd64\n' ;;
*download*) echo "$@" >>DOWNLOADED ;;
esac
"""


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive in the folder; which suites were asked and what was loaded from them is noted there."""
    offers, tools = tmp_path / "offers", tmp_path / "tools"
    for folder in (offers, tools):
        folder.mkdir()
    for suite, releases in OFFERS.items():
        (offers / suite).write_text(releases)
    script = APT.replace("OFFERS", str(offers)).replace("ASKED", str(tmp_path / "asked"))
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        (tools / tool).write_text(script.replace("DOWNLOADED", str(tmp_path / "downloaded")))
        (tools / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(module, "read_codename", lambda text: "oldrel")
    monkeypatch.setattr(module, "system_stanzas", lambda: parse_lines("deb http://mirror.example/d oldrel main"))
    return tmp_path


@pytest.mark.parametrize(
    ("wanted", "release", "suite", "asked"),
    [
        (["6.12"], "6.12.10+deb12-amd64", "oldrel-backports", 2),
        (["6.1"], "6.1.0-50-amd64", "oldrel", 1),
        (["7.3", "6.12"], "7.3.4+deb13-amd64", "newrel-backports", 4),
        (["8.0", "6.12"], "6.12.10+deb12-amd64", "oldrel-backports", 6),
        (["6.8"], "6.12.10+deb12-amd64", "oldrel-backports", 6),
        (["7.0"], "7.2.9+deb13-amd64", "newrel-backports", 6),
    ],
)
def test_the_first_series_that_is_there_from_the_nearest_suite(
    archive: Path, wanted: list[str], release: str, suite: str, asked: int
) -> None:
    told: list[str] = []
    assert fetch(archive, wanted, told.append) == (archive / suite / "tree", release, wanted[-1 if asked == 6 else 0])
    assert told == [f"{release} from {suite}"]
    suites = [*suites_to_try("oldrel", lambda: "newrel")]
    assert (archive / "asked").read_text().split() == suites[:asked]


def test_a_kernel_in_parts_is_fetched_whole(archive: Path) -> None:
    fetch(archive, ["7.3"], lambda line: None)
    packages = (archive / "downloaded").read_text().split()
    assert packages[packages.index("download") + 1 :] == [
        "linux-image-7.3.4+deb13-amd64",
        "busybox-static",
        "linux-modules-7.3.4+deb13-amd64",
    ]


def test_a_series_that_is_not_packaged_is_refused_with_what_there_is(archive: Path) -> None:
    with pytest.raises(LabError, match=r"no suite .* gives a kernel 5\.4 or 9\.0: ") as caught:
        fetch(archive, ["5.4", "9.0"], lambda line: None)
    for words in (
        "oldrel has 6.1;",
        "newrel-backports has 7.2, 7.3, 7.4;",
        "unstable: apt-get failed: E: no such suite",
    ):
        assert words in str(caught.value)
    assert "--kernel FILE" in str(caught.value)


def test_the_nearest_suite_is_tried_first() -> None:
    assert [*suites_to_try("oldrel", lambda: "newrel")] == [
        *("oldrel", "oldrel-backports", "stable", "newrel-backports", "testing", "unstable")
    ]
    assert [*suites_to_try("newrel", lambda: "newrel")] == [
        *("newrel", "newrel-backports", "stable", "testing", "unstable")
    ]


def test_versions_compare_as_numbers() -> None:
    assert newest(["6.12.9-amd64", "6.12.95+deb12-amd64", "6.120.1-amd64"], "6.12") == "6.12.95+deb12-amd64"
    assert newest(["6.12.9-amd64"], "6.1") is None


def test_the_release_is_known_by_its_codename() -> None:
    assert read_codename('NAME="Debian GNU/Linux"\nID=debian\nVERSION_CODENAME=bookworm\n') == "bookworm"


@pytest.mark.parametrize("text", ["ID=ubuntu\nVERSION_CODENAME=noble\n", "ID=debian\n", ""])
def test_another_system_is_told_to_bring_a_kernel(text: str) -> None:
    with pytest.raises(LabError, match="--kernel"):
        read_codename(text)


def test_without_apt_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="apt-get is missing"):
        fetch(tmp_path, ["6.12"], lambda line: None)
    assert list(tmp_path.iterdir()) == []
