"""A path for people: the text to the last column, and the page as a browser reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from nexttouch.check.counterexample import Change, Path, PathStep
from nexttouch.check.explorer import Choice
from nexttouch.model.violation import Violation
from nexttouch.report.lanes import text
from nexttouch.report.page import page

Taken = tuple[tuple[Choice, str, dict[str, str]], ...]
"""Steps: who, what it is called, the fields that it changes."""

PROMISES = {"I-LOSTWRITE": "every store is in the frame that its page resolves to"}
START = {"page table 0:0": "present frame 0 W A", "frame 0 page lock": "-", "frame 0 contents": "1 2"}
STEPS: Taken = (
    (Choice(0), "migrate: lock", {"frame 0 page lock": "thread 0"}),
    (Choice(0, 1), "migrate: begin", {}),
    (Choice(2), "store", {"page table 0:0": "valid, not present frame 0 W A", "frame 0 contents": "1 12"}),
)
SCRIPTS = (
    "thread 0, address space 0, node 0: migrate",
    "thread 1, address space 0, node 1: load[0]",
    "thread 2, address space 0, node 1: store[1] = 12",
)
VOID = {"meta", "input"}


def path_of(steps: Taken = STEPS, scripts: tuple[str, ...] = SCRIPTS) -> Path:
    state, made = START, []
    for choice, name, after in steps:
        changes = tuple(Change(field, state[field], now) for field, now in after.items())
        state = state | after
        made.append(PathStep(choice, name, changes, state, tuple(f"about {number}" for number in range(len(scripts)))))
    violation = Violation("I-LOSTWRITE", "the file has (1, 2) in frame 2, where (1, 12) was stored")
    return Path("B late shared", scripts, START, tuple(made), violation)


def of_threads(count: int) -> Path:
    """Every thread takes a step, and changes much."""
    scripts = tuple(f"thread {number}, address space 0, node 0: store[0] = 1" for number in range(count))
    after = {"page table 0:0": "valid, not present frame 0 W A D"}
    return path_of(tuple((Choice(number), f"store: step {number}", after) for number in range(count)), scripts)


# ---- text ----


def test_the_text_is_cause_scripts_lanes_and_replay() -> None:
    assert text(path_of(), 66, PROMISES) == (
        "The file has (1, 2) in frame 2, where (1, 12) was stored.\n"
        "This breaks I-LOSTWRITE: every store is in the frame that its page\n"
        "resolves to.\n"
        "\n"
        "B late shared, 3 steps\n"
        "  thread 0, address space 0, node 0: migrate\n"
        "  thread 1, address space 0, node 1: load[0] (takes no step)\n"
        "  thread 2, address space 0, node 1: store[1] = 12\n"
        "\n"
        "step | thread 0                     | thread 2\n"
        "-----+------------------------------+-----------------------------\n"
        "   1 | migrate: lock                |\n"
        "     |   frame 0 page lock:         |\n"
        "     |     - -> thread 0            |\n"
        "   2 | migrate: begin               |\n"
        "   3 |                              | store\n"
        "     |                              |   page table 0:0:\n"
        "     |                              |     present frame 0 W A\n"
        "     |                              |     -> valid, not present\n"
        "     |                              |        frame 0 W A\n"
        "     |                              |   frame 0 contents:\n"
        "     |                              |     1 2 -> 1 12\n"
        "     |                              | ^ breaks I-LOSTWRITE\n"
        "\n"
        "--replay 0,0:1,2\n"
    )


def test_narrow_lanes_become_one_column() -> None:
    table = text(path_of(), 50, PROMISES).split("\n\n")[2]
    assert table == (
        "step | what changes\n"
        "-----+--------------------------------------------\n"
        "   1 | thread 0: migrate: lock\n"
        "     |   frame 0 page lock: - -> thread 0\n"
        "   2 | thread 0: migrate: begin\n"
        "   3 | thread 2: store\n"
        "     |   page table 0:0:\n"
        "     |     present frame 0 W A\n"
        "     |     -> valid, not present frame 0 W A\n"
        "     |   frame 0 contents: 1 2 -> 1 12\n"
        "     | ^ breaks I-LOSTWRITE"
    )


def test_wide_lanes_have_a_line_a_field() -> None:
    lines = text(path_of(), 160, PROMISES).splitlines()
    assert any(
        line.endswith("|   page table 0:0: present frame 0 W A -> valid, not present frame 0 W A") for line in lines
    )


@pytest.mark.parametrize(("threads", "width"), [(1, 40), (2, 54), (3, 79)])
def test_where_lanes_get_too_narrow(threads: int, width: int) -> None:
    """Three threads have lanes on a terminal of 80 columns."""
    lanes = text(of_threads(threads), width, PROMISES)
    assert f"step | {' | '.join(f'thread {number}'.ljust(22) for number in range(threads))}".split() == (
        next(line for line in lanes.splitlines() if line.startswith("step |")).split()
    )
    if threads > 1:
        assert "step | what changes\n" in text(of_threads(threads), width - 1, PROMISES)


@pytest.mark.parametrize("threads", [1, 2, 3, 6])
@pytest.mark.parametrize("width", [40, 41, 54, 79, 80, 100, 133, 200])
def test_nothing_is_wider_than_the_terminal(threads: int, width: int) -> None:
    lines = text(of_threads(threads), width, PROMISES).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() and line.isascii() for line in lines)
    assert not any(line.endswith("->") for line in lines)


@pytest.mark.parametrize("width", [-1, 0, 1, 39])
def test_no_terminal_is_narrower_than_forty_columns(width: int) -> None:
    assert text(path_of(), width, PROMISES) == text(path_of(), 40, PROMISES)


def test_the_replay_list_is_on_one_line() -> None:
    """It is there to be copied."""
    steps: Taken = tuple((Choice(0), "wait", {}) for _ in range(100))
    assert text(path_of(steps), 60, PROMISES).endswith(f"\n--replay {','.join('0' * 100)}\n")


def test_only_the_last_step_breaks_the_promise() -> None:
    assert text(of_threads(3), 120, PROMISES).count("^ breaks") == 1
    kept = text(replace(path_of(), violation=None), 80, PROMISES)
    assert kept.startswith("No step of this path breaks a promise.\n\nB late shared, 3 steps\n")
    assert "^ breaks" not in kept


def test_a_promise_that_is_not_known_is_only_named() -> None:
    assert text(path_of(), 80, {}).splitlines()[1] == "This breaks I-LOSTWRITE."


def test_a_path_without_steps() -> None:
    assert text(path_of(()), 80, PROMISES).endswith(" (takes no step)\n\nNo step was taken.\n")
    assert len(Parsed(page(path_of(()), PROMISES)).steps) == 1


# ---- page ----


class Parsed(HTMLParser):
    """The page as a browser reads it; an element that is not closed, or closed twice, is an error.

    Attributes:
        tags: every element's name and attributes.
        steps: the text of each button of a step.
        scripts: the text of each script element, by its id.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.steps: list[str] = []
        self.scripts: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs)))
        if (dict(attrs).get("class") or "").startswith("step"):
            self.steps.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if not self._open:
            assert not data.strip()
            return
        tag, attributes = self._open[-1]
        if tag == "script":
            self.scripts[attributes.get("id") or ""] = data
        name = attributes.get("class") or tag
        self.texts[name] = self.texts.get(name, "") + data
        if any(tag == "button" and (of.get("class") or "").startswith("step") for tag, of in self._open):
            self.steps[-1] += data

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts["path"])
        return found

    def attributes(self, name: str) -> Iterator[str | None]:
        return (attributes[name] for _, attributes in self.tags if name in attributes)


