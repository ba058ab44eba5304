"""What every command prints, word for word: transcripts/NAME.txt, with what differs from run to run replaced.

`python tests/cli/test_transcripts.py` writes them anew; then read the difference.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nexttouch.cli import COMMANDS
from nexttouch.linux import procfs
from nexttouch.linux.process import Process
from nexttouch.topology import topology

FOLDER = Path(__file__).parent / "transcripts"
TIMEOUT = 60

TARGET = "PID"
"""Stands for the process id of an idle program."""

SAME_EVERYWHERE = {
    "help-doctor": ["doctor", "--help"],
    "help-topology": ["topology", "--help"],
    "help-where": ["where", "--help"],
    "help-move": ["move", "--help"],
    "help-follow": ["follow", "--help"],
    "help-run": ["run", "--help"],
    "help-lab": ["lab", "--help"],
    "version": ["--version"],
    "no-command": [],
    "option-before-the-command": ["--json", "where", TARGET],
    "where-without-a-process": ["where"],
    "where-a-word": ["where", "init"],
    "where-zero": ["where", "0"],
    "where-nobody": ["where", "4194305"],
    "topology-extra": ["topology", "extra"],
    "doctor-unknown-option": ["doctor", "--fast"],
    "move-without-a-node": ["move", TARGET],
    "move-without-a-process": ["move", "--to", "0"],
    "move-to-a-word": ["move", TARGET, "--to", "dram"],
    "move-to-nothing": ["move", TARGET, "--to", ""],
    "move-to-a-node-twice": ["move", TARGET, "--to", "0,0"],
    "move-to-a-negative-node": ["move", TARGET, "--to=-1"],
    "move-zero": ["move", "0", "--to", "0"],
    "move-nobody": ["move", "4194305", "--to", "0"],
    "move-nobody-lazily": ["move", "4194305", "--to", "0", "--lazy"],
    "move-at-a-wrong-rate": ["move", TARGET, "--to", "0", "--rate", "fast"],
    "move-at-no-rate": ["move", TARGET, "--to", "0", "--rate", "0"],
    "move-at-an-empty-rate": ["move", TARGET, "--to", "0", "--rate", ""],
    "move-with-an-empty-latency": ["move", TARGET, "--to", "0", "--latency", ""],
    "move-lazily-with-an-empty-deadline": ["move", TARGET, "--to", "0", "--lazy", "--deadline", ""],
    "demo-of-an-empty-size": ["demo", "--size", ""],
    "move-with-a-wrong-latency": ["move", TARGET, "--to", "0", "--latency", "soon"],
    "move-with-no-latency": ["move", TARGET, "--to", "0", "--latency", "0"],
    "move-eagerly-without-a-sweep": ["move", TARGET, "--to", "0", "--no-sweep"],
    "move-eagerly-with-a-deadline": ["move", TARGET, "--to", "0", "--deadline", "3s"],
    "move-eagerly-with-a-window": ["move", TARGET, "--to", "0", "--window", "8"],
    "move-eagerly-with-no-window": ["move", TARGET, "--to", "0", "--window", "0"],
    "move-lazily-dry": ["move", TARGET, "--to", "0", "--lazy", "--dry-run"],
    "move-lazily-shared": ["move", TARGET, "--to", "0", "--lazy", "--shared"],
    "move-lazily-with-latency": ["move", TARGET, "--to", "0", "--lazy", "--latency", "3ms"],
    "move-lazily-with-no-window": ["move", TARGET, "--to", "0", "--lazy", "--window", "0"],
    "move-lazily-with-a-wrong-deadline": ["move", TARGET, "--to", "0", "--lazy", "--deadline=-3"],
    "move-lazily-for-ever": ["move", TARGET, "--to", "0", "--lazy", "--no-sweep"],
    "move-lazily-with-the-rate-of-no-sweep": [
        *["move", TARGET, "--to", "0", "--lazy", "--no-sweep", "--rate", "1MiB/s", "--deadline", "1s"]
    ],
    "follow-without-a-process": ["follow"],
    "follow-a-word": ["follow", "init"],
    "follow-no-rounds": ["follow", TARGET, "--rounds", "0"],
    "follow-for-a-wrong-time": ["follow", TARGET, "--every", "soon"],
    "follow-for-no-time": ["follow", TARGET, "--every", "0s"],
    "follow-with-a-wrong-cap": ["follow", TARGET, "--cap", "lots"],
    "follow-with-no-cap": ["follow", TARGET, "--cap", "0"],
    "follow-with-no-window": ["follow", TARGET, "--window", "0"],
    "follow-by-a-word": ["follow", TARGET, "--mechanism", "magic"],
    "follow-by-relocate": ["follow", TARGET, "--mechanism", "relocate"],
    "follow-zero": ["follow", "0", "--json"],
    "follow-nobody": ["follow", "4194305", "--json"],
    "run-without-a-command": ["run"],
    "run-to-a-word": ["run", "--to", "dram", "--", "true"],
    "run-to-nothing": ["run", "--to", "", "--", "true"],
    "run-to-a-node-twice": ["run", "--to", "0,0", "--", "true"],
    "run-to-a-node-and-interleaved": ["run", "--to", "0", "--interleave", "--", "true"],
    "run-to-a-node-and-by-touch": ["run", "--to", "0", "--next-touch", "--", "true"],
    "run-to-a-node-in-rounds": ["run", "--to", "0", "--every", "1s", "--", "echo", "not run"],
    "run-interleaved-with-a-cap": ["run", "--interleave", "--cap", "1GiB", "--", "echo", "not run"],
    "run-for-a-wrong-time": ["run", "--every", "soon", "--", "echo", "not run"],
    "run-with-no-window": ["run", "--window", "0", "--", "echo", "not run"],
    "run-by-relocate": ["run", "--mechanism", "relocate", "--", "echo", "not run"],
    "run-what-there-is-not": ["run", "--", "/nonexistent/command"],
    "run-what-there-is-not-on-a-node": ["run", "--to", "0", "--", "/nonexistent/command"],
    "run-what-is-no-program": ["run", "--", "/"],
    "run-what-is-no-program-on-a-node": ["run", "--to", "0", "--", "/"],
    "lab-without-a-command": ["lab"],
    "lab-with-both": ["lab", "--setup", "--", "true"],
    "lab-json-of-a-command": ["lab", "--json", "--", "true"],
    "lab-too-many-nodes": ["lab", "--nodes", "9", "--", "true"],
    "lab-wrong-memory": ["lab", "--memory", "lots", "--", "true"],
    "lab-wrong-timeout": ["lab", "--timeout", "soon", "--", "true"],
}
WITH_ONE_NODE = {
    "where": ["where", TARGET],
    "where-mappings": ["where", TARGET, "--mappings"],
    "move": ["move", TARGET, "--to", "0"],
    "move-dry": ["move", TARGET, "--to", "0", "--dry-run"],
    "move-lazily": ["move", TARGET, "--to", "0", "--lazy"],
    "move-to-no-such-node": ["move", TARGET, "--to", "1"],
    "run-on-no-such-node": ["run", "--to", "1", "--", "true"],
    "demo-of-more-than-there-is": ["demo", "--here", "--size", "999TiB", "--json"],
}
one_node = pytest.mark.skipif(len(topology().ids) != 1, reason="written on a machine with one node")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "100", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        [sys.executable, "-m", "nexttouch", *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env=environment,
    )


def transcript(words: list[str]) -> str:
    """Run it on an idle program; return what was typed, printed on either stream, and the status."""
    with subprocess.Popen(["sleep", "1000"]) as target:
        while procfs.status(Process(target.pid)).state != "S":  # until it sleeps it is being loaded
            os.sched_yield()
        try:
            done = run(*[str(target.pid) if word == TARGET else word for word in words])
        finally:
            target.kill()
    shown = " ".join(f"'{word}'" if not word or " " in word else word for word in words)
    parts = [f"$ nexttouch {shown}".rstrip(), plain(done.stdout, target.pid)]
    if done.stderr:
        parts += ["--- standard error", plain(done.stderr, target.pid)]
    parts.append(f"--- exit status {done.returncode}")
    return "\n".join(part for part in parts if part) + "\n"


# Alignment depends on the numbers, and line breaks of the usage on the version of argparse: one space each.
def plain(text: str, pid: int) -> str:
    text = re.sub(rf"\b{pid}\b", TARGET, text)
    text = re.sub(r"^usage: .*?(?=^\S|^$)", lambda usage: " ".join(usage[0].split()) + "\n", text, flags=re.M | re.S)
    lines = [re.sub(r"\s+", " ", line).strip() for line in text.strip("\n").split("\n")]
    return "\n".join(lines)


def without_numbers(text: str) -> str:
    """What has been measured becomes a word; a table of mappings one line."""
    text = re.sub(r"\b\d[\d,.]* [KMGT]iB", "SIZE", text)
    text = re.sub(r"\b\d[\d,.]* (ns|us|ms|s)\b", "TIME", text)
    text = re.sub(r"\b\d[\d,]*\.\d%", "SHARE", text)
    text = re.sub(r"(\b[0-9a-f]+-[0-9a-f]+ (anonymous|heap|stack|file|special) .*\n)+", "MAPPINGS\n", text)
    return re.sub(r"\b\d[\d,]+\b|\b\d(?= more)", "COUNT", text)


def golden(name: str) -> str:
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SAME_EVERYWHERE)
def test_same_everywhere(name: str) -> None:
    assert transcript(SAME_EVERYWHERE[name]) == golden(name)


@one_node
@pytest.mark.parametrize("name", WITH_ONE_NODE)
def test_with_one_node(name: str) -> None:
    assert without_numbers(transcript(WITH_ONE_NODE[name])) == golden(name)


def test_the_topology_is_a_table() -> None:
    done = run("topology")
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows = done.stdout.split("\n\n")[0].split("\n")
    assert head.split()[:4] == ["node", "CPUs", "memory", "free"]
    assert [int(row.split()[0]) for row in rows] == list(topology().ids)


def test_doctor_says_what_works_and_what_to_do_about_the_rest() -> None:
    done = run("doctor")
    assert done.stderr == ""
    titles = [block.split("\n")[0] for block in done.stdout.split("\n\n")]
    assert titles[0].startswith("Linux ")
    assert titles[1:] == ["ways to move pages", "kernel interfaces", "circumstances"]
    for line, following in zip(done.stdout.split("\n"), done.stdout.split("\n")[1:], strict=False):
        assert not line.startswith("  no ") or following.strip().startswith("cause: ")
    works = re.findall(r"^  yes +(eager|relocate|write_protect)  ", done.stdout, re.M)
    assert done.returncode == (len(works) != 3)


@pytest.mark.skipif(not Path("/proc/2").exists(), reason="kernel threads are not visible here")
@pytest.mark.parametrize("words", [["where"], ["move", "--to", "0"], ["move", "--to", "0", "--lazy"]])
def test_a_kernel_thread(words: list[str]) -> None:
    done = run(words[0], "2", *words[1:])
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"nexttouch: process 2 .*: it is a kernel thread, which has no memory of its own\n", done.stderr
    )


def test_every_transcript_is_of_a_test() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(SAME_EVERYWHERE | WITH_ONE_NODE)


def test_no_misuse_is_answered_on_standard_output() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        if text.endswith("--- exit status 2\n"):
            assert text.split("\n")[1] == "--- standard error", path


def test_help_names_every_command() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^    (\w+)", done.stdout, re.MULTILINE) == list(COMMANDS)
    for word in ("nexttouch doctor", "nexttouch demo", "--help", "--json", "--version"):
        assert word in done.stdout


@pytest.mark.parametrize("word", ["frob", "wher"])
def test_an_unknown_command(word: str) -> None:
    done = run(word)
    assert (done.returncode, done.stdout) == (2, "")
    assert word in done.stderr
    assert all(command in done.stderr for command in COMMANDS)


if __name__ == "__main__":
    for name, words in (SAME_EVERYWHERE | WITH_ONE_NODE).items():
        text = transcript(words) if name in SAME_EVERYWHERE else without_numbers(transcript(words))
        (FOLDER / f"{name}.txt").write_text(text, encoding="utf-8")
