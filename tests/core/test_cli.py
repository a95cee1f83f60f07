"""The command line, run as processes: its input, its output and its end."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import events_core.cli
from events_core.cli.outcome import ExitCode

from .shell import BOUND, URL, Shell, output, wait_for_output


def numbers(lines: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(lines))


# The command itself


def test_help_docstring_and_code_agree_on_the_exit_codes(shell: Shell) -> None:
    """The table of exit codes is the same in the help, in the package and in the code."""
    expected = {str(code.value): code.meaning for code in ExitCode}
    for text in (shell.run("--help").stdout.decode(), events_core.cli.__doc__ or ""):
        assert dict(re.findall(r"^ *(\d+) +(.*\S)$", text, re.MULTILINE)) == expected


def test_events_alone_prints_its_help(shell: Shell) -> None:
    """A user who types only the name sees the commands, and no error."""
    done = shell.run()
    assert done.stdout == shell.run("--help").stdout
    assert done.stderr == b""


def test_help_that_nobody_reads_has_its_own_code(shell: Shell) -> None:
    """It ends as any other output to a closed pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    process = shell.start("--help", stdout=writer)
    os.close(writer)
    assert process.wait(BOUND) == 141


def test_version(shell: Shell) -> None:
    """--version names the distribution and its version."""
    assert re.fullmatch(rb"events-core \d+\.\d+\S*\n", shell.run("--version").stdout)


def test_a_process_without_another_thread_says_what_it_needs() -> None:
    """Standard input is read in a thread.  If the system refuses the thread, the error says what to do."""
    program = """if True:
        import sys, threading
        from events_core.cli import main

        def refuse(self):
            raise RuntimeError("can't start new thread")

        threading.Thread.start = refuse
        sys.exit(main())
    """
    command = [sys.executable, "-c", program, "send", "memory:///orders", "-"]
    done = subprocess.run(command, input=b"x", capture_output=True, timeout=BOUND, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"events: error: cannot start the thread ")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    """Without click or rich there is one line with the command that installs them."""
    program = f"import sys; sys.modules[{missing!r}] = None; from events_core.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=BOUND, check=False)
    assert done.returncode == 2
    assert done.stderr.decode() == f"events: error: {missing} is not installed: pip install 'events-core[cli]'\n"


# Backends


def distribution(folder: Path, name: str, entry_points: str) -> None:
    info = folder / f"{name}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[events_core.backends]\n{entry_points}\n")


@pytest.fixture
def broken(shell: Shell) -> Shell:
    """An installation with a backend that cannot be imported, one that exits, and two of one name."""
    (shell.folder / "acme_exits.py").write_text("raise SystemExit(7)")
    distribution(shell.folder, "acme_gone", "gone = acme_gone:Client\nexits = acme_exits:Client")
    distribution(shell.folder, "acme_twin", "twin = acme_twin:Client")
    distribution(shell.folder, "rival_twin", "twin = rival_twin:Client")
    return shell


def test_backends_lists_all_of_them_although_some_are_broken(broken: Shell) -> None:
    """Each backend has its row with its distribution; why one is broken stands below."""
    text = broken.run("backends").stdout.decode()
    rows = [line.split() for line in text.splitlines()]
    for name in ("memory", "sqlite"):
        assert any(row[:2] == [name, "events-core"] and row[3:] == ["ok"] for row in rows)
    assert ["exits", "acme_gone", "1.5", "broken"] in rows
    assert ["gone", "acme_gone", "1.5", "broken"] in rows
    assert [row for row in rows if row[:1] == ["twin"]] == [
        ["twin", "acme_twin", "1.5", "broken"],
        ["twin", "rival_twin", "1.5", "broken"],
    ]
    assert "No module named 'acme_gone'" in text
    assert "SystemExit: 7" in text
    assert "rival_twin 1.5" in text


def test_backends_as_json(broken: Shell) -> None:
    """--json tells the same for programs, an object on each line."""
    found = {entry["name"]: entry for entry in map(json.loads, broken.run("backends", "--json").stdout.splitlines())}
    assert found["memory"]["error"] is None
    assert found["memory"]["capabilities"]["ordering"] == "subscription"
    assert found["memory"]["capabilities"]["limits"]["max_attributes"] == 100
    assert {"max_lease_duration", "subscription"} <= {option["name"] for option in found["memory"]["options"]}
    assert "acme_gone" in found["gone"]["error"]
    assert "options" not in found["gone"]


