from __future__ import annotations

from pathlib import Path

import pytest

from nexttouch.errors import LabError
from nexttouch.lab.fetch import fetch, read_codename, suites_to_try, version_of


def test_the_nearest_suite_is_tried_first() -> None:
    assert list(suites_to_try("bookworm")) == ["bookworm", "bookworm-backports", "stable", "testing", "unstable"]


def test_versions_compare_as_numbers() -> None:
    assert version_of("linux-image-6.12.95+deb12-amd64") == (6, 12)
    assert version_of("linux-image-6.9.7-amd64") < (6, 12)
    assert version_of("linux-base-amd64") == (0, 0)


def test_the_release_is_known_by_its_codename() -> None:
    assert read_codename('NAME="Debian GNU/Linux"\nID=debian\nVERSION_CODENAME=bookworm\n') == "bookworm"


@pytest.mark.parametrize("text", ["ID=ubuntu\nVERSION_CODENAME=noble\n", "ID=debian\n", ""])
def test_another_system_is_told_to_bring_a_kernel(text: str) -> None:
    with pytest.raises(LabError, match="--kernel"):
        read_codename(text)


def test_without_apt_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="apt-get is missing"):
        fetch(tmp_path, lambda line: None)
    assert list(tmp_path.iterdir()) == []
