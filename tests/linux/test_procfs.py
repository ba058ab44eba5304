from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nexttouch.errors import NoSuchProcess, NotPermitted
from nexttouch.linux import procfs
from nexttouch.linux.process import SELF, Process, privilege
from nexttouch.linux.procfs import Kind, Mapping
from nexttouch.linux.syscall import PAGE_SIZE

NOBODY = 65534
MAP_NORESERVE = 0x4000
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def mapping_at(address: int) -> Mapping:
    return next(m for m in procfs.mappings() if m.start <= address < m.end)


def in_child(work: Callable[[], object]) -> str:
    """What `work` returns, as text, when a forked child runs it as another user."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setuid(NOBODY)
        try:
            text = str(work())
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


@pytest.fixture
def program() -> Iterator[int]:
    """The pid of a program that has finished loading and changes nothing any more."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"ready\n")
        process.stdout.read(6)
        yield process.pid
        process.kill()


def test_every_line_of_maps_is_read(program: int) -> None:
    mappings = procfs.mappings(Process(program))
    lines = Path(f"/proc/{program}/maps").read_text().splitlines()
    assert len(mappings) == len(lines)
    for mapping, line in zip(mappings, lines, strict=True):
        words = line.split(None, 5)
        assert f"{mapping.start:x}-{mapping.end:x}" == "-".join(word.lstrip("0") for word in words[0].split("-"))
        flags = (mapping.readable, mapping.writable, mapping.executable, mapping.shared)
        assert flags == tuple(c not in "-p" for c in words[1])
        assert mapping.offset == int(words[2], 16)
        assert f"{os.major(mapping.device):02x}:{os.minor(mapping.device):02x}" == words[3]
        assert mapping.inode == int(words[4])
        assert mapping.path == (words[5] if len(words) > 5 else "")
        assert mapping.pages * PAGE_SIZE == mapping.end - mapping.start


def test_this_process_by_its_number_and_without() -> None:
    assert {m.path for m in procfs.mappings(SELF)} == {m.path for m in procfs.mappings(Process(os.getpid()))}
    assert procfs.status(SELF).name == procfs.status(Process(os.getpid())).name
    assert procfs.start_time(SELF) == procfs.start_time(Process(os.getpid()))
    assert SELF.directory == Path("/proc/self")


@pytest.mark.parametrize(
    ("path", "kind"),
    [("[heap]", Kind.HEAP), ("[stack]", Kind.STACK), ("[vdso]", Kind.SPECIAL), ("[vvar]", Kind.SPECIAL)],
)
def test_kind_of_what_every_process_has(path: str, kind: Kind) -> None:
    assert {m.kind for m in procfs.mappings() if m.path == path} == {kind}


def test_kind_of_private_memory() -> None:
    with mmap.mmap(-1, PAGE_SIZE, flags=PRIVATE) as memory:
        assert mapping_at(address_of(memory)).kind is Kind.ANONYMOUS


def test_kind_of_shared_anonymous_memory() -> None:
    with mmap.mmap(-1, PAGE_SIZE) as memory:
        mapping = mapping_at(address_of(memory))
        assert (mapping.kind, mapping.shared, mapping.path) == (Kind.SHMEM, True, "/dev/zero (deleted)")


def map_descriptor(descriptor: int, size: int = PAGE_SIZE, **options: int) -> Mapping:
    try:
        with mmap.mmap(descriptor, size, **options) as memory:
            return mapping_at(address_of(memory))
    finally:
        os.close(descriptor)


def memfd(name: str, flags: int = 0, size: int = PAGE_SIZE) -> int:
    descriptor = os.memfd_create(name, flags)
    os.ftruncate(descriptor, size)
    return descriptor


def test_kind_of_a_memfd() -> None:
    mapping = map_descriptor(memfd("name with spaces"))
    assert (mapping.kind, mapping.path) == (Kind.SHMEM, "/memfd:name with spaces (deleted)")


def test_path_is_as_the_kernel_prints_it() -> None:
    # A newline is escaped; other control characters, which str.splitlines would break lines at, are not.
    assert map_descriptor(memfd("a\nb\x1cc")).path == "/memfd:a\\012b\x1cc (deleted)"


