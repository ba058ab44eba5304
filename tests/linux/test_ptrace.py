"""Where a program makes a system call, and whether this process may trace; what traces is tested in tests/attach."""

from __future__ import annotations

import os

import pytest

from nexttouch.linux.ptrace import INSTRUCTIONS, restriction


def test_the_instruction_is_found_where_one_can_be() -> None:
    x86, arm = INSTRUCTIONS["x86_64"], INSTRUCTIONS["aarch64"]
    assert x86.find(bytes.fromhex("90 0f 05 0f 05")) == 1
    assert x86.find(bytes.fromhex("0f 90 05")) == -1
    code = bytes.fromhex("010000d4")
    assert arm.find(b"\0\0" + code + b"\0\0" + code) == 8  # the first one is none: it is between two
    assert arm.find(b"\0" + code) == -1


def test_root_is_restricted_by_nothing() -> None:
    if os.geteuid():
        pytest.skip("not root")
    assert restriction() == ""
