"""service="inline": SIGBUS belongs to the migration and to the program, which has to get what is its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.memory import HANG, WORDS, Memory

import nexttouch as nt
from nexttouch.linux import mempolicy
from nexttouch.linux.mempolicy import Mode, Policy

BEGIN = """
import ctypes, faulthandler, mmap, os, signal
import numpy as np
import nexttouch as nt

array = np.ones(1 << 16)

def migrate():
    with nt.lazy(array, 0, always=True, service="inline", rate=0) as migration:
        assert migration.wait_armed(60)
        array[:] += 1
        assert migration.wait(60)
    assert migration.stats.moved_by_touch >= 127  # all but the first and the last page, which are partial

def touch_behind_the_end_of_a_file():
    file = os.memfd_create("file")
    os.ftruncate(file, 8192)
    memory = mmap.mmap(file, 8192)
    os.ftruncate(file, 0)
    return memory[5000]

def said(*_):
    print("handled", flush=True)

"""


def run(code: str) -> tuple[int, str, str]:
    """Run a program; return its status and what it said on standard output and standard error."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code], capture_output=True, text=True, timeout=HANG, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_handler_that_the_program_sets_between_two_migrations() -> None:
    assert run("migrate(); signal.signal(signal.SIGBUS, said); migrate(); print(array.sum())") == (
        0,
        f"{3.0 * (1 << 16)}\n",
        "",
    )


def test_faulthandler_switched_on_between_two_migrations() -> None:
    assert run("migrate(); faulthandler.enable(); migrate(); print(array.sum())") == (0, f"{3.0 * (1 << 16)}\n", "")


def test_many_handlers_set_between_many_migrations() -> None:
    code = """
for _ in range(5):
    migrate()
    signal.signal(signal.SIGBUS, said)
    migrate()
    faulthandler.disable()
    faulthandler.enable()
migrate()
os.kill(os.getpid(), signal.SIGBUS)
"""
    status, output, errors = run(code)
    assert (status, output) == (-signal.SIGBUS, "")
    assert errors.count("Fatal Python error: Bus error") == 1


SETS = {
    "never": "migrate()",
    "before": "faulthandler.enable(); migrate(); migrate()",
    "between": "migrate(); faulthandler.enable(); migrate()",
    "after": "migrate(); faulthandler.enable()",
}


@pytest.mark.parametrize("end", ["touch_behind_the_end_of_a_file()", "os.kill(os.getpid(), signal.SIGBUS)"])
@pytest.mark.parametrize("when", SETS)
def test_a_bus_error_of_the_program_ends_it_and_is_reported_once(when: str, end: str) -> None:
    status, output, errors = run(f"{SETS[when]}\n{end}\nprint('survived')")
    assert (status, output) == (-signal.SIGBUS, "")
    assert errors.count("Fatal Python error: Bus error") == (when != "never")


@pytest.mark.parametrize(
    "when",
    ["signal.signal(signal.SIGBUS, said); migrate()", "migrate(); signal.signal(signal.SIGBUS, said); migrate()"],
)
def test_a_signal_that_is_sent_reaches_the_handler_of_the_program(when: str) -> None:
    code = f"{when}\nfor _ in range(3): os.kill(os.getpid(), signal.SIGBUS)\nmigrate()"
    assert run(code) == (0, "handled\n" * 3, "")


def test_a_signal_that_is_sent_is_ignored_if_the_program_says_so() -> None:
    code = "signal.signal(signal.SIGBUS, signal.SIG_IGN); migrate(); os.kill(os.getpid(), signal.SIGBUS); migrate()"
    assert run(code) == (0, "", "")


def test_a_signal_that_is_sent_ends_a_program_in_the_middle_of_a_migration() -> None:
    code = """
migration = nt.lazy(array, 0, always=True, service="inline", rate=0)
assert migration.wait_armed(60)
os.kill(os.getpid(), signal.SIGBUS)
print("survived")
"""
    assert run(code) == (-signal.SIGBUS, "", "")


def test_handlers_of_the_program_run_with_the_signals_blocked_that_it_expects() -> None:
    code = """
@ctypes.CFUNCTYPE(None, ctypes.c_int)
def handler(number):
    print(number, sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))), flush=True)
libc = ctypes.CDLL(None)
libc.signal(signal.SIGBUS, handler)
migrate()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
os.kill(os.getpid(), signal.SIGBUS)
print(sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))))
"""
    bus, user = int(signal.SIGBUS), int(signal.SIGUSR2)
    assert run(code) == (0, f"{bus} [{bus}, {user}]\n[{user}]\n", "")


def test_no_handler_of_the_program_runs_while_a_thread_serves_itself() -> None:
    """With SIGBUS blocked, as it is then, a touch of another armed page would be the end of the program."""
    code = """
migrate()
action = (ctypes.c_uint64 * 19)()  # struct sigaction: handler, mask, flags, restorer
assert ctypes.CDLL(None).sigaction(signal.SIGBUS, None, action) == 0
print(sorted(number for number in range(1, 32) if not action[1] >> number - 1 & 1))
"""
    assert run(code) == (0, f"[{int(signal.SIGKILL)}, {int(signal.SIGSTOP)}]\n", "")


def test_it_needs_no_privilege_and_the_other_service_says_what_it_needs() -> None:
    code = """
migrate()  # what is imported while it runs may not be readable for another user
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as if it had been started by that user
migrate()
try:
    nt.lazy(array, 0, always=True).wait()
except nt.FeatureMissing as error:
    print(error.remedy)
"""
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0":
        pytest.skip("any user may have a userfaultfd")
    remedy = "run with CAP_SYS_PTRACE, set vm.unprivileged_userfaultfd=1, or use service='inline'"
    assert run(code) == (0, f"{remedy}\n", "")


@pytest.mark.parametrize(
    "policy",
    [
        Policy(Mode.DEFAULT, (), 0),
        Policy(Mode.LOCAL, (), 0),
        Policy(Mode.PREFERRED, (0,), 0),
        Policy(Mode.BIND, (0,), mempolicy.F_STATIC_NODES),
        Policy(Mode.INTERLEAVE, (0,), 0),
    ],
    ids=lambda policy: policy.mode.name,
)
def test_a_thread_that_serves_itself_keeps_its_memory_policy(policy: Policy) -> None:
    found = []

    def touch(words: NDArray[np.uint64]) -> None:
        mempolicy.set_mempolicy(*policy)
        words[::WORDS] += np.uint64(0)
        found.append(mempolicy.get_mempolicy())

    with Memory(16) as memory:
        migration = nt.lazy(memory.words, 0, always=True, rate=0, service="inline")
        assert migration.wait_armed(HANG)
        thread = threading.Thread(target=touch, args=[memory.words])
        thread.start()
        thread.join(HANG)
        assert migration.wait(HANG)
        assert migration.stats.moved_by_touch == 16
        memory.check()
    assert found == [policy]
