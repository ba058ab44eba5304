"""`nexttouch lab`: run a command on a virtual machine with several NUMA nodes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ..errors import InvalidArgument
from ..quantities import format_size, parse_duration, parse_size
from .paragraphs import Paragraphs

if TYPE_CHECKING:
    from ..lab import Counts, Machine

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Run COMMAND on a virtual machine with several NUMA nodes, for hosts that have one.

The guest sees the host's files, working directory and environment, so COMMAND is run as it would be here; its output,
its input and its exit status are passed through. Its own are /proc, /sys, /dev, /run, and /dev/shm, where TMPDIR
points; everything else it writes, it writes on this host. There is no network. At a terminal COMMAND has one, too, with
job control: Ctrl-C is for what runs in it, and Ctrl-] three times in a row ends the lab.

The first run sets the lab up: QEMU is installed (that takes root), a guest kernel is fetched and kept under
~/.cache/nexttouch/lab. A boot takes about 5 seconds without hardware virtualization; then the processor is emulated:
placement and behaviour are real, times are not.

With --clock instructions an emulated instruction takes 1 ns of the guest's time, so what it measures can be repeated,
however busy the host is. Nothing else takes time there: a load from a remote node is as fast as any other. CPUs run in
turn, up to 122 us each; two that are busy get half of the time each. When all are idle the clock goes on to the next
timer at once: what waits for the host, for a file or for input, may see any time pass.

With --count the loads and stores of each CPU are counted, and by node those that miss its cache: one of 1 MiB for each
CPU, lines of 64 bytes, direct-mapped by physical address, which nothing but its own accesses change. It is there to
tell local from remote memory, and is no model of a certain processor. What the kernel does is counted too. COMMAND can
set marks, between which it is counted apart: /run/nexttouch-lab/mark NAME in a shell, `nexttouch.lab.mark(name)` in
Python. All is slower, by four times or more; with --clock instructions another run gives nearly the same counts."""

