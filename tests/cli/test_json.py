"""--json: one object on standard output, with the keys that --help names, and nothing else on either stream."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from nexttouch.cli import COMMANDS
from nexttouch.linux import procfs
from nexttouch.linux.process import Process
from nexttouch.live.reason import Reason
from nexttouch.topology import topology

TIMEOUT = 60

STATS = {
    *("phase", "pages", "waiting", "moved", "moved_by_touch", "moved_by_sweep", "moved_eagerly", "left", "faults"),
    *("hole_faults", "windows", "sweeps", "moves", "events", "arm_seconds", "service_seconds", "sweep_seconds"),
    *("move_seconds", "longest_service", "latency", "stopped"),
}
PLACEMENT = {"pages", "present", "zero", "swapped", "holes", "by_node", "unknown", "huge", "shared", "unmovable"}


@pytest.fixture
def target() -> Iterator[int]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        while procfs.status(Process(process.pid)).state != "S":  # until it sleeps it is being loaded
            os.sched_yield()
        yield process.pid
        process.kill()


def answer(*words: str, status: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "nexttouch", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout, parse_constant=pytest.fail)  # NaN and Infinity are not JSON
    assert isinstance(found, dict)
    return found


def test_topology() -> None:
    found = answer("topology")
    assert set(found) == {"nodes", "distances"}
    assert [node["id"] for node in found["nodes"]] == list(topology().ids)
    assert set(found["nodes"][0]) == {
        *("id", "cpus", "has_memory", "memory_total", "memory_free", "tier"),
        *("read_latency", "write_latency", "read_bandwidth", "write_bandwidth"),
    }
    assert found["distances"] == [list(row) for row in topology().distances]


def test_doctor() -> None:
    found = answer("doctor") if os.geteuid() == 0 else answer("doctor", status=1)
    assert set(found) == {"kernel", "machine", "user", "mechanisms", "interfaces", "conditions"}
    assert found["user"] == os.geteuid()
    for part in found["mechanisms"] + found["interfaces"]:
        assert set(part) == {"name", "purpose", "available", "reason", "remedy"}
        assert part["available"] or (part["reason"] and part["remedy"])
    for condition in found["conditions"]:
        assert set(condition) == {"name", "value", "fine", "note"}


def test_where(target: int) -> None:
    found = answer("where", str(target))
    assert set(found) == PLACEMENT | {"pid", "page_size"}
    assert (found["pid"], found["page_size"]) == (target, 4096)
    assert found["pages"] == found["present"] + found["zero"] + found["swapped"] + found["holes"]
    assert found["present"] == sum(found["by_node"].values()) + found["unknown"]
    detailed = answer("where", str(target), "--mappings")
    assert set(detailed) == set(found) | {"mappings"}
    assert {key for mapping in detailed["mappings"] for key in mapping} == PLACEMENT | {"start", "end", "kind", "path"}


@pytest.mark.parametrize("dry_run", [False, True])
def test_move_eagerly(target: int, dry_run: bool) -> None:
    found = answer("move", str(target), "--to", "0", *(["--dry-run"] if dry_run else []))
    assert set(found) == {"pages", "moved", "left", "by_node", "seconds", "longest_call", "dry_run", "ended"}
    assert found["dry_run"] is dry_run
    accounted(found)


def test_move_lazily(target: int) -> None:
    found = answer("move", str(target), "--to", "0", "--lazy", "--rate", "1GiB/s", "--deadline", "1min")
    assert set(found) == STATS
    assert (found["phase"], found["waiting"]) == ("done", 0)
    assert found["stopped"] > 0
    assert all(len(pair) == 2 for pair in found["latency"])
    accounted(found)


def accounted(found: dict[str, Any]) -> None:
    assert found["pages"] == found["moved"] + sum(found["left"].values())
    assert set(found["left"]) <= {reason.name.lower() for reason in Reason}


@pytest.mark.parametrize("words", [("where", "4194305"), ("move", "4194305", "--to", "0"), ("where", "0")])
def test_an_error_is_a_line_on_standard_error(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "nexttouch", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == (2 if "0" in words[1:2] else 1)
    assert done.stdout == ""
    assert re.fullmatch(r"nexttouch: [^\n]+\n", done.stderr)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_it(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nexttouch", command, "--help"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert re.search(r"^  --json  ", done.stdout, re.MULTILINE)