def test_backends_describes_one(shell: Shell) -> None:
    """With a name come its capabilities, and its options with type, default, range, unit and help."""
    text = shell.run("backends", "memory").stdout.decode()
    assert "events-core" in text
    assert re.search(r"^  ordering +subscription$", text, re.MULTILINE)
    assert "  max_lease_duration  number, default 3600, at least 0.001, in seconds\n      Longest time" in text
    (described,) = shell.run("backends", "memory", "--json").stdout.splitlines()
    assert json.loads(described)["name"] == "memory"


def test_backends_never_shows_a_secret(shell: Shell) -> None:
    """The default of a secret option is in no listing."""
    source = """
        import attrs
        from events_core.backends.memory import MemoryClient
        from events_core.options import CommonOptions, option

        @attrs.frozen(kw_only=True)
        class Options(CommonOptions):
            token: str = option(help="What opens the door.", default="hush", secret=True)

        class Client(MemoryClient):
            options_class = Options
    """
    (shell.folder / "acme_secret.py").write_text(textwrap.dedent(source))
    distribution(shell.folder, "acme_secret", "secret = acme_secret:Client")
    for arguments in (["secret"], ["secret", "--json"], ["--json"]):
        text = shell.run("backends", *arguments).stdout.decode()
        assert "What opens the door." in text
        assert "hush" not in text


# Sending


def test_data_with_attributes_and_key_arrives(shell: Shell) -> None:
    """The id printed is the one received, and the message is as it was sent."""
    sent = shell.run("send", URL, "grüße", "-a", "origin=shop", "--attribute", "x=a=b", "--ordering-key", "k1")
    (message,) = shell.received()
    assert message["message_id"] == sent.stdout.decode().strip()
    assert message["data"] == "grüße"
    assert message["attributes"] == {"origin": "shop", "x": "a=b"}
    assert message["ordering_key"] == "k1"
    assert message["delivery_attempt"] == 1
    assert message["publish_time"].endswith("+00:00")


def test_a_send_to_nobody_is_told_on_standard_error(shell: Shell) -> None:
    """P1: the message is sent, and one line says that the topic has no subscription."""
    done = shell.run("send", "sqlite:events.db/lonely", "x")
    assert done.stdout.strip().isdigit()
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("events: warning: topic 'lonely' has no subscription")
    assert shell.run("send", URL, "x").stderr == b""


def test_lines_are_sent_as_their_bytes(shell: Shell) -> None:
    """Each line is a message, empty ones and the last one without an end too; bytes that are no text survive."""
    lines = shell.run("send", URL, stdin=b"one\r\n\n\xff\x00\nlast").stdout.splitlines()
    assert len(set(lines)) == 4
    assert shell.run("receive", URL, "--limit", "2").stdout == b"one\n\n"
    binary, last = shell.received()
    assert base64.b64decode(binary["data_base64"]) == b"\xff\x00"
    assert "data" not in binary
    assert last["data"] == "last"


NDJSON = [
    ('{"data": "text"}', "text"),
    ('{"data": "5"}', "5"),
    ('{"data": "\\ud83d\\ude00"}', "😀"),
    ('{"data": 5}', "5"),
    ('{"data": null}', "null"),
    ('{"data": {"b": [1, 2.5], "a": "ü"}}', '{"b": [1, 2.5], "a": "ü"}'),
    ('{"data": ""}', ""),
    ('{"data_base64": "aGk="}', "hi"),
    ('{"data": 1.10}', "1.10"),
    ('{"data": 1E5}', "1E5"),
    ('{"data": -0}', "-0"),
    ('{"data": 1e999}', "1e999"),
    ('{"data": 0.1234567890123456789012345678901234567890}', "0.1234567890123456789012345678901234567890"),
    ('{"data": ' + "7" * 10_000 + "}", "7" * 10_000),
    ('{"data": {"a": 1.0, "a": 2.00, "\\u00e9": "\\ud800"}}', '{"a": 1.0, "a": 2.00, "\\u00e9": "\\ud800"}'),
    (' {\t"ordering_key" :null ,"data": \t[ 1 ,{ } ]\t}', "[ 1 ,{ } ]"),
]


def test_ndjson_says_data_as_text_json_or_base64(shell: Shell) -> None:
    """A string is sent as its text, other JSON as the line has it, base64 as the bytes; blank lines are skipped."""
    file = shell.folder / "in.ndjson"
    file.write_text("\n\n".join(line for line, _ in NDJSON))
    assert shell.run("send", URL, "--ndjson", "--file", "in.ndjson", "-q").stdout == b"%d\n" % len(NDJSON)
    assert [message["data"] for message in shell.received()] == [data for _, data in NDJSON]


