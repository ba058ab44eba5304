"""The clock that counts instructions."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from targets.programs import compiled

from nexttouch import lab

LIMIT = 300.0
SCRIPT = """
head -n 1 /sys/devices/system/cpu/online /sys/devices/system/node/node*/cpulist | grep -v '^$'
before=$(cut -d. -f1 /proc/uptime)
sleep 20
after=$(cut -d. -f1 /proc/uptime)
echo $((after - before))
"$1"
"""
EXPECTED = """\
==> /sys/devices/system/cpu/online <==
0-1
==> /sys/devices/system/node/node0/cpulist <==
0
==> /sys/devices/system/node/node1/cpulist <==
1
==> /sys/devices/system/node/node2/cpulist <==
"""


@pytest.mark.usefixtures("boots")
def test_an_instruction_takes_a_nanosecond_and_no_cpu_waits_long_for_its_turn(tmp_path: Path) -> None:
    program = compiled("clocked", tmp_path)
    with tempfile.TemporaryFile() as stdout, Path(os.devnull).open("rb") as null:
        command = ["sh", "-c", SCRIPT, "sh", str(program)]
        machine = lab.Machine(3, 2, 2**29)
        assert lab.run(command, machine, clock="instructions", timeout=LIMIT, stdin=null, stdout=stdout) == 0
        stdout.seek(0)
        *shape, slept, measured = stdout.read().decode().splitlines()
    assert shape == EXPECTED.splitlines()
    assert 20 <= int(slept) <= 21
    loop, median, worst = map(int, measured.split())
    assert loop == pytest.approx(20e6, rel=0.01)
    assert median < 250e3, "two turns"
    assert worst < 10e6
