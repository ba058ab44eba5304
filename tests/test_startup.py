"""The command line answers at once: what it does not need is not imported."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

TIMEOUT = 60
HEAVY = ("numpy", "rich", "asyncio", "subprocess", "multiprocessing", "unittest", "concurrent.futures", "email", "http")

MODULES = """
import sys
before = set(sys.modules)
sys.argv = ["nexttouch", *sys.argv[1:]]
try:
    import nexttouch.__main__
except SystemExit as status:
    assert not status.code, status.code
print(*sorted(set(sys.modules) - before), file=sys.stderr)
"""


def imported(*words: str) -> list[str]:
    """Modules that a command loads, beyond those of the interpreter itself."""
    done = subprocess.run(
        [sys.executable, "-c", MODULES, *words], capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    return done.stderr.split()


@pytest.mark.parametrize(
    ("words", "most"),
    [
        (["--version"], 120),
        (["--help"], 120),
        (["topology"], 105),
        (["topology", "--help"], 105),
        (["where", "--help"], 105),
        (["move", "--help"], 105),
        (["lab", "--help"], 105),
        (["doctor", "--help"], 110),
    ],
)
def test_nothing_heavy_is_imported(words: list[str], most: int) -> None:
    found = imported(*words)
    assert not [name for name in found if name.startswith(HEAVY)]
    assert "nexttouch.live.migration" not in found
    assert "nexttouch._core" not in found
    assert len(found) <= most, f"{len(found)} modules: {' '.join(found)}"


def test_importing_the_package_loads_none_of_its_parts() -> None:
    code = "import sys; before = set(sys.modules); import nexttouch; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT, check=True)
    found = done.stdout.split()
    assert not [name for name in found if name.startswith(HEAVY)]
    assert not [name for name in found if name.startswith(("nexttouch.live", "nexttouch.cli", "nexttouch.placement"))]


def seconds(*command: str) -> float:
    """Of CPU time: what else the machine does takes none of it."""
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, timeout=TIMEOUT, check=True)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime


def test_it_takes_a_few_times_as_long_as_python_itself() -> None:
    """Side by side, the least of several: a slow machine is slow for both."""
    both = [(seconds("-c", "pass"), seconds("-m", "nexttouch", "topology")) for _ in range(7)]
    python, command = (min(times) for times in zip(*both, strict=True))
    assert command < 8 * python, f"{command * 1e3:.0f} ms against {python * 1e3:.0f} ms"
