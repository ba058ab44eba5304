"""What is not acquired, and why: one clear line, and the program does not notice."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from targets.programs import HANG, descriptors, until
from targets.waiting import (  # noqa: F401 (fixtures)
    AS_NOBODY,
    Start,
    Target,
    acquire_and_close,
    acquired,
    nothing_left_open,
    release,
    seize,
    starter,
    take,
    waiting_binary,
)

from nexttouch import _core
from nexttouch.errors import (
    InvalidArgument,
    KernelError,
    NexttouchError,
    NoSuchProcess,
    TargetRefused,
)
from nexttouch.linux import procfs
from nexttouch.linux.process import Process
from nexttouch.linux.userfaultfd import Mode, Userfaultfd
from nexttouch.live import descriptor, injection
from nexttouch.live.attach import attach

pytestmark = pytest.mark.usefixtures("nothing_left_open")


def refused(pid: int, match: str) -> None:
    before = descriptors(pid) if Path(f"/proc/{pid}/fd/0").exists() else None
    with pytest.raises(TargetRefused, match=match) as error, acquired(pid):
        pass
    assert error.value.pid == pid
    if before is not None and pid != os.getpid():
        assert descriptors(pid) == before


def test_this_process() -> None:
    refused(os.getpid(), "it is this process; use nexttouch.lazy")


def test_a_zombie() -> None:
    child = subprocess.Popen(["true"])
    try:
        until(lambda: procfs.status(Process(child.pid)).state == "Z")
        refused(child.pid, "zombie")
    finally:
        child.wait()


@pytest.mark.skipif(not Path("/proc/2").exists(), reason="kernel threads are not visible here")
def test_a_kernel_thread() -> None:
    refused(2, "kernel thread")


def test_a_traced_process(start: Start) -> None:
    target = start("read")
    seize(target.pid)
    refused(target.pid, f"process {os.getpid()} traces it")
    release(target.pid)
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_process_with_a_seccomp_filter(start: Start) -> None:
    target = start("seccomp", readies=2)
    refused(target.pid, "seccomp")
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_seccomp_filter_that_came_after_the_check(start: Start) -> None:
    target = start("seccomp", readies=2)
    with pytest.raises(TargetRefused, match="seccomp"):
        take(target.pid)
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_program_that_dispatches_its_own_system_calls(start: Start) -> None:
    target = start("dispatch", readies=2)
    refused(target.pid, "PR_SET_SYSCALL_USER_DISPATCH")
    assert target.finish(b"x")[:2] == (1, 0)


def test_an_address_that_is_no_system_call_instruction(start: Start) -> None:
    target = start("read")
    address = procfs.mappings(Process(target.pid))[0].start
    with Process.open(target.pid) as process, pytest.raises(TargetRefused, match="replaced its program"):
        injection.take_userfaultfd(process, address)
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_program_with_its_own_userfaultfd() -> None:
    code = (
        "import sys; from nexttouch.linux.userfaultfd import Userfaultfd\n"
        "u = Userfaultfd.open(); print('ready', flush=True); sys.stdin.read(1)"
    )
    target = Target([sys.executable, "-c", code])
    refused(target.pid, "it handles its own page faults")
    target.process.communicate(b"x")


def test_a_program_whose_faults_another_process_handles(start: Start) -> None:
    target = start("page")
    with acquired(target.pid) as found:
        memory = Userfaultfd(found.uffd)
        memory.register(int(target.said[0], 16), 65536, Mode.MISSING)
        refused(target.pid, "another process .* handles its page faults")
    acquire_and_close(target.pid)
    assert target.finish(b"xy")[:2] == (1, 0)


def test_a_32_bit_program(tmp_path: Path) -> None:
    source, binary = tmp_path / "t.c", tmp_path / "t"
    source.write_text(
        'void _start(void) { for (;;) __asm__ volatile("int $0x80" : : "a"(29)); }\n'  # pause
    )
    compiled = subprocess.run(
        ["gcc", "-m32", "-nostdlib", "-static", "-o", binary, source], capture_output=True, check=False
    )
    if compiled.returncode:
        pytest.skip("the compiler makes no 32-bit programs")
    try:
        process = subprocess.Popen([binary])
    except OSError:
        pytest.skip("the kernel runs no 32-bit programs")
    try:
        until(lambda: procfs.status(Process(process.pid)).state == "S")
        refused(process.pid, "32-bit")
        # The same, had the look at the file missed it: nothing but the registers tells then.
        with Process.open(process.pid) as target, pytest.raises(TargetRefused, match="32-bit"):
            injection.take_userfaultfd(target, 0)
        until(lambda: procfs.status(Process(process.pid)).state == "S")
    finally:
        process.kill()
        process.wait()


def test_a_program_that_may_have_no_descriptor(start: Start) -> None:
    target = start("read")
    resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (0, 0))
    refused(target.pid, "no file descriptor left")
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_program_that_may_have_no_more_processes(start: Start) -> None:
    target = start("alone", prefix=AS_NOBODY, readies=2)
    refused(target.pid, "no more processes")
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_program_whose_next_child_begins_a_namespace(start: Start) -> None:
    target = start("unshare", readies=2)
    refused(target.pid, "next child begins a pid namespace")
    assert target.finish(b"x")[:2] == (1, 0)


def test_what_is_refused_leaves_nothing_open() -> None:
    before = descriptors(os.getpid())
    with pytest.raises(TargetRefused):
        attach(os.getpid(), 0)
    assert descriptors(os.getpid()) == before


def test_numbers_that_are_no_process(start: Start) -> None:
    with pytest.raises(InvalidArgument, match="positive"):
        attach(0, 0)
    with pytest.raises(InvalidArgument, match="positive"):
        attach(-1, 0)
    with pytest.raises(NoSuchProcess):
        attach(2**22 + 1, 0)
    target = start("threads", wait="")
    until(lambda: len(Process(target.pid).threads()) > 1)
    with pytest.raises(InvalidArgument, match="thread"):
        attach(Process(target.pid).threads()[1], 0)


ATTEMPT = """
import json, sys
from nexttouch.errors import NexttouchError
from nexttouch.linux.process import Process
from nexttouch.live.descriptor import acquire
try:
    acquire(Process.open(int(sys.argv[1])))
    print(json.dumps(["", ""]))
