"""Boots the virtual machine, runs one command in it, and takes it down again."""

from __future__ import annotations

import math
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import InvalidArgument, LabError
from ..quantities import format_duration
from .counts import Counts, parse
from .guest import archive, initial_files, job, settings
from .install import setup
from .machine import CLOCKS, Clock, Machine
from .parts import Parts, cache_directory
from .plugin import Plugin, build
from .qemu import PORTS, qemu_command
from .relay import Console, Input, Keyboard, Output, State, carry
from .terminal import Terminal

__all__ = ["accelerator", "count", "run"]

_BOOT_SECONDS = 180.0  # an emulated guest takes 3 to 10 s; a host that is this slow is of no use
_COUNTED_BOOT_SECONDS = 900.0  # one that is counted four times as long
_PROBE_SECONDS = 15.0  # a guest on KVM is up after one
_TICK = 1.0  # how often the clock is looked at, in seconds
_OWN_ENVIRONMENT = {"TMPDIR": "/dev/shm"}  # the host's files come by 9p, which can make no FIFO
_SIGPIPE_STATUS = 128 + 13

Stream = int | IO[bytes] | None


def run(
    command: Sequence[str],
    machine: Machine = Machine(),  # noqa: B008 (frozen)
    *,
    timeout: float | None = None,
    kernel: str | os.PathLike[str] | None = None,
    clock: Clock = "host",
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    console: bool = False,
) -> int:
    """Run `command` on `machine` and return its exit status: 128+n if signal n ended it, 127 if there is no such file.

    The command runs as root in the guest, with the working directory and the environment of the caller and the host's
    files, which it can change as far as the caller may. Its own are /proc, /sys, /dev, /run, and /dev/shm, where TMPDIR
    points: the host's files cannot be FIFOs. There is no network. Files are cached in the guest: a change the host
    makes meanwhile may not be seen there, and what the command wrote is on the host for certain when it has ended.
    Whatever the command left running is killed.

    The streams are files or descriptors, by default the caller's; both outputs arrive separately and byte for byte. If
    all three are a terminal the command has one of its own, with job control: Ctrl-C interrupts what runs in it, and
    Ctrl-] three times in a row ends the lab, as KeyboardInterrupt.
    `timeout` is in seconds and includes the boot. `kernel` is the series of a packaged kernel, as "6.12", or the file
    of one, see `parts.with_kernel`; `console` shows the guest's console on standard error. The lab is set up first if
    it is not.

    With `clock` "instructions" the processor is always emulated, and each instruction takes 1 ns: what the guest
    measures does then not depend on what else the host does. Instructions are all that takes time: a load from a remote
    node or one that misses a cache is as fast as any other. The CPUs run in turn, up to 122 us each, so when two are
    busy each gets half of the time. Where all are idle the clock goes on to the next timer at once: what waits for the
    host, for a file or for input, may see any time pass. `timeout` is in seconds of the host all the same.

    >>> run(["sh", "-c", "exit 3"])
    3

    Raises:
        InvalidArgument: an empty command, a zero byte in it, a timeout that is not positive, an unknown clock.
        LabError: the lab cannot be set up here, or the guest did not come up, died, or did not end in time.
    """
    streams = (_descriptor(stdin, 0), _descriptor(stdout, 1), _descriptor(stderr, 2))
    return _run(command, machine, timeout=timeout, kernel=kernel, clock=clock, streams=streams, console=console)


