"""One thread fills an array and others work on it: move each part to where it is worked on.

Run it on a machine with several NUMA nodes, or on a virtual one:

    python examples/next_touch.py
    nexttouch lab -- python examples/next_touch.py
"""

import os
import threading

import numpy as np
from numpy.typing import NDArray

import nexttouch as nt

Array = NDArray[np.float64]


def work(rows: Array, node: int, results: list[float]) -> None:
    """Something that reads all of `rows`, on the CPUs of `node`."""
    os.sched_setaffinity(0, nt.topology().node(node).cpus)
    results.append(float(rows.sum()))


def run_workers(array: Array, nodes: list[int]) -> float:
    """Give each of `nodes` a thread and its share of the rows; return the sum of all."""
    results: list[float] = []
    shares = np.array_split(array, len(nodes))
    threads = [
        threading.Thread(target=work, args=(rows, node, results)) for rows, node in zip(shares, nodes, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(results)


def main() -> None:
    """Show where the array is before and after the workers have touched it."""
    nodes = [node.id for node in nt.topology().nodes if node.cpus and node.has_memory]

    # The main thread fills it, so all of it is on the main thread's node, the first one here.
    os.sched_setaffinity(0, nt.topology().node(nodes[0]).cpus)
    array = np.ones((4096, 4096))
    print("pages by node before:", nt.where(array).by_node)

    # Now every page is a trap: it follows whoever touches it next to its node, and all that were touched have done so
    # when the block is over. Where two shares meet inside a page (NumPy's large arrays have huge ones, of 2 MiB), the
    # first to touch it has it.
    with nt.next_touch(array) as migration:
        migration.wait_armed()
        total = run_workers(array, nodes)
    print("pages by node after: ", nt.where(array).by_node)

    stats = migration.stats
    print(f"{stats.moved} pages moved in {stats.faults} page faults; the sum is {total:.0f}, as it was")
    if len(nodes) == 1:
        print("This machine has one node with CPUs, so every page was at home already. With two, each half of the rows")
        print("would now be on the node of its worker. See it: nexttouch lab -- python examples/next_touch.py")


if __name__ == "__main__":
    main()
