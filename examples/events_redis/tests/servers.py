"""Redis servers for tests: one that runs already, or a program of this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

START_TIMEOUT = 120.0
"""Seconds that a server may take to answer."""
PERSISTENT = ["--appendonly", "yes", "--appendfsync", "always"]


class Missing(Exception):
    """The reason why there is no server."""


class Server:
    """A server at *address*, ``host:port``."""

    def __init__(self, address: str) -> None:
        self.address = address

    def restart(self) -> bool:
        """Kill the server and start it again on what it has stored; return False if that is not possible."""
        return False


class Program(Server):
    """The program ``redis-server`` of this machine, on a free port, with its files in *folder*."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("redis-server") is None:
            raise Missing("EVENTS_TEST_REDIS is not set, and there is no program 'redis-server'")
        # The socket never listens.  It keeps the port for the server, which sets SO_REUSEADDR as well: while the server
        # is down, a client that tries to reconnect would else get the port for its own end, and connect to itself.
        self._keeper = socket.socket()
        self._keeper.bind(("127.0.0.1", 0))
        self._keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port = self._keeper.getsockname()[1]
        super().__init__(f"127.0.0.1:{self._port}")
        self._folder = folder
        self._start()

    def _start(self) -> None:
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(self._folder)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--save", "", *PERSISTENT],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for pytest, which ends the server
            )
        try:
            await_answer(self.address)
        except Missing as reason:
            self.kill()
            raise Missing(f"redis-server: {reason}: {(self._folder / 'log').read_text()[-500:]}") from None

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill the process, and let others have the port."""
        self.kill()
        self._keeper.close()

    def restart(self) -> bool:
        self.kill()
        self._start()
        return True


@contextmanager
def find_or_start(folder: Path) -> Iterator[Server]:
    """Enter with the server at ``EVENTS_TEST_REDIS``, or with a program of this machine.

    :raises Missing: with the reason.
    """
    if address := os.environ.get("EVENTS_TEST_REDIS"):
        yield Server(address)
        return
    program = Program(folder)
    try:
        yield program
    finally:
        program.close()


def await_answer(address: str) -> None:
    """Wait until the server at *address* answers.

    :raises Missing: if it does not.
    """
    host, _, port = address.rpartition(":")
    ends = time.monotonic() + START_TIMEOUT
    while time.monotonic() < ends:
        try:
            with Redis(host, int(port), socket_timeout=1, retry=Retry(NoBackoff(), 0)) as redis:
                redis.ping()
        except RedisError:
            time.sleep(0.05)
        else:
            return
    raise Missing(f"no answer at {address} within {START_TIMEOUT:g} s")