except NexttouchError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def attempt_as_nobody(pid: int) -> tuple[str, str]:
    interpreter = next((path for path in (sys.executable, "/usr/bin/python3") if usable_by_nobody(path)), None)
    if not interpreter:
        pytest.skip("there is no Python interpreter that another user can run")
    command = [*AS_NOBODY, interpreter, "-c", ATTEMPT, str(pid)]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # the package with its core, where that user can read it
        Path(folder).chmod(0o755)
        package = shutil.copytree(Path(descriptor.__file__).parents[1], Path(folder) / "nexttouch")
        shutil.copy(_core.__file__, package)
        shutil.copy(injection.PROGRAM, package)
        environment = {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, capture_output=True, check=True, timeout=HANG, cwd="/", env=environment)
    name, message = json.loads(done.stdout)
    return name, message


def usable_by_nobody(path: str) -> bool:
    # By a shell, because setpriv itself still has root's privileges when it looks for the program.
    command = [*AS_NOBODY, "sh", "-c", '"$0" -c "import sys; sys.exit(sys.version_info < (3, 11))"', path]
    return subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0


def test_another_users_process(start: Start) -> None:
    target = start("read")
    assert attempt_as_nobody(target.pid) == (
        "NotPermitted",
        f"process {target.pid} may not be touched: it belongs to user 0; run as root or with CAP_SYS_PTRACE",
    )
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_process_of_more_capabilities(start: Start) -> None:
    target = start("read")
    command = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", sys.executable, "-c", ATTEMPT]
    done = subprocess.run([*command, str(target.pid)], capture_output=True, check=True, timeout=HANG)
    name, message = json.loads(done.stdout)
    assert name == "NotPermitted"
    assert "run as root or with CAP_SYS_PTRACE" in message
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_migrator_without_a_free_descriptor(start: Start) -> None:
    target, messages = start("read"), []
    for limit in range(4, 16):
        limited = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))\n"
        code = ATTEMPT.replace("try:", limited + "try:")
        done = subprocess.run(
            [sys.executable, "-c", code, str(target.pid)], capture_output=True, check=True, timeout=HANG
        )
        messages.append(json.loads(done.stdout)[1])
    for call in ("socketpair", "execve"):
        remedy = "this process has no file descriptor left; raise its limit (ulimit -n)"
        assert f"{call}: Too many open files (EMFILE); {remedy}" in messages
    assert messages[-1] == ""
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_process_protected_from_its_own_user(start: Start) -> None:
    target = start("undumpable", prefix=AS_NOBODY, readies=2)
    name, message = attempt_as_nobody(target.pid)
    assert name == "NotPermitted"
    assert "protected from its own user" in message
    assert target.finish(b"x")[:2] == (1, 0)


@pytest.mark.skipif(
    Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0", reason="any user may have a userfaultfd"
)
def test_a_user_who_may_not_have_a_userfaultfd(start: Start) -> None:
    target = start("read", prefix=AS_NOBODY)
    name, message = attempt_as_nobody(target.pid)
    assert name == "NotPermitted"
    assert "vm.unprivileged_userfaultfd=1" in message or "ptrace_scope" in message
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_helper_that_dies_is_reported(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(injection, "PROGRAM", Path("/bin/false"))
    target = start("read")
    with pytest.raises(KernelError, match="ended with status 1 before it was done"):
        take(target.pid)
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_helper_that_is_not_there_is_reported(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(injection, "PROGRAM", Path("/nowhere"))
    target = start("read")
    with pytest.raises(KernelError, match=r"^execve: .* \(ENOENT\); '/nowhere' has to be a program; install nexttouch"):
        take(target.pid)
    assert target.finish(b"x")[:2] == (1, 0)


def test_a_descriptor_that_could_not_be_received_is_reported() -> None:
    with pytest.raises(KernelError, match="raise its limit"):
        injection._read_answer(b"taken 1000 0", -1, 1)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("call mmap 12", "mmap: Cannot allocate memory (ENOMEM)"),
        ("call pidfd_getfd 38", "pidfd_getfd is not available: this kernel does not have it; use Linux 5.6 or newer"),
        (
            "traced 9",
            "process 7 cannot be attached to: process 9 traces it (a debugger, strace or another migrator); end",
        ),
        ("ended 0", "process 7 ended while it was attached to"),
        (
            "forbidden 0",
            "process 7 may not be touched: the kernel forbids tracing it; run as root or with CAP_SYS_PTRACE",
        ),
    ],
)
def test_errors_travel(answer: str, error: str) -> None:
    with pytest.raises(NexttouchError) as raised:
        injection._read_answer(answer.encode(), -1, 7)
    assert str(raised.value).startswith(error)


def test_each_word_of_the_program_is_known() -> None:
    source = (Path(__file__).parents[2] / "src/nexttouch/_attach/main.c").read_text()
    words = re.findall(r'\[[A-Z0-9_]+\] = "(\S+)"', source)
    assert len(words) == 13
    for word in set(words) - {"call"}:
        assert isinstance(injection._refusal(word, 1, 7), NexttouchError)
