"""What the kernel hands on is whatever a program has said, and none of it reaches a terminal as it is."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nexttouch as nt
from nexttouch.linux import procfs
from nexttouch.linux.process import Process
from nexttouch.printable import printable

TIMEOUT = 60
NAMES = (
    b"plain",
    "caf\u00e9 \u2603".encode(),
    b"bad\xff\xfename",
    b"esc\x1b[31;1mRED\x1b[2J",
    b"new\nline",
    b"tab\there \xc2\x85nel \xe2\x80\xa8separator",
    b"carriage\rreturn",
    b"sp  ace (deleted)",
    "\u202egnp.exe".encode(),
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("/usr/lib/caf\u00e9", "/usr/lib/caf\u00e9"),
        ("a b\\012c", "a b\\012c"),
        ("\x1b[31m\x07\x7f", "\\x1b[31m\\x07\\x7f"),
        ("a\tb\nc\rd", "a\\tb\\nc\\rd"),
        ("\x85\u2028\u202e\U000e0001", "\\x85\\u2028\\u202e\\U000e0001"),
        (os.fsdecode(b"bad\xff\xfe"), "bad\\xff\\xfe"),
        ("\ud800", "\\ud800"),  # no byte, and no character either
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.binary())
def test_anything_is_printable_and_text(name: bytes) -> None:
    shown = printable(os.fsdecode(name))
    assert shown.isprintable()
    assert printable(shown) == shown
    shown.encode("utf-8")


@pytest.fixture
def program() -> Iterator[int]:
    """A program with such files in its memory, and such a name."""
    folder = Path(f"/dev/shm/nexttouch-{os.getpid()}")
    folder.mkdir()
    keep = []
    for name in NAMES:
        descriptor = os.open(os.fsencode(folder) + b"/" + name, os.O_RDWR | os.O_CREAT)
        os.ftruncate(descriptor, mmap.PAGESIZE)
        keep.append(mmap.mmap(descriptor, mmap.PAGESIZE))
        keep[-1][:] = b"x" * mmap.PAGESIZE
        os.close(descriptor)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        Path("/proc/self/comm").write_bytes(b"n\x1b[31m\xff\xc2\x85")
        for memory in keep:
            _ = memory[0]
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    while procfs.status(Process(child)).name[:1] != "n":
        os.sched_yield()
    yield child
    os.close(writing)
    os.waitpid(child, 0)
    for name in NAMES:
        os.unlink(os.fsencode(folder) + b"/" + name)  # noqa: PTH108 (bytes)
    folder.rmdir()


def run(*words: str, **environment: str) -> bytes:
    command = [sys.executable, "-m", "nexttouch", *words]
    done = subprocess.run(
        command, capture_output=True, timeout=TIMEOUT, check=True, env=os.environ | {"PYTHONUTF8": "1"} | environment
    )
    assert done.stderr == b""
    return done.stdout


def test_the_table_of_mappings(program: int) -> None:
    text = run("where", str(program), "--mappings").decode()
    assert f"process {program} (n\\x1b[31m\\xff\\x85)\n" in text
    folder = f"/dev/shm/nexttouch-{os.getpid()}/"
    shown = [line.partition(folder)[2] for line in text.split("\n") if folder in line]
    assert sorted(shown) == sorted(
        [
            "plain", "caf\u00e9 \u2603", "bad\\xff\\xfename", "esc\\x1b[31;1mRED\\x1b[2J", "new\\012line",
            "tab\\there \\x85nel \\u2028separator", "carriage\\rreturn", "sp  ace (deleted)", "\\u202egnp.exe",
        ]
    )  # fmt: skip
    assert all(line.isprintable() for line in text.split("\n"))


def test_json_is_utf_8_without_lone_surrogates(program: int) -> None:
    found = json.loads(run("where", str(program), "--mappings", "--json"))
    paths = [part["path"] for part in found["mappings"]]
    assert any(path.endswith("bad\\xff\\xfename") for path in paths)
    for path in paths:
        assert path.isprintable()
        path.encode("utf-8")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_that_lacks_a_character(program: int, encoding: str) -> None:
    text = run("where", str(program), "--mappings", PYTHONIOENCODING=encoding).decode(encoding)
    assert "\\u2603" in text


def test_every_other_file_of_that_process_is_read(program: int) -> None:
    assert procfs.numa_maps(Process(program))
    assert procfs.smaps(Process(program))
    assert nt.move(program, nt.topology().memory_nodes[0], dry_run=True).pages


def test_a_message_has_no_escape_sequence_of_a_user_or_a_kernel() -> None:
    command = [sys.executable, "-m", "nexttouch", "lab", "--kernel", "/no\x1b[31m\x85\udcff", "--", "true"]
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False)
    assert done.returncode in (1, 2)
    assert all(line.isprintable() for line in done.stderr.decode().split("\n"))
