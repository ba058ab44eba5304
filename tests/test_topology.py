from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nexttouch as nt
from nexttouch.errors import FeatureMissing, InvalidArgument, NodeUnavailable, NoSuchNode, NoSuchProcess
from nexttouch.linux import mempolicy, nodes
from nexttouch.linux.process import Process
from nexttouch.topology import Node, Topology, check_target, topology

ONLINE = nodes.online()
MISSING = 900
NODE = nodes.has_memory()[0]


def write(root: Path, path: str, text: str) -> None:
    file = root / "devices/system/node" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Sockets 0 and 2, a memory node 3 without CPUs, a node 5 with CPUs and no memory; 1 and 4 are not there."""
    for name, text in {"online": "0,2-3,5", "possible": "0-7", "has_memory": "0,2-3", "has_cpu": "0,2,5"}.items():
        write(tmp_path, name, text)
    rows = {0: ("0-1", "10 21 31 16"), 2: ("2-3,6", "21 10 24 26"), 3: ("", "31 24 10 40"), 5: ("9", "16 26 40 10")}
    for node, (cpus, distances) in rows.items():
        write(tmp_path, f"node{node}/cpulist", cpus)
        write(tmp_path, f"node{node}/distance", distances)
        memory = 0 if node == 5 else 1024
        write(tmp_path, f"node{node}/meminfo", f"Node {node} MemTotal: {memory} kB\nNode {node} MemFree: {node} kB")
    write(tmp_path, "node3/access1/initiators/read_latency", "300")
    tiers = tmp_path / "devices/virtual/memory_tiering/memory_tier4"
    tiers.mkdir(parents=True)
    (tiers / "nodelist").write_text("0,2\n")
    return tmp_path


@pytest.fixture
def machine(tree: Path) -> Topology:
    return topology(tree)


def test_nodes(machine: Topology) -> None:
    assert machine.ids == (0, 2, 3, 5)
    assert machine.memory_nodes == (0, 2, 3)
    assert machine.node(2) == Node(2, (2, 3, 6), True, 1 << 20, 2048, 4)
    assert machine.node(3).read_latency == pytest.approx(300e-9)
    assert (machine.node(3).cpus, machine.node(3).tier, machine.node(3).write_latency) == ((), None, None)
    assert (machine.node(5).has_memory, machine.node(5).memory_total) == (False, 0)


def test_distance_takes_ids(machine: Topology) -> None:
    assert machine.distance(3, 3) == 10
    assert (machine.distance(0, 3), machine.distance(5, 2)) == (31, 26)
    assert machine.distances[2] == (31, 24, 10, 40)


@pytest.mark.parametrize(("node", "others"), [(0, (2, 3)), (2, (0, 3)), (3, (2, 0)), (5, (0, 2, 3))])
def test_nearest(machine: Topology, node: int, others: tuple[int, ...]) -> None:
    assert machine.nearest(node) == others


def test_cpus(machine: Topology) -> None:
    assert machine.cpu_nodes() == [0, 0, 2, 2, -1, -1, 2, -1, -1, 5]
    assert [machine.node_of_cpu(cpu) for cpu in (0, 3, 6, 9)] == [0, 2, 2, 5]
    with pytest.raises(InvalidArgument, match="cpu is 4, but the CPUs online are 0-3,6,9"):
        machine.node_of_cpu(4)


@pytest.mark.parametrize("method", ["node", "nearest"])
def test_no_such_node(machine: Topology, method: str) -> None:
    with pytest.raises(NoSuchNode, match="node names node 1, but this machine has nodes 0, 2, 3, 5"):
        getattr(machine, method)(1)
    with pytest.raises(NoSuchNode):
        machine.distance(0, 4)


def test_a_tree_without_nodes(tmp_path: Path) -> None:
    with pytest.raises(FeatureMissing, match="CONFIG_NUMA"):
        topology(tmp_path)


def test_a_broken_tree_is_not_read_for_ever(tree: Path) -> None:
    write(tree, "node2/distance", "21 10")
    with pytest.raises(FeatureMissing, match="not a square"):
        topology(tree)
    (tree / "devices/system/node/node2/distance").unlink()
    with pytest.raises(FeatureMissing, match=r"node2/distance cannot be read; mount sysfs"):
        topology(tree)


@pytest.mark.parametrize("file", ["online", "has_memory", "node2/meminfo", "node3/cpulist", "node0/distance"])
@pytest.mark.parametrize("masked", ["missing", "empty"])
def test_a_tree_of_which_a_part_is_masked(tree: Path, file: str, masked: str) -> None:
    path = tree / "devices/system/node" / file
    path.unlink() if masked == "missing" else path.write_text("")
    if file.endswith("cpulist") and masked == "empty":
        assert topology(tree).node(3).cpus == ()  # as a node without CPUs has it
        return
    with pytest.raises(FeatureMissing, match="mount sysfs"):
        topology(tree)


def test_a_node_that_goes_while_it_is_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = nodes.memory

    def memory(node: int, root: Path) -> tuple[int, int]:
        if node == 5:  # unplugged after the list was read
            for other, row in {0: "10 21 31", 2: "21 10 24", 3: "31 24 10"}.items():
                write(tree, f"node{other}/distance", row)
            write(tree, "online", "0,2-3")
            raise FileNotFoundError
        return real(node, root)

    monkeypatch.setattr(nodes, "memory", memory)
    assert topology(tree).ids == (0, 2, 3)


def test_this_machine() -> None:
    here = nt.topology()
    assert here.ids == ONLINE
    assert here.memory_nodes == nodes.has_memory()
    assert len(here.distances) == len(here.ids)
    for cpu in os.sched_getaffinity(0):
        assert here.cpu_nodes()[cpu] == here.node_of_cpu(cpu)
        assert Path(f"/sys/devices/system/cpu/cpu{cpu}/node{here.node_of_cpu(cpu)}").exists()
    assert all(here.nearest(node) == () for node in here.ids) == (len(here.memory_nodes) == 1)


def test_importing_it_does_not_load_numpy() -> None:
    code = "import sys; from nexttouch.topology import check_target, topology; "
    code += f"topology(); check_target({NODE}); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("to", [NODE, [NODE], (NODE,), {NODE}, np.int64(NODE), np.array([NODE]), np.array(NODE)])
def test_check_target(to: object) -> None:
    assert check_target(to) == (NODE,)  # type: ignore[arg-type]
    assert all(type(node) is int for node in check_target(to))  # type: ignore[arg-type]


def test_check_target_takes_an_iterator() -> None:
    assert check_target(node for node in (NODE,)) == (NODE,)


@pytest.mark.parametrize(
    ("to", "problem"),
    [
        (True, "contains True"),
        ([False], "contains False"),
        (np.True_, "contains np.True_"),
        (np.array([True]), "contains np.True_"),
        ("0", "is '0'"),
        (b"0", "is b'0'"),
        (["0"], "contains '0'"),
        (0.0, "contains 0.0"),
        (None, "contains None"),
        ([], "is empty"),
        ([NODE, NODE], "names a node twice"),
    ],
)
def test_check_target_refuses(to: object, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^where {problem}") as raised:
        check_target(to, argument="where")  # type: ignore[arg-type]
    assert raised.value.argument == "where"


@pytest.mark.parametrize("to", [-1, MISSING, [NODE, MISSING]])
def test_check_target_of_no_node(to: int | list[int]) -> None:
    with pytest.raises(NoSuchNode) as raised:
        check_target(to)
    assert raised.value.nodes == ONLINE
    assert raised.value.node in {-1, MISSING}


def test_check_target_of_nodes_that_cannot_take_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as offline:
        offline.setattr(nodes, "possible", lambda: (*ONLINE, 8))
        with pytest.raises(NodeUnavailable, match="node 8 cannot take pages: it is offline"):
            check_target(8)
    with monkeypatch.context() as empty:
        empty.setattr(nodes, "has_memory", lambda: (77,))
        with pytest.raises(NodeUnavailable, match="it has no memory; nodes with memory: 77"):
            check_target(NODE)
    with monkeypatch.context() as confined:
        confined.setattr(mempolicy, "mems_allowed", lambda process: (5, 6))
        with pytest.raises(NodeUnavailable, match="the cpuset of this process allows 5-6; add it to cpuset"):
            check_target(NODE)
        with pytest.raises(NodeUnavailable, match="the cpuset of process 4 allows 5-6"):
            check_target(NODE, process=Process(4))


def test_check_target_for_another_process() -> None:
    assert check_target(NODE, process=Process(os.getpid())) == (NODE,)
    with pytest.raises(NoSuchProcess):
        check_target(NODE, process=Process(2**30))


@pytest.mark.lab
def test_order_of_targets_is_kept() -> None:
    assert check_target([1, 0]) == (1, 0)
