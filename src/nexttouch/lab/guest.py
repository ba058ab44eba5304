"""The guest's side: its initial file system, an archive that is made anew for each run, and the scripts in it.

Process 1 is a busybox shell. It mounts the host's root over 9p, the kernel's own file systems over that, and runs the
command with pipes as its standard streams; `cat` carries them to the ports of a virtio serial device. A port can be
opened once only and does not know SIGPIPE, so it is no good as standard output itself.

Ports, by number: 1 standard input, 2 standard output, 3 standard error, 4 the state (`up`, then `exit STATUS`). An
end mark of random text follows the last byte on ports 2 and 3: the only way to know on the host that nothing is still
on its way. The first line on port 1 comes from the lab: until it arrives the port may look closed.

Where the caller has a terminal script(1) gives the command one, too, and stands between it and the pipes. (QEMU's own
consoles lose what they cannot pass on at once.) Port 4 then carries the other way what rows and columns the caller's
terminal changes to.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterable, Mapping, Sequence

from .machine import Clock, Machine
from .modules import load_order
from .parts import Parts

__all__ = ["HELLO", "KERNEL_OPTIONS", "archive", "initial_files", "job", "settings"]

HELLO = b"hello\n"
"""What port 1 starts with."""

KERNEL_OPTIONS = (
    "console=ttyS0",
    "panic=-1",  # a panic reboots at once, which -no-reboot turns into QEMU's end
    "mitigations=off",
    "maxcpus=1",  # the others come when the kernel has done with patching itself: see qemu.py
    "lpj=4000000",  # and need not find out how long a loop takes
    "no_timer_check",  # which fails, and the boot with it, where a busy host lets an interrupt come late
    "numa_balancing=disable",  # both move pages behind the back of who looks at placement
    "transparent_hugepage=madvise",
    "sysctl.vm.watermark_boost_factor=0",  # which pages fit on a node that is nearly full depends on no history
)

_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
exec >/dev/console 2>&1
die() { echo "nexttouch lab: $*"; $b poweroff -f; }
for module in /modules/*; do
    if [ -e "$module" ]; then $b insmod "$module" || die "cannot load $module"; fi
done
$b mount -t 9p -o trans=virtio,version=9p2000.L,access=any,msize=512000,cache=loose host /host ||
    die "cannot mount the root of the host: the guest kernel needs 9p over virtio"
cd /host
$b umount /proc
$b mount --move /dev dev
exec <dev/null >dev/console 2>&1
$b mount -t proc proc proc
$b mount -t sysfs sys sys
$b mount -t cgroup2 cgroup sys/fs/cgroup
$b mount -t tmpfs -o mode=755 run run
$b mkdir -p dev/pts dev/shm run/nexttouch-lab
$b mount -t devpts -o mode=620,ptmxmode=666 devpts dev/pts
$b mount -t tmpfs -o mode=1777 shm dev/shm
$b ln -sf /proc/self/fd dev/fd
for pair in 0:stdin 1:stdout 2:stderr; do $b ln -sf /proc/self/fd/${pair%:*} dev/${pair#*:}; done
$b hostname nexttouch-lab
$b cp /bin/busybox /lab/* run/nexttouch-lab/
exec $b switch_root /host /run/nexttouch-lab/busybox sh /run/nexttouch-lab/supervise
"""

