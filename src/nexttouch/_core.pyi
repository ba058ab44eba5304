"""The pager: serves page faults in C; the core's header describes what it does."""

from typing import Any, Final

MECHANISMS: Final[dict[str, int]]
"""Numbers of the mechanisms: relocate, write_protect, rwp."""
SERVICES: Final[dict[str, int]]
"""Who serves a fault: the pager's thread, or inline the thread that faults."""
STATES: Final[dict[str, int]]
"""States of a page that has no final state yet, and of one that was moved; what is not here is a reason."""
REASONS: Final[dict[str, int]]
"""Why a page stays, as far as a pager finds that out."""
PHASES: Final[dict[str, int]]
"""What a pager does: created, arming, serving, done."""
TOUCHER: Final[int]
"""Where a page goes that moves to the node of the thread that touches it."""
ANYWHERE: Final[int]
"""Where a page is that has to move whatever node it is on."""

def receive(socket: int, /) -> tuple[bytes, int]:
    """Receive a message of up to 4096 bytes and its descriptor (-1: none), without waiting; OSError(errno).

    A child that is forked before a pager is started with the descriptor does not keep it. A caller that closes it
    before that calls `forget` first.
    """

def forget(descriptor: int, /) -> None:
    """`descriptor` was received, and is about to be closed."""

class Pager:
    """A pager; see pager.h. As a buffer it is its state bytes, one a page in the order of the runs."""

    phase: Final[int]
    """One of PHASES."""
    shadow: Final[tuple[int, int]]
    """Address and bytes of the range of parked pages; (..., 0) when it is gone."""

    wanted: Final[bytes]
    """Of each page, as int16: the node that it goes to, or went; TOUCHER while no thread has touched it."""

    def __init__(
        self,
        *,
        runs: object,
        ranges: object,
        origins: object,
        wanted: object,
        nodes: object,
        cpu_nodes: object,
        mechanism: int,
        service: int,
        pid: int,
        uffd: int,
        alive_fd: int,
        user_mode: bool,
        observe: bool,
        window: int,
        rate: float,
        deadline: float,
    ) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def start(self) -> None:
        """Register the ranges and begin to arm; OSError(call, errno, detail)."""
    def wait(self, phase: int, seconds: float, /) -> bool:
        """Whether the phase was reached in time."""
    def cancel(self) -> None:
        """Ask for everything to be given back; does not wait."""
    def stats(self) -> dict[str, Any]:
        """Counters by name; latency: {upper bound in ns: count}."""