def test_the_page_is_well_formed() -> None:
    html = page(path_of(), PROMISES)
    assert html.startswith("<!DOCTYPE html>\n")
    parsed = Parsed(html)
    ids = list(parsed.attributes("id"))
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'getElementById\("(\w+)"\)', html)) <= set(ids)


def test_the_page_begins_with_the_cause() -> None:
    texts = Parsed(page(path_of(), PROMISES)).texts
    assert texts["title"] == "B late shared"
    assert texts["cause broken"] == "The file has (1, 2) in frame 2, where (1, 12) was stored."
    assert texts["promise"] == f"This breaks I-LOSTWRITE: {PROMISES['I-LOSTWRITE']}."
    kept = Parsed(page(replace(path_of(), violation=None), PROMISES)).texts
    assert kept["cause kept"] == "No step of this path breaks a promise."


def test_the_page_has_every_step_and_what_it_changes() -> None:
    """They can be read without JavaScript."""
    parsed = Parsed(page(path_of(), PROMISES))
    assert parsed.steps == [
        "0the start",
        "1migrate: lock thread 0frame 0 page lock - → thread 0",
        "2migrate: begin thread 0",
        "3store thread 2page table 0:0 present frame 0 W A → valid, not present frame 0 W A"
        "frame 0 contents 1 2 → 1 12breaks I-LOSTWRITE",
    ]
    assert [kind for kind in parsed.attributes("class") if kind and kind.startswith("step")] == ["step"] * 3 + [
        "step last"
    ]
    assert parsed.texts["code"] == "--replay 0,0:1,2"
    (slider,) = (attributes for tag, attributes in parsed.tags if tag == "input")
    assert (slider["type"], slider["min"], slider["max"]) == ("range", "0", "3")


