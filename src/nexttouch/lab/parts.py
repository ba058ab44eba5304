"""What a guest is booted from: a kernel image, the modules it needs, and a static busybox for its first steps."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InvalidArgument, LabError
from .modules import load_order

__all__ = ["PREFERRED", "Parts", "cache_directory", "collect", "from_cache", "in_cache", "series_of", "with_kernel"]

PREFERRED = ("7.3", "6.12")
"""Kernel series, the first of which that is packaged is the usual guest's: 7.3 has userfaultfd's read-write protection,
6.12 is the first long-term kernel with UFFDIO_MOVE and PAGEMAP_SCAN."""

_SERIES = re.compile(r"\d+\.\d+")


@dataclass(frozen=True)
class Parts:
    """Kernel `release` (what `uname -r` says): the file `image`, the directory `modules`; and the file `busybox`."""

    release: str
    image: Path
    modules: Path
    busybox: Path


def cache_directory() -> Path:
    """Where the lab keeps what it fetched: $XDG_CACHE_HOME/nexttouch/lab, by default under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nexttouch" / "lab"


def series_of(kernel: str | os.PathLike[str] | None) -> str | None:
    """Return `kernel` if it names a series of kernels; None if it is a file, or none.

    >>> series_of("6.12"), series_of("/boot/vmlinuz-6.12.9")
    ('6.12', None)
    """
    return kernel if isinstance(kernel, str) and _SERIES.fullmatch(kernel) else None


def in_cache(series: str | None) -> Path:
    """Where the parts with a kernel of `series` are kept; None is for the usual one, which the first set-up picks."""
    return cache_directory() / ("default" if series is None else f"guest-{series}")


def from_cache(series: str | None = None) -> Parts | None:
    """Return the parts with a kernel of `series`, by default the usual one; None before they are set up."""
    guest = in_cache(series)
    try:
        release = (guest / "release").read_text().strip()
    except FileNotFoundError:
        return None
    guest = guest.resolve()
    return Parts(release, guest / "vmlinuz", guest / "modules", guest / "busybox")


def collect(tree: Path, release: str, guest: Path) -> None:
    """Make directory `guest` of a kernel's packages and a busybox package that are unpacked in `tree`.

    Raises:
        LabError: they do not have the files they ought to have.
    """
    (guest / "modules").mkdir(parents=True)
    modules = _one_of(tree, f"usr/lib/modules/{release}", f"lib/modules/{release}")
    for name, contents in load_order(modules).items():
        (guest / "modules" / f"{name}.ko").write_bytes(contents)
    _one_of(tree, f"boot/vmlinuz-{release}", f"usr/lib/modules/{release}/vmlinuz").rename(guest / "vmlinuz")
    _one_of(tree, "usr/bin/busybox", "bin/busybox").rename(guest / "busybox")
    (guest / "release").write_text(release + "\n")


def with_kernel(parts: Parts, image: Path) -> Parts:
    """`parts` with another kernel: the file `image` and the modules installed beside it.

    Distributions put the modules of DIR/boot/vmlinuz-RELEASE into DIR/lib/modules/RELEASE or the same below DIR/usr,
    or the image beside its modules; an image without any has to have virtio and 9p built in.

    Raises:
        InvalidArgument: `image` is no readable file.
    """
    if not (image.is_file() and os.access(image, os.R_OK)):
        raise InvalidArgument("kernel", f"is {str(image)!r}, which is not a readable file")
    image = image.resolve()
    release = image.name.partition("vmlinuz-")[2] or image.parent.name
    root = image.parent.parent
    candidates = (image.parent, root / "usr/lib/modules" / release, root / "lib/modules" / release)
    modules = next((path for path in candidates if (path / "kernel").is_dir()), candidates[-1])
    return replace(parts, release=release, image=image, modules=modules)


def _one_of(tree: Path, *names: str) -> Path:
    for name in names:
        if (tree / name).exists():
            return tree / name
    raise LabError(
        f"the fetched packages have no {names[0]}, so their layout is not one the lab knows; use --kernel FILE"
    )