def count(
    command: Sequence[str],
    machine: Machine = Machine(),  # noqa: B008 (frozen)
    *,
    timeout: float | None = None,
    kernel: str | os.PathLike[str] | None = None,
    clock: Clock = "host",
    stdin: Stream = None,
    stdout: Stream = None,
    stderr: Stream = None,
    console: bool = False,
) -> Counts:
    """Run `command` on `machine` as `run` does, and count what each CPU accesses in which node's memory.

    The command may set marks (`lab.mark`, or /run/nexttouch-lab/mark NAME), between which it is counted apart. All of
    it is slower: a boot takes some 20 seconds. With `clock` "instructions" another run gives nearly the same counts.

    >>> counts = count(["true"], Machine(2, 2), clock="instructions")                                # doctest: +SKIP
    >>> counts.whole.cpus[1].remote < counts.whole.cpus[1].accesses                                  # doctest: +SKIP
    True

    Raises:
        InvalidArgument: as for `run`.
        LabError: as for `run`; there is no compiler; or this QEMU does not take the plugin.
    """
    streams = (_descriptor(stdin, 0), _descriptor(stdout, 1), _descriptor(stderr, 2))
    _check(command, timeout, clock)
    plugin = build()
    with _memory_file("nexttouch-lab-counts", b"") as output:
        counting = _Counting(plugin, output)
        status = _run(
            command,
            machine,
            timeout=timeout,
            kernel=kernel,
            clock=clock,
            streams=streams,
            console=console,
            counting=counting,
        )
        text = os.pread(output, os.fstat(output).st_size, 0).decode()
    return Counts(status, parse(text, machine))


def accelerator(parts: Parts) -> str:
    """Say what QEMU runs a guest with here: "kvm" if that works, which is tried once a boot of the host, or "tcg".

    /dev/kvm can be there and yet run no guest, for example in a virtual machine without nesting.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    note = cache_directory() / "kvm"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = note.read_text().split() if note.exists() else []
    if known[:1] != [boot]:
        known = [boot, "kvm" if _kvm_works(parts) else "tcg"]
        fresh = note.with_suffix(f".{os.getpid()}")
        fresh.write_text(" ".join(known))
        fresh.rename(note)
    return known[1]


@dataclass(frozen=True)
class _Counting:
    """What counts accesses, and the descriptor that it writes to."""

    plugin: Plugin
    output: int


def _run(
    command: Sequence[str],
    machine: Machine,
    *,
    timeout: float | None,
    kernel: str | os.PathLike[str] | None,
    clock: Clock,
    streams: tuple[int, int, int],
    console: bool,
    counting: _Counting | None = None,
) -> int:
    _check(command, timeout, clock)
    parts = setup(kernel=kernel)
    how = "icount" if clock == "instructions" else "tcg" if counting else accelerator(parts)
    boot_seconds = _COUNTED_BOOT_SECONDS if counting else _BOOT_SECONDS
    with _started(command, machine, parts, how=how, streams=streams, console=console, counting=counting) as guest:
        try:
            return guest.wait(boot_seconds, math.inf if timeout is None else timeout)
        except BrokenPipeError:
            return _SIGPIPE_STATUS  # nobody reads the output any more: what a shell says of such a command


def _check(command: Sequence[str], timeout: float | None, clock: str) -> None:
    if isinstance(command, str) or not command:
        raise InvalidArgument("command", "has to be a list of at least one word")
    if any("\0" in word for word in command):
        raise InvalidArgument("command", "has a zero byte in a word, which no program can be given")
    if timeout is not None and not timeout > 0:
        raise InvalidArgument("timeout", f"is {timeout}, but has to be a positive number of seconds")
    if clock not in CLOCKS:
        raise InvalidArgument("clock", f"is {clock!r}, but has to be one of: {', '.join(CLOCKS)}")


def _descriptor(stream: Stream, default: int) -> int:
    if stream is None:
        return default
    return stream if isinstance(stream, int) else stream.fileno()


def _kvm_works(parts: Parts) -> bool:
    with open(os.devnull, "r+b", buffering=0) as null:  # noqa: PTH123 (a device)
        streams = (null.fileno(),) * 3
        try:
            with _started(["true"], Machine(1, 1), parts, how="kvm", streams=streams, console=False) as guest:
                return guest.wait(_PROBE_SECONDS, _PROBE_SECONDS) == 0
        except LabError:
            return False


@dataclass
class _Guest:
    """A running guest: QEMU's process and the flows between it and the lab."""

    qemu: subprocess.Popen[bytes]
    console: Console
    state: State
    outputs: tuple[Output, Output]
    stdin: Input

    def wait(self, boot_seconds: float, timeout: float) -> int:
        """Carry bytes until the command has ended and its output is complete; return its exit status."""
        start = time.monotonic()
        flows = (self.state, *self.outputs, self.console, self.stdin)
        with ExitStack() as lending:
            while any(flow.waits_for() for flow in (self.state, *self.outputs)):
                passed = time.monotonic() - start
                if passed >= timeout:
                    raise self._failed(f"the command had not ended after {format_duration(timeout)}, and was stopped")
                if not self.state.up and passed >= boot_seconds:
                    raise self._failed(f"the guest had not come up after {format_duration(boot_seconds)}")
                if isinstance(self.stdin, Keyboard) and self.state.up and not self.stdin.up:
                    lending.enter_context(Terminal(self.stdin.source).lent(self.state.port))
                    self.stdin.up = True
                carry(flows, min(_TICK, timeout - passed))
        if self.state.status is None or not all(output.complete for output in self.outputs):
            raise self._failed("the guest ended before the command did")
        return self.state.status

    def _failed(self, what: str) -> LabError:
        self.qemu.kill()
        while self.console.waits_for():
            carry([self.console], _TICK)
        tail = self.console.tail()
        return LabError(f"{what}; the end of its console:{tail}" if tail else f"{what}; its console is empty")


