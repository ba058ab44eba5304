"""The session in README.md, run as it stands there."""

from __future__ import annotations

import doctest
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.lab
def test_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from next_touch import run_workers

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (session,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    parsed = doctest.DocTestParser().get_doctest(session, {"run_workers": run_workers}, "README", "README.md", 0)
    assert len(parsed.examples) == 9
    allowed = os.sched_getaffinity(0)
    try:
        found = doctest.DocTestRunner().run(parsed, out=sys.stderr.write)
    finally:
        os.sched_setaffinity(0, allowed)
    assert (found.attempted, found.failed) == (9, 0)


def test_what_it_links_to_is_there() -> None:
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)\)", file.read_text(encoding="utf-8")):
            assert (file.parent / target).exists(), f"{file.name} links to {target}"
