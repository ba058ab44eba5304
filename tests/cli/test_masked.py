"""Every command where /proc or /sys is not there, or a part of it is hidden, as in containers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

TIMEOUT = 120
PRIVATE = ["unshare", "--mount", "sh", "-c"]
NO_SYS = "umount -l /sys"
EMPTY_SYS = "mount -t tmpfs none /sys"
NO_NODES = "mount -t tmpfs none /sys/devices/system/node"
NO_LIST = "mount --bind /dev/null /sys/devices/system/node/online"
NO_PROC = "umount -l /proc"
EMPTY_PROC = "mount -t tmpfs none /proc"
NO_SETTINGS = "mount -t tmpfs none /proc/sys; mount --bind /dev/null /proc/swaps; mount --bind /dev/null /proc/meminfo"

OWN = """
import numpy as np, nexttouch as nt
for call in (nt.where, lambda x: nt.move(x, 0), lambda x: nt.lazy(x, 0).wait(), lambda x: nt.next_touch(x).cancel(),
             lambda x: nt.topology(), lambda x: nt.zeros(9, node=0)):
    try:
        call(np.ones(1 << 16))
        print("done")
    except nt.NexttouchError as error:
        print(type(error).__name__)
"""


def run(change: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command after `change` to what is mounted, which nobody else sees."""
    if subprocess.run([*PRIVATE, change], check=False, capture_output=True).returncode:
        pytest.skip("mounts cannot be changed here")
    program = [sys.executable, *(words if words[0] == "-c" else ("-m", "nexttouch", *words))]
    command = [*PRIVATE, f'{change}; exec "$@"', "sh", *program]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


@pytest.mark.parametrize("change", [NO_SYS, EMPTY_SYS, NO_NODES, NO_LIST])
@pytest.mark.parametrize("words", [["topology"], ["move", "--to", "0"], ["move", "--to", "0", "--lazy"]])
def test_without_sys(change: str, words: list[str]) -> None:
    pid = [str(os.getppid())] if words[0] == "move" else []
    done = run(change, words[0], *pid, *words[1:])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("nexttouch: the list of NUMA nodes is not available: /sys/devices/system/node/")
    assert "mount sysfs" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("change", [NO_SYS, NO_NODES, NO_LIST, NO_SETTINGS])
def test_where_needs_no_sys(change: str) -> None:
    done = run(change, "where", str(os.getpid()), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["by_node"]


@pytest.mark.parametrize("change", [NO_PROC, EMPTY_PROC])
@pytest.mark.parametrize("words", [["where"], ["move", "--to", "0"], ["move", "--to", "0", "--lazy"]])
def test_without_proc(change: str, words: list[str]) -> None:
    done = run(change, words[0], "1", *words[1:])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "nexttouch: information on processes is not available: /proc is not mounted here; "
        "mount it (mount -t proc proc /proc)\n"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (NO_SYS, ["done", *["FeatureMissing"] * 5]),
        (NO_LIST, ["done", *["FeatureMissing"] * 5]),
        (NO_PROC, [*["FeatureMissing"] * 4, "done", "done"]),
        (NO_SETTINGS, ["done"] * 6),
    ],
)
def test_memory_of_its_own(change: str, said: list[str]) -> None:
    done = run(change, "-c", OWN)
    assert (done.stdout.split(), done.stderr) == (said, "")


@pytest.mark.parametrize(
    ("change", "interface"),
    [(NO_SYS, "/sys"), (EMPTY_SYS, "/sys"), (NO_NODES, "/sys"), (NO_LIST, "/sys"), (NO_PROC, "/proc"),
     (EMPTY_PROC, "/proc"), (NO_SETTINGS, "")],
)  # fmt: skip
def test_doctor_says_what_is_missing(change: str, interface: str) -> None:
    done = run(change, "doctor", "--json")
    assert done.stderr == ""
    found = json.loads(done.stdout)
    lacking = {entry["name"]: entry for entry in found["interfaces"] if not entry["available"]}
    assert {name for name in lacking if name in ("/proc", "/sys")} == ({interface} if interface else set())
    if interface:
        assert done.returncode == 1
        assert "mount" in lacking[interface]["remedy"]
        assert not any(way["available"] for way in found["mechanisms"])
    assert run(change, "doctor").returncode == done.returncode


def test_doctor_where_proc_is_of_another_namespace() -> None:
    command = ["unshare", "--pid", "--fork", sys.executable, "-m", "nexttouch", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if not done.stdout:
        pytest.skip("pid namespaces cannot be made here")
    ways = {way["name"]: way for way in json.loads(done.stdout)["mechanisms"]}
    assert not ways["attach"]["available"]
    assert ways["attach"]["reason"].startswith("/proc: /proc is of another pid namespace")
