"""The command line on a terminal: nothing that comes from outside is obeyed by it."""

from __future__ import annotations

import base64
import json
import os
import pty
import select
import signal
import textwrap
import tty
from pathlib import Path

import pytest

from .shell import BOUND, URL, Shell

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\u202eevil\u2069\u200f\r\x7f\x08"
SHOWN = "\\x1b]0;title\\x07\\x1b[2J\\x9b31m\\u202eevil\\u2069\\u200f\\r\\x7f\\x08"
OBEYED = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\u202e", "\u2069", "\u200f"]


class Terminal:
    """A terminal, and the bytes that were written to it."""

    def __init__(self) -> None:
        self._reader, self.descriptor = pty.openpty()
        tty.setraw(self.descriptor)
        self._shown = b""

    def read_until(self, text: bytes) -> None:
        """Wait until *text* is shown."""
        while text not in self._shown:
            assert select.select([self._reader], [], [], BOUND)[0], self._shown
            self._shown += os.read(self._reader, 65536)

    def read_all(self) -> bytes:
        """Everything until the last process has closed it."""
        os.close(self.descriptor)
        try:
            while chunk := os.read(self._reader, 65536):
                self._shown += chunk
        except OSError:  # how Linux says that it was closed
            pass
        os.close(self._reader)
        return self._shown


def shown(shell: Shell, *arguments: str, code: int = 0, **environ: str) -> str:
    """Return the output of a command on a terminal that is both standard output and standard error."""
    terminal = Terminal()
    process = shell.start(*arguments, environ=environ, stdout=terminal.descriptor, stderr=terminal.descriptor)
    text = terminal.read_all()
    assert process.wait(BOUND) == code, text
    return text.decode(environ.get("PYTHONIOENCODING", "utf-8"))


def obeyed(text: str) -> set[str]:
    """Return the characters of *text* that control a terminal, except the ends of lines."""
    return {char for char in OBEYED if char in text.replace("\n", "")}


def test_data_is_escaped_on_a_terminal(shell: Shell) -> None:
    """Control characters, C1 included, and those that change the direction of text are written as escapes."""
    shell.run("send", URL, HOSTILE)
    assert shown(shell, "receive", URL, "--limit", "1").splitlines()[-1] == SHOWN


def test_text_stays_as_it_is_on_a_terminal(shell: Shell) -> None:
    """Letters of any alphabet, emoji and tabs are shown; bytes that are no text are escaped."""
    data = "grüße\t你好 שלום 👩‍🚀 \\n\nsecond ".encode() + b"\xff\xc3"
    line = json.dumps({"data_base64": base64.b64encode(data).decode()})
    shell.run("send", URL, "--ndjson", stdin=line.encode())
    text = shown(shell, "receive", URL, "--limit", "1")
    assert text.endswith("grüße\t你好 שלום 👩‍🚀 \\n\n  second \\xff\\xc3\n")


def test_a_message_forges_no_line_on_a_terminal(shell: Shell) -> None:
    """The lines of a message after its first one are indented; a line of this program or of another message is not."""
    shell.run("send", URL, "x\nevents: error: forged\n\n")
    shell.run("send", URL, "next")
    shown_lines = shown(shell, "receive", URL, "--limit", "2").splitlines()
    assert shown_lines[-5:] == ["x", "  events: error: forged", "  ", "  ", "next"]


def test_raw_writes_the_bytes_to_a_terminal(shell: Shell) -> None:
    """--raw is for people who want them."""
    shell.run("send", URL, HOSTILE)
    assert HOSTILE + "\n" in shown(shell, "receive", URL, "--limit", "1", "--raw")


def test_a_pipe_gets_the_bytes(shell: Shell) -> None:
    """Output that does not go to a terminal is not changed."""
    shell.run("send", URL, stdin=HOSTILE.encode() + b"\xff")
    assert shell.run("receive", URL, "--limit", "1").stdout == HOSTILE.encode() + b"\xff\n"


def test_an_8_bit_terminal_gets_no_part_of_a_character_as_a_command(shell: Shell) -> None:
    """The second byte of ś in UTF-8 is CSI where the terminal is not in UTF-8."""
    shell.run("send", URL, "grüße, ś")
    text = shown(shell, "receive", URL, "--limit", "1", PYTHONIOENCODING="iso8859-1")
    assert text.splitlines()[-1] == "grüße, \\u015b"


def test_json_always_escapes_what_a_terminal_obeys(shell: Shell) -> None:
    """Also in a pipe, since the next program may show it; to a JSON parser nothing has changed."""
    shell.run("send", URL, HOSTILE, "-a", f"k{HOSTILE}=v{HOSTILE}", "-k", HOSTILE)
    text = shell.run("receive", URL, "--limit", "1", "--json").stdout.decode()
    assert not obeyed(text)
    message = json.loads(text)
    assert message["data"] == message["ordering_key"] == HOSTILE
    assert message["attributes"] == {f"k{HOSTILE}": f"v{HOSTILE}"}


def test_raw_json_is_a_contradiction(shell: Shell) -> None:
    """--raw and --json exclude each other."""
    assert "--raw and --json exclude each other" in shell.fail("receive", URL, "--raw", "--json", code=2)


