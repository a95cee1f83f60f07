"""The programs of the pages on WebSockets and on HTTP handlers do what the pages say."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from httpx2 import AsyncClient, ConnectError
from websockets.asyncio.client import connect

from ..servers.ports import reserved_ports

FOLDER = Path(__file__).parents[2] / "examples" / "howto" / "web_events"


@contextmanager
def started(folder: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program in *folder*, for five minutes at most, and end it as a terminal would."""
    program = subprocess.Popen([sys.executable, *command], cwd=folder, stdout=subprocess.PIPE, text=True)
    watchdog = threading.Timer(300, program.kill)
    watchdog.start()
    try:
        with program:
            yield program
            program.send_signal(signal.SIGINT)
    finally:
        watchdog.cancel()


async def say_hello(url: str) -> None:
    """Connect as soon as the server is there, say "hello", and leave."""
    async with asyncio.timeout(60):
        while True:
            try:
                async with connect(url) as websocket:
                    await websocket.send("hello")
                    assert await websocket.recv() == "hello"
                return
            except OSError:
                await asyncio.sleep(0.05)


def lines(program: subprocess.Popen[str], number: int) -> list[dict[str, Any]]:
    assert program.stdout is not None
    return [json.loads(program.stdout.readline()) for _ in range(number)]


@pytest.mark.parametrize("server", ["app", "server"])
def test_events_are_watched(server: str, tmp_path: Path) -> None:
    """Another process prints the three events of a client, with the size of its message."""
    folder = shutil.copytree(FOLDER, tmp_path / "web")
    with reserved_ports(1) as (port,), ExitStack() as programs:
        if server == "server":
            program = folder / "server.py"
            program.write_text(program.read_text().replace("8001", str(port)))
            command = ["server.py"]
        else:
            command = ["-m", "uvicorn", "app:app", "--port", str(port)]
        watcher = programs.enter_context(started(folder, "watch.py"))
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "watching\n"
        programs.enter_context(started(folder, *command))
        asyncio.run(say_hello(f"ws://localhost:{port}/echo"))
        connected, message, disconnected = lines(watcher, 3)
    assert [each["event_type"] for each in (connected, message, disconnected)] == [
        "client_connected",
        "client_message",
        "client_disconnected",
    ]
    assert message["size"] == 5
    assert list(disconnected)[3:] == ["close_code", "duration", "messages_received", "messages_sent"]


def test_an_order_is_sent(tmp_path: Path) -> None:
    """A handler publishes an order and answers 202."""
    folder = shutil.copytree(FOLDER, tmp_path / "web")

    async def place_order(port: int) -> int:
        async with asyncio.timeout(60), AsyncClient() as http:
            while True:
                try:
                    return (await http.post(f"http://localhost:{port}/orders/42")).status_code
                except ConnectError:  # the server has not started yet
                    await asyncio.sleep(0.05)

    with reserved_ports(1) as (port,), started(folder, "-m", "uvicorn", "app:app", "--port", str(port)):
        assert asyncio.run(place_order(port)) == 202
    receive = ["receive", "sqlite:web.db/orders", "--subscription", "billing", "-n", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "events_core.cli", *receive],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == '{"order":42}\n'
