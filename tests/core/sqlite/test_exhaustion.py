"""A process without free descriptors or threads: its errors say so, and work goes on when there are more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs limits of the process")

PROGRAM = """
import asyncio, json, logging, os, resource, sys, threading
from contextlib import contextmanager
from events_core import EventConfig, EventError, EventMessage
from events_core.backends.sqlite import SQLiteClient

logging.disable()
SHORT = {"send_timeout": "5", "connect_timeout": "5"}

def made(**options):
    return SQLiteClient(EventConfig("orders", options={"path": sys.argv[1], "subscription": "s", **options}))

@contextmanager
def descriptors(count):
    "Leave the process so many."
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[0], 200), limits[1]))
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        for _ in range(count):
            os.close(taken.pop())
    try:
        yield
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

@contextmanager
def no_threads():
    "Let the system refuse a thread, since it has no room for such a stack."
    usual = threading.stack_size(2**46)
    try:
        yield
    finally:
        threading.stack_size(usual)

async def said(operation):
    try:
        await operation
    except EventError as error:
        return [type(error).__name__, error.code.value, error.retryable, str(error)]
    except BaseException as error:
        return [repr(error)]
    return ["succeeded"]

async def said_at_last(client):
    "Send again until the time of one send is enough, which is short for the failures."
    while (answer := await said(client.send_message(EventMessage(b"x")))) != ["succeeded"]:
        if answer[1:3] != ["TIMEOUT", True]:
            return answer
    return answer

async def each_said(client):
    operations = client.send_message(EventMessage(b"x")), client.ping(5), client.subscribe()
    return await asyncio.gather(*map(said, operations))
"""


def run(body: str, file: Path) -> object:
    """Run *body* in a coroutine; return the JSON that it prints.  It must not print an error or a warning."""
    indented = "\n".join(f"    {line}" for line in body.strip().splitlines())
    program = f"{PROGRAM}\nasync def main():\n{indented}\n\nasyncio.run(main())\n"
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True, timeout=180, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer: object = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("count", range(7))
def test_too_few_descriptors_are_named(file: Path, count: int) -> None:
    """The client's thread needs one first, then the file.  Later the same client works."""
    body = f"""
await made().close()
async with made(**SHORT) as client:
    with descriptors({count}):
        answers = await each_said(client)
    print(json.dumps([*answers, await said_at_last(client)]))
"""
    *answers, last = run(body, file)  # type: ignore[misc]
    assert last == ["succeeded"]
    assert [answer[0] for answer in answers] in (
        ["PublishError", "EventConnectionError", "ReceiveError"],
        ["succeeded"] * 3,
    )
    if answers[0] != ["succeeded"]:
        # TIMEOUT if the last try to connect was under way when the time was up.
        assert {(code, retryable) for _, code, retryable, _ in answers} <= {("EXHAUSTED", True), ("TIMEOUT", True)}
        assert all("ulimit -n" in text for *_, text in answers)
    if count < 6:
        assert answers[0] != ["succeeded"], "the test leaves more than it takes to connect"


def test_send_waits_for_descriptors(file: Path) -> None:
    """The message is stored when there are descriptors again."""
    body = """
async with made() as client:
    with descriptors(0):
        sending = asyncio.create_task(client.send_message(EventMessage(b"x")))
        await asyncio.wait([sending], timeout=0.3)
        early = sending.done()
    print(json.dumps([early, await said(sending)]))
"""
    assert run(body, file) == [False, ["succeeded"]]


def test_connected_client_needs_no_more_descriptors(file: Path) -> None:
    """It sends and receives while the process has none left."""
    body = """
async with made() as client, await client.subscribe() as receiver:
    with descriptors(0):
        answer = await said(client.send_message(EventMessage(b"x")))
        message = await receiver.receive_message(60)
        await receiver.acknowledge(message)
    print(json.dumps([answer, message.data_as_string()]))
"""
    assert run(body, file) == [["succeeded"], "x"]


def test_lack_of_threads_is_named(file: Path) -> None:
    """As with descriptors, the error says what is missing, and the same client works later."""
    body = """
async with made(**SHORT) as client:
    with no_threads():
        answers = await each_said(client)
    print(json.dumps([*answers, await said_at_last(client)]))
"""
    *answers, last = run(body, file)  # type: ignore[misc]
    assert last == ["succeeded"]
    assert [answer[0] for answer in answers] == ["PublishError", "EventConnectionError", "ReceiveError"]
    assert {(code, retryable) for _, code, retryable, _ in answers} <= {("EXHAUSTED", True), ("TIMEOUT", True)}
    assert all("cannot start the thread" in text for *_, text in answers)
