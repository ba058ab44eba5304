"""What cannot or must not be attached to gets one clear line, and does not notice that anybody asked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from targets.programs import HANG, Program, compiled, descriptors, leftovers, until
from targets.waiting import release, seize

from nexttouch.linux import procfs
from nexttouch.linux.process import Process

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")

# Another user may not be able to read where Python is, so it does the same as root first, and has everything imported.
UNPRIVILEGED = """
import contextlib, io, os, sys
from nexttouch.cli import main
with contextlib.redirect_stderr(io.StringIO()):
    main(["move", str(os.getpid()), "--to", "0", "--lazy"])
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("targets")
    for parent in (folder, folder.parent, folder.parent.parent):  # another user runs it too
        parent.chmod(parent.stat().st_mode | 0o055)
    return compiled("guarded", folder)


@pytest.fixture
def start(guarded: Path) -> Iterator[Callable[..., Program]]:
    programs = []

    def started(mode: str, prefix: tuple[str, ...] = ()) -> Program:
        programs.append(Program(guarded, mode, threads=1, prefix=prefix))
        return programs[-1]

    yield started
    for program in programs:
        program.kill()


def move(pid: int, *, user: int = 0) -> tuple[int, str]:
    """Attach by the command line; return its status and what it says on standard error, as one line."""
    words = ["move", str(pid), "--to", "0", "--lazy"]
    command = (
        [sys.executable, "-c", UNPRIVILEGED, str(user), *words] if user else [sys.executable, "-m", "nexttouch", *words]
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.stdout == ""
    assert re.fullmatch(r"nexttouch: [^\n]+\n", done.stderr), done.stderr
    return done.returncode, done.stderr.removeprefix("nexttouch: ").rstrip("\n")


def refused(program: Program, *, user: int = 0, status: int = 1) -> str:
    """What is said of a program that may not be attached to, after a look whether it was left as it was."""
    before, tracer = descriptors(program.pid), procfs.status(Process(program.pid)).tracer
    returned, message = move(program.pid, user=user)
    assert returned == status
    assert descriptors(program.pid) == before
    assert procfs.status(Process(program.pid)).tracer == tracer
    assert tracer or leftovers(program.pid) == []
    program.advance()
    return message.replace(str(program.pid), "PID")


@pytest.mark.parametrize("mode", ["seccomp", "strict"])
def test_a_program_confined_by_seccomp(start: Callable[..., Program], mode: str) -> None:
    assert refused(start(mode)) == (
        "process PID cannot be attached to: it is confined by seccomp, whose filter could kill it for the injected "
        "system call; move its pages eagerly"
    )


def test_a_program_with_its_own_userfaultfd(start: Callable[..., Program]) -> None:
    assert re.fullmatch(
        r"process PID cannot be attached to: it handles its own page faults \(its descriptor \d+ is a userfaultfd\)",
        refused(start("userfaultfd")),
    )


def test_a_program_that_is_traced(start: Callable[..., Program]) -> None:
    program = start("plain")
    seize(program.pid)
    try:
        assert refused(program) == (
            f"process PID cannot be attached to: process {os.getpid()} traces it (a debugger, strace or another "
            "migrator); end that first"
        )
    finally:
        release(program.pid)
    program.advance()


@contextmanager
def frozen(pid: int, folder: Path) -> Iterator[None]:
    """Process `pid` in a frozen control group of version 2; skips where there is none."""
    mounted = subprocess.run(["mount", "-t", "cgroup2", "none", folder], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"control groups cannot be mounted: {mounted.stderr.decode()}")
    group = folder / f"nexttouch-{pid}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(pid))
        (group / "cgroup.freeze").write_text("1")
        until(lambda: "frozen 1" in (group / "cgroup.events").read_text(), "the freezing")
        yield
    finally:
        (group / "cgroup.freeze").write_text("0")
        (folder / "cgroup.procs").write_text(str(pid))
        group.rmdir()
        subprocess.run(["umount", folder], check=True)


def test_a_program_that_is_frozen(start: Callable[..., Program], tmp_path: Path) -> None:
    """It stops when it is told to, but does not run what is injected; it is left before that is ever begun."""
    program = start("plain")
    before = descriptors(program.pid)
    with frozen(program.pid, tmp_path):
        status, message = move(program.pid)
        assert (status, procfs.status(Process(program.pid)).tracer) == (1, 0)
    assert message == (
        f"process {program.pid} cannot be attached to: it does not stop: it is frozen or in an uninterruptible wait; "
        "try again later"
    )
    program.advance()
    assert descriptors(program.pid) == before


def test_another_users_program(start: Callable[..., Program]) -> None:
    assert refused(start("plain"), user=NOBODY) == (
        "process PID may not be touched: it belongs to user 0; run as root or with CAP_SYS_PTRACE"
    )


def test_a_program_protected_from_its_own_user(start: Callable[..., Program]) -> None:
    assert refused(start("undumpable", AS_NOBODY), user=NOBODY) == (
        "process PID may not be touched: it is protected from its own user, as programs with set-uid or file "
        "capabilities are; run as root or with CAP_SYS_PTRACE"
    )


def test_the_first_process_of_the_machine() -> None:
    status, message = move(1, user=NOBODY)
    assert status == 1
    assert message.startswith("process 1 may not be touched: ")


def test_a_thread(start: Callable[..., Program]) -> None:
    program = start("threads")
    until(lambda: len(Process(program.pid).threads()) == 2, "second thread")
    thread = Process(program.pid).threads()[1]
    assert move(thread) == (2, f"PID is {thread}, which is a thread; name the process it belongs to")
    program.advance()


@pytest.mark.skipif(not Path("/proc/2").exists(), reason="kernel threads are not visible here")
def test_a_kernel_thread() -> None:
    assert move(2) == (
        1,
        "process 2 cannot be attached to: it is a kernel thread, which has no memory of its own",
    )


def test_a_zombie() -> None:
    child = subprocess.Popen(["true"])
    try:
        until(lambda: procfs.status(Process(child.pid)).state == "Z", "end of the child")
        assert move(child.pid) == (
            1,
            f"process {child.pid} cannot be attached to: it has ended already (a zombie); its parent has yet to take "
            "notice",
        )
    finally:
        child.wait()


def test_a_process_that_is_gone() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert move(child.pid) == (1, f"process {child.pid} does not exist")


def test_a_number_that_is_no_process() -> None:
    assert move(2**22 + 1) == (1, f"process {2**22 + 1} does not exist")
    assert move(0) == (2, "PID is 0, but a process id is a positive integer")


ITSELF = (
    "import os, sys; from nexttouch.cli import main; sys.exit(main(['move', str(os.getpid()), '--to', '0', '--lazy']))"
)


def test_itself() -> None:
    done = subprocess.run([sys.executable, "-c", ITSELF], capture_output=True, text=True, timeout=HANG, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"nexttouch: process \d+ cannot be attached to: it is this process; use nexttouch.lazy or nexttouch.next_touch "
        r"for its own memory\n",
        done.stderr,
    )