def test_a_byte_order_mark_is_no_part_of_a_line(shell: Shell) -> None:
    """Files from some editors begin with one, and so do the parts of a file that was put together from several."""
    mark = b"\xef\xbb\xbf"
    lines = mark + b'{"data": 1}\n' + mark + b"\n" + mark + b'{"data": "\xef\xbb\xbf2"}\n'
    shell.run("send", URL, "--ndjson", stdin=lines)
    assert [message["data"] for message in shell.received()] == ["1", "\ufeff2"]


def test_what_a_line_says_goes_before_the_options(shell: Shell) -> None:
    """--attribute and --ordering-key are defaults for NDJSON lines."""
    line = b'{"data": "x", "attributes": {"a": "line"}, "ordering_key": null}\n{"data": "y"}\n'
    shell.run("send", URL, "-", "--ndjson", "-a", "a=option", "-a", "b=option", "-k", "key", stdin=line)
    own, default = shell.received()
    assert (own["attributes"], own["ordering_key"]) == ({"a": "line", "b": "option"}, None)
    assert (default["attributes"], default["ordering_key"]) == ({"a": "option", "b": "option"}, "key")


def test_what_was_received_can_be_sent_again(shell: Shell) -> None:
    """The lines of receive --json are input for send --ndjson."""
    shell.run("send", URL, "x", "-a", "a=b", "-k", "k")
    lines = shell.run("receive", URL, "--json", "--limit", "1").stdout
    shell.run("send", URL, "--ndjson", stdin=lines)
    (message,) = shell.received()
    assert (message["data"], message["attributes"], message["ordering_key"]) == ("x", {"a": "b"}, "k")


JSON_DATA = [
    '{"order": 42}',
    "[1.10, 1E5, -0, 1e999, 0.1234567890123456789012345678901234567890]",
    ' {\t"b" :\r\n [ true , "a \\" b" ], "a": null }\n',
    '"text"',
    "5",
    "null",
    '{"\u202e": "\x7f\\ud83d\\ude00"}',
    "[" * 100 + "]" * 100,
]


def test_json_data_comes_parsed_too(shell: Shell) -> None:
    """The key ``json`` has the value of data that is JSON, next to the unchanged ``data``."""
    for data in JSON_DATA:
        shell.run("send", URL, data)
    received = shell.received()
    assert [message["data"] for message in received] == JSON_DATA
    assert [message["json"] for message in received] == list(map(json.loads, JSON_DATA))


def test_numbers_in_json_data_keep_their_text(shell: Shell) -> None:
    """The key ``json`` loses no digit; only the space between the values is dropped."""
    shell.run("send", URL, "[1.10, 1E5,\n-0, 1e999, 0.1234567890123456789012345678901234567890]")
    line = shell.run("receive", URL, "--json", "--limit", "1").stdout
    assert b'"json":[1.10,1E5,-0,1e999,0.1234567890123456789012345678901234567890]' in line


@pytest.mark.parametrize(
    "data",
    [
        *["hello", "", "{", "[NaN]", "-Infinity", "01", "1 2", '"\t"', "\ufeff1", "7" * 5000, "[" * 101 + "]" * 101],
        *['"\\ud800"', '{"\\udc00": 1}', '{"a": "\\ud800", "a": 1}', r'"\ud83d\n\ude00"'],
    ],
)
def test_data_that_programs_cannot_parse_has_no_key_json(shell: Shell, data: str) -> None:
    """The key ``json`` is left out if the data is not JSON, or if the decoder of a program may refuse it."""
    shell.run("send", URL, "--", data)
    (message,) = shell.received()
    assert message["data"] == data
    assert "json" not in message


def test_sending_again_ignores_the_parsed_data(shell: Shell) -> None:
    """The pipe from ``receive --json`` to ``send --ndjson`` loses nothing."""
    shell.run("send", URL, '{"price":  1.10}')
    lines = shell.run("receive", URL, "--json", "--limit", "1").stdout
    assert json.loads(lines)["json"] == {"price": 1.1}
    shell.run("send", URL, "--ndjson", stdin=lines)
    assert [message["data"] for message in shell.received()] == ['{"price":  1.10}']


def test_a_line_is_sent_before_the_input_ends(shell: Shell) -> None:
    """A slow writer's line does not wait for more lines."""
    process = shell.start("send", URL)
    assert process.stdin is not None
    process.stdin.write(b"first\n")
    assert output(process).readline().strip()
    process.stdin.close()
    assert process.wait(BOUND) == 0


