"""The command line on streams that another program has set not to block."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Callable

import pytest

from .shell import BOUND, URL, Shell, output

Ends = tuple[int, int]
"""Two descriptors: bytes that are written to the second can be read from the first."""


def pipe() -> Ends:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    return reader, writer


def connection() -> Ends:
    reader, writer = socket.socketpair()
    return reader.detach(), writer.detach()


def terminal() -> Ends:
    """A terminal's keyboard."""
    writer, reader = pty.openpty()
    tty.setraw(reader)
    return reader, writer


def screen() -> Ends:
    """A terminal's screen."""
    reader, writer = terminal()
    return writer, reader


def read_line(descriptor: int) -> bytes:
    """Read up to the end of a line, byte by byte, so that nothing behind it is taken."""
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([descriptor], [], [], BOUND)[0], line
        byte = os.read(descriptor, 1)
        assert byte, line
        line += byte
    return line


@pytest.mark.parametrize("make", [pipe, connection, terminal])
def test_input_that_has_nothing_yet_has_not_ended(shell: Shell, make: Callable[[], Ends]) -> None:
    """Each line is sent when it comes, up to the end of the input."""
    reader, writer = make()
    os.set_blocking(reader, False)
    process = shell.start("send", URL, "-", stdin=reader)
    os.close(reader)
    for line in (b"one\n", b"two\n", b"three\n"):
        os.write(writer, line)
        assert read_line(output(process).fileno())
        assert not select.select([output(process)], [], [], 0.5)[0], "it took an empty stream for its end"
    if make is terminal:
        process.send_signal(signal.SIGINT)
    os.close(writer)
    assert process.wait(BOUND) == (130 if make is terminal else 0)
    assert [message["data"] for message in shell.received()] == ["one", "two", "three"]


@pytest.mark.parametrize("make", [pipe, connection, screen])
def test_output_that_is_full_takes_the_rest_later(shell: Shell, make: Callable[[], Ends]) -> None:
    """A line of which only a part found room is completed, and its message acknowledged."""
    data = [bytes([65 + number]) * 300_000 for number in range(3)]
    shell.run("send", URL, stdin=b"\n".join(data))
    reader, writer = make()
    os.set_blocking(writer, False)
    process = shell.start("receive", URL, "--limit", "3", stdout=writer)
    os.close(writer)
    assert taken(reader, 3 * 300_001) == b"\n".join(data) + b"\n"
    assert process.wait(BOUND) == 0
    os.close(reader)
    assert shell.is_empty()


def taken(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        assert select.select([descriptor], [], [], BOUND)[0], len(data)
        data += os.read(descriptor, 65536)
    return data


def test_a_signal_ends_it_while_output_is_full(shell: Shell) -> None:
    """The message whose line found no room comes again."""
    shell.run("send", URL, stdin=b"x" * 300_000)
    reader, writer = pipe()
    os.set_blocking(writer, False)
    process = shell.start("receive", URL, stdout=writer)
    os.close(writer)
    assert select.select([reader], [], [], BOUND)[0]
    process.send_signal(signal.SIGINT)
    assert process.wait(BOUND) == 130
    os.close(reader)
    assert [len(message["data"]) for message in shell.received()] == [300_000]


def test_standard_error_that_is_full_takes_the_rest_later(shell: Shell) -> None:
    """The error of a command is not lost if its reader is late."""
    reader, writer = pipe()
    os.set_blocking(writer, False)
    process = shell.start("backends", "x" * 10_000, stderr=writer)
    os.close(writer)
    ends = time.monotonic() + BOUND
    while int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder) < 4096:
        assert time.monotonic() < ends
        time.sleep(0.01)
    line = read_line(reader)
    os.close(reader)
    assert line.startswith(b"events: error: no backend named 'xxx")
    assert len(line) > 10_000
    assert process.wait(BOUND) == 2
