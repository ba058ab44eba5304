from __future__ import annotations

from typing import Any

import pytest

from nexttouch.errors import InvalidArgument
from nexttouch.lab import Machine

GIB = 2**30


def test_by_default_two_sockets_with_an_expander_each() -> None:
    machine = Machine()
    assert (machine.nodes, machine.cpu_nodes, machine.memory) == (4, 2, GIB)
    assert machine.distances == ((10, 21, 28, 38), (21, 10, 38, 28), (28, 38, 10, 48), (38, 28, 48, 10))


@pytest.mark.parametrize(("nodes", "cpu_nodes"), [(n, c) for n in range(1, 9) for c in range(1, n + 1)])
def test_the_usual_distances_of_every_shape_pass_the_check_of_given_ones(nodes: int, cpu_nodes: int) -> None:
    usual = Machine(nodes, cpu_nodes)
    assert Machine(nodes, cpu_nodes, distances=usual.distances) == usual


def test_an_expander_is_nearest_to_one_socket_only() -> None:
    distances = Machine(6, 2).distances
    assert [distances[0][node] for node in range(6)] == [10, 21, 28, 38, 28, 38]
    assert distances[2][4] == 38  # two expanders of one socket
    assert distances[2][3] == 48  # of two


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"nodes": 0}, "nodes"),
        ({"nodes": 9}, "nodes"),
        ({"cpu_nodes": 0}, "cpu_nodes"),
        ({"nodes": 2, "cpu_nodes": 3}, "cpu_nodes"),
        ({"memory": 128 * 2**20}, "memory"),
        ({"memory": GIB + 1}, "memory"),
        ({"nodes": 2, "distances": ((10, 20),)}, "distances"),
        ({"nodes": 2, "distances": ((10, 20), (21, 10))}, "distances"),
        ({"nodes": 2, "distances": ((11, 20), (20, 10))}, "distances"),
        ({"nodes": 2, "distances": ((10, 10), (10, 10))}, "distances"),
        ({"nodes": 2, "distances": ((10, 255), (255, 10))}, "distances"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Machine(**arguments)
    assert caught.value.argument == argument
