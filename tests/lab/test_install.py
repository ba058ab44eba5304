from __future__ import annotations

import fcntl
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from nexttouch import lab
from nexttouch.errors import InvalidArgument, LabError
from nexttouch.lab.parts import Parts, collect, from_cache, in_cache, with_kernel

RELEASE = "6.12.9-amd64"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; what the lab keeps is below it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "nexttouch" / "lab"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What the two packages unpack to."""
    tree = tmp_path / "tree"
    modules = tree / "lib" / "modules" / RELEASE / "kernel"
    for directory in (tree / "boot", tree / "bin", modules):
        directory.mkdir(parents=True)
    (tree / "boot" / f"vmlinuz-{RELEASE}").write_bytes(b"kernel")
    (tree / "bin" / "busybox").write_bytes(b"box")
    (modules / "9p.ko.xz").write_bytes(lzma.compress(b"\0depends=\0"))
    (modules / "other.ko.xz").write_bytes(b"not needed")
    return tree


def test_collected_parts_are_found_in_the_cache(cache: Path, tree: Path) -> None:
    assert from_cache() is None
    collect(tree, RELEASE, in_cache(None))
    parts = from_cache()
    assert parts is not None
    assert parts.release == RELEASE
    assert parts.image.read_bytes() == b"kernel"
    assert parts.busybox.read_bytes() == b"box"
    assert [(path.name, path.read_bytes()) for path in parts.modules.iterdir()] == [("9p.ko", b"\0depends=\0")]


def test_kernels_are_kept_side_by_side(cache: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each series is fetched once; the usual one is what the archive gave when it was first asked for."""
    if lab.missing():
        pytest.skip(str(lab.missing()))
    asked: list[list[str]] = []

    def fetch(work: Path, wanted: Sequence[str], progress: Callable[[str], None]) -> tuple[Path, str, str]:
        asked.append([*wanted])
        shutil.copytree(tree, work / "tree")
        return work / "tree", RELEASE, wanted[-1]

    monkeypatch.setattr("nexttouch.lab.install.fetch", fetch)
    older, usual = lab.setup(kernel="6.1"), lab.setup()
    assert [lab.setup(kernel=kernel) for kernel in ("6.1", "6.12", None)] == [older, usual, usual]
    assert asked == [["6.1"], ["7.3", "6.12"]]
    assert {path.name for path in cache.iterdir()} == {"default", "guest-6.1", "guest-6.12", "lock"}
    image = tree / "boot" / f"vmlinuz-{RELEASE}"
    assert lab.setup(kernel=str(image)).image == image
    with pytest.raises(InvalidArgument, match=r"kernel is '6\.12\.9', which is not a readable file"):
        lab.setup(kernel="6.12.9")


def test_a_cache_that_cannot_be_written(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexttouch.lab.install.missing", lambda kernel: None)
    (tmp_path / "nexttouch").write_text("a file where the folder should be")
    with pytest.raises(LabError, match=rf"kept in {cache}, which cannot be written .*; set XDG_CACHE_HOME"):
        lab.setup()


def test_a_merged_usr_is_no_obstacle(cache: Path, tree: Path) -> None:
    (tree / "usr").mkdir()
    (tree / "lib").rename(tree / "usr" / "lib")
    (tree / "bin").rename(tree / "usr" / "bin")
    collect(tree, RELEASE, in_cache(None))
    assert from_cache() is not None


def test_an_image_beside_its_modules_is_no_obstacle(cache: Path, tree: Path) -> None:
    (tree / "usr").mkdir()
    (tree / "lib").rename(tree / "usr" / "lib")
    (tree / "boot" / f"vmlinuz-{RELEASE}").rename(tree / "usr" / "lib" / "modules" / RELEASE / "vmlinuz")
    collect(tree, RELEASE, in_cache(None))
    assert (in_cache(None) / "vmlinuz").read_bytes() == b"kernel"


def test_packages_of_another_layout_are_refused_before_the_cache_counts_as_filled(cache: Path, tree: Path) -> None:
    (tree / "boot" / f"vmlinuz-{RELEASE}").unlink()
    with pytest.raises(LabError, match=f"have no boot/vmlinuz-{RELEASE}"):
        collect(tree, RELEASE, in_cache(None))
    assert from_cache() is None


def test_another_kernel_comes_with_the_modules_beside_it(cache: Path, tree: Path) -> None:
    collect(tree, RELEASE, in_cache(None))
    parts = from_cache()
    assert parts is not None
    for place, modules in (
        ("boot/vmlinuz-7.0-mine", "lib/modules/7.0-mine"),
        ("boot/vmlinuz-7.0-mine", "usr/lib/modules/7.0-mine"),
        ("modules/7.0-mine/vmlinuz", "modules/7.0-mine"),
    ):
        image = tree / place
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(b"mine")
        (tree / modules / "kernel").mkdir(parents=True)
        assert with_kernel(parts, image) == Parts("7.0-mine", image, tree / modules, parts.busybox)
    with pytest.raises(InvalidArgument, match=r"kernel is .* not a readable file"):
        with_kernel(parts, tree / "boot")


def test_what_is_missing_is_said_with_its_remedy(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    assert "util-linux" in (lab.missing() or "")
    (tools / "setpriv").symlink_to("/bin/true")
    assert "no apt-get" in (lab.missing() or "")
    (tools / "apt-get").symlink_to("/bin/true")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "apt-get install --no-install-recommends qemu-system-x86" in (lab.missing() or "")
    (tools / "qemu-system-x86_64").symlink_to("/bin/true")
    assert lab.missing() is None
    (tools / "apt-get").unlink()
    with pytest.raises(LabError, match="apt-get"):
        lab.setup()
    assert not cache.exists()


def test_what_is_there_is_kept_and_told_nothing_about(cache: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if lab.missing():
        pytest.skip(str(lab.missing()))
    tools = tree / "tools"
    tools.mkdir()
    for tool in ("setpriv", "qemu-system-x86_64"):
        (tools / tool).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tools))
    collect(tree, RELEASE, in_cache(None))
    told: list[str] = []
    assert lab.setup(told.append) == lab.setup(told.append)
    assert told == []


def test_a_set_up_waits_for_another_and_then_has_nothing_to_do(
    cache: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tree / "tools"
    tools.mkdir()
    for tool in ("setpriv", "qemu-system-x86_64", "apt-get"):
        (tools / tool).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tools))
    cache.mkdir(parents=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code = "from nexttouch import lab; print('begun', flush=True); print(lab.setup().release)"
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "begun\n"
        collect(tree, RELEASE, in_cache(None))
    out, _ = other.communicate(timeout=60)
    assert (out, other.returncode) == (f"{RELEASE}\n", 0)
