"""A path through the states of the model as one self-contained page: a slider over the steps, lanes, the state drawn.

The lanes are plain HTML and can be read without JavaScript. The drawing is made from the data in the page by page.js; a
field that it does not know is listed beside it. page.html, page.css and page.js are put together here.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from .lanes import lanes_of, sentences, steps_of

if TYPE_CHECKING:
    from ..check.counterexample import Path, PathStep

__all__ = ["page"]


def page(path: Path, promises: Mapping[str, str]) -> str:
    """Return `path` as one HTML file that needs nothing else: a slider over the steps, the lanes, and the state drawn.

    The fragment `#step=12` opens it at a step. What is drawn is in the element of id `path`, as JSON.

    Args:
        path: what to show.
        promises: what each invariant promises, by name.
    """
    cause, promise = map(html.escape, sentences(path, promises))
    replay = f'<p class="replay">Replay <code>--replay {html.escape(path.choices)}</code></p>' if path.steps else ""
    filled = {
        "TITLE": html.escape(path.title),
        "COUNT": steps_of(path),
        "LAST": str(len(path.steps)),
        "VERDICT": "broken" if path.violation else "kept",
        "CAUSE": cause,
        "PROMISE": f"{promise} {html.escape(path.cause)}".strip(),
        "SCRIPTS": "".join(_script(path, number, script) for number, script in enumerate(path.threads)),
        "LANES": "".join(_step(path, number) for number in range(len(path.steps) + 1)),
        "REPLAY": replay,
        "DATA": _embedded(_data(path)),
        "STYLE": _asset("page.css"),
        "CODE": _asset("page.js"),
    }
    return _asset("page.html").format_map(filled)


def _data(path: Path) -> dict[str, Any]:
    data = path.to_dict()
    for step, known in zip(data["steps"], path.steps, strict=True):
        step["threads"] = known.threads
    return data


# "<" cannot end the element then, nor begin a comment in it; everything that is not ASCII is escaped by json.
def _embedded(data: object) -> str:
    return json.dumps(data, separators=(",", ":")).replace("<", r"\u003c")


def _script(path: Path, number: int, script: str) -> str:
    idle = "" if number in lanes_of(path) else ' <span class="quiet">takes no step</span>'
    who, colon, what = script.partition(": ")
    return f'<li class="t{number % 4}">{html.escape(who + colon)}<b>{html.escape(what)}</b>{idle}</li>'


def _step(path: Path, number: int) -> str:
    step = path.steps[number - 1] if number else None
    dots = ""
    for lane in lanes_of(path):
        on = ' class="on"' if step and step.choice.thread == lane else ""
        dots += f'<span class="lane t{lane % 4}"><i{on}></i></span>'
    mark, last = "", ""
    if path.violation and number == len(path.steps):
        mark, last = f'<em class="mark">breaks {html.escape(path.violation.invariant)}</em>', " last"
    return (
        f'<li><button type="button" class="step{last}"><span class="number">{number}</span>{dots}'
        f'<span class="what">{_what(step) if step else "<b>the start</b>"}{mark}</span></button></li>\n'
    )


def _what(step: PathStep) -> str:
    changes = "".join(
        f'<span class="change">{html.escape(change.field)} <s>{html.escape(change.before)}</s> '
        f"→ <em>{html.escape(change.after)}</em></span>"
        for change in step.changes
    )
    thread = step.choice.thread
    return f'<b>{html.escape(step.name)}</b> <span class="who t{thread % 4}">thread {thread}</span>{changes}'


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
