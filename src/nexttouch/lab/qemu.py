"""The command that starts QEMU for a machine."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from .guest import KERNEL_OPTIONS
from .install import QEMU
from .machine import Machine
from .parts import Parts

__all__ = ["PORTS", "qemu_command"]

PORTS = ("stdin", "stdout", "stderr", "state")
"""What the guest's serial ports carry, from number 1 on."""

# A lesser emulated processor hangs or lacks what programs are compiled for.
_CPU = {"kvm": "host", "tcg": "max", "icount": "max"}
# Emulated CPUs have a thread each. QEMU 7.2 and 8.0 may then run an instruction that the kernel is patching on another
# CPU (`Oops: int3`, one boot in about thirty): so the guest boots on one CPU, and then takes the others.
_ACCELERATOR = {"kvm": "kvm", "tcg": "tcg,thread=multi", "icount": "tcg,thread=single"}
# An instruction takes 1 ns; where all CPUs are idle time is not waited for, as that would make it the host's.
_CLOCK = ("-icount", "shift=0,sleep=off", "-rtc", "clock=vm")


def qemu_command(
    machine: Machine,
    parts: Parts,
    *,
    how: str,
    initial: int,
    ports: Sequence[int],
    quiet: bool,
    plugin: str | None = None,
) -> list[str]:
    """List QEMU and its arguments for `machine`.

    `how` is the accelerator, "kvm" or "tcg", or "icount": "tcg" with a clock that counts instructions. `initial` is the
    descriptor of the initial file system, `ports` are the sockets behind the serial ports; `quiet` keeps all but the
    kernel's errors off the console; `plugin` is a plugin's file and its options.

    QEMU is started through setpriv(1), which has the kernel kill it when the lab's process ends, however that ends.
    """
    options = (*KERNEL_OPTIONS, *(["quiet"] if quiet else []))
    return [
        *("setpriv", "--pdeathsig", "KILL", QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35", "-accel", _ACCELERATOR[how], "-cpu", _CPU[how]),
        *(_CLOCK if how == "icount" else ()),
        *(("-plugin", plugin) if plugin else ()),
        *_nodes(machine),
        *(_cpus_in_turn(machine) if how == "icount" else _cpus(machine)),
        *("-kernel", str(parts.image), "-initrd", f"/proc/self/fd/{initial}", "-append", " ".join(options)),
        *("-serial", "stdio"),
        *("-fsdev", "local,id=host,path=/,security_model=none,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
        *_serial(ports),
    ]


def _nodes(machine: Machine) -> list[str]:
    words = ["-m", f"{machine.nodes * machine.memory // 2**20}M"]
    for node in range(machine.nodes):
        words += ["-object", f"memory-backend-ram,id=ram{node},size={machine.memory}"]
        words += ["-numa", f"node,nodeid={node},memdev=ram{node}"]
    for a, b in combinations(range(machine.nodes), 2):
        words += ["-numa", f"dist,src={a},dst={b},val={machine.distances[a][b]}"]
    return words


def _cpus(machine: Machine) -> list[str]:
    words = ["-smp", f"{machine.cpu_nodes},sockets={machine.cpu_nodes}"]
    for cpu in range(machine.cpu_nodes):
        words += ["-numa", f"cpu,node-id={cpu},socket-id={cpu}"]
    return words


def _cpus_in_turn(machine: Machine) -> list[str]:
    """List the CPUs of a machine whose clock counts instructions: one runs after the other, until a timer is due.

    In QEMU 7.2 the CPU that comes next after that loses its turn to running the timers. So another one that is never
    started stands between every two; its number is higher than theirs. How long a turn is, guest.py sees to.
    """
    count = machine.cpu_nodes
    spare = range(count, 2 * count - 1)
    words = ["-smp", f"1,sockets={2 * count - 1},maxcpus={2 * count - 1}"]
    for socket in (*range(count), *spare):
        words += ["-numa", f"cpu,node-id={0 if socket in spare else socket},socket-id={socket}"]
    for pair in zip(spare, range(1, count), strict=True):
        for socket in pair:
            words += ["-device", f"{_CPU['icount']}-x86_64-cpu,socket-id={socket},core-id=0,thread-id=0"]
    return words


def _serial(ports: Sequence[int]) -> list[str]:
    words = ["-device", "virtio-serial-pci"]
    for number, (name, descriptor) in enumerate(zip(PORTS, ports, strict=True), 1):
        words += ["-chardev", f"socket,id={name},fd={descriptor}"]
        words += ["-device", f"virtserialport,nr={number},chardev={name}"]
    return words
