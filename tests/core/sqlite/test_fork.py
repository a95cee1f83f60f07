"""If a process forks while a file is open, the child refuses the file: SQLite would take no lock there (T2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")

PROGRAM = """
import asyncio, json, os, sys
from events_core import EventConfig, EventError, EventMessage
from events_core.backends.sqlite import SQLiteClient, forks

path, other = sys.argv[1:3]

def made(path=path):
    return SQLiteClient(EventConfig("orders", options={"path": path, "subscription": "s"}))

async def once(client):
    async with client:
        await client.send_message(EventMessage(b"x"))

def sent(path):
    "Say what a new client's send comes to."
    try:
        asyncio.run(once(made(path)))
    except EventError as error:
        return [type(error).__name__, error.code.value, str(error)]
    return "sent"

def forked(*paths):
    "Say what it comes to in a forked child, for each path."
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, json.dumps([sent(each) for each in paths]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(text)

def connected():
    client = made()
    asyncio.run(client.ping(60))
    return client
"""


def run(program: str, file: Path) -> object:
    """Run *program*; return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM + program, str(file), f"{file}.other"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: object = json.loads(done.stdout)
    return answer


def test_file_open_at_the_fork_is_refused(file: Path) -> None:
    """The error is ``WRONG_PROCESS``, names the file and says what to do.  The parent goes on."""
    program = """
client = connected()
answer = forked(path)
asyncio.run(once(client))
print(json.dumps(answer))
"""
    ((kind, code, text),) = run(program, file)  # type: ignore[misc]
    assert (kind, code) == ("EventRuntimeError", "WRONG_PROCESS")
    assert repr(str(file)) in text
    assert "'spawn'" in text


def test_file_open_at_the_fork_is_refused_by_whatever_name(file: Path) -> None:
    """A symbolic link, a hard link and a path through another directory lead to the same locks."""
    program = """
client = connected()
os.symlink(path, path + ".link")
os.link(path, path + ".hard")
answers = forked(path + ".link", path + ".hard", os.path.dirname(path) + "/./" + os.path.basename(path))
print(json.dumps([answer[1] for answer in answers]))
"""
    assert run(program, file) == ["WRONG_PROCESS"] * 3


def test_file_is_refused_in_a_grandchild(file: Path) -> None:
    """Even if the process in between did not have the file open."""
    program = """
client = connected()
child = os.fork()
if not child:
    print(json.dumps(forked(path)[0][1]), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    assert run(program, file) == "WRONG_PROCESS"


def test_file_locked_at_the_fork_is_refused(file: Path) -> None:
    """Otherwise the child would wait for a transaction that no process ends."""
    program = """
client = connected()
async def lock():
    client._driver.file.store.connection.execute("BEGIN IMMEDIATE")
asyncio.run(client._home.run(lock()))
print(json.dumps(forked(path)[0][1]))
"""
    assert run(program, file) == "WRONG_PROCESS"


def test_file_closed_before_the_fork_is_not_refused(file: Path) -> None:
    """A closed file leaves no locks."""
    program = """
asyncio.run(once(made()))
client = made()
print(json.dumps(forked(path)))
"""
    assert run(program, file) == ["sent"]


def test_other_file_is_not_refused(file: Path) -> None:
    """Another file has other locks."""
    program = """
client = connected()
print(json.dumps(forked(other)))
"""
    assert run(program, file) == ["sent"]


def test_fork_waits_for_calls_of_sqlite(file: Path) -> None:
    """Otherwise an internal lock of SQLite may stay locked in the child, which would hang when it opens any file."""
    program = """
import time
forks.PATIENCE = 60.0
client = connected()
seen = []
def work(store):
    seen.append("begun")
    time.sleep(0.3)
    seen.append("done")
async def use():
    working = asyncio.create_task(client._home.run(client._driver.file.run(work)))
    while not seen:
        await asyncio.sleep(0)
    child = os.fork()
    if not child:
        print(json.dumps(seen), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    await working
asyncio.run(use())
"""
    assert run(program, file) == ["begun", "done"]


def test_fork_does_not_wait_for_a_call_that_hangs(file: Path) -> None:
    """It waits for a second at most, because a disk may never answer."""
    program = """
import threading
client = connected()
begun, ends = threading.Event(), threading.Event()
def work(store):
    begun.set()
    assert ends.wait(30)
async def use():
    working = asyncio.create_task(client._home.run(client._driver.file.run(work)))
    while not begun.is_set():
        await asyncio.sleep(0)
    child = os.fork()
    if not child:
        os._exit(0)
    print(json.dumps(not ends.is_set()), flush=True)
    ends.set()
    assert os.waitpid(child, 0)[1] == 0
    await working
    assert await client.ping(60) >= 0
asyncio.run(use())
"""
    assert run(program, file) is True


def test_interrupted_fork_leaves_no_client_locked(file: Path) -> None:
    """If Ctrl-C ends the wait for one client's call, the locks of the others are released."""
    program = """
import signal, threading
forks.PATIENCE = 60.0

class Interrupted(Exception):
    pass

def interrupt(number, frame):
    raise Interrupted

locks = [threading.RLock() for _ in range(40)]
for lock in locks:
    forks.await_calls(lock)
held, ends = threading.Event(), threading.Event()
def hold():
    with locks[20]:
        held.set()
        assert ends.wait(30)
    print(json.dumps(sum(not lock.acquire(timeout=0) for lock in locks)), flush=True)
holder = threading.Thread(target=hold)
holder.start()
held.wait(30)
sys.unraisablehook = lambda unraisable: None
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 1.0)
child = os.fork()
if not child:
    os._exit(0)
os.waitpid(child, 0)
ends.set()
holder.join()
"""
    assert run(program, file) == 0


def test_children_of_a_busy_parent_use_other_files(file: Path) -> None:
    """None of thirty children hangs."""
    program = """
import threading
forks.PATIENCE = 60.0
busy, stopped, answers = made(), threading.Event(), []
async def send():
    while not stopped.is_set():
        await asyncio.gather(*(busy.send_message(EventMessage(b"x")) for _ in range(50)))
asyncio.run(busy.ping(60))
sending = threading.Thread(target=lambda: asyncio.run(send()))
sending.start()
try:
    for number in range(30):
        answers += forked(f"{other}-{number}")
finally:
    stopped.set()
    sending.join()
print(json.dumps(answers))
"""
    assert run(program, file) == ["sent"] * 30
