"""What examples/ prints."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nexttouch as nt

EXAMPLES = Path(__file__).parents[2] / "examples"
HUGE = 512
TIMEOUT = 600  # seconds: in an emulated machine all of it takes long

one_node = pytest.mark.skipif(len(nt.topology().ids) != 1, reason="what it prints on a machine with one node")


def printed(name: str) -> list[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def by_node(line: str, label: str) -> dict[int, int]:
    assert line.startswith(f"pages by node {label}: ")
    found = ast.literal_eval(line.partition(":")[2].strip())
    assert isinstance(found, dict)
    return found


@one_node
def test_next_touch_on_one_node() -> None:
    before, after, moved, *remark = printed("next_touch.py")
    assert list(by_node(before, "before")) == list(nt.topology().ids)
    assert by_node(after, "after") == by_node(before, "before")
    assert re.fullmatch(r"0 pages moved in \d+ page faults; the sum is 16777216, as it was", moved)
    assert " ".join(remark) == (
        "This machine has one node with CPUs, so every page was at home already. With two, each half of the rows would "
        "now be on the node of its worker. See it: nexttouch lab -- python examples/next_touch.py"
    )


@pytest.mark.lab
def test_next_touch_on_several_nodes() -> None:
    first, *others = [node.id for node in nt.topology().nodes if node.cpus and node.has_memory]
    before, after, moved = printed("next_touch.py")
    pages = by_node(before, "before")[first]
    assert by_node(before, "before") == {first: pages}
    placed = by_node(after, "after")
    assert sum(placed.values()) == pages
    for node in (first, *others):  # a page where two shares meet, maybe a huge one, is on either of two nodes
        assert abs(placed[node] - pages / (1 + len(others))) <= 2 * HUGE
    found = re.fullmatch(r"(\d+) pages moved in \d+ page faults; the sum is 16777216, as it was", moved)
    assert found
    assert int(found[1]) == pages - placed[first]
