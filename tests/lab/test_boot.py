"""The lab for real: each of these tests but the first few boots a machine, which takes 5 to 10 seconds."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from nexttouch import lab
from nexttouch.errors import InvalidArgument, LabError

LIMIT = 300.0
NOTHING = Path(os.devnull)
LAB = "import sys; from nexttouch import lab; sys.exit(lab.run(sys.argv[1:], timeout=300))"


def machines_of(pid: int) -> list[int]:
    """The QEMU processes that are children of `pid`."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if "qemu" in Path(f"/proc/{child}/comm").read_text()]


@pytest.mark.parametrize("command", [[], "true"])
def test_a_command_is_a_list_of_words(command: Sequence[str]) -> None:
    with pytest.raises(InvalidArgument, match="command has to be a list"):
        lab.run(command)


def test_a_word_cannot_have_a_zero_byte() -> None:
    with pytest.raises(InvalidArgument, match="zero byte"):
        lab.run(["echo", "a\0b"])


def test_a_clock_is_one_of_those_there_are() -> None:
    with pytest.raises(InvalidArgument, match="clock is 'wall', but has to be one of: host, instructions"):
        lab.run(["true"], clock="wall")  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_is_positive(timeout: float) -> None:
    with pytest.raises(InvalidArgument, match="timeout"):
        lab.run(["true"], timeout=timeout)


SCRIPT = r"""
cd /sys/devices/system/node
for node in node[0-9]*; do echo "$node cpus=$(cat $node/cpulist) distances=$(cat $node/distance)"; done
grep -h MemTotal node*/meminfo | awk '{print ($4 > 800000 ? "enough" : $0)}'
echo "balancing $(cat /proc/sys/kernel/numa_balancing)"
echo "thp $(cat /sys/kernel/mm/transparent_hugepage/enabled)"
echo "memlock $(ulimit -l)"
cd "$OLDPWD"
echo "in $PWD with $NT_TEST"
echo shared >/dev/shm/file && echo "shm $(cat /dev/shm/file)"
mkfifo "$TMPDIR/fifo" && echo "temporary files in $TMPDIR"
echo written >written && cat written
echo "opened again" >/dev/stdout
sleep 1000 & # holds the output open: it must not hold up the end
echo "input $(md5sum | cut -c-32)"
head -c 100000 /dev/zero >&2
exit 37
"""
EXPECTED = """\
node0 cpus=0 distances=10 21 28 38
node1 cpus=1 distances=21 10 38 28
node2 cpus= distances=28 38 10 48
node3 cpus= distances=38 28 48 10
enough
enough
enough
enough
balancing 0
thp always [madvise] never
memlock unlimited
in {directory} with a 'b' $c
shm shared
temporary files in /dev/shm
written
opened again
input {digest}
"""


def test_a_command_has_the_nodes_its_streams_its_place_and_its_status(
    boots: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(500_000)
    digest = subprocess.run(["md5sum"], input=data, capture_output=True, check=True).stdout[:32].decode()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NT_TEST", "a 'b' $c")
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(data)
        stdin.seek(0)
        status = lab.run(["bash", "-c", SCRIPT], timeout=LIMIT, stdin=stdin, stdout=stdout, stderr=stderr)
        stdout.seek(0)
        stderr.seek(0)
        assert stdout.read().decode() == EXPECTED.format(directory=tmp_path, digest=digest)
        assert stderr.read() == bytes(100_000)
    assert status == 37
    assert (tmp_path / "written").read_text() == "written\n"
    assert not Path("/dev/shm/file").exists()


def test_a_command_killed_by_a_signal_has_the_status_a_shell_gives_it(boots: None) -> None:
    with NOTHING.open("r+b") as null:
        assert lab.run(["sh", "-c", "kill -KILL $$"], lab.Machine(2, 1), timeout=LIMIT, stdin=null) == 128 + 9


def test_a_guest_that_dies_leaves_its_last_words_and_no_machine(boots: None) -> None:
    panic = ["sh", "-c", "echo 1 >/proc/sys/kernel/panic_on_oops; echo c >/proc/sysrq-trigger"]
    with NOTHING.open("r+b") as null, pytest.raises(LabError, match=r"(?s)ended before .* Kernel panic"):
        lab.run(panic, timeout=LIMIT, stdin=null, stdout=null, stderr=null)
    assert machines_of(os.getpid()) == []


def test_a_command_that_takes_too_long_is_stopped(boots: None) -> None:
    with NOTHING.open("r+b") as null, pytest.raises(LabError, match=r"not ended after 500 ms"):
        lab.run(["sleep", "1000"], timeout=0.5, stdin=null)
    assert machines_of(os.getpid()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_machine_outlives_the_lab(boots: None, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LAB, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"running\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"running\n"
        (machine,) = machines_of(process.pid)
        handle = os.pidfd_open(machine)
        process.send_signal(number)
        ended, _, _ = select.select([handle], [], [], LIMIT)
        if not ended:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)
        assert ended
    assert process.returncode == -number
