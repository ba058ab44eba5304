"""The pager: serves page faults in C; the core's header describes what it does."""

from typing import Any, Final

def receive(socket: int, /) -> tuple[bytes, int]:
    """Receive a message of up to 4096 bytes and its descriptor (-1: none), without waiting; OSError(errno).

    A child that is forked before a pager is started with the descriptor does not keep it. Whoever closes it before that
    calls `forget` first.
    """

def forget(descriptor: int, /) -> None:
    """`descriptor` was received, and is about to be closed."""

class Pager:
    """A pager; see pager.h. As a buffer it is its state bytes, one a page in the order of the runs."""

    phase: Final[int]
    """0 made, 1 arming, 2 serving, 3 done."""
    shadow: Final[tuple[int, int]]
    """Address and bytes of the range of parked pages; (..., 0) when it is gone."""

    def __init__(
        self,
        *,
        runs: object,
        ranges: object,
        origins: object,
        nodes: object,
        cpu_nodes: object,
        relocate: bool,
        inline: bool,
        pid: int,
        uffd: int,
        alive_fd: int,
        user_mode: bool,
        toucher: bool,
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
