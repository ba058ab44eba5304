from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexttouch.linux import nodes


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two sockets (0 and 2), a CXL expander without CPUs (3), and room for eight; node 1 is not populated."""
    base = "devices/system/node"
    for name, text in {"online": "0,2-3", "possible": "0-7", "has_memory": "0,2-3", "has_cpu": "0,2"}.items():
        write(tmp_path, f"{base}/{name}", text)
    rows = {0: ("0-3,8-11", "10 21 31"), 2: ("4-7,12-15", "21 10 24"), 3: ("", "31 24 10")}
    for node, (cpus, distance) in rows.items():
        write(tmp_path, f"{base}/node{node}/cpulist", cpus)
        write(tmp_path, f"{base}/node{node}/distance", distance)
        sizes = {"MemTotal": f"{1000 + node} kB", "MemFree": f"{node} kB", "HugePages_Total": "5"}
        text = "\n".join(f"Node {node} {name}:    {size}" for name, size in sizes.items())
        write(tmp_path, f"{base}/node{node}/meminfo", text)
    speeds = {"read_latency": 255, "write_latency": 0, "read_bandwidth": 30000, "write_bandwidth": 20000}
    for name, value in speeds.items():
        write(tmp_path, f"{base}/node3/access0/initiators/{name}", "1")
        write(tmp_path, f"{base}/node3/access1/initiators/{name}", str(value))
    (tmp_path / base / "node3/access1/initiators/node2").symlink_to(tmp_path / base / "node2")
    write(tmp_path, f"{base}/node0/access0/initiators/read_latency", "80")
    write(tmp_path, "devices/virtual/memory_tiering/memory_tier4/nodelist", "0,2")
    write(tmp_path, "devices/virtual/memory_tiering/memory_tier22/nodelist", "3")
    write(tmp_path, "devices/virtual/memory_tiering/uevent", "")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("", ()), ("\n", ()), ("0\n", (0,)), ("0-3,8", (0, 1, 2, 3, 8)), ("5-5", (5,)), ("1,3,5", (1, 3, 5))],
)
def test_parse_list(text: str, numbers: tuple[int, ...]) -> None:
    assert nodes.parse_list(text) == numbers


@pytest.mark.parametrize("text", ["x", "1-", "-1", "1,,2", "0x3"])
def test_parse_list_refuses_what_is_no_list(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        nodes.parse_list(text)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), "none"), ((4,), "4"), ((0, 1), "0-1"), ((0, 2), "0,2"), ((0, 1, 2, 5, 7, 8), "0-2,5,7-8")],
)
def test_format_list(numbers: tuple[int, ...], text: str) -> None:
    assert nodes.format_list(numbers) == text


@given(st.sets(st.integers(0, 1023), min_size=1))
def test_format_list_reads_back(numbers: set[int]) -> None:
    ascending = tuple(sorted(numbers))
    assert nodes.parse_list(nodes.format_list(ascending)) == ascending


def test_lists_of_nodes(tree: Path) -> None:
    assert nodes.online(tree) == (0, 2, 3)
    assert nodes.possible(tree) == tuple(range(8))
    assert nodes.has_memory(tree) == (0, 2, 3)
    assert nodes.has_cpu(tree) == (0, 2)


def test_one_node(tree: Path) -> None:
    assert nodes.cpus(2, tree) == (4, 5, 6, 7, 12, 13, 14, 15)
    assert nodes.cpus(3, tree) == ()
    assert nodes.distances(2, tree) == (21, 10, 24)
    assert nodes.memory(3, tree) == (1003 * 1024, 3 * 1024)


def test_access_prefers_cpus_and_says_none_for_zero(tree: Path) -> None:
    speed = nodes.access(3, tree)
    assert speed is not None
    assert speed.initiators == (2,)
    assert speed.read_latency == pytest.approx(255e-9)
    assert speed.write_latency is None
    assert speed.read_bandwidth == 30000 * 2**20
    assert speed.write_bandwidth == 20000 * 2**20


def test_access_without_access1_or_without_both(tree: Path) -> None:
    speed = nodes.access(0, tree)
    assert speed is not None
    assert speed.read_latency == pytest.approx(80e-9)
    assert (speed.initiators, speed.write_latency, speed.read_bandwidth) == ((), None, None)
    assert nodes.access(2, tree) is None


def test_tiers(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert nodes.tiers(tree) == {0: 4, 2: 4, 3: 22}
    assert nodes.tiers(tmp_path_factory.mktemp("old")) == {}


def test_a_node_that_is_not_there(tree: Path) -> None:
    with pytest.raises(FileNotFoundError):
        nodes.memory(1, tree)


def test_this_machine() -> None:
    online = nodes.online()
    directories = sorted(int(d.name[4:]) for d in Path("/sys/devices/system/node").glob("node[0-9]*"))
    assert list(online) == directories
    assert set(online) <= set(nodes.possible())
    assert set(nodes.has_memory()) <= set(online)
    for node in online:
        total, free = nodes.memory(node)
        assert 0 <= free <= total
        assert (total > 0) == (node in nodes.has_memory())
        assert (nodes.cpus(node) != ()) == (node in nodes.has_cpu())
        row = nodes.distances(node)
        assert len(row) == len(online)
        assert row[online.index(node)] == min(row)