def test_kind_of_a_memfd_of_huge_pages_differs_though_its_name_does_not() -> None:
    size = 2 << 20
    descriptor = memfd("x", os.MFD_HUGETLB | os.MFD_HUGE_2MB, size)
    mapping = map_descriptor(descriptor, size, flags=mmap.MAP_SHARED | MAP_NORESERVE)
    assert (mapping.kind, mapping.path) == (Kind.HUGETLB, "/memfd:x (deleted)")


def test_kind_of_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(PAGE_SIZE))
    expected = Kind.SHMEM if file.stat().st_dev in tmpfs_devices() else Kind.FILE
    mapping = map_descriptor(os.open(file, os.O_RDWR))
    assert (mapping.kind, mapping.path, mapping.device, mapping.inode) == (
        expected, str(file), file.stat().st_dev, file.stat().st_ino,
    )  # fmt: skip


def tmpfs_devices() -> set[int]:
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {Path(row[4]).stat().st_dev for row in rows if row[row.index("-") + 1] == "tmpfs" and Path(row[4]).exists()}


def test_kind_of_a_file_on_tmpfs() -> None:
    file = Path(f"/dev/shm/nexttouch-test-{os.getpid()}")
    file.write_bytes(bytes(PAGE_SIZE))
    try:
        assert map_descriptor(os.open(file, os.O_RDWR)).kind is Kind.SHMEM
    finally:
        file.unlink()


def test_kind_of_devices() -> None:
    private_zero = map_descriptor(os.open("/dev/zero", os.O_RDWR), flags=mmap.MAP_PRIVATE)
    assert (private_zero.kind, private_zero.path) == (Kind.ANONYMOUS, "/dev/zero")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/dev/nvidia0", Kind.DEVICE),
        ("/dev/mem", Kind.DEVICE),
        ("/dmabuf:", Kind.DEVICE),
        ("anon_inode:[perf_event]", Kind.DEVICE),
        ("socket:[1234]", Kind.DEVICE),
        ("[anon:glibc: malloc]", Kind.ANONYMOUS),
        ("[anon_shmem:pool]", Kind.SHMEM),
        ("[stack:77]", Kind.STACK),
        ("[uprobes]", Kind.SPECIAL),
        ("/secretmem (deleted)", Kind.SECRET),
        ("/[kvm-gmem] (deleted)", Kind.DEVICE),
        ("/secretmem/of/mine", Kind.FILE),
        ("/usr/bin/python", Kind.FILE),
        ("/devices/x", Kind.FILE),
        ("/anon_hugepage (deleted)", Kind.HUGETLB),
        ("/SYSV00000000 (deleted)", Kind.SHMEM),
    ],
)
def test_kind_by_name_of_what_a_test_cannot_map(path: str, kind: Kind) -> None:
    mounts = {kind: device for device, kind in procfs._kernel_mounts().items()}
    device = mounts.get(kind, 0) if path.endswith("(deleted)") else 0
    line = f"7f00-7f01 rw-p 00000000 {os.major(device):02x}:{os.minor(device):02x} 1 {path}"
    assert procfs._mapping(line, procfs._kernel_mounts()).kind is kind


def test_a_file_of_that_name_is_a_file() -> None:
    line = "7f00-7f01 rw-s 00000000 08:01 1 /secretmem (deleted)"
    assert procfs._mapping(line, {os.makedev(8, 1): Kind.FILE}).kind is Kind.FILE


def test_kind_of_what_lies_on_mounts() -> None:
    kinds = procfs._file_kinds(SELF)
    assert kinds[Path("/sys").stat().st_dev] is kinds[Path("/proc").stat().st_dev] is Kind.DEVICE
    assert kinds[Path("/dev/shm").stat().st_dev] is Kind.SHMEM


def test_mappings_of_a_range() -> None:
    everything = procfs.mappings()
    third, fourth = everything[3:5]
    assert procfs.mappings(SELF, third.start, fourth.start + 1) == [third, fourth]
    assert procfs.mappings(SELF, third.start, third.start) == []