def test_a_bad_line_is_named_and_those_before_it_are_stored(shell: Shell) -> None:
    """Sending stops at a bad line, with its number and what was stored, so that it can be resumed there."""
    lines = b'{"data": 1}\n\n{"data": 2}\n{"data": 3\n{"data": 4}\n'
    line = shell.fail("send", URL, "--ndjson", stdin=lines)
    assert "line 4 of standard input: not JSON: " in line
    assert line.endswith("; 2 messages were stored")
    assert [message["data"] for message in shell.received()] == ["1", "2"]


def test_data_that_is_refused_is_reported_as_a_line_is(shell: Shell, choosy: Sequence[str]) -> None:
    """A program that reads --json need not know which way the message came."""
    done = shell.run("send", *choosy, "bad", "--json", code=1)
    assert json.loads(done.stdout) == {"line": 1, "error": "PERMISSION_DENIED", "detail": "no entry"}
    assert done.stderr.decode() == "events: error: line 1 not stored: no entry; 0 messages were stored\n"


def test_data_whose_id_cannot_be_written_is_accounted_for(shell: Shell) -> None:
    """After an error the user must know that the message is stored, and need not be sent again."""
    with open("/dev/full", "wb") as full:
        process = shell.start("send", URL, "hi", stdout=full)
    _, errors = process.communicate(timeout=BOUND)
    assert errors.endswith(b"No space left on device; 1 message was stored\n")


def test_a_line_that_the_backend_refuses_is_named(shell: Shell) -> None:
    """Lines before one beyond the backend's limits are stored, although their request was refused as a whole."""
    (shell.folder / "lines").write_bytes(b"a\nb\n" + b"x" * 10_000_001 + b"\nc\n")
    done = shell.run("send", URL, "--file", "lines", "--json", code=1)
    assert done.stderr.startswith(b"events: error: line 3 cannot be sent: ")
    assert b"max_message_bytes" in done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(result["line"], result.get("error")) for result in results] == [(1, None), (2, None), (3, "INVALID")]
    assert [message["data"] for message in shell.received()] == ["a", "b"]


def test_an_error_names_its_line_once(shell: Shell) -> None:
    """The number that the library gives the message within its request is not shown."""
    lines = b'{"data": 1}\n{"data": 2, "ordering_key": "k"}\n'
    done = shell.run("send", URL + "&ordering=false", "--ndjson", "--json", stdin=lines, code=1)
    assert done.stderr.startswith(b"events: error: line 2 has ordering key 'k', and ")
    assert done.stderr.endswith(b"; 1 message was stored\n")
    assert json.loads(done.stdout.splitlines()[1])["detail"].startswith("the message has ordering key 'k', and ")


CHOOSY = """
    from events_core import Capabilities, ErrorCode
    from events_core.engine import BrokerError, Driver, EngineClient

    class ChoosyDriver(Driver):
        inline = True
        capabilities = Capabilities()

        async def open(self): ...
        async def subscribe(self, subscription, wake): ...
        async def delete_subscription(self, subscription): ...
        async def ping(self):
            raise BrokerError("nobody\\nthere \\x1b[31m", ErrorCode.UNAVAILABLE)
        async def close(self): ...

        async def publish(self, messages):
            denied = BrokerError("no entry", ErrorCode.PERMISSION_DENIED)
            return [denied if message.data == b"bad" else "id-" + message.data.decode() for message in messages]

    class Client(EngineClient):
        api_version = 1
        full_capabilities = Capabilities()
        driver_class = ChoosyDriver
"""


@pytest.fixture
def choosy(shell: Shell) -> list[str]:
    """Options for a client whose broker refuses some messages, and pings."""
    (shell.folder / "acme_choosy.py").write_text(textwrap.dedent(CHOOSY))
    (shell.folder / "c.toml").write_text('[clients.choosy]\nbackend = "acme_choosy:Client"\ntopic_name = "t"\n')
    return ["--config", "c.toml", "--client", "choosy"]


def test_partial_failure_names_the_lines_that_were_not_stored(shell: Shell, choosy: Sequence[str]) -> None:
    """The ids of stored messages are printed, and the error names the refused lines with the reason."""
    done = shell.run("send", *choosy, stdin=b"a\nbad\nc\nbad\nbad\nd\n", code=1)
    assert done.stdout.split() == [b"id-a", b"id-c", b"id-d"]
    assert done.stderr.decode() == "events: error: lines 2, 4-5 not stored: no entry; 3 messages were stored\n"


