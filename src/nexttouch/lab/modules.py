"""Which kernel modules a guest needs before it can mount its root, in the order in which they have to be loaded."""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Callable
from pathlib import Path

from ..errors import LabError

__all__ = ["WANTED", "load_order"]

WANTED = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p")
"""The machine's devices and the file system of its root."""

_DEPENDS = re.compile(rb"\bdepends=([\w,-]*)\0")  # the .modinfo section: name=value strings, each ended by a zero
_OPENERS: dict[str, Callable[[bytes], bytes]] = {".ko": bytes, ".xz": lzma.decompress, ".gz": gzip.decompress}


def load_order(tree: Path) -> dict[str, bytes]:
    """Read the modules of WANTED that are not built in and those they depend on, dependencies first.

    `tree` is a kernel's module directory (/lib/modules/RELEASE); returns each module's name and uncompressed contents.

    Raises:
        LabError: a module is compressed in a way Python's standard library cannot undo.
    """
    files = {_name(path.name): path for path in tree.rglob("*.ko*")}
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in order or name not in files:
            return  # done already, or built in
        contents = _read(files[name])
        match = _DEPENDS.search(contents)
        for dependency in filter(None, match[1].decode().split(",") if match else []):
            add(_name(dependency))
        order[name] = contents

    for name in WANTED:
        add(name)
    return order


def _name(file: str) -> str:
    return file.partition(".")[0].replace("-", "_")


def _read(path: Path) -> bytes:
    opener = _OPENERS.get(path.suffix)
    if opener is None:
        raise LabError(f"{path} is compressed with {path.suffix}, which the lab cannot read; give another --kernel")
    return opener(path.read_bytes())
