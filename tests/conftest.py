"""What holds for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.swap import swap_area

from nexttouch import lab
from nexttouch.errors import LabError

# How long an example takes says more of what else the machine does than of the example.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# A shell has what it starts in the background ignore it, and so would every program that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

OF_THE_KERNEL = {"linux", "live"}
"""Folders whose tests look at what the kernel does: in the lab they are run on each of its kernels."""


OF_RWP = {"test_contract.py", "test_rwp.py"}
"""Files whose tests of RWP are run in the lab, which has a kernel with it where hardly a machine has."""


@pytest.hookimpl(tryfirst=True)  # before items are picked by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in OF_RWP and "rwp" in item.nodeid:
            item.add_marker("lab")
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in OF_THE_KERNEL and item.get_closest_marker("lab"):
            item.add_marker("lab_kernels")


@pytest.fixture
def dead() -> int:
    """The number of a process that is gone."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


@pytest.fixture
def zombie() -> Iterator[int]:
    """A process that has ended and is still waited for."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    yield child
    os.waitpid(child, 0)


@pytest.fixture(scope="session")
def boots() -> None:
    """Skip unless the lab can boot a machine here; say what is in the way."""
    try:
        lab.setup()
    except LabError as error:
        pytest.skip(f"boots a virtual machine: {error}")


@pytest.fixture
def swap() -> Iterator[None]:
    """An area of swap on this machine."""
    with swap_area() as added:
        if not added:
            pytest.skip("no area of swap can be added here")
        yield
