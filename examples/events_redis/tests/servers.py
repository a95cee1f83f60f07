"""Redis servers for tests: one that runs already, a container, or a program of this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

START_TIMEOUT = 60.0
"""Seconds that a server may take to answer."""
IMAGE = os.environ.get("EVENTS_TEST_REDIS_IMAGE", "redis:7")
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
            raise Missing("no program 'redis-server'")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
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

    def restart(self) -> bool:
        self.kill()
        self._start()
        return True


@contextmanager
def find_or_start(folder: Path) -> Iterator[Server]:
    """Enter with the server at ``EVENTS_TEST_REDIS``, or with one in a container, or with a program of this machine.

    :raises Missing: with all the reasons.
    """
    if address := os.environ.get("EVENTS_TEST_REDIS"):
        yield Server(address)
        return
    reasons = ["EVENTS_TEST_REDIS is not set"]
    with ExitStack() as stack:
        for start in (_container, _program):
            try:
                server = stack.enter_context(start(folder))
            except Missing as reason:
                reasons.append(str(reason))
            else:
                yield server
                return
    raise Missing("; ".join(reasons))


@contextmanager
def _program(folder: Path) -> Iterator[Server]:
    program = Program(folder)
    try:
        yield program
    finally:
        program.kill()


@contextmanager
def _container(folder: Path) -> Iterator[Server]:
    for question in (["info"], ["image", "inspect", IMAGE]):
        if not _succeeds(["docker", *question]):
            raise Missing(f"'docker {' '.join(question)}' fails")
    from testcontainers.core.container import DockerContainer  # needs a Docker engine to talk to

    with DockerContainer(IMAGE).with_command(["redis-server", *PERSISTENT]).with_exposed_ports(6379) as container:
        address = f"{container.get_container_host_ip()}:{container.get_exposed_port(6379)}"
        await_answer(address)
        yield Server(address)


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


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