@pytest.mark.parametrize("read", [procfs.mappings, procfs.smaps])
def test_a_process_that_ends_while_its_mappings_are_read(
    program: int, monkeypatch: pytest.MonkeyPatch, read: Callable[[Process], object]
) -> None:
    """What was read of it until then is not all that it had."""
    real = procfs._lines

    def lines_then_end(process: Process, name: str) -> Iterator[str]:
        yield from list(real(process, name))[: 1 if name == "maps" else 30]
        os.kill(process.pid, 9)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(procfs, "_lines", lines_then_end)
    with Process.open(program) as process, pytest.raises(NoSuchProcess, match="or became another program meanwhile"):
        read(process)


def test_what_can_move() -> None:
    assert {kind for kind in Kind if not kind.movable} == {Kind.DEVICE, Kind.SECRET, Kind.SPECIAL}


def test_smaps_of_locked_memory() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, 8 * PAGE_SIZE, flags=PRIVATE) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        memory.madvise(mmap.MADV_DONTFORK)  # as no neighbour has it, the kernel makes no mapping of both
        address = address_of(memory)
        memory[: 3 * PAGE_SIZE] = b"x" * (3 * PAGE_SIZE)
        assert libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(2 * PAGE_SIZE)) == 0
        found = {s.mapping.start: s for s in procfs.smaps()}
    locked = found[address]
    assert (locked.rss, locked.locked, locked.kernel_page_size, locked.swap) == (2 * PAGE_SIZE,) * 2 + (PAGE_SIZE, 0)
    assert {"lo", "rd", "wr", "nh"} <= locked.flags
    rest = found[address + 2 * PAGE_SIZE]
    assert (rest.rss, rest.locked) == (PAGE_SIZE, 0)
    assert "lo" not in rest.flags


def test_where_arguments_and_environment_are() -> None:
    spans = procfs.argument_spans()
    found = [ctypes.string_at(start, end - start) for start, end in spans]
    assert found == [Path(f"/proc/self/{name}").read_bytes() for name in ("cmdline", "environ")]


def test_smaps_has_every_mapping(program: int) -> None:
    assert [s.mapping for s in procfs.smaps(Process(program))] == procfs.mappings(Process(program))


def test_numa_maps_counts_pages() -> None:
    with mmap.mmap(memfd("a b=c", size=8 * PAGE_SIZE), 8 * PAGE_SIZE) as memory:
        memory[: 5 * PAGE_SIZE] = b"x" * (5 * PAGE_SIZE)
        found = next(n for n in procfs.numa_maps() if n.start == address_of(memory))
    assert sum(found.pages.values()) == 5
    assert (found.policy, found.kernel_page_size) == ("default", PAGE_SIZE)


