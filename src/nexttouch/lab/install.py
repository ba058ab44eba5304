"""Sets the lab up: QEMU as a package of the host, the guest's parts in the cache; and says what is in the way."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import LabError
from ..quantities import format_duration
from .fetch import fetch
from .parts import PREFERRED, Parts, cache_directory, collect, from_cache, in_cache, series_of, with_kernel

__all__ = ["QEMU", "missing", "setup"]

QEMU = "qemu-system-x86_64"
_PACKAGE = "qemu-system-x86"

Progress = Callable[[str], None]
Kernel = str | os.PathLike[str] | None


def missing(kernel: Kernel = None) -> str | None:
    """Say what keeps the lab from working here, in a sentence with its remedy; None when it works or can be set up.

    `kernel` is as for `setup`.

    >>> missing()                                                                                    # doctest: +SKIP
    'QEMU is missing and only root may install it: run `apt-get install --no-install-recommends qemu-system-x86`'
    """
    if platform.machine() != "x86_64":
        return f"the lab's guest is an x86-64 machine and this host is {platform.machine()}"
    if shutil.which("setpriv") is None:
        return "setpriv is missing, which ties QEMU's life to the lab's: install util-linux"
    if shutil.which(QEMU) is None and not _may_install():
        who = "only root may install it" if shutil.which("apt-get") else "there is no apt-get to install it"
        return f"QEMU is missing and {who}: run `apt-get install --no-install-recommends {_PACKAGE}`"
    if from_cache(series_of(kernel)) is None and shutil.which("apt-get") is None:
        return "there is no apt-get to fetch the guest's parts with: set the lab up on a Debian system"
    return None


def setup(progress: Progress = lambda line: None, kernel: Kernel = None) -> Parts:
    """Make the lab ready: what is there already is kept, so it costs nothing the second time.

    As root it installs QEMU with apt. A kernel and a static busybox are fetched with apt and unpacked into
    $XDG_CACHE_HOME/nexttouch/lab (default ~/.cache/nexttouch/lab); they are not installed, and removing that directory
    is all it takes to fetch anew. Two set-ups at once do it once. `progress` gets a line about each step that took
    time.

    `kernel` names a series, as "6.12"; the kernel of each has a place of its own. Without one it is the first of
    `parts.PREFERRED` that is packaged. It may also be the file of a kernel, see `parts.with_kernel`.

    Raises:
        InvalidArgument: `kernel` is neither a series nor a readable file.
        LabError: what is missing and the command that gives it, or how apt failed.
    """
    reason = missing(kernel)
    if reason:
        raise LabError(reason)
    series = series_of(kernel)
    with _lock().open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if shutil.which(QEMU) is None:
            _install_qemu(progress)
        if from_cache(series) is None:
            _fill_cache(progress, series)
    parts = from_cache(series)
    assert parts is not None
    return parts if kernel is None or series else with_kernel(parts, Path(kernel))


def _lock() -> Path:
    folder = cache_directory()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError as error:
        place = f"the guest's parts are to be kept in {folder}, which cannot be written ({error.strerror})"
        raise LabError(f"{place}; set XDG_CACHE_HOME to a directory of yours") from None
    return folder / "lock"


def _may_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def _install_qemu(progress: Progress) -> None:
    install = ["apt-get", "install", "-y", "--no-install-recommends", _PACKAGE]
    progress(f"installing {_PACKAGE} with apt-get")
    with _step(f"installed {_PACKAGE}", progress):
        for command in (["apt-get", "update"], install):
            environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise LabError(f"`{' '.join(install)}` failed: {done.stderr.strip()}")


def _fill_cache(progress: Progress, wanted: str | None) -> None:
    for left in cache_directory().glob("fetching-*"):
        shutil.rmtree(left)  # of a set-up that was killed: the lock says nobody else is at it
    progress("fetching a guest kernel, about 110 MB, with apt-get")
    with tempfile.TemporaryDirectory(dir=cache_directory(), prefix="fetching-") as name:
        work = Path(name)
        notes: list[str] = []
        with _step("fetched and unpacked", progress, notes):
            tree, release, series = fetch(work, PREFERRED if wanted is None else (wanted,), notes.append)
            collect(tree, release, work / "guest")
        if from_cache(series) is None:
            (work / "guest").rename(in_cache(series))
    if wanted is None:
        in_cache(None).unlink(missing_ok=True)  # one that leads nowhere
        in_cache(None).symlink_to(in_cache(series).name)


@contextmanager
def _step(what: str, progress: Progress, notes: list[str] | None = None) -> Iterator[None]:
    start = time.monotonic()
    yield
    words = " ".join([what, *(notes or [])])
    progress(f"{words}: {format_duration(time.monotonic() - start)}")