def test_quiet_counts_what_was_stored_also_when_it_fails(shell: Shell, choosy: Sequence[str]) -> None:
    """--quiet prints one number in any case."""
    assert shell.run("send", *choosy, "--quiet", stdin=b"a\nbad\n", code=1).stdout == b"1\n"
    assert shell.run("send", *choosy, "--quiet", "a").stdout == b"1\n"
    assert shell.run("send", *choosy, "--quiet").stdout == b"0\n"


def test_a_failed_ping_is_one_line(shell: Shell, choosy: Sequence[str]) -> None:
    """The text of a broker is shown on one line, without control characters."""
    assert shell.fail("ping", *choosy) == r"events: error: nobody there \x1b[31m"


def test_ping_tells_how_long_it_took(shell: Shell) -> None:
    """A ping that succeeds prints the time."""
    shell.run("send", URL, "x")
    assert re.fullmatch(rb"\d+\.\d ms\n", shell.run("ping", URL).stdout)


def test_ping_creates_nothing(shell: Shell) -> None:
    """A mistyped name is an error, not a new file; where the target says ``create``, that counts."""
    assert "'events.db' does not exist" in shell.fail("ping", URL).replace(f"{shell.folder}/", "")
    assert list(shell.folder.iterdir()) == []
    shell.run("ping", URL + "&create=all")


def test_interrupted_sending_tells_what_was_stored(shell: Shell) -> None:
    """Ctrl-C while input is awaited ends at once and accounts for what was sent."""
    process = shell.start("send", URL)
    assert process.stdin is not None
    process.stdin.write(b"one\n")
    assert output(process).readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(BOUND) == 130
    assert process.stderr is not None
    assert process.stderr.read() == b"events: interrupted: 1 message was stored\n"


def test_long_work_shows_progress_on_a_terminal(shell: Shell) -> None:
    """A bar appears on standard error when that is a terminal, and standard output carries data alone."""
    terminal, stderr = pty.openpty()
    process = shell.start("send", URL, "--quiet", stderr=stderr)
    os.close(stderr)
    assert process.stdin is not None
    shown = b""
    ends = time.monotonic() + BOUND
    while b"messages" not in shown and time.monotonic() < ends:
        process.stdin.write(b"line\n")
        if select.select([terminal], [], [], 0.05)[0]:
            shown += os.read(terminal, 65536)
    assert b"messages" in shown
    process.stdin.close()
    assert re.fullmatch(rb"\d+\n", output(process).read())
    assert process.wait(BOUND) == 0
    os.close(terminal)


# Receiving


def test_receive_ends_after_the_limit_and_leaves_the_rest(shell: Shell) -> None:
    """--limit takes so many messages and not one more."""
    shell.run("send", URL, stdin=numbers(300))
    assert shell.run("receive", URL, "--limit", "250").stdout == numbers(250)
    rest = shell.received()
    assert [message["data"] for message in rest] == [str(number) for number in range(250, 300)]
    assert {message["delivery_attempt"] for message in rest} == {1}


def test_receive_that_times_out_with_nothing_has_its_own_code(shell: Shell) -> None:
    """--timeout without any message is code 3 and no error line; with one it is success."""
    assert shell.run("receive", URL, "--timeout", "0.2", code=3).stderr == b""
    shell.run("send", URL, "x")
    assert shell.run("receive", URL, "--timeout", "5").stdout == b"x\n"


def test_subscription_option_joins_that_subscription(shell: Shell) -> None:
    """--subscription takes precedence over the option in TARGET."""
    for name in ("one", "two"):
        shell.run("receive", URL, "--subscription", name, "--create", "--timeout", "0.1", code=3)
    shell.run("send", URL, "x")
    for name in ("one", "two"):
        assert shell.run("receive", URL, "-s", name, "-n", "1").stdout == b"x\n"


def test_a_mistyped_subscription_is_not_created(shell: Shell) -> None:
    """--subscription alone joins what there is, and the error names the nearest and how to create one."""
    shell.run("send", URL, "x")
    for target in (URL, URL + "&create=all", "sqlite:events.db/orders"):
        line = shell.fail("receive", target, "-s", "biling")
        assert "has no subscription 'biling'" in line
        assert "did you mean 'billing'?" in line
        assert "--create" in line
    shell.run("send", URL, "y")
    assert "no subscription 'biling'" in shell.fail("receive", URL, "-s", "biling")
    assert "does not exist" in shell.fail("receive", "sqlite:typo.db/orders", "-s", "billing")
    assert [path.name for path in shell.folder.glob("typo*")] == []


