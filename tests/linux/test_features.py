"""What the probes say, for root and for somebody without privileges, and what is concluded from it."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nexttouch as nt
from nexttouch.errors import FeatureMissing, KernelError
from nexttouch.linux import features, mempolicy
from nexttouch.linux.features import Condition, Probe, conditions, probe
from nexttouch.linux.process import SELF
from nexttouch.linux.userfaultfd import Feature, available_features
from nexttouch.live.mechanisms.ways import Way, ways


def in_child(function: Callable[[], Any], *, dumpable: bool = True) -> Any:
    """What `function` returns in a child process without privileges."""
    conditions()  # what Python loads lazily it could not load as another user
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            if dumpable:
                assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0
            os.write(writer, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(answer)


def seccomp_filter(*numbers: int) -> None:
    """Make the system calls with these numbers fail with EPERM in this process, as container profiles do."""
    code = [struct.pack("<HBBI", 0x20, 0, 0, 0)]  # load the number
    for at, number in enumerate(numbers):
        code.append(struct.pack("<HBBI", 0x15, len(numbers) - at, 0, number))
    code.append(struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000))  # allow
    code.append(struct.pack("<HBBI", 0x06, 0, 0, 0x00050001))  # EPERM
    program = ctypes.create_string_buffer(b"".join(code))
    descriptor = ctypes.create_string_buffer(struct.pack("<H6xQ", len(code), ctypes.addressof(program)))
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(descriptor)), 0, 0) == 0


def by_name(probed: Iterable[Probe]) -> dict[str, Probe]:
    return {found.name: found for found in probed}


def as_data(entries: Iterable[Probe | Way | Condition]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(entry) for entry in entries]


@pytest.fixture(autouse=True)
def nothing_changes() -> Iterator[None]:
    policy, descriptors = mempolicy.get_mempolicy(), opened()
    yield
    assert mempolicy.get_mempolicy() == policy
    assert opened() == descriptors


def opened() -> list[str]:
    return sorted(link.name for link in Path("/proc/self/fd").iterdir())


def test_names_are_unique_and_every_failure_has_cause_and_remedy() -> None:
    probed = probe()
    assert len(by_name(probed)) == len(probed)
    for found in probed:
        assert found.purpose
        assert found.available == (not found.reason) == (not found.remedy)


def test_bits_are_those_the_kernel_names() -> None:
    probed, available = by_name(probe()), available_features()
    for bit in (Feature.MOVE, Feature.WP_ASYNC, Feature.MINOR_SHMEM, Feature.POISON, Feature.EVENT_FORK, Feature.RWP):
        assert probed[f"userfaultfd {bit.name}"].available == bool(bit & available)


def test_root_on_the_kernel_of_this_machine_has_everything_but_what_is_not_released() -> None:
    if os.geteuid() or not Feature.MOVE & available_features():
        pytest.skip("not root, or an older kernel")
    probed = by_name(probe())
    lacking = {name for name, found in probed.items() if not found.available}
    assert lacking <= {"userfaultfd RWP", "/dev/userfaultfd"}
    assert {way.name for way in ways(probed.values()) if not way.available} <= {"rwp", "rwp inline"}


def test_without_privileges_the_remedies_are_those_of_a_user() -> None:
    probed = {entry["name"]: entry for entry in in_child(lambda: as_data(probe()))}
    allowed = Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "1"
    if not allowed and not probed["/dev/userfaultfd"]["available"]:
        assert probed["userfaultfd"]["reason"] == "this user may not catch faults of system calls"
        assert "vm.unprivileged_userfaultfd=1" in probed["userfaultfd"]["remedy"]
    assert probed["userfaultfd, user mode"]["available"]
    assert probed["userfaultfd MOVE"]["available"] == bool(available_features() & Feature.MOVE)
    assert probed["move_pages"]["available"]
    assert probed["move_pages MOVE_ALL"]["remedy"] == "run as root or with CAP_SYS_NICE"
    assert probed["frame numbers"]["remedy"] == "run as root or with CAP_SYS_ADMIN"
    assert probed["PAGEMAP_SCAN"]["available"]


def test_a_process_that_may_not_look_at_itself() -> None:
    probed = {entry["name"]: entry for entry in in_child(lambda: as_data(probe()), dumpable=False)}
    for name in ("pagemap", "frame numbers", "PAGEMAP_SCAN"):
        assert probed[name]["reason"] == "this process is protected from its own user (not dumpable)"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86-64's")
def test_in_a_container_with_a_seccomp_filter() -> None:
    def confined() -> tuple[Any, Any, Any]:
        seccomp_filter(323, 279, 237, 438, 101)  # userfaultfd, move_pages, mbind, pidfd_getfd, ptrace
        return as_data(probe()), as_data(ways(probe())), as_data(conditions())

    probed, concluded, around = in_child(confined)
    found = {entry["name"]: entry for entry in probed}
    assert "seccomp" in found["userfaultfd"]["reason"]
    assert "--security-opt seccomp=PROFILE" in found["userfaultfd"]["remedy"]
    for name in ("userfaultfd MOVE", "userfaultfd PAGEFAULT_FLAG_WP", "move_pages", "move_pages MOVE_ALL", "mbind"):
        assert "seccomp" in found[name]["reason"], name
    assert "seccomp" in found["ptrace"]["reason"]
    assert "seccomp" in found["pidfd_getfd"]["reason"]
    assert not any(way["available"] for way in concluded)
    assert next(entry for entry in around if entry["name"] == "seccomp filter")["value"] == "yes"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86-64's")
@pytest.mark.parametrize(
    ("number", "call", "work"),
    [
        (279, "move_pages", lambda: nt.where(np.ones(1))),
        (279, "move_pages", lambda: nt.where(os.getpid())),
        (279, "move_pages", lambda: nt.lazy(np.ones(1 << 16), 0)),
        (256, "migrate_pages", lambda: mempolicy.migrate_pages(SELF, [0], [0])),
        (239, "get_mempolicy", lambda: nt.move(np.ones(1), 0)),
        (239, "get_mempolicy", lambda: mempolicy.policy_of(np.ones(1).ctypes.data)),
    ],
)
def test_a_call_that_a_container_forbids_is_named(number: int, call: str, work: Callable[[], object]) -> None:
    def confined() -> list[str]:
        seccomp_filter(number)
        with pytest.raises(FeatureMissing) as caught:
            work()
        return [caught.value.feature, caught.value.reason, caught.value.remedy]

    feature, reason, remedy = in_child(confined)
    assert feature == call
    assert "seccomp" in reason
    assert "--security-opt seccomp=PROFILE" in remedy


def test_what_works_without_privileges_does_work() -> None:
    """What is said of service="inline" is so."""

    def both() -> tuple[list[str], int]:
        array = np.ones(1 << 16)
        with nt.lazy(array, 0, always=True, service="inline") as migration:
            array[:] += 1
        return [way.name for way in ways(probe()) if way.available], migration.stats.moved

    nt.lazy(np.ones(1 << 16), 0, always=True, service="inline").wait()  # loads what it needs
    working, moved = in_child(both)
    if "relocate inline" not in working:
        pytest.skip("a kernel without UFFDIO_MOVE")
    assert moved > 0


def test_the_trials_fail_when_the_kernel_does_not_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Break them: a descriptor that registers nothing moves nothing and catches nothing.
    from nexttouch.linux.userfaultfd import Userfaultfd

    monkeypatch.setattr(Userfaultfd, "move", lambda *_: 0)
    monkeypatch.setattr(Userfaultfd, "write_protect", lambda *_: None)
    monkeypatch.setattr(Userfaultfd, "register", lambda *_: None)
    with pytest.raises(FeatureMissing, match="lost its contents"):
        features._move_a_page()
    with pytest.raises(FeatureMissing, match="was not caught"):
        features._catch_a_store()


def test_errors_without_a_type_are_reported_as_they_are() -> None:
    def fail() -> None:
        raise KernelError("move_pages", 12)

    found = features._try("name", "purpose", fail)
    assert not found.available
    assert found.reason.startswith("move_pages: Cannot allocate memory (ENOMEM)")


def test_conditions_of_this_machine() -> None:
    found = {condition.name: condition for condition in conditions()}
    assert set(found) == {
        "nodes with memory",
        "nodes allowed (cpuset)",
        "NUMA balancing",
        "transparent huge pages",
        "swap",
        "seccomp filter",
        "control group",
    }
    assert (found["swap"].value == "none") == (len(Path("/proc/swaps").read_text().splitlines()) == 1)
    several = any(mark in found["nodes with memory"].value for mark in ",-")
    assert found["nodes with memory"].fine == several


@pytest.mark.parametrize(
    ("value", "fine", "said"), [("0", True, "off"), ("1", False, "on"), ("2", False, "mode 2"), ("", True, "not in")]
)
def test_numa_balancing_is_warned_of(monkeypatch: pytest.MonkeyPatch, value: str, fine: bool, said: str) -> None:
    monkeypatch.setattr(features, "_first_line", lambda path: value)
    condition = features._balancing()
    assert condition.fine == fine
    assert condition.value.startswith(said)
    assert fine or "sysctl kernel.numa_balancing=0" in condition.note