@pytest.mark.parametrize(
    ("line", "policy", "size", "pages"),
    [
        ("7f00 default", "default", PAGE_SIZE, {}),
        ("7f00 bind=static:0-1,3 anon=4 N0=3 N12=1 kernelpagesize_kB=4", "bind=static:0-1,3", PAGE_SIZE, {0: 3, 12: 1}),
        ("7f00 prefer (many):0-1 heap anon=1 N1=1", "prefer (many):0-1", PAGE_SIZE, {1: 1}),
        ("7f00 weighted interleave:0 file=/a\\040b mapped=1 N0=1", "weighted interleave:0", PAGE_SIZE, {0: 1}),
        ("7f00 default file=/anon_hugepage\\040(deleted) huge dirty=3 N0=3 kernelpagesize_kB=2048", "default", 2 << 20,
         {0: 3 * (2 << 20) // PAGE_SIZE}),
    ],
)  # fmt: skip
def test_numa_maps_lines_of_other_machines(line: str, policy: str, size: int, pages: dict[int, int]) -> None:
    found = procfs._numa_map(line)
    assert (found.start, found.policy, found.kernel_page_size, found.pages) == (0x7F00, policy, size, pages)


def test_status_of_this_process() -> None:
    found = procfs.status()
    assert (found.state, found.tracer, found.uid, found.swap) == ("R", 0, os.geteuid(), 0)
    assert found.rss > 1 << 20
    assert 0 in found.mems_allowed


def test_threads() -> None:
    before = SELF.threads()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    during, counted = SELF.threads(), procfs.status().threads
    stop.set()
    thread.join()
    assert thread.native_id is not None
    assert sorted([*before, thread.native_id]) == during == sorted(during)
    assert counted == len(during)


def test_start_time_whatever_the_name(tmp_path: Path) -> None:
    program = tmp_path / ") R 1 (x"
    program.symlink_to(sys.executable)
    code = "input()"
    with subprocess.Popen([program, "-c", code], stdin=subprocess.PIPE, env={"HOME": "/"}) as process:
        ticks = procfs.start_time(Process(process.pid))
        process.kill()
    assert ticks >= procfs.start_time()


def test_has_memory(zombie: int) -> None:
    assert SELF.has_memory()
    assert not Process(zombie).has_memory()


@pytest.mark.parametrize(
    "function",
    [procfs.mappings, procfs.smaps, procfs.numa_maps, procfs.status, procfs.start_time, Process.threads],
)
def test_no_such_process(function: Callable[[Process], object]) -> None:
    with pytest.raises(NoSuchProcess, match=f"process {2**30} does not exist"):
        function(Process(2**30))


def test_a_process_that_was_waited_for(dead: int) -> None:
    with pytest.raises(NoSuchProcess):
        procfs.mappings(Process(dead))


@pytest.mark.parametrize("function", [procfs.mappings, procfs.smaps, procfs.numa_maps])
def test_a_zombie_has_a_state_but_no_mappings(function: Callable[[Process], object], zombie: int) -> None:
    assert (procfs.status(Process(zombie)).state, procfs.status(Process(zombie)).rss) == ("Z", 0)
    with pytest.raises(NoSuchProcess, match=f"process {zombie} ended and has no memory any more"):
        function(Process(zombie))


def test_a_kernel_thread_has_no_mappings() -> None:
    if procfs.status(Process(2)).name != "kthreadd":
        pytest.skip("kernel threads are not visible in this pid namespace")
    for function in (procfs.mappings, procfs.smaps, procfs.numa_maps):
        with pytest.raises(
            NotPermitted, match=r"^process 2 .*: it is a kernel thread, which has no memory of its own$"
        ):
            function(Process(2))
    assert not Process(2).has_memory()


@pytest.mark.parametrize("function", [procfs.mappings, procfs.smaps, procfs.numa_maps])
def test_memory_of_another_user(function: Callable[[Process], object]) -> None:
    parent = os.getpid()
    reason = "its memory is another user's or protected; run as root or with CAP_SYS_PTRACE"
    assert in_child(lambda: function(Process(parent))) == f"NotPermitted: process {parent} may not be touched: {reason}"


@pytest.mark.parametrize(("own", "name"), [(SELF, "this process"), (Process(os.getpid()), f"process {os.getpid()}")])
def test_a_process_that_may_not_look_at_itself_is_not_another_users(own: Process, name: str) -> None:
    text = str(own.not_permitted())
    assert text.startswith(f"{name} may not be touched: ")
    assert "it is protected from itself (not dumpable)" in text
    assert "call prctl(PR_SET_DUMPABLE, 1), or run as root" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has the privilege")
def test_who_has_the_privilege_is_not_told_to_get_it() -> None:
    assert privilege() == "CAP_SYS_PTRACE is not enough: a security module or a user namespace forbids it"
    assert in_child(privilege) == "run as root or with CAP_SYS_PTRACE"


def test_what_lies_where_a_mapping_was_met_already_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells of mappings piece by piece: one that moved, or grew, meanwhile can be met twice."""
    bounds = [(0x1000, 0x3000), (0x5000, 0x6000), (0x4000, 0x5000), (0x5000, 0x7000), (0x8000, 0x9000)]
    maps = [f"{start:x}-{end:x} rw-p 00000000 00:00 0 " for start, end in bounds]
    lines = {
        "maps": maps,
        "smaps": [line for head in maps for line in (head, "Rss: 4 kB", "KernelPageSize: 4 kB", "VmFlags: rd")],
    }
    monkeypatch.setattr(procfs, "_lines", lambda pid, name: iter(lines[name]))
    wanted = [(0x1000, 0x3000), (0x5000, 0x6000), (0x8000, 0x9000)]
    assert [(mapping.start, mapping.end) for mapping in procfs.mappings()] == wanted
    assert [(smap.mapping.start, smap.mapping.end) for smap in procfs.smaps()] == wanted
    assert [(mapping.start, mapping.end) for mapping in procfs.mappings(SELF, 0x2000, 0x5800)] == wanted[:2]