@pytest.mark.parametrize("options", ["", "?create=never", "?create=subscription"])
def test_create_lets_the_subscription_be_created(shell: Shell, options: str) -> None:
    """--create works with each value of the option, and does not create the target's own subscription."""
    shell.run("send", "sqlite:events.db/orders", "before")
    target = f"sqlite:events.db/orders{options}{'&' if options else '?'}subscription=other"
    shell.run("receive", target, "-s", "new", "--create", "-t", "0.1", code=3)
    shell.run("send", "sqlite:events.db/orders", "after")
    assert shell.run("receive", target, "-s", "new", "-n", "1").stdout == b"after\n"
    assert "no subscription 'other'" in shell.fail("receive", target, "-s", "other")


def test_create_with_a_new_file(shell: Shell) -> None:
    """If the target may create everything, --create does not take that back."""
    shell.run("receive", "sqlite:new.db/orders", "-s", "new", "--create", "-t", "0.1", code=3)


def test_a_subscription_of_the_target_follows_its_option(shell: Shell) -> None:
    """TARGET says itself whether its subscription is created."""
    shell.run("receive", URL, "-t", "0.1", code=3)
    assert "no subscription 'other'" in shell.fail("receive", "sqlite:events.db/orders?subscription=other&create=never")


def test_what_could_not_be_written_is_not_acknowledged(shell: Shell) -> None:
    """A full disk under standard output ends with one line, and the message comes again."""
    shell.run("send", URL, "precious")
    with open("/dev/full", "wb") as full:
        process = shell.start("receive", URL, stdout=full)
        assert process.wait(BOUND) == 1
    assert process.stderr is not None
    assert process.stderr.read() == b"events: error: cannot write to standard output: No space left on device\n"
    assert [message["data"] for message in shell.received()] == ["precious"]


def test_head_takes_one_and_the_rest_stays(shell: Shell) -> None:
    """The messages that `| head -1` did not read are not acknowledged, and no error or traceback is printed."""
    shell.run("send", URL, stdin=numbers(1000))
    process = shell.start("receive", URL)
    head = subprocess.run(["head", "-1"], stdin=output(process), capture_output=True, timeout=BOUND, check=True)
    output(process).close()
    assert head.stdout == b"0\n"
    assert process.wait(BOUND) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert [message["data"] for message in shell.received()] == [str(number) for number in range(1, 1000)]


def test_a_reader_that_ends_is_noticed_while_nothing_comes(shell: Shell) -> None:
    """Receiving ends with its reader, not with the next message."""
    shell.run("send", URL, "only")
    process = shell.start("receive", URL)
    assert output(process).readline() == b"only\n"
    output(process).close()
    assert process.wait(BOUND) == 141
    assert shell.is_empty()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_following_and_hands_back(shell: Shell, number: signal.Signals, code: int) -> None:
    """The first process writes some messages before the signal, and another gets all others afterwards."""
    shell.run("send", URL, stdin=numbers(3000))
    process = shell.start("receive", URL)
    first = output(process).readline()
    process.send_signal(number)
    written = first + output(process).read()
    assert process.wait(BOUND) == code
    assert process.stderr is not None
    assert process.stderr.read() == b""
    rest = shell.rest() if written != numbers(3000) else b""
    assert written + rest == numbers(3000)