@contextmanager
def _started(
    command: Sequence[str],
    machine: Machine,
    parts: Parts,
    *,
    how: str,
    streams: tuple[int, int, int],
    console: bool,
    counting: _Counting | None = None,
) -> Iterator[_Guest]:
    mark = secrets.token_hex(16).encode()
    script = job(command, os.getcwd(), os.environ | _OWN_ENVIRONMENT)  # noqa: PTH109
    terminal = Terminal(streams[0]) if all(map(os.isatty, streams)) else None
    pairs = [socket.socketpair() for _ in PORTS]
    ours, theirs = zip(*pairs, strict=True)
    clock: Clock = "instructions" if how == "icount" else "host"
    lab = {
        "settings": (0o644, settings(machine, clock, terminal.size if terminal else None)),
        "job": (0o644, script),
        "end": (0o644, mark),
    }
    plugin = None
    inherited = [end.fileno() for end in theirs]
    if counting:
        lab["mark"] = (0o755, counting.plugin.mark.read_bytes())
        plugin = counting.plugin.option(machine, counting.output)
        inherited.append(counting.output)
    with _memory_file("nexttouch-lab", archive(initial_files(parts, lab))) as initial:
        ports = [end.fileno() for end in theirs]
        qemu = subprocess.Popen(
            qemu_command(machine, parts, how=how, initial=initial, ports=ports, quiet=not console, plugin=plugin),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[initial, *inherited],
            start_new_session=True,  # the terminal's interrupt is for the lab, which then takes QEMU down
        )
    try:
        for end in theirs:
            end.close()
        assert qemu.stdout is not None
        yield _Guest(
            qemu,
            Console(qemu.stdout.fileno(), 2 if console else -1),
            State(ours[3]),
            (Output(ours[1], streams[1], mark), Output(ours[2], streams[2], mark)),
            Keyboard(streams[0], ours[0]) if terminal else Input(streams[0], ours[0]),
        )
    finally:
        qemu.kill()
        with qemu:
            for end in ours:
                end.close()


@contextmanager
def _memory_file(name: str, contents: bytes) -> Iterator[int]:
    descriptor = os.memfd_create(name)
    try:
        view = memoryview(contents)
        while view:
            view = view[os.write(descriptor, view) :]
        yield descriptor
    finally:
        os.close(descriptor)
