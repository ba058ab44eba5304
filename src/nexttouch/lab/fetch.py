"""Fetches a guest kernel with apt from the archive the system is configured for, without installing it.

apt works in a directory of its own, with a source list of its own, so the system's package state is neither used nor
changed; its keys, proxies and mirror are. What apt downloads it checks against the archive's signature.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import LabError
from .sources import Stanza, for_suites, main_archive, system_stanzas, write_deb822

__all__ = ["fetch", "newest", "read_codename", "suites_to_try"]

_BUSYBOX = "busybox-static"
_PACKAGE = "linux-image-"
# The generic kernels alone: the cloud flavour has no 9p, and no package of debugging symbols or unsigned image boots.
_RELEASE = re.compile(rf"{_PACKAGE}(\d+(?:\.\d+)+(?:[+~-][\w.]+)?-amd64)")


def fetch(work: Path, wanted: Sequence[str], progress: Callable[[str], None]) -> tuple[Path, str, str]:
    """Download and unpack a kernel and a busybox below `work`.

    `wanted` are kernel series as "6.12", in the order of preference. Of a series the suite nearest to this system's own
    that has it gives its newest kernel. A series that no suite has is followed by the next later one of the same first
    number.

    Returns the unpacked tree, the kernel's release, and which of `wanted` it stands for.

    Raises:
        LabError: no suite of the archive offers such a kernel, or apt fails; each suite's reason.
    """
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise LabError(f"{tool} is missing, so no guest kernel can be fetched; give one of your own with --kernel")
    codename = read_codename(Path("/etc/os-release").read_text())
    archive = main_archive(system_stanzas(), codename)
    suites = _Suites(work, archive, codename)
    for series in wanted:
        found = suites.find(series)
        if found:
            apt, release = found
            progress(f"{release} from {apt.suite}")
            return apt.unpack(release), release, series
    raise LabError(
        f"no suite of the configured package archive gives a kernel {' or '.join(wanted)}: "
        f"{'; '.join(suites.reasons)}; name a series that is there, or give a kernel of your own with --kernel FILE"
    )


def suites_to_try(codename: str, stable: Callable[[], str]) -> Iterator[str]:
    """Yield where to look for a kernel: the release itself, its backports, then newer releases by their role.

    `stable` tells which release is stable by now: mirrors bring the backports up to date under that name only.
    """
    yield from (codename, f"{codename}-backports", "stable")
    if stable() != codename:
        yield f"{stable()}-backports"
    yield from ("testing", "unstable")


def read_codename(os_release: str) -> str:
    """Read the release's name in the text of os-release(5).

    Raises:
        LabError: the system is no Debian.
    """
    fields = dict(line.split("=", 1) for line in os_release.splitlines() if "=" in line)
    codename = fields.get("VERSION_CODENAME", "").strip('"')
    if fields.get("ID", "").strip('"') != "debian" or not codename:
        raise LabError(
            "the lab fetches Debian kernels and this system is not Debian; give one of your own with --kernel FILE"
        )
    return codename


def newest(releases: Sequence[str], series: str) -> str | None:
    """Pick the newest of `releases` in the kernel `series`.

    >>> newest(["6.12.9+deb12-amd64", "6.12.10+deb12-amd64", "6.18.2+deb13-amd64"], "6.12")
    '6.12.10+deb12-amd64'
    """
    ours = [release for release in releases if _numbers(release)[:2] == _numbers(series)]
    return max(ours, key=_numbers, default=None)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", release)))


class _Suites:
    """The suites of an archive, asked one after the other, each once; `reasons` say why one gave nothing."""

    def __init__(self, work: Path, archive: Stanza, codename: str) -> None:
        self._work, self._archive, self._codename = work, archive, codename
        self._names = suites_to_try(codename, lambda: self._stable)
        self._stable = codename
        self._asked: list[tuple[_Apt, list[str]]] = []
        self.reasons: list[str] = []

    def find(self, series: str) -> tuple[_Apt, str] | None:
        """Find the newest kernel of `series`, or of the next later one if no suite has it."""
        for apt, releases in self._each():
            release = newest(releases, series)
            if release:
                return apt, release
        major, minor = _numbers(series)
        offered = {_numbers(release)[:2] for _, releases in self._asked for release in releases}
        later = min((other for first, other in offered if first == major and other > minor), default=None)
        return None if later is None else self.find(f"{major}.{later}")

    def _each(self) -> Iterator[tuple[_Apt, list[str]]]:
        yield from self._asked
        for suite in self._names:
            apt = _Apt(self._work, for_suites(self._archive, dict.fromkeys((suite, self._codename))), suite)
            try:
                releases = apt.releases()
                if suite == "stable":
                    self._stable = apt.codename()
            except LabError as error:
                self.reasons.append(f"{suite}: {error}")
                continue
            series = sorted({_numbers(release)[:2] for release in releases})
            self.reasons.append(f"{suite} has {', '.join(f'{a}.{b}' for a, b in series) or 'none'}")
            self._asked.append((apt, releases))
            yield apt, releases


class _Apt:
    """apt with its state, cache and sources below `work`, preferring `suite`."""

    def __init__(self, work: Path, stanzas: list[Stanza], suite: str) -> None:
        self._work = work / suite
        for directory in ("state/lists/partial", "cache/archives/partial", "parts", "tree"):
            (self._work / directory).mkdir(parents=True, exist_ok=True)
        (self._work / "lab.sources").write_text(write_deb822(stanzas))
        (self._work / "status").touch()
        self.suite = suite

    def releases(self) -> list[str]:
        """List the releases of the generic kernels that are packaged."""
        self._run("apt-get", "update")
        names = self._run("apt-cache", "pkgnames", _PACKAGE).split()
        return [match[1] for match in map(_RELEASE.fullmatch, names) if match]

    def codename(self) -> str:
        """Say which release the suite is, which may be named by its role."""
        return self._run("apt-get", "indextargets", "--format=$(CODENAME)", f"Release: {self.suite}").split()[0]

    def unpack(self, release: str) -> Path:
        """Download the kernel `release` and busybox, unpack them into one tree, return it.

        Newer suites split a kernel: its image and modules are in packages it depends on, named for the same release.
        """
        kernel = _PACKAGE + release
        split = re.findall(rf"^\s*Depends: (linux-\S+-{re.escape(release)})$", self._depends(kernel), re.MULTILINE)
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
            "Dir::State::status": self._work / "status",  # nothing is installed: only what is in the archive counts
            "Dir::Cache": self._work / "cache",
            "Dir::Etc::sourcelist": self._work / "lab.sources",
            "Dir::Etc::sourceparts": parts,
            "Dir::Etc::preferences": parts / "none",
            "Dir::Etc::preferencesparts": parts,
            "APT::Default-Release": self.suite,
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
