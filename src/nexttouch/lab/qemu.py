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

_CPU = {"kvm": "host", "tcg": "max"}  # a lesser emulated processor hangs or lacks what programs are compiled for
# Emulated CPUs have a thread each. QEMU 7.2 and 8.0 may then run an instruction that the kernel is patching on another
# CPU (`Oops: int3`, one boot in about thirty): so the guest boots on one CPU, and then takes the others.
_ACCELERATOR = {"kvm": "kvm", "tcg": "tcg,thread=multi"}


def qemu_command(
    machine: Machine, parts: Parts, *, how: str, initial: int, ports: Sequence[int], quiet: bool
) -> list[str]:
    """List QEMU and its arguments for `machine`.

    `how` is the accelerator, "kvm" or "tcg"; `initial` is the descriptor of the initial file system, `ports` are the
    sockets behind the serial ports; `quiet` keeps all but the kernel's errors off the console.

    QEMU is started through setpriv(1), which has the kernel kill it when the lab's process ends, however that ends.
    """
    options = (*KERNEL_OPTIONS, *(["quiet"] if quiet else []))
    return [
        *("setpriv", "--pdeathsig", "KILL", QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35", "-accel", _ACCELERATOR[how], "-cpu", _CPU[how]),
        *_nodes(machine),
        *("-kernel", str(parts.image), "-initrd", f"/proc/self/fd/{initial}", "-append", " ".join(options)),
        *("-serial", "stdio"),
        *("-fsdev", "local,id=host,path=/,security_model=none,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
        *_serial(ports),
    ]


def _nodes(machine: Machine) -> list[str]:
    words = ["-smp", str(machine.cpu_nodes), "-m", f"{machine.nodes * machine.memory // 2**20}M"]
    for node in range(machine.nodes):
        cpu = f",cpus={node}" if node < machine.cpu_nodes else ""
        words += ["-object", f"memory-backend-ram,id=ram{node},size={machine.memory}"]
        words += ["-numa", f"node,nodeid={node},memdev=ram{node}{cpu}"]
    for a, b in combinations(range(machine.nodes), 2):
        words += ["-numa", f"dist,src={a},dst={b},val={machine.distances[a][b]}"]
    return words


def _serial(ports: Sequence[int]) -> list[str]:
    words = ["-device", "virtio-serial-pci"]
    for number, (name, descriptor) in enumerate(zip(PORTS, ports, strict=True), 1):
        words += ["-chardev", f"socket,id={name},fd={descriptor}"]
        words += ["-device", f"virtserialport,nr={number},chardev={name}"]
    return words