_EXAMPLES = """\
examples:
  nexttouch lab -- grep . -r /sys/devices/system/node --include=distance
  nexttouch lab --nodes 2 --cpu-nodes 1 --memory 512MiB --timeout 5min -- .venv/bin/python -m pytest -m lab
  nexttouch lab --kernel 6.12 -- bash
  nexttouch lab --clock instructions -- python3 -m timeit 'sum(range(1000))'
  nexttouch lab --count -- sh -c 'make-data; /run/nexttouch-lab/mark ready; use-data'
  nexttouch lab --setup --json

exit status: that of COMMAND (128+n if signal n ended it); 1 if the guest could not be started, died or ran too long."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `commands`."""
    parser = commands.add_parser(
        "lab",
        help="run a command on a virtual machine with several NUMA nodes",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=Paragraphs,
        usage="nexttouch lab [options] -- COMMAND [ARGUMENT ...]\n       nexttouch lab [options] --setup [--json]",
    )
    parser.add_argument("--nodes", type=int, default=4, metavar="N", help="NUMA nodes, 1 to 8 (default 4)")
    parser.add_argument(
        "--cpu-nodes",
        type=int,
        metavar="N",
        help="how many of them, from node 0 on, have a CPU; the rest are memory only (default 2, or 1 of 1)",
    )
    parser.add_argument("--memory", default="1GiB", metavar="SIZE", help="memory of each node (default 1GiB)")
    parser.add_argument("--timeout", metavar="DURATION", help="stop COMMAND after this long, boot included: 90s, 5min")
    parser.add_argument(
        "--kernel",
        metavar="SERIES|FILE",
        help="boot the newest packaged kernel of a series, as 6.12 (if no suite has that any more, of the next later "
        "6.x), or this kernel image, with the modules installed beside it (default: 7.3, or 6.12 where that is not "
        "packaged)",
    )
    parser.add_argument(
        "--clock",
        default="host",
        choices=("host", "instructions"),
        help="instructions: the guest's time is a count of what its CPUs have run (default: host)",
    )
    parser.add_argument("--count", action="store_true", help="count what each CPU accesses in which node's memory")
    parser.add_argument(
        "--output", metavar="FILE", help="with --count: where the counts are written (default: standard error)"
    )
    parser.add_argument("--console", action="store_true", help="show the guest's console on standard error")
    parser.add_argument("--setup", action="store_true", help="only set the lab up, and say what it consists of")
    parser.add_argument(
        "--json",
        action="store_true",
        help="with --setup: print one JSON object: kernel, image, accelerator (kvm or tcg), nodes, cpu_nodes, memory "
        "(bytes a node), distances (rows); with --count: write one: status, and intervals, each with begin, end, and "
        "cpus (cpu, node, accesses, local, remote, misses by node)",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to run, and its arguments")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do what `options` say; return the exit status of the command.

    Raises:
        InvalidArgument: a number, size or duration is out of range, or there is no command.
        LabError: see `lab.run`.
    """
    from .. import lab

    machine = _machine(options)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    timeout = None if options.timeout is None else parse_duration(options.timeout, argument="timeout")
    if options.setup == bool(command):
        raise InvalidArgument("COMMAND", "or --setup has to be given, and only one; as in: nexttouch lab -- uname -r")
    if options.setup:
        _set_up(machine, options.kernel, options.json)
        return 0
    if options.json and not options.count:
        raise InvalidArgument(
            "--json", "goes with --setup or --count: what a command prints is passed through as it is"
        )
    if options.output and not options.count:
        raise InvalidArgument("--output", "goes with --count, whose counts it is for")
    lab.setup(_tell, options.kernel)
    if options.count:
        return _count(options, command, machine, timeout)
    return lab.run(
        command, machine, timeout=timeout, kernel=options.kernel, clock=options.clock, console=options.console
    )


def _count(options: argparse.Namespace, command: list[str], machine: Machine, timeout: float | None) -> int:
    from .. import lab

    with _output(options.output) as output:
        counts = lab.count(
            command, machine, timeout=timeout, kernel=options.kernel, clock=options.clock, console=options.console
        )
        print(json.dumps(_facts(counts)) if options.json else _text(counts), file=output)
    return counts.status


def _output(path: str | None) -> AbstractContextManager[TextIO]:
    """Opened before the machine boots: a file that cannot be written is not found out at the end."""
    if path is None:
        return nullcontext(sys.stderr)
    try:
        return Path(path).open("w", encoding="utf-8")
    except OSError as error:
        raise InvalidArgument("output", f"is {path!r}, which cannot be written: {error.strerror}") from None


def _facts(counts: Counts) -> dict[str, object]:
    facts = dataclasses.asdict(counts)
    for interval in facts["intervals"]:
        for cpu in interval["cpus"]:
            local = cpu["misses"][cpu["node"]]
            cpu |= {"local": local, "remote": sum(cpu["misses"]) - local}
    return facts


def _text(counts: Counts) -> str:
    """One line for each interval and CPU, and for all intervals at last if there are several."""
    intervals = [*counts.intervals, *([counts.whole] if len(counts.intervals) > 1 else [])]
    nodes = range(len(counts.whole.cpus[0].misses))
    heads = ["from", "to", "CPU", "accesses", "misses: local", "remote", *(f"on node {node}" for node in nodes)]
    rows = [
        [interval.begin, interval.end, *(f"{n:,}" for n in (cpu.cpu, cpu.accesses, cpu.local, cpu.remote, *cpu.misses))]
        for interval in intervals
        for cpu in interval.cpus
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return "\n".join("  ".join(map(_aligned, row, widths)).rstrip() for row in [heads, *rows])


def _aligned(cell: str, width: int) -> str:
    return cell.rjust(width) if cell[0].isdigit() else cell.ljust(width)


def _machine(options: argparse.Namespace) -> Machine:
    from ..lab import Machine

    cpu_nodes = min(2, options.nodes) if options.cpu_nodes is None else options.cpu_nodes
    return Machine(options.nodes, cpu_nodes, parse_size(options.memory, argument="memory"))


def _set_up(machine: Machine, kernel: str | None, as_json: bool) -> None:
    from ..lab import setup
    from ..lab.boot import accelerator

    parts = setup(_tell, kernel)
    how = accelerator(parts)
    if as_json:
        facts = {"kernel": parts.release, "image": str(parts.image), "accelerator": how}
        print(json.dumps(facts | dataclasses.asdict(machine)))
        return
    print(f"kernel       {parts.release} ({parts.image})")
    print(f"accelerator  {how} ({'hardware virtualization' if how == 'kvm' else 'emulation: times mean nothing'})")
    print(f"machine      {machine.nodes} nodes of {format_size(machine.memory)}, {machine.cpu_nodes} with a CPU")
    for row in machine.distances:
        print("distances   " + "".join(f"{distance:4}" for distance in row))


def _tell(line: str) -> None:
    print(f"lab: {line}", file=sys.stderr, flush=True)