BROKER = f"""
    import logging
    import threading
    import warnings
    from events_core import Capabilities, ErrorCode
    from events_core.engine import BrokerError, Driver, EngineClient

    HOSTILE = {HOSTILE!r}
    log = logging.getLogger("acme")

    class HostileDriver(Driver):
        capabilities = Capabilities()

        async def open(self): ...
        async def subscribe(self, subscription, wake):
            raise BrokerError("no such " + HOSTILE, ErrorCode.NOT_FOUND)
        async def delete_subscription(self, subscription): ...
        async def ping(self):
            raise BrokerError("nobody " + HOSTILE, ErrorCode.UNAVAILABLE)
        async def close(self): ...

        async def publish(self, messages):
            log.warning("record %s", HOSTILE)
            log.warning("wrong record %d " + HOSTILE, "no number")
            warnings.warn("warning " + HOSTILE, UserWarning)
            def die():
                raise RuntimeError("thread " + HOSTILE)
            thread = threading.Thread(target=die)
            thread.start()
            thread.join()
            return ["id-" + HOSTILE for message in messages]

    class Client(EngineClient):
        api_version = 1
        full_capabilities = Capabilities()
        driver_class = HostileDriver
"""


@pytest.fixture
def hostile(shell: Shell) -> list[str]:
    """Return the options of a client whose broker answers with characters that control a terminal."""
    (shell.folder / "acme_hostile.py").write_text(textwrap.dedent(BROKER))
    (shell.folder / "c.toml").write_text('[clients.a]\nbackend = "acme_hostile:Client"\ntopic_name = "t"\n')
    return ["--config", "c.toml", "--client", "a"]


def test_ids_logs_and_warnings_are_escaped(shell: Shell, hostile: list[str]) -> None:
    """Texts that a backend returns, logs, warns of or raises in a thread are shown on one line each."""
    text = shown(shell, "send", *hostile, "data")
    assert not obeyed(text)
    for words in ("id-", "record ", "wrong record %d ", "warning ", "thread "):
        assert words + SHOWN.replace("\\r", " ").strip() in text.replace("\\r", " "), words
    assert "Traceback" not in text


@pytest.mark.parametrize("command", ["ping", "receive"])
def test_errors_are_escaped(shell: Shell, hostile: list[str], command: str) -> None:
    """The reason that a broker gives is shown as text."""
    text = shown(shell, command, *hostile, code=1)
    assert not obeyed(text)
    assert "evil" in text


def test_usage_errors_are_escaped(shell: Shell) -> None:
    """Arguments may come from a script that read them somewhere."""
    for arguments in (
        [HOSTILE],
        ["backends", HOSTILE],
        ["ping", "--config", HOSTILE, "--client", HOSTILE],
        ["send", URL, "x", "-a", HOSTILE],
    ):
        text = shown(shell, *arguments, code=2)
        assert not obeyed(text)
        assert "evil" in text


def test_tables_are_escaped(shell: Shell) -> None:
    """The reason why a backend is broken is text from anyone, so it is escaped."""
    info = shell.folder / "acme-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[events_core.backends]\nacme = acme_broken:Client\n")
    (shell.folder / "acme_broken.py").write_text(f"raise ImportError({HOSTILE!r})\n")
    text = shown(shell, "backends", NO_COLOR="1", TERM="dumb", COLUMNS="200")
    assert not obeyed(text)
    assert "evil" in text


def test_standard_error_that_takes_nothing_changes_no_outcome(shell: Shell, hostile: list[str], tmp_path: Path) -> None:
    """A full disk under standard error loses warnings, and neither messages nor the exit code."""
    with open("/dev/full", "wb") as full:
        process = shell.start("send", *hostile, "data", stderr=full)
        assert process.wait(BOUND) == 0
        assert process.stdout is not None
        assert process.stdout.read().startswith(b"id-")
        assert shell.start("ping", *hostile, stderr=full).wait(BOUND) == 1
        assert shell.start("check", "memory:///t", "--rule", "R2", stderr=full).wait(BOUND) == 0


CUT = """
    import pathlib
    import threading
    import time
    import network_memory

    def watch():
        while True:
            (network_memory._cut.set if pathlib.Path("cut").exists() else network_memory._cut.clear)()
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()

    class Client(network_memory.NetworkClient):
        api_version = 1
"""


def test_receive_says_on_a_terminal_what_it_waits_for(shell: Shell) -> None:
    """Neither an empty subscription nor an outage looks as if the command hung."""
    (shell.folder / "acme_cut.py").write_text(textwrap.dedent(CUT))
    (shell.folder / "c.toml").write_text('[clients.a]\nbackend = "acme_cut:Client"\ntopic_name = "t"\n')
    folders = [str(shell.folder), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    terminal = Terminal()
    process = shell.start(
        *("receive", "--config", "c.toml", "--client", "a", "-s", "billing", "--create"),
        environ={"PYTHONPATH": os.pathsep.join(filter(None, folders))},
        stderr=terminal.descriptor,
    )
    terminal.read_until(b"events: info: waiting for messages from 'billing'")
    (shell.folder / "cut").touch()
    terminal.read_until(b"connection lost, trying again")
    process.send_signal(signal.SIGINT)
    assert process.wait(BOUND) == 130
    terminal.read_all()


def test_receive_is_silent_where_nobody_watches(shell: Shell) -> None:
    """A program that reads standard error gets only warnings and errors."""
    assert shell.run("receive", URL, "--timeout", "0.1", code=3).stderr == b""
