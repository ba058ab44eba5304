from __future__ import annotations

import stat
import subprocess
from pathlib import Path

from nexttouch.lab.guest import archive, initial_files, job, settings
from nexttouch.lab.machine import Machine
from nexttouch.lab.parts import Parts


def entries(data: bytes) -> list[tuple[str, int, bytes]]:
    """Read a cpio archive of the newc format: (name, mode, contents) up to its trailer."""
    found: list[tuple[str, int, bytes]] = []
    while True:
        assert data[:6] == b"070701"
        fields = [int(data[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[110 : 110 + name_size - 1].decode()
        start = (110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found.append((name, mode, data[start : start + size]))
        data = data[(start + size + 3) & ~3 :]


def test_an_archive_reads_back_whatever_the_lengths() -> None:
    files = {"d": (stat.S_IFDIR | 0o755, b"")}
    files |= {f"{'n' * n}{n}": (stat.S_IFREG | 0o644, b"x" * n) for n in range(9)}
    assert entries(archive(files)) == [(name, *entry) for name, entry in files.items()]


def test_the_guest_starts_with_its_modules_in_load_order(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "9p.ko").write_bytes(b"\0depends=zz,aa\0")
    (modules / "zz.ko").write_bytes(b"\0depends=\0")
    (modules / "aa.ko").write_bytes(b"\0depends=zz\0")
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"box")
    lab = {"job": (0o644, b"script"), "mark": (0o755, b"program")}
    files = initial_files(Parts("1", tmp_path / "vmlinuz", modules, busybox), lab)
    assert [name for name in files if name.endswith(".ko")] == [
        "modules/00-zz.ko",
        "modules/01-aa.ko",
        "modules/02-9p.ko",
    ]
    assert files["bin/busybox"] == (stat.S_IFREG | 0o755, b"box")
    assert files["lab/job"] == (stat.S_IFREG | 0o644, b"script")
    assert files["lab/mark"] == (stat.S_IFREG | 0o755, b"program")
    assert "lab/supervise" in files


def test_the_scripts_are_told_what_the_machine_is_like() -> None:
    assert settings(Machine(3, 2), "instructions", None) == b"cpus=2\nclock=instructions\nterminal=''\n"
    assert settings(Machine(), "host", (24, 80)) == b"cpus=2\nclock=host\nterminal='rows 24 cols 80'\n"


def test_a_job_has_the_words_the_directory_and_the_environment_to_the_byte(tmp_path: Path) -> None:
    directory = tmp_path / "it's a 'place'"
    directory.mkdir()
    words = ["printf", r"%s\n", "a b", "$HOME", "", "it's", "\udcff", "line\nline"]
    environment = {"PATH": "/usr/bin:/bin", "ODD": "a 'b'\n$c", "BASH_FUNC_x%%": "() { :; }"}
    script = job(words, str(directory), environment)
    done = subprocess.run(["sh"], input=script, capture_output=True, check=True, env={"OTHER": "1"})
    assert done.stdout == b"a b\n$HOME\n\nit's\n\xff\nline\nline\n"

    done = subprocess.run(["sh"], input=job(["env", "-0"], "/", environment), capture_output=True, check=True)
    assert done.stdout.decode() == "".join(f"{name}={value}\0" for name, value in environment.items())
    place = job(["readlink", "/proc/self/cwd"], str(directory), environment)
    done = subprocess.run(["sh"], input=place, capture_output=True, check=True)
    assert done.stdout.decode() == f"{directory}\n"


def test_a_directory_that_is_not_there_ends_the_job() -> None:
    done = subprocess.run(["sh"], input=job(["echo", "ran"], "/nowhere/at/all", {}), capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stdout == b""
