from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexttouch.lab.relay import Console, Input, Keyboard, Output, State, carry

MARK = b"0123456789abcdef"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            continue


def finish(flow: Console | Input | Output | State) -> None:
    while flow.waits_for():
        carry([flow], 5.0)


def test_a_status_is_read_however_it_is_cut(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    state = State(ours)
    for piece in (b"u", b"p", b"\nex"):
        theirs.sendall(piece)
        carry([state], 5.0)
    assert (state.up, state.status) == (True, None)
    theirs.sendall(b"it 137\n")
    finish(state)
    assert state.status == 137


def test_a_guest_that_ends_without_a_status_has_none(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(b"up\nexit 1")  # cut short: the number may have more digits
    theirs.close()
    state = State(ours)
    finish(state)
    assert (state.up, state.status) == (True, None)


@pytest.mark.parametrize("cut", range(1, 20))
def test_output_passes_whole_and_without_its_mark(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int], cut: int
) -> None:
    ours, theirs = pair
    reader, writer = pipe
    data = b"x" + MARK[:5] + MARK[:15] + b"\0\xff" + MARK[:1]
    whole = data + MARK
    output = Output(ours, writer, MARK)
    for start in range(0, len(whole), cut):
        theirs.sendall(whole[start : start + cut])
        carry([output], 5.0)
        while output.pending:
            carry([output], 5.0)
    assert output.waits_for() is None
    assert output.complete
    os.close(writer)
    assert os.read(reader, 1000) == data


def test_output_that_might_be_the_beginning_of_the_mark_is_not_kept_longer_than_needed(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]
) -> None:
    ours, theirs = pair
    reader, writer = pipe
    output = Output(ours, writer, MARK)
    theirs.sendall(b"prompt> 01")
    carry([output], 5.0)
    carry([output], 5.0)
    assert os.read(reader, 100) == b"prompt> "
    theirs.sendall(b"X")
    carry([output], 5.0)
    carry([output], 5.0)
    assert os.read(reader, 100) == b"01X"


def test_output_without_a_mark_is_passed_but_incomplete(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]
) -> None:
    ours, theirs = pair
    reader, writer = pipe
    theirs.sendall(b"half" + MARK[:4])
    theirs.close()
    output = Output(ours, writer, MARK)
    finish(output)
    assert not output.complete
    assert os.read(reader, 100) == b"half" + MARK[:4]


def test_a_reader_that_is_gone_is_noticed(pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]) -> None:
    ours, theirs = pair
    reader, writer = pipe
    os.close(reader)
    theirs.sendall(b"y\n")
    output = Output(ours, writer, MARK)
    with pytest.raises(BrokenPipeError):
        finish(output)


def test_input_greets_passes_everything_and_ends(pair: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    ours, theirs = pair
    data = bytes(range(256)) * 100
    source = tmp_path / "in"
    source.write_bytes(data)
    with source.open("rb") as file:
        finish(Input(file.fileno(), ours))
    received = b""
    while piece := theirs.recv(65536):
        received += piece
    assert received == b"hello\n" + data


def test_input_that_cannot_be_read_is_empty(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    writable_only = os.open(os.devnull, os.O_WRONLY)
    try:
        finish(Input(writable_only, ours))
    finally:
        os.close(writable_only)
    assert theirs.recv(100) == b"hello\n"
    assert theirs.recv(100) == b""


def test_input_for_a_guest_that_is_gone_is_dropped(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.close()
    finish(Input(0, ours))


def test_the_console_keeps_its_last_lines(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"".join(b"line %d\r\n" % n for n in range(3000)))
    os.close(writer)
    console = Console(reader)
    finish(console)
    assert console.tail(2) == "\n    line 2998\n    line 2999"


def test_keys_pass_once_the_guest_is_up_and_three_escapes_interrupt(
    pair: tuple[socket.socket, socket.socket], pipe: tuple[int, int]
) -> None:
    ours, theirs = pair
    reader, writer = pipe
    keyboard = Keyboard(reader, ours)
    os.write(writer, b"\x03\x1d\x1da\x1d")
    carry([keyboard], 5.0)
    assert theirs.recv(100) == b"hello\n"
    assert keyboard.waits_for() is None
    keyboard.up = True
    carry([keyboard], 5.0)
    carry([keyboard], 5.0)
    assert theirs.recv(100) == b"\x03\x1d\x1da\x1d"
    os.write(writer, b"\x1d")
    carry([keyboard], 5.0)
    carry([keyboard], 5.0)
    os.write(writer, b"\x1d")
    with pytest.raises(KeyboardInterrupt):
        carry([keyboard], 5.0)
