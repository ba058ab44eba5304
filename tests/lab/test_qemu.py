from __future__ import annotations

from pathlib import Path

import pytest

from nexttouch.lab import Machine, Parts
from nexttouch.lab.qemu import qemu_command

PARTS = Parts("6.12", Path("/k/vmlinuz"), Path("/k/modules"), Path("/k/busybox"))


def words(machine: Machine, how: str = "tcg", quiet: bool = True) -> list[str]:
    return qemu_command(machine, PARTS, how=how, initial=9, ports=[3, 4, 5, 6], quiet=quiet)


def values(command: list[str], option: str) -> list[str]:
    return [command[i + 1] for i, word in enumerate(command) if word == option]


def test_nodes_memory_and_distances_are_those_of_the_machine() -> None:
    command = words(Machine(nodes=3, cpu_nodes=1, memory=512 * 2**20))
    assert values(command, "-smp") == ["1,sockets=1"]
    assert values(command, "-m") == ["1536M"]
    assert values(command, "-object") == [f"memory-backend-ram,id=ram{n},size=536870912" for n in range(3)]
    assert values(command, "-numa") == [
        "node,nodeid=0,memdev=ram0",
        "node,nodeid=1,memdev=ram1",
        "node,nodeid=2,memdev=ram2",
        "dist,src=0,dst=1,val=28",
        "dist,src=0,dst=2,val=28",
        "dist,src=1,dst=2,val=38",
        "cpu,node-id=0,socket-id=0",
    ]


def test_a_machine_of_one_node_has_no_distances() -> None:
    assert values(words(Machine(1, 1)), "-numa") == [
        "node,nodeid=0,memdev=ram0",
        "cpu,node-id=0,socket-id=0",
    ]


@pytest.mark.parametrize(
    ("how", "accelerator", "cpu"),
    [("kvm", "kvm", "host"), ("tcg", "tcg,thread=multi", "max"), ("icount", "tcg,thread=single", "max")],
)
def test_the_processor_suits_the_accelerator(how: str, accelerator: str, cpu: str) -> None:
    command = words(Machine(), how)
    assert values(command, "-accel") == [accelerator]
    assert values(command, "-cpu") == [cpu]


def test_cpus_that_run_in_turn_have_one_that_never_starts_between_them() -> None:
    command = words(Machine(nodes=4, cpu_nodes=3), "icount")
    assert values(command, "-smp") == ["1,sockets=5,maxcpus=5"]
    cpus = [word for word in values(command, "-device") if word.startswith("max-x86_64-cpu")]
    assert [cpu.split(",")[1] for cpu in cpus] == ["socket-id=3", "socket-id=1", "socket-id=4", "socket-id=2"]
    assert [word for word in values(command, "-numa") if word.startswith("cpu,")] == [
        *("cpu,node-id=0,socket-id=0", "cpu,node-id=1,socket-id=1", "cpu,node-id=2,socket-id=2"),
        *("cpu,node-id=0,socket-id=3", "cpu,node-id=0,socket-id=4"),
    ]
    assert values(command, "-icount") == ["shift=0,sleep=off"]
    assert values(words(Machine()), "-icount") == []


def test_a_plugin_is_passed_on() -> None:
    command = qemu_command(Machine(), PARTS, how="tcg", initial=9, ports=[3, 4, 5, 6], quiet=True, plugin="/p.so,a=1")
    assert values(command, "-plugin") == ["/p.so,a=1"]


def test_qemu_dies_with_the_lab_and_with_the_guest() -> None:
    command = words(Machine())
    assert command[:4] == ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]
    assert "-no-reboot" in command
    assert "panic=-1" in values(command, "-append")[0].split()


def test_pages_are_left_where_they_are_and_the_kernel_speaks_on_demand() -> None:
    options = values(words(Machine()), "-append")[0].split()
    assert {"numa_balancing=disable", "transparent_hugepage=madvise", "quiet"} <= set(options)
    assert "quiet" not in values(words(Machine(), quiet=False), "-append")[0].split()


def test_each_stream_has_its_port_and_the_kernel_its_files() -> None:
    command = words(Machine())
    assert values(command, "-chardev") == [
        "socket,id=stdin,fd=3",
        "socket,id=stdout,fd=4",
        "socket,id=stderr,fd=5",
        "socket,id=state,fd=6",
    ]
    assert [word for word in values(command, "-device") if word.startswith("virtserialport")] == [
        "virtserialport,nr=1,chardev=stdin",
        "virtserialport,nr=2,chardev=stdout",
        "virtserialport,nr=3,chardev=stderr",
        "virtserialport,nr=4,chardev=state",
    ]
    assert values(command, "-kernel") == ["/k/vmlinuz"]
    assert values(command, "-initrd") == ["/proc/self/fd/9"]
