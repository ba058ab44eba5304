"""Fetches a guest kernel with apt from the archive the system is configured for, without installing it.

apt works in a directory of its own, with a source list of its own, so the system's package state is neither used nor
changed; its keys, proxies and mirror are. What apt downloads it checks against the archive's signature.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import LabError
from .sources import Stanza, for_suites, main_archive, system_stanzas, write_deb822

__all__ = ["fetch", "read_codename", "suites_to_try", "version_of"]

_OLDEST = (6, 12)  # the first long-term kernel with UFFDIO_MOVE (6.8) and PAGEMAP_SCAN (6.7)
_META = "linux-image-amd64"  # depends on the newest generic kernel; the cloud flavour has no 9p
_BUSYBOX = "busybox-static"
_DEPENDS = re.compile(r"^\s*Depends: (linux-image-\d\S*)$", re.MULTILINE)


def fetch(work: Path, progress: Callable[[str], None]) -> tuple[Path, str]:
    """Download and unpack a kernel and a busybox below `work`; return the unpacked tree and the kernel's release.

    Raises:
        LabError: no suite of the archive offers a kernel that is new enough, or apt fails; each suite's reason.
    """
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise LabError(f"{tool} is missing, so no guest kernel can be fetched; give one of your own with --kernel")
    codename = read_codename(Path("/etc/os-release").read_text())
    archive = main_archive(system_stanzas(), codename)
    reasons = []
    for suite in suites_to_try(codename):
        apt = _Apt(work, for_suites(archive, dict.fromkeys((suite, codename))), suite)
        try:
            kernel = apt.kernel()
        except LabError as error:
            reasons.append(f"{suite}: {error}")
            continue
        progress(f"{kernel} from {suite}")
        return apt.unpack(kernel), kernel.removeprefix("linux-image-")
    raise LabError("no suite of the configured package archive gives a guest kernel: " + "; ".join(reasons))


def suites_to_try(codename: str) -> Iterator[str]:
    """Yield where to look for a kernel: the release itself, its backports, then newer releases by their role."""
    yield codename
    yield f"{codename}-backports"
    yield from ("stable", "testing", "unstable")


def read_codename(os_release: str) -> str:
    """Read the release's name in the text of os-release(5).

    Raises:
        LabError: the system is no Debian.
    """
    fields = dict(line.split("=", 1) for line in os_release.splitlines() if "=" in line)
    codename = fields.get("VERSION_CODENAME", "").strip('"')
    if fields.get("ID", "").strip('"') != "debian" or not codename:
        raise LabError(
            "the lab fetches Debian kernels and this system is not Debian; give one of your own with --kernel"
        )
    return codename


def version_of(package: str) -> tuple[int, int]:
    """Read the kernel version in a package name.

    >>> version_of("linux-image-6.12.9+deb13-amd64")
    (6, 12)
    """
    match = re.match(r"linux-image-(\d+)\.(\d+)", package)
    return (int(match[1]), int(match[2])) if match else (0, 0)


class _Apt:
    """apt with its state, cache and sources below `work`, preferring `suite`."""

    def __init__(self, work: Path, stanzas: list[Stanza], suite: str) -> None:
        self._work = work / suite
        for directory in ("state/lists/partial", "cache/archives/partial", "parts", "tree"):
            (self._work / directory).mkdir(parents=True, exist_ok=True)
        (self._work / "lab.sources").write_text(write_deb822(stanzas))
        self._suite = suite

    def kernel(self) -> str:
        """Find the kernel package the suite's meta-package stands for."""
        self._run("apt-get", "update")
        names = _DEPENDS.findall(self._depends(_META))
        if not names:
            raise LabError(f"{_META} is not there")
        if version_of(names[0]) < _OLDEST:
            raise LabError(f"has {names[0]} only, which is older than {_OLDEST[0]}.{_OLDEST[1]}")
        return str(names[0])

    def unpack(self, kernel: str) -> Path:
        """Download `kernel` and busybox, unpack them into one tree, return it.

        Newer suites split a kernel: its image and modules are in packages it depends on, named for the same release.
        """
        release = re.escape(kernel.removeprefix("linux-image-"))
        split = re.findall(rf"^\s*Depends: (linux-\S+-{release})$", self._depends(kernel), re.MULTILINE)
        self._run("apt-get", "download", kernel, _BUSYBOX, *split)
        for package in self._work.glob("*.deb"):
            self._execute("dpkg-deb", "-x", str(package), "tree")
            package.unlink()
        return self._work / "tree"

    def _depends(self, package: str) -> str:
        return self._run("apt-cache", "depends", package)

    def _run(self, tool: str, *arguments: str) -> str:
        parts = self._work / "parts"
        options = {
            "Dir::State": self._work / "state",
            "Dir::State::status": "/var/lib/dpkg/status",
            "Dir::Cache": self._work / "cache",
            "Dir::Etc::sourcelist": self._work / "lab.sources",
            "Dir::Etc::sourceparts": parts,
            "Dir::Etc::preferences": parts / "none",
            "Dir::Etc::preferencesparts": parts,
            "APT::Default-Release": self._suite,
            "APT::Sandbox::User": "root",  # the private directories are not open to apt's own user
            "Acquire::Languages": "none",
        }
        return self._execute(tool, *(f"-o{name}={value}" for name, value in options.items()), "-q", *arguments)

    def _execute(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self._work, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg"))]
            raise LabError(f"{command[0]} failed: {' '.join(errors) or done.stderr.strip() or done.returncode}")
        return done.stdout
