"""Processes by descriptor."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import threading
from collections.abc import Iterator

import pytest

from nexttouch.errors import InvalidArgument, KernelError, NoSuchProcess, NotPermitted
from nexttouch.linux.pidfd import alive, exists, pidfd_getfd, pidfd_open


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def pidfd(child: subprocess.Popen[bytes]) -> Iterator[int]:
    descriptor = pidfd_open(child.pid)
    yield descriptor
    os.close(descriptor)


def test_a_process_is_alive_until_it_ends(child: subprocess.Popen[bytes], pidfd: int) -> None:
    assert not os.get_inheritable(pidfd)
    assert alive(pidfd)
    assert exists(pidfd)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not alive(pidfd)  # a zombie
    assert exists(pidfd)
    child.wait()
    assert not alive(pidfd)
    assert not exists(pidfd)


def test_a_descriptor_is_copied(child: subprocess.Popen[bytes], pidfd: int) -> None:
    assert isinstance(child.stdout, io.BufferedReader)
    copy = pidfd_getfd(pidfd, 1, pid=child.pid)
    try:
        assert not os.get_inheritable(copy)
        assert os.path.sameopenfile(copy, child.stdout.fileno())
        os.write(copy, b"out of its own descriptor")
        assert child.stdout.read1() == b"out of its own descriptor"
    finally:
        os.close(copy)


def test_a_descriptor_that_is_not_there(child: subprocess.Popen[bytes], pidfd: int) -> None:
    with pytest.raises(KernelError) as error:
        pidfd_getfd(pidfd, 1000, pid=child.pid)
    assert error.value.errno == errno.EBADF


def test_a_process_that_has_ended(child: subprocess.Popen[bytes], pidfd: int) -> None:
    child.kill()
    child.wait()
    with pytest.raises(NoSuchProcess, match="before its descriptor could be taken"):
        pidfd_getfd(pidfd, 1, pid=child.pid)
    with pytest.raises(NoSuchProcess) as error:
        pidfd_open(child.pid)
    assert error.value.pid == child.pid


def test_a_thread_is_not_a_process_but_can_be_asked_for() -> None:
    ready, done = threading.Event(), threading.Event()

    def wait() -> None:
        ready.set()
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait()
    assert thread.native_id
    try:
        with pytest.raises(InvalidArgument, match="which is a thread; name the process"):
            pidfd_open(thread.native_id)
        try:
            descriptor = pidfd_open(thread.native_id, thread=True)
        except InvalidArgument:
            pytest.skip("this kernel has no descriptors of threads")
        assert alive(descriptor)
        done.set()
        thread.join()
        os.close(descriptor)
    finally:
        done.set()
        thread.join()


def test_another_users_process(pidfd: int, child: subprocess.Popen[bytes]) -> None:
    pid = os.fork()
    if pid == 0:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            pidfd_getfd(pidfd, 1, pid=child.pid)
        except NotPermitted:
            os._exit(int(not exists(pidfd)))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
