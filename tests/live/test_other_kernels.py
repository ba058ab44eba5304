"""What other kernels answer, or this one at rare moments: a library that is preloaded says it in the kernel's place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.memory import HANG, SERVICES
from targets.programs import compiled

import nexttouch as nt


def preloaded(program: str, name: str, folder: Path, *arguments: str, **environment: str) -> str:
    """What `program` prints with the library `name` preloaded; nothing on standard error."""
    library = compiled(name, folder, "-shared", "-fPIC", f"-I{Path(nt.__file__).parent / '_core'}")
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"LD_PRELOAD": str(library), **environment},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


OLDER = """
import mmap, sys
import numpy as np
import nexttouch as nt
arrays = np.ones(1 << 18), np.frombuffer(mmap.mmap(-1, 1 << 20), np.uint64)  # private and shared
arrays[1][:] = 1
for array in arrays:
    with nt.lazy(array, 0, always=True, mechanism="write_protect") as migration:
        assert migration.wait_armed(60)
        array[:] += 1
    print(migration.stats.moved > 200, nt.Reason.UNMAPPED in migration.stats.left)
with nt.attach(int(sys.argv[1]), 0, always=True) as migration:
    pass
stats = migration.stats
print(stats.moved_by_touch + stats.moved_by_sweep >= 256, nt.Reason.UNMAPPED in stats.left)
"""


def test_anonymous_memory_where_the_kernel_protects_no_other(tmp_path: Path) -> None:
    """Before Linux 5.19."""
    target = "x = bytearray(1 << 20); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", target], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout
        assert program.stdout.readline() == b"ready\n"
        done = preloaded(OLDER, "older", tmp_path, str(program.pid))
        program.communicate(b"\n", timeout=HANG)
    assert done == "True False\nFalse False\nTrue False\n"


BUSY = """
import nexttouch as nt
array = nt.zeros(8 << 12, "uint8", node=0)
array[:] = 1
with nt.lazy(array, 1, mechanism="write_protect", rate=0) as migration:
    assert migration.wait_armed(60)
    array[0] = 2
left = {reason.name: count for reason, count in migration.stats.left.items()}
print(migration.stats.moved_by_touch, left, nt.where(array).by_node, array.sum())
"""


@pytest.mark.lab
@pytest.mark.parametrize(("times", "moved", "left"), [(2, 8, "{} {1: 8}"), (3, 0, "{'BUSY': 8} {0: 8}")])
def test_pages_that_are_busy_for_a_moment(tmp_path: Path, times: int, moved: int, left: str) -> None:
    """Moving them is tried three times; the pages that a failed call has not come to are asked after."""
    done = preloaded(BUSY, "busy", tmp_path, BUSY=str(times))
    assert done == f"{moved} {left} 32769\n"


MOVES = """
import sys
import numpy as np
import nexttouch as nt
pages, service = 256, sys.argv[1]
array = nt.zeros((pages, 512), np.int64)
array[:] = np.arange(pages)[:, None]
for rate in (None, 0):
    migration = nt.lazy(array, 0, always=True, rate=rate, window=1, service=service)
    assert migration.wait_armed(60)
    touched = array[: pages // 2].sum()
    if rate == 0:
        migration.cancel()
    assert migration.wait(60)
    print(migration.stats.moved, {reason.name: count for reason, count in migration.stats.left.items()})
    print((array == np.arange(pages)[:, None]).all())
"""


@pytest.mark.parametrize("service", SERVICES)
def test_pages_that_the_kernel_moves_and_does_not_count(tmp_path: Path, service: str) -> None:
    """Linux 6.18, where an entry has changed under it: it calls the page that it has moved one that is in its way."""
    done = preloaded(MOVES, "undercount", tmp_path, service)
    assert done == "256 {}\nTrue\n128 {'CANCELLED': 128}\nTrue\n"


@pytest.mark.parametrize("service", SERVICES)
def test_a_refusal_while_the_program_unmaps_is_for_now(tmp_path: Path, service: str) -> None:
    """The kernel looks for the mapping first, so it does not say that one has to come again."""
    done = preloaded(MOVES, "changing", tmp_path, service)
    assert done == "256 {}\nTrue\n128 {'CANCELLED': 128}\nTrue\n"


@pytest.mark.parametrize("service", SERVICES)
def test_memory_that_is_mapped_while_it_is_registered(tmp_path: Path, service: str) -> None:
    """Registering passes over what is not mapped: what comes behind it has to be watched as well."""
    done = preloaded(MOVES, "late", tmp_path, service)
    assert done == "256 {}\nTrue\n128 {'CANCELLED': 128}\nTrue\n"