_SUPERVISE = r"""
cd /run/nexttouch-lab
b=./busybox
. ./settings
# turns: have the real-time clock tick every 122 us, so that no CPU's turn takes longer. Its registers are reached by an
# index (port 112) and a value (113): 8192 Hz are 3 in register 10, and bit 6 of register 11 lets it tick. The kernel
# has switched its interrupt off (the HPET stands in for it), so nothing in the guest notices.
turns() {
    for write in '112 \012' '113 \043' '112 \013' '113 \102'; do
        $b printf "${write#* }" | $b dd of=/dev/port bs=1 seek=${write% *} conv=notrunc 2>/dev/null
    done
}
until set -- /dev/vport*p4 && [ -c "$1" ]; do $b usleep 10000; done
port=${1%4}
exec 3<${port}1 4<>${port}4
until read -r hello <&3; do $b usleep 10000; done
$b mkfifo in out err
$b cat <&3 >in 4>&- &
exec 3<&-
{ $b cat <out; $b cat end; } >${port}2 4>&- &
out=$!
{ $b cat <err; $b cat end; } >${port}3 4>&- &
err=$!
$b mkdir /sys/fs/cgroup/command
for cpu in $($b seq 1 $((cpus - 1))); do
    if ! echo 1 >/sys/devices/system/cpu/cpu$cpu/online; then
        echo "nexttouch lab: cannot start CPU $cpu"
        $b poweroff -f
    fi
done
if [ $clock = instructions ]; then turns; fi
ulimit -l unlimited
ulimit -c 0
if [ -e mark ]; then ./mark start; fi
echo up >&4
if [ "$terminal" ]; then
    while read -r rows columns <&4; do $b stty -F /dev/pts/0 rows $rows cols $columns; done &
fi
(
    exec 4>&- <in >out 2>err
    echo 0 >/sys/fs/cgroup/command/cgroup.procs
    if [ "$terminal" ]; then exec script -q -e -E always -c "$b stty $terminal; exec /bin/sh $PWD/job" /dev/null; fi
    exec $b setsid /bin/sh /run/nexttouch-lab/job
)
status=$?
echo 1 >/sys/fs/cgroup/command/cgroup.kill
if [ -e mark ]; then ./mark end; fi
wait $out $err
$b sync
echo exit $status >&4
while :; do $b sleep 1000; done
"""


def job(command: Sequence[str], directory: str, environment: Mapping[str, str]) -> bytes:
    """Write the shell script that becomes `command`, in `directory`, with exactly `environment`."""
    words = ["env", "-i", "--", *(f"{name}={value}" for name, value in environment.items()), *command]
    script = f"cd {shlex.quote(directory)} || exit 1\nexec /usr/bin/{shlex.join(words)}\n"
    return os.fsencode(script)


def settings(machine: Machine, clock: Clock, terminal: tuple[int, int] | None) -> bytes:
    """Write what the scripts have to know, as a shell script that sets it; `terminal` is its rows and columns."""
    size = "rows {} cols {}".format(*terminal) if terminal else ""
    return f"cpus={machine.cpu_nodes}\nclock={clock}\nterminal='{size}'\n".encode()


def initial_files(parts: Parts, lab: Mapping[str, tuple[int, bytes]]) -> dict[str, tuple[int, bytes]]:
    """List the guest's initial file system: mode and contents by path.

    `lab` is what will be in /run/nexttouch-lab: `settings`; `job`; `end`, which follows the last byte of output; and
    `mark` where accesses are counted.
    """
    folders = ("bin", "dev", "host", "lab", "modules", "proc")
    files: dict[str, tuple[int, bytes]] = dict.fromkeys(folders, (stat.S_IFDIR | 0o755, b""))
    files["bin/busybox"] = (stat.S_IFREG | 0o755, parts.busybox.read_bytes())
    files["init"] = (stat.S_IFREG | 0o755, _INIT.encode())
    files["lab/supervise"] = (stat.S_IFREG | 0o644, _SUPERVISE.encode())
    files |= {f"lab/{name}": (stat.S_IFREG | mode, contents) for name, (mode, contents) in lab.items()}
    for number, (name, contents) in enumerate(load_order(parts.modules).items()):
        files[f"modules/{number:02}-{name}.ko"] = (stat.S_IFREG | 0o644, contents)
    return files


def archive(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """`files` in the cpio format the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    entries: Iterable[tuple[str, tuple[int, bytes]]] = [*files.items(), ("TRAILER!!!", (0, b""))]
    return b"".join(_entry(number, name, *entry) for number, (name, entry) in enumerate(entries))


def _entry(number: int, name: str, mode: int, contents: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    links = 1
    fields = (number, mode, 0, 0, links, 0, len(contents), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return _padded(head) + _padded(contents)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