def test_the_page_needs_nothing_else() -> None:
    html = page(path_of(), PROMISES)
    assert re.findall(r"\w+://[^\"\s]+", html) == ["http://www.w3.org/2000/svg"]  # a name, not an address to load
    assert not re.search(r"\bsrc=|\bhref=|url\(|@import|<link|<img|<iframe|fetch\(|XMLHttp|import\(", html)
    (policy,) = (attributes for _, attributes in Parsed(html).tags if "http-equiv" in attributes)
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def test_the_data_is_the_path() -> None:
    path = path_of()
    data = Parsed(page(path, PROMISES)).data
    state, states = data["start"], []
    for step in data["steps"]:
        assert step.pop("threads") == ["about 0", "about 1", "about 2"]
        state = state | {field: after for field, _, after in step["changes"]}
        states.append(state)
    assert data == path.to_dict()
    assert states == [step.state for step in path.steps]


@pytest.mark.parametrize(
    "words",
    ["</script><b>", "<!-- <script>", "a < b & c > \"d\" 'e'", "&lt;/script&gt;", "{STYLE}", "\u2028\\u003c", "ö→"],
)
def test_words_are_escaped(words: str) -> None:
    """Whatever is in a name: the page has the elements that it has anyway, and shows the words as they are."""
    change = Change(words, words, words)
    step = PathStep(Choice(0), words, (change,), {words: words}, (words,))
    path = Path(words, (f"thread 0: {words}",), {words: words}, (step,), Violation(words, words))
    html = page(path, {words: words})
    parsed, plain = Parsed(html), Parsed(page(plain_path(), {}))
    assert [tag for tag, _ in parsed.tags] == [tag for tag, _ in plain.tags]
    assert parsed.texts["title"] == words
    assert parsed.steps[1] == f"1{words} thread 0{words} {words} → {words}breaks {words}"
    assert parsed.data["title"] == parsed.data["steps"][0]["changes"][0][0] == words
    assert "<" not in parsed.scripts["path"]
    assert parsed.scripts[""] == plain.scripts[""]


def plain_path() -> Path:
    step = PathStep(Choice(0), "a", (Change("a", "a", "a"),), {"a": "a"}, ("a",))
    return Path("a", ("thread 0: a",), {"a": "a"}, (step,), Violation("a", "a"))


def test_the_page_is_the_same_every_time() -> None:
    assert page(path_of(), PROMISES) == page(path_of(), PROMISES)
