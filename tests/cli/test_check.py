"""`nexttouch check`, word for word: check/NAME.txt, in which times are TIME.

`python tests/cli/test_check.py` writes them anew; then read the difference.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nexttouch.check.mutations import INEXPRESSIBLE, MUTATIONS
from nexttouch.check.subjects import SUBJECTS
from nexttouch.model.engine.programs import PROGRAMS
from nexttouch.model.scenarios import SCENARIOS

FOLDER = Path(__file__).parent / "check"
TIMEOUT = 600  # seconds: some of it is a long computation, on a machine that may have others to do

COMMANDS = {
    "help": ["--help"],
    "design-and-scenario": ["B", "lazy-nodes"],
    "refuted": ["D4-V1", "munmap"],
    "broken": ["B", "late-munmap", "--rule", "missing_locks_page=no"],
    "mutation": ["T26"],
    "explain": ["T26", "--explain"],
    "explain-what-passes": ["B", "late", "--explain"],
    "explain-each-kind": ["D4", "access", "--rule", "pushes_dirty=no", "--explain"],
    "explain-in-another-scenario": ["T26", "exec", "--explain"],
    "explain-cut-short": ["B", "late", "--explain", "--most-states", "10"],
    "explain-a-cycle": ["T02", "--explain"],
    "replay": ["T26", "--replay", "0,0,0,2,0"],
    "replay-that-does-not-fit": ["T26", "--replay", "0,0,7"],
    "replay-that-is-none": ["T26", "--replay", "first,second"],
    "replay-of-nothing": ["--replay", "0"],
    "replay-of-no-choice": ["T26", "--replay", ""],
    "mutation-elsewhere": ["T26", "exec"],
    "mutations-of-a-design": ["--mutations", "B"],
    "quick-and-explain": ["B", "late", "--quick", "--explain"],
    "engine": ["relocate", "move-two"],
    "engine-refuted": ["relocate-0.1", "unmap-in-vain"],
    "engine-explain": ["relocate-0.1", "unmap-in-vain", "--explain"],
    "engine-with-a-rule": ["relocate", "unmap-late", "--rule", "descriptor_each=no"],
    "engine-mutation": ["E-vain"],
    "engine-no-such-program": ["relocate", "access"],
    "engine-no-such-rule": ["relocate", "--rule", "counts_entries=no"],
    "engine-no-architecture": ["relocate", "move-two", "--arch", "arm64"],
    "costs": ["--costs", "B"],
    "random": ["B", "--random", "20", "--seed", "3"],
    "random-with-a-rule": ["A", "--random", "1", "--seed", "59", "--rule", "copies_locked=no"],
    "random-none": ["--random", "0"],
    "no-such-design": ["C"],
    "no-such-scenario": ["B", "lunch"],
    "no-such-kind": ["B", "late", "--kind", "huge"],
    "no-such-architecture": ["B", "late", "--arch", "vax"],
    "no-such-rule": ["B", "late", "--rule", "hopes=yes"],
    "rule-without-a-value": ["B", "late", "--rule", "counts_entries"],
    "no-such-value": ["B", "late", "--rule", "counts_entries=2"],
    "cut-short": ["B", "late", "--most-states", "1000"],
    "no-states": ["B", "late", "--most-states", "0"],
    "does-not-apply": ["D4", "lazy-access"],
    "explain-without-a-scenario": ["B", "--explain"],
    "explain-what-passes-on-a-page": ["B", "late", "--html", "none.html"],
    "costs-of-a-rule": ["B", "--costs", "--rule", "counts_entries=no"],
    "costs-and-mutations": ["--costs", "--mutations"],
    "random-in-a-scenario": ["B", "late", "--random", "3"],
    "seed-of-a-search": ["B", "late", "--seed", "7"],
    "an-architecture-without-a-tag": ["B", "late", "--arch", "ppc64-2006"],
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nexttouch", "check", *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env=os.environ | {"COLUMNS": "100", "LC_ALL": "C.UTF-8"},
    )


def transcript(words: list[str]) -> str:
    done = run(*words)
    text = re.sub(
        r"^usage: .*?(?=^\S|^$)", lambda usage: " ".join(usage[0].split()) + "\n", done.stdout, flags=re.M | re.S
    )
    text = re.sub(r" +\d+\.\d\ds", "  TIME", text)
    text = re.sub(r"in \d+ s of search", "in TIME of search", text)
    errors = f"--- standard error\n{done.stderr}" if done.stderr else ""
    return f"$ nexttouch check {shlex.join(words)}\n{text}{errors}--- exit status {done.returncode}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_word_for_word(name: str) -> None:
    assert transcript(COMMANDS[name]) == (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def test_every_transcript_is_of_a_test() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(COMMANDS)


def test_misuse_is_one_line_that_lists_what_there_is() -> None:
    for words, names in ((["C"], SUBJECTS), (["B", "lunch"], SCENARIOS), (["relocate", "lunch"], PROGRAMS)):
        done = run(*words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert all(name in done.stderr for name in names)


def answer(*words: str, status: int = 0) -> dict[str, Any]:
    done = run(*words, "--json")
    assert (done.returncode, done.stderr) == (status, "")
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_json_of_a_check() -> None:
    found = answer("B", "late")
    assert found["good"] is True
    (case,) = found["cases"]
    assert set(case) == {
        *("design", "scenario", "kind", "verdict", "states", "transitions", "depth", "seconds", "violation"),
        *("path", "costs", "missing"),
    }
    assert (case["design"], case["states"], case["violation"]) == ("B", 4484, None)


def test_json_of_a_mutation_and_its_path() -> None:
    found = answer("T26")
    assert (found["mutation"], found["breaks"], found["steps"], found["fixed"]) == ("T26", "I-LOSTWRITE", 16, "passes")
    path = answer("T26", "--explain", status=1)
    assert set(path) == {"title", "cause", "threads", "violation", "choices", "start", "steps"}
    assert path["choices"] == found["path"]
    again = answer("T26", "--replay", str(found["path"]), status=1)
    assert again["steps"] == path["steps"]


def test_json_of_what_is_not_to_be_explained() -> None:
    searched = [{"title": "B, late, shared page", "states": 4484, "complete": True}]
    assert answer("B", "late", "--explain") == {"violation": None, "searched": searched}


def test_json_of_all_mutations() -> None:
    found = answer("--mutations")
    assert found["good"] is True
    assert [mutation["mutation"] for mutation in found["mutations"]] == list(MUTATIONS)
    assert found["inexpressible"] == INEXPRESSIBLE


def test_json_of_costs_and_walks() -> None:
    costs = answer("--costs", "D4")["costs"]
    assert {(cost["design"], cost["way"]) for cost in costs} == {("D4", "eager")}
    assert set(answer("B", "--random", "3")) == {"seed", "designs"}


def test_a_page_is_written(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    done = run("A-again", "--html", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"wrote {file}\n")
    HTMLParser().feed(file.read_text(encoding="utf-8"))
    refused = run("A-again", "--html", str(tmp_path / "none" / "page.html"))
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "cannot be written" in refused.stderr


if __name__ == "__main__":
    for name, words in COMMANDS.items():
        (FOLDER / f"{name}.txt").write_text(transcript(words), encoding="utf-8")
