"""Attaching where there are several nodes: pages of running programs go where they are sent, or say why not."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.nodes import cpuset, filled
from support.traps import RWP
from targets.migrators import Nursery
from targets.programs import HANG, Program, compiled, descriptors, leftovers, steady, until

import nexttouch as nt
from nexttouch.linux import mempolicy, procfs
from nexttouch.linux.mempolicy import Mode
from nexttouch.linux.process import Process
from nexttouch.linux.procfs import Mapping
from nexttouch.live.reason import Reason

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("no_balancing", "begin_on_node_0")]

PAGES = 256
HUGE = 2 * 512
NUMA_BALANCING = Path("/proc/sys/kernel/numa_balancing")


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("steady", tmp_path_factory.mktemp("targets"))


@pytest.fixture
def no_balancing() -> Iterator[None]:
    """Keep the kernel from moving pages by itself."""
    before = NUMA_BALANCING.read_text() if NUMA_BALANCING.exists() else None
    if before:
        NUMA_BALANCING.write_text("0")
    yield
    if before:
        NUMA_BALANCING.write_text(before)


@pytest.fixture
def begin_on_node_0() -> Iterator[None]:
    """Programs inherit it: what they touch first goes to node 0, whichever CPU they run on."""
    mempolicy.set_mempolicy(Mode.PREFERRED, [0])
    yield
    mempolicy.set_mempolicy(Mode.DEFAULT)


def places(program: Program, *, writable: bool = True) -> Counter[int]:
    """Pages by node of the large private mappings that the program fills at its start."""
    found: Counter[int] = Counter()
    for part in nt.where(program.pid).mappings:
        if is_large(part.mapping) and part.mapping.writable == writable:
            found.update(part.counts.by_node)
    return found


def is_large(mapping: Mapping) -> bool:
    return mapping.pages >= PAGES and not mapping.shared and not mapping.path.startswith("/") and mapping.readable


@pytest.mark.parametrize("to", [(1,), (2,), (3, 1)], ids=["1", "without CPUs", "several"])
def test_all_pages_go_where_they_are_sent(binary: Path, to: tuple[int, ...]) -> None:
    with steady(binary, threads=2, pages=PAGES) as (program, companion):
        before = descriptors(program.pid)
        with nt.attach(program.pid, to) as migration:
            program.advance()
            companion.advance()
        stats = migration.stats
        assert stats.phase == "done"
        # Pages that both programs map stay; for all others there is room.
        assert stats.left[Reason.SHARED] >= PAGES
        assert set(stats.left) <= {*(Reason.AT_HOME, Reason.SHARED, Reason.UNSUITABLE, Reason.BUSY, Reason.ABSENT)}
        assert stats.left.get(Reason.BUSY, 0) <= 8
        assert stats.moved_by_touch + stats.moved_by_sweep >= 2 * PAGES
        found = places(program)
        assert sum(found.values()) >= 3 * PAGES + HUGE
        assert sum(count for node, count in found.items() if node not in to) <= 8
        if len(to) > 1:
            assert min(found[node] for node in to) >= PAGES
        assert leftovers(program.pid) == []
        assert descriptors(program.pid) == before
        program.advance()
        companion.advance()


def test_what_cannot_be_trapped_moves_at_the_end(binary: Path, tmp_path: Path) -> None:
    """Read-only memory, and files that no other program maps."""
    alone = tmp_path / "alone"
    alone.write_bytes(binary.read_bytes())
    alone.chmod(0o755)
    with steady(alone, threads=1, pages=PAGES) as (program, companion):
        companion.finish()  # the file and the memfd are the other one's alone now
        with nt.attach(program.pid, 2) as migration:
            pass
        stats = migration.stats
        assert stats.moved_eagerly >= (1 if RWP else PAGES)  # with it read-only memory is trapped
        assert places(program, writable=False) == {2: PAGES}
        placed = nt.where(program.pid)
        own = [part for part in placed.mappings if part.mapping.path == str(alone)]
        assert own
        moved = sum((Counter(part.counts.by_node) for part in own), Counter[int]())
        assert moved[2] >= sum(moved.values()) - 1
        shared = [part for part in placed.mappings if part.mapping.path.startswith("/memfd:shared")]
        assert [part.counts.by_node for part in shared] == [{2: PAGES}]
        program.advance()


def test_one_store_moves_a_window(binary: Path) -> None:
    """Without a sweep only what is written to moves, and where nobody writes everything stays."""
    with steady(binary, threads=1, pages=PAGES) as (program, _):
        with nt.attach(program.pid, 3, rate=0) as migration:
            migration.wait_armed(HANG)
            program.advance(50)
        stats = migration.stats
        assert stats.moved_by_touch > 0
        assert stats.moved_by_sweep == 0
        assert 0 < stats.faults <= stats.moved_by_touch + sum(stats.left.values())
        assert 0 < places(program)[3] <= stats.moved_by_touch
        program.advance()


def test_a_node_that_is_full(binary: Path) -> None:
    full_node = 3
    with filled(full_node, 512), steady(binary, threads=1, pages=2048) as (program, companion):
        before = places(program)
        with nt.attach(program.pid, full_node) as migration:
            pass
        stats = migration.stats
        assert stats.left[Reason.TARGET_FULL] > 0
        assert stats.moved > 0
        after = places(program)
        assert sum(after.values()) >= sum(before.values())
        assert after[full_node] < sum(after.values())
        assert leftovers(program.pid) == []
        program.advance()
        companion.advance()


def test_a_node_that_the_program_may_not_use(binary: Path, tmp_path: Path) -> None:
    with cpuset(tmp_path, "0-1") as group, steady(binary, threads=1, pages=PAGES) as (program, _):
        before, descriptors_before = places(program), descriptors(program.pid)
        (group / "cgroup.procs").write_text(str(program.pid))
        assert procfs.status(Process(program.pid)).mems_allowed == (0, 1)
        with pytest.raises(nt.NodeUnavailable, match=f"the cpuset of process {program.pid} allows 0-1") as caught:
            nt.attach(program.pid, 2)
        assert caught.value.node == 2
        assert descriptors(program.pid) == descriptors_before
        assert set(places(program)) <= set(before) | {0, 1}
        with nt.attach(program.pid, 1):
            program.advance()
        assert places(program)[1] >= PAGES
        program.advance()


def test_the_command_line_moves_and_says_so(binary: Path) -> None:
    with steady(binary, threads=1, pages=PAGES) as (program, _):
        command = [sys.executable, "-m", "nexttouch", "move", str(program.pid), "--to", "1", "--lazy"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * HANG, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        found = re.match(r"moved ([\d,]+) pages ", done.stdout)
        assert found
        assert int(found[1].replace(",", "")) >= 3 * PAGES
        assert "mapped by several processes" in done.stdout
        assert places(program)[1] >= 3 * PAGES + HUGE - 8
        program.advance()


KILLS = 6


def test_killed_migrators(binary: Path) -> None:
    """As test_attach_death.py, but here the pages do change their node."""
    moments, nursery = random.Random(41), Nursery()
    try:
        with steady(binary, threads=1, pages=PAGES) as (program, companion):
            before = descriptors(program.pid)
            for number in range(KILLS):
                stage, to = ("forked", "attached", "armed")[number // 2], 1 + number % 3
                life: dict[str, object] = {"pid": program.pid, "to": to, "rate": 2.0**20, "window": 4}

                def pages_have_moved(to: int = to) -> None:
                    until(lambda: places(program)[to], "a store")

                nursery.kill_at(life, stage, moments.uniform(0, 1), pages_have_moved if stage == "armed" else None)
                assert leftovers(program.pid) == []
                assert descriptors(program.pid) == before
                program.advance()
                companion.advance()
    finally:
        nursery.close()
