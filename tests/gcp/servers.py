"""Find or start the server that tests need: a running one, a container, or a program of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

START_TIMEOUT = 120.0
"""Seconds that a server may take until it answers."""


class Missing(Exception):
    """The reason why a server cannot be found or started."""


@contextmanager
def find_or_start(
    variables: Sequence[str], starters: Sequence[Callable[[], AbstractContextManager[str]]]
) -> Iterator[str]:
    """Yield ``host:port`` of the first server that can be found or started.

    :param variables: environment variables; the first one that is set gives the address.
    :param starters: ways to start a server, tried in turn; each raises :class:`Missing` if it cannot.
    :raises Missing: with all the reasons.
    """
    for variable in variables:
        if os.environ.get(variable):
            yield os.environ[variable]
            return
    reasons = [f"{' and '.join(variables)} not set"]
    with contextlib.ExitStack() as stack:
        for starter in starters:
            try:
                address = stack.enter_context(starter())
            except Missing as reason:
                reasons.append(str(reason))
            else:
                yield address
                return
    raise Missing("; ".join(reasons))


@contextmanager
def container(image: str, command: str, port: int) -> Iterator[str]:
    """Run a container of *image*, which must be on this machine already."""
    for question in (["info"], ["image", "inspect", image]):
        if not _succeeds(["docker", *question]):
            raise Missing(f"'docker {' '.join(question)}' fails")
    with contextlib.ExitStack() as stack:
        try:
            address = stack.enter_context(_running(image, command, port))
        except Exception as reason:  # those of docker, requests and testcontainers have no class in common
            raise Missing(f"container of {image!r}: {reason}") from reason
        yield address


@contextmanager
def program(
    command: Sequence[str], address: str, log: Path, ends: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGKILL)
) -> Iterator[str]:
    """Run a program that serves *address*, in its own process group, and end the whole group afterwards.

    :param ends: signals, sent in turn until one has ended it.
    """
    if shutil.which(command[0]) is None:
        raise Missing(f"no program {command[0]!r}")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        await_http(address, process.poll)
        yield address
    except Missing as reason:
        raise Missing(f"{command[0]}: {reason}: {log.read_text()[-500:]}") from None
    finally:
        _end_group(process, ends)


@contextmanager
def reserved_address() -> Iterator[str]:
    """Yield a loopback address on which a server may listen, now or later, and which nothing else gets meanwhile.

    Without a server it refuses connections.  A client that tries to reconnect then does not get the port for its own
    end: it would connect to itself, and the server could not listen there any more.
    """
    with socket.socket() as keeper:
        keeper.bind(("127.0.0.1", 0))
        # Only now: with this option, a port that another program keeps in this way would count as free.
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield f"127.0.0.1:{keeper.getsockname()[1]}"


def await_http(address: str, died: Callable[[], int | None]) -> None:
    """Wait until *address* answers a request over HTTP.

    :raises Missing: if it does not, or if *died* returns the exit code of the server.
    """
    ends = time.monotonic() + START_TIMEOUT
    while time.monotonic() < ends:
        if died() is not None:
            raise Missing(f"ended with exit code {died()}")
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"http://{address}/", timeout=1).close()
            return
        time.sleep(0.1)
    raise Missing(f"no answer at {address} within {START_TIMEOUT:g} s")


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@contextmanager
def _running(image: str, command: str, port: int) -> Iterator[str]:
    from testcontainers.core.container import DockerContainer  # only where there is an engine to talk to

    with DockerContainer(image).with_command(command).with_exposed_ports(port) as running:
        try:
            address = f"{running.get_container_host_ip()}:{running.get_exposed_port(port)}"
            await_http(address, lambda: _exit_code(running))
        except Exception as reason:  # the log goes with the container
            log = running.get_wrapped_container().logs()[-500:].decode(errors="replace")
            raise Missing(f"{reason}: {log}") from reason
        yield address


def _exit_code(running: DockerContainer) -> int | None:
    native = running.get_wrapped_container()
    native.reload()
    state = native.attrs["State"]
    return None if state["Running"] else int(state["ExitCode"])


def _end_group(process: subprocess.Popen[bytes], ends: Sequence[signal.Signals]) -> None:
    for number in ends:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        ends = time.monotonic() + 5
        while time.monotonic() < ends:
            process.poll()
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)
