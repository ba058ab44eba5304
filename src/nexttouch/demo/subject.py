"""A program as there are many: it works on a large array and says how long each step took. It knows nothing of nodes.

usage: subject.py BYTES
"""

import sys
import time

import numpy as np


def main(size: int) -> None:
    """Update a random block of an array of `size` bytes, for ever."""
    data = np.ones(size // 8)
    block = min(len(data), 1 << 14)
    random = np.random.default_rng(1)
    last = time.perf_counter()
    while True:
        start = int(random.integers(len(data) - block + 1))
        data[start : start + block] += 1.0
        now = time.perf_counter()
        print(f"step {(now - last) * 1e3:.3f} ms", flush=True)
        last = now


if __name__ == "__main__":
    main(int(sys.argv[1]))
