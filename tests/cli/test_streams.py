"""Pipes that break, streams that are closed, disks that are full, and Ctrl-C: no traceback, and the right status."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexttouch.linux import procfs
from nexttouch.linux.process import Process

TIMEOUT = 60
NEXTTOUCH = [sys.executable, "-m", "nexttouch"]

# A target with enough memory that a slow migration takes long.
TARGET = """
import mmap, sys
memory = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = bytes(range(256)) * (len(memory) // 256)
print("ready", flush=True)
sys.stdin.read()
print(memory[:] == bytes(range(256)) * (len(memory) // 256))
"""

# On a machine with one node every page is at home: only with `always` there is something to interrupt.
ALWAYS = """
import functools, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as it is without nohup
import nexttouch.live.attach as module
module.attach = functools.partial(module.attach, always=True)
from nexttouch.cli import main
sys.exit(main(sys.argv[1:]))
"""


# An eager move that is interrupted behind its first batches.
HALF = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
import nexttouch.live.eager as module
def move(*arguments, progress, **options):
    for done in DONE:
        progress(done, 2048)
    os.kill(os.getpid(), NUMBER)
module.move = move
from nexttouch.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def target() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", TARGET]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def until(condition: object, what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"{what} never happened"
        os.sched_yield()


def test_workers_of_the_checker_end_with_it() -> None:
    """However it ends: they hold its output, which would else never end."""
    with subprocess.Popen([*NEXTTOUCH, "check"], stdout=subprocess.PIPE) as checker:
        workers = Path(f"/proc/{checker.pid}/task/{checker.pid}/children")
        until(lambda: len(workers.read_text().split()) >= min(2, os.cpu_count() or 1) - 1, "a worker")
        checker.kill()
        checker.communicate(timeout=TIMEOUT)


def watched(pid: int) -> bool:
    return bool(re.search(rb"^VmFlags:.* u[mwi]", Path(f"/proc/{pid}/smaps").read_bytes(), re.MULTILINE))


@pytest.mark.parametrize(
    "words", [["topology"], ["where", "SELF"], ["where", "SELF", "--mappings"], ["where", "SELF", "--json"], ["doctor"]]
)
def test_a_reader_that_has_seen_enough(words: list[str]) -> None:
    words = [str(os.getpid()) if word == "SELF" else word for word in words]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*NEXTTOUCH, *words], stdout=writer, stderr=subprocess.PIPE, timeout=TIMEOUT, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_head_reads_one_line() -> None:
    command = f"{sys.executable} -m nexttouch where {os.getpid()} --mappings | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert re.fullmatch(rf"process {os.getpid()} \([^\n]*\)\n", done.stdout)
    assert done.stderr == ""


def test_a_full_disk() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*NEXTTOUCH, "topology"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT, check=False
        )
    assert done.returncode == 1
    assert re.fullmatch(r"nexttouch: .*No space left on device\n", done.stderr)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", ["topology", "where $$", "move $$ --to 0"])
def test_closed_streams(words: str, closed: str) -> None:
    command = f"{sys.executable} -m nexttouch {words} {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (">&-" not in closed.replace("2>&-", ""))


def test_an_error_with_standard_error_closed() -> None:
    command = f"{sys.executable} -m nexttouch where 4194305 2>&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stdout) == (1, "")


ending = pytest.mark.parametrize(
    ("number", "status", "by"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "interrupted by SIGTERM"),
        (signal.SIGHUP, 129, "interrupted by SIGHUP"),
    ],
)


@pytest.mark.parametrize(
    ("done", "said"), [((), "the first batch was not done"), ((64, 192), "192 of 2,048 pages (8 MiB) were done")]
)
@ending
def test_a_signal_that_ends_an_eager_move(
    done: tuple[int, ...], said: str, number: signal.Signals, status: int, by: str
) -> None:
    program = HALF.replace("DONE", str(done)).replace("NUMBER", str(int(number)))
    command = [sys.executable, "-c", program, "move", str(os.getpid()), "--to", "0"]
    moved = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (moved.returncode, moved.stdout) == (status, "")
    assert moved.stderr == f"{by}: {said}; what has moved stays where it is\n"


@pytest.mark.parametrize("extra", [[], ["--json"]])
@ending
def test_a_signal_gives_everything_back(
    target: subprocess.Popen[str], extra: list[str], number: signal.Signals, status: int, by: str
) -> None:
    words = ["move", str(target.pid), "--to", "0", "--lazy", "--rate", "1MiB/s", *extra]
    descriptors = len(list(Path(f"/proc/{target.pid}/fd").iterdir()))
    command = [sys.executable, "-c", ALWAYS, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as migrator:
        until(lambda: watched(target.pid), "arming")
        migrator.send_signal(number)
        out, err = migrator.communicate(timeout=TIMEOUT)
    assert migrator.returncode == status
    assert err in (f"{by}: every page that was still a trap has been given back\n", "")
    if err:  # it was past the attaching itself
        assert "the migration was cancelled first" in out or '"cancelled": ' in out
    assert not watched(target.pid)
    assert procfs.status(Process(target.pid)).tracer == 0
    assert len(list(Path(f"/proc/{target.pid}/fd").iterdir())) == descriptors
    assert target.communicate(timeout=TIMEOUT)[0] == "True\n"


# The node of an eager move goes out of reach behind its first batches, or its process ends.
EARLY = """
import sys
import nexttouch as nt
import nexttouch.live.eager as module
def move(*arguments, **options):
    left = {nt.Reason.REASON: 1984}
    return module.MoveResult(pages=2048, moved=64, left=left, seconds=0.5, by_node={1: 64}, ended=ENDED)
module.move = move
from nexttouch.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("ended", "reason", "status", "said"),
    [
        ("nt.NoSuchProcess(7)", "UNMAPPED", 0, "the process has ended meanwhile, and its memory is gone\n"),
        (
            "nt.NodeUnavailable(1, 'it left the cpuset')",
            "UNREACHED",
            1,
            "ended early: node 1 cannot take pages: it left the cpuset\n",
        ),
    ],
)
def test_an_eager_move_that_ends_early(ended: str, reason: str, status: int, said: str) -> None:
    program = EARLY.replace("REASON", reason).replace("ENDED", ended)
    command = [sys.executable, "-c", program, "move", str(os.getpid()), "--to", "0"]
    moved = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (moved.returncode, moved.stderr) == (status, said)
    assert moved.stdout.startswith("moved 64 pages (256 KiB) of 2,048 pages (8 MiB) in 500 ms\nstayed: 1,984 pages: ")


# A node goes out of reach before what could not be trapped is moved.
GONE = """
from collections import Counter
import nexttouch as nt
from nexttouch.live import eager
def move_pages(*arguments):
    return eager.MoveResult(left=Counter({nt.Reason.UNREACHED: 5}), ended=nt.NodeUnavailable(0, "it left the cpuset"))
eager.move_pages = move_pages
"""


def test_a_lazy_move_whose_end_fails(target: subprocess.Popen[str]) -> None:
    command = [sys.executable, "-c", GONE + ALWAYS, "move", str(target.pid), "--to", "0", "--lazy"]
    moved = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (moved.returncode, moved.stderr) == (1, "ended early: node 0 cannot take pages: it left the cpuset\n")
    assert moved.stdout.startswith("moved ")
    assert "stayed: 5 pages: the move ended before its turn came" in moved.stdout


def test_ctrl_c_while_everything_is_armed(target: subprocess.Popen[str]) -> None:
    words = ["move", str(target.pid), "--to", "0", "--lazy", "--rate", "1MiB/s"]
    shown, _ = on_a_terminal(words, lambda text: "%)" in text)
    assert "interrupted: every page that was still a trap has been given back" in shown
    assert not watched(target.pid)
    assert target.communicate(timeout=TIMEOUT)[0] == "True\n"


def test_ctrl_c_again_and_again(target: subprocess.Popen[str]) -> None:
    """What the first one has begun no other one ends half-way."""
    words = ["move", str(target.pid), "--to", "0", "--lazy", "--rate", "1MiB/s"]
    command = [sys.executable, "-c", ALWAYS, *words]
    for _ in range(5):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as migrator:
            until(lambda: watched(target.pid), "arming")
            while migrator.poll() is None:
                migrator.send_signal(signal.SIGINT)
            _, err = migrator.communicate(timeout=TIMEOUT)
        assert migrator.returncode == 130
        assert "RuntimeError" not in err
        assert "KeyboardInterrupt" not in err  # Python may tell of one that came as it began to ignore them
        assert not watched(target.pid)
    assert target.communicate(timeout=TIMEOUT)[0] == "True\n"


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGTTOU, signal.SIGTTIN])
def test_ctrl_z_leaves_nobody_waiting(target: subprocess.Popen[str], number: signal.Signals) -> None:
    """A migrator that is stopped serves nobody; so it is not, and says why where somebody has asked for it."""
    words = ["move", str(target.pid), "--to", "0", "--lazy", "--rate", "1MiB/s"]
    command = [sys.executable, "-c", ALWAYS, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as migrator:
        assert migrator.stderr
        until(lambda: watched(target.pid), "arming")
        try:
            migrator.send_signal(number)
            if number == signal.SIGTSTP:
                assert select.select([migrator.stderr], [], [], TIMEOUT)[0], "it is stopped"
                assert migrator.stderr.readline().startswith("not stopped: the process would wait at its next store ")
            assert target.communicate(timeout=TIMEOUT)[0] == "True\n"  # it reads and writes, and ends
            _, err = migrator.communicate(timeout=TIMEOUT)
        finally:
            migrator.kill()
    assert (migrator.returncode, err) == (0, "the process has ended meanwhile, and its memory is gone\n")


def test_progress_is_for_terminals(target: subprocess.Popen[str]) -> None:
    """A line that is rewritten; and with a terminal for errors only, nothing of it is in the output."""

    def end_the_target(shown: str) -> bool:
        assert target.stdin
        if "%)" in shown:
            target.stdin.close()
        return False

    words = ["move", str(target.pid), "--to", "0", "--lazy", "--rate", "1MiB/s"]
    shown, out = on_a_terminal(words, end_the_target)
    assert re.search(r"\rdone [\d.]+ [KM]?i?B of [\d.]+ MiB \(\d+%\)", shown)
    assert re.search(r"\r +\rthe process has ended meanwhile, and its memory is gone\r\n$", shown)  # wiped before it
    assert out.startswith("moved ")
    assert "%" not in out


def on_a_terminal(words: list[str], interrupt: object) -> tuple[str, str]:
    """Run it with a terminal for standard error; return what that shows, and the output."""
    ours, theirs = pty.openpty()
    command, shown = [sys.executable, "-c", ALWAYS, *words], ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as migrator:
        os.close(theirs)
        try:
            while data := os.read(ours, 4096):
                shown += data.decode()
                if interrupt(shown):  # type: ignore[operator]
                    migrator.send_signal(signal.SIGINT)
                    interrupt = never
        except OSError:  # EIO: the other end is closed
            pass
        out, _ = migrator.communicate(timeout=TIMEOUT)
    os.close(ours)
    assert migrator.returncode == (130 if interrupt is never else 0)
    return shown, out


def never(_: str) -> bool:
    return False
