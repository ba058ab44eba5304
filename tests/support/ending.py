"""A program that ends, in the way its argument says, while memory of it migrates.

usage: ending.py WAY SERVICE [MECHANISM]
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import numpy as np

import nexttouch as nt

way, service, *name = sys.argv[1:]
how: dict[str, Any] = {"service": service} | dict(zip(("mechanism",), name, strict=False))
array = np.arange(1 << 18)
migration = nt.lazy(array, 0, always=True, rate=0, window=1, **how)
assert migration.wait_armed(60)
assert array[::1024].sum() == np.arange(0, 1 << 18, 1024).sum()  # half of the pages are touched
assert not migration.done


def touch_for_ever() -> None:
    while True:
        array[::512] += 1


if way == "return":
    pass
elif way == "exit":
    sys.exit(7)
elif way == "exception":
    raise RuntimeError("on purpose")
elif way == "in the block":
    with migration:
        sys.exit(7)
elif way == "thread":
    threading.Thread(target=lambda: print(f"{array.sum()}\n", end="")).start()  # in one piece
elif way == "daemon":
    threading.Thread(target=touch_for_ever, daemon=True).start()
elif way == "many":
    others = [np.ones(1 << 14) for _ in range(10)]
    kept = [nt.lazy(other, 0, always=True, rate=rate, **how) for other in others for rate in [0]]
    sweeping = nt.lazy(np.ones(1 << 18), 0, always=True, rate=1 << 20)
elif way == "_exit":
    os._exit(7)
elif way == "signal":
    os.kill(os.getpid(), signal.SIGTERM)
elif way == "exec":
    threading.Thread(target=touch_for_ever, daemon=True).start()
    os.execv(sys.executable, [sys.executable, "-c", "import array; print(sum(array.array('q', range(1 << 18))))"])
else:
    raise SystemExit(f"no such way: {way}")
print("at the end\n", end="")