def test_a_signal_ends_it_although_nobody_reads(shell: Shell) -> None:
    """Lines that stayed in the pipe were not acknowledged, so they come again."""
    shell.run("send", URL, stdin=b"x" * 200_000 + b"\n" + numbers(10))
    process = shell.start("receive", URL)
    wait_for_output(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(BOUND) == 130
    assert len(shell.received()) == 11


SIGNALLED_TWICE = """
import asyncio, os, signal
from events_core.cli.ending import run

async def command(ending):
    os.kill(os.getpid(), signal.SIGINT)
    try:
        await asyncio.sleep(600)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(1)

run(command)
"""


def test_a_second_signal_of_another_kind_ends_it_at_once() -> None:
    """The command has been asked to end, and is closing its client."""
    done = subprocess.run([sys.executable, "-c", SIGNALLED_TWICE], capture_output=True, timeout=BOUND, check=False)
    assert done.returncode == -signal.SIGTERM


def test_an_ignored_signal_stays_ignored(shell: Shell) -> None:
    """Under nohup the end of the terminal does not end it."""
    shell.run("send", URL, stdin=numbers(1))
    process = shell.start("receive", URL, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert output(process).readline() == b"0\n"
    process.send_signal(signal.SIGHUP)
    shell.run("send", URL, "still there")
    assert output(process).readline() == b"still there\n"


# Errors

CONFIG = """
[clients.orders]
backend = "sqlite"
topic_name = "orders"
[clients.orders.options]
path = "events.db"
subscription = "billing"
"""

BAD = {
    "unknown command": (["sned"], 2, "No such command 'sned'"),
    "unknown option": (["ping", URL, "--fast"], 2, "No such option"),
    "no target": (["ping"], 2, "give TARGET, or --config FILE with --client NAME"),
    "two targets": (["ping", URL, "--config", "c.toml", "--client", "orders"], 2, "not both"),
    "two targets, sending": (["send", URL, "x", "--config", "c.toml", "--client", "orders"], 2, "not both"),
    "config alone": (["ping", "--config", "c.toml"], 2, "go together"),
    "client alone": (["ping", "--client", "orders"], 2, "go together"),
    "no such config": (["ping", "--config", "none.toml", "--client", "orders"], 2, "'none.toml': No such file"),
    "no such client": (["ping", "--config", "c.toml", "--client", "order"], 2, "did you mean 'orders'"),
    "config is no TOML": (["ping", "--config", "bad.toml", "--client", "orders"], 2, "not valid TOML"),
    "no scheme": (["ping", "orders"], 2, "names no backend"),
    "unknown backend": (["ping", "sqlit:events.db/orders"], 2, "did you mean 'sqlite'"),
    "uninstalled backend": (["ping", "gone:x/y"], 2, "could not be imported"),
    "unknown backend described": (["backends", "nope"], 2, "no backend named 'nope'"),
    "unknown URL option": (["ping", URL + "&retenton=5"], 2, "did you mean 'retention'"),
    "bad URL option": (["ping", URL + "&send_timeout=soon"], 2, "is not a number"),
    "bad URL": (["ping", "sqlite://[::1/orders"], 2, "the URL"),
    "too many arguments": (["send", URL, "two", "words"], 2, "quote DATA"),
    "attribute without value": (["send", URL, "x", "-a", "colour"], 2, "KEY=VALUE"),
    "attribute that is no text": (["send", URL, "x", "-a", "k=\udcff"], 1, "cannot be sent"),
    "data and file": (["send", URL, "x", "--file", "c.toml"], 2, "DATA excludes"),
    "stdin and file": (["send", URL, "-", "--file", "c.toml"], 2, "not both"),
    "data as NDJSON": (["send", URL, '{"data": 1}', "--ndjson"], 2, "DATA excludes"),
    "quiet and json": (["send", URL, "x", "-q", "--json"], 2, "exclude each other"),
    "no such file": (["send", URL, "--file", "none"], 2, "cannot read 'none': No such file"),
    "file without a name": (["send", URL, "--file", ""], 2, "cannot read ''"),
    "a folder": (["send", URL, "--file", "."], 2, "cannot read '.': Is a directory"),
    "limit of nothing": (["receive", URL, "--limit", "0"], 2, "--limit"),
    "limit in words": (["receive", URL, "--limit", "many"], 2, "--limit"),
    "no time": (["receive", URL, "--timeout", "0"], 2, "positive number of seconds"),
    "no number": (["receive", URL, "--timeout", "nan"], 2, "positive number of seconds"),
    "endless ping": (["ping", URL, "--timeout", "inf"], 2, "positive number of seconds"),
    "create without a name": (["receive", URL, "--create"], 2, "--create goes with --subscription"),
    "empty subscription": (["receive", URL, "--subscription", ""], 2, "must not be empty"),
    "no such folder": (["ping", "sqlite:none/events.db/orders"], 1, "none/events.db"),
    "no database": (["receive", "sqlite:c.toml/orders"], 1, "c.toml"),
}


@pytest.mark.parametrize(("arguments", "code", "text"), BAD.values(), ids=BAD)
def test_what_cannot_work_is_one_clear_line(shell: Shell, arguments: Sequence[str], code: int, text: str) -> None:
    """Every mistake ends with one line that names it, and the documented code."""
    (shell.folder / "c.toml").write_text(CONFIG)
    (shell.folder / "bad.toml").write_text("[clients.orders\n")
    distribution(shell.folder, "acme_gone", "gone = acme_gone:Client")
    assert text in shell.fail(*arguments, code=code)


BAD_LINES = {
    "not JSON": (b"data", "not JSON"),
    "not UTF-8": (b'{"data": "\xff"}', "not UTF-8 at byte 11"),
    "not an object": (b"[1]", "not a JSON object"),
    "no data": (b"{}", "exactly one of 'data' and 'data_base64'"),
    "data twice": (b'{"data": 1, "data_base64": ""}', "exactly one of"),
    "unknown key": (b'{"data": 1, "atributes": {}}', "did you mean 'attributes'"),
    "NaN": (b'{"data": NaN}', "NaN is no JSON number"),
    "infinite": (b'{"data": [-Infinity]}', "-Infinity is no JSON number"),
    "more after the object": (b'{"data": 1} {}', "not JSON: Extra data at column 13"),
    "no value": (b'{"data": }', "not JSON: Expecting value at column 10"),
    "no colon": (b'{"data" 1}', "not JSON: Expecting ':' delimiter at column 9"),
    "no comma": (b'{"data": 1 "attributes": {}}', "not JSON: Expecting ',' delimiter at column 12"),
    "a comma too many": (b'{"data": 1,}', "not JSON: Expecting property name enclosed in double quotes at column 12"),
    "no end": (b'{"data": 1', "not JSON: Expecting ',' delimiter at column 11"),
    "control character": (b'{"data": "a\tb"}', "not JSON: Invalid control character at at column 12"),
    "a number with a zero before it": (b'{"data": 01}', "not JSON: Expecting ',' delimiter at column 11"),
    "a key twice": (b'{"data": 1, "data": 2}', "the key 'data' occurs twice"),
    "an ignored key twice": (b'{"data": 1, "message_id": 2, "message_id": 2}', "the key 'message_id' occurs twice"),
    "an attribute twice": (b'{"data": 1, "attributes": {"a": "1", "a": "2"}}', "the attribute 'a' occurs twice"),
    "half a surrogate pair": (b'{"data": "\\ud800"}', "surrogate"),
    "bad base64": (b'{"data_base64": "a!"}', "not base64"),
    "base64 of another type": (b'{"data_base64": 5}', "not base64"),
    "attributes as a list": (b'{"data": 1, "attributes": []}', "'attributes' must be an object"),
    "attribute as a number": (b'{"data": 1, "attributes": {"a": 1}}', "attribute 'a' must be a string"),
    "key as a number": (b'{"data": 1, "ordering_key": 5}', "'ordering_key' must be a string"),
    "too deep": (b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
}


@pytest.mark.parametrize(("line", "text"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_ndjson_line_is_one_clear_line(shell: Shell, line: bytes, text: str) -> None:
    """Every mistake in a line is named with the line's number."""
    message = shell.fail("send", "memory:///orders", "--ndjson", stdin=line)
    assert "line 1 of standard input: " in message
    assert text in message


@pytest.mark.parametrize(
    "line",
    [
        b'{"%s": 1}',
        b'{"message_id": 1, "%s": 1, "%s": 1}',
        b'{"data": 1, "attributes": {"%s": 1}}',
        b'{"attributes": {"%s": "1", "%s": "1"}}',
    ],
)
def test_a_long_key_is_not_shown_whole(shell: Shell, line: bytes) -> None:
    """A long key from a stranger must not fill the terminal, or a log."""
    message = shell.fail("send", "memory:///orders", "--ndjson", stdin=line.replace(b"%s", b"k" * 10_000))
    assert "kkk" in message
    assert len(message) < 1000


def test_a_configuration_file_works_in_place_of_a_target(shell: Shell) -> None:
    """--config with --client sends, receives and pings as TARGET does."""
    (shell.folder / "c.toml").write_text(CONFIG)
    chosen = ["--config", "c.toml", "--client", "orders"]
    shell.run("send", *chosen, "from a file")
    shell.run("ping", *chosen)
    assert shell.run("receive", *chosen, "-n", "1").stdout == b"from a file\n"


def test_errors_never_quote_option_values_that_are_secret(shell: Shell) -> None:
    """Neither a target that was given twice nor one that is malformed is repeated."""
    for arguments in (["ping", "orders?token=hush"], ["ping", "x://a/b?token=hush", "--config", "c.toml"]):
        assert "hush" not in shell.fail(*arguments, code=2)


@pytest.mark.parametrize(("closed", "text"), [(0, "standard input is closed"), (1, "standard output is closed")])
def test_closed_streams_are_named(shell: Shell, closed: int, text: str) -> None:
    """A closed stream is an error, because its descriptor may belong to another file by now."""
    process = shell.start("send", URL, "--file", "-", stdin=None, preexec_fn=lambda: os.close(closed))
    assert process.wait(BOUND) == 2
    assert process.stderr is not None
    assert text in process.stderr.read().decode()
