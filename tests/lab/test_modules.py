from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from nexttouch.errors import LabError
from nexttouch.lab.modules import load_order


def module(depends: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0retpoline=Y\0name=x\0"


def test_what_a_module_depends_on_comes_before_it_and_each_comes_once(tmp_path: Path) -> None:
    (tmp_path / "fs" / "9p").mkdir(parents=True)
    (tmp_path / "fs" / "9p" / "9p.ko.xz").write_bytes(lzma.compress(module("9pnet,netfs")))
    (tmp_path / "netfs.ko.gz").write_bytes(gzip.compress(module("")))
    (tmp_path / "9pnet.ko").write_bytes(module("built-in-one"))
    (tmp_path / "9pnet_virtio.ko").write_bytes(module("9pnet"))
    (tmp_path / "virtio-console.ko").write_bytes(
        module("")
    )  # a dash in the file's name is an underscore in the module's
    (tmp_path / "unrelated.ko").write_bytes(module(""))
    order = load_order(tmp_path)
    assert list(order) == ["virtio_console", "9pnet", "9pnet_virtio", "netfs", "9p"]
    assert order["9p"] == module("9pnet,netfs")


def test_a_kernel_with_everything_built_in_needs_none(tmp_path: Path) -> None:
    assert load_order(tmp_path) == {}
    assert load_order(tmp_path / "absent") == {}


def test_a_compression_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "9p.ko.zst").write_bytes(b"")
    with pytest.raises(LabError, match=r"compressed with \.zst"):
        load_order(tmp_path)
