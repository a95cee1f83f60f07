"""Servers of SQS for tests: one that runs already, a container, or a program of this machine.

::

    with ministack(folder) as server:
        config = EventConfig("orders", options={"endpoint_url": server.url}, backend="sqs")

A server that the tests have started is *ours*: a test may stop it, kill it and pause it.  The methods for that raise
:class:`Missing` for a server that ran already, because other programs may use it.
"""

from __future__ import annotations

import random
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

START_TIMEOUT = 120.0
"""Seconds that a server may take to answer.  MiniStack takes 2 on a quiet machine, and ElasticMQ 4."""
STOP_TIMEOUT = 60.0
"""Seconds that an orderly stop may take."""
REGION = "us-east-1"
"""The region of every server of the tests."""
KEY, SECRET = "test", "test"
"""The access key of somebody who may do everything."""


class Missing(Exception):
    """The reason why there is no server, or why it cannot do what a test needs."""


class Server:
    """A server at *url*, which may belong to somebody else."""

    is_ours = False
    name = ""
    """The name of the emulator, if it is ours."""
    version = ""
    """The version of the emulator, if it is ours."""
    keeps_messages = False
    """True if messages are there again after :meth:`stop` and :meth:`start`."""

    def __init__(self, url: str) -> None:
        self.url = url
        """The URL for the option ``endpoint_url``."""
        parts = urlsplit(url)
        self.address = f"{parts.hostname}:{parts.port or 80}"
        """The ``host:port`` of the URL, for example for a proxy."""

    def start(self) -> None:
        """Start the server on the same port, and wait until it answers."""
        raise self._not_ours()

    def stop(self) -> None:
        """Stop the server in an orderly way."""
        raise self._not_ours()

    def kill(self) -> None:
        """Kill the server with SIGKILL.  It has forgotten everything when it is started again."""
        raise self._not_ours()

    def pause(self) -> None:
        """Stop the server from running.  Connections stay open and nobody answers on them."""
        raise self._not_ours()

    def resume(self) -> None:
        """Let a paused server run again."""
        raise self._not_ours()

    def restore(self) -> None:
        """Bring the server back to the state in which every test finds it: it runs."""
        raise self._not_ours()

    def _not_ours(self) -> Missing:
        return Missing(f"the server at {self.address} was not started by the tests, so they leave it alone")


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port of 127.0.0.1 on which a server may listen, now or later, and which nothing else gets meanwhile.

    While a server is down, a client that tries to reconnect could get the server's own port for its end.  On loopback
    it would then connect to itself, and the server could not listen there any more.  The port is below those that the
    system gives to outgoing connections.
    """
    for port in random.sample(range(10_000, 32_768), 1000):
        with socket.socket() as keeper, suppress(OSError):
            keeper.bind(("127.0.0.1", port))
            # Only now: with this option, a port that another program keeps in this way would count as free.
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            yield port
            return
    raise Missing("no unused port of 127.0.0.1 between 10000 and 32767")


def await_answer(url: str, died: Callable[[], int | None] = lambda: None) -> None:
    """Wait until the server at *url* answers a request.

    :param died: returns the exit code of the server, or None while it runs.
    :raises Missing: if the server does not answer, or has ended.
    """
    ends = time.monotonic() + START_TIMEOUT
    while time.monotonic() < ends:
        if (code := died()) is not None:
            raise Missing(f"ended with exit code {code}")
        with suppress(OSError):
            if answers(url, 5):
                return
        time.sleep(0.05)
    raise Missing(f"no answer at {url} within {START_TIMEOUT:g} s")


def answers(url: str, timeout: float) -> bool:
    """Send an HTTP request to a server, and return whether it answered; a refusal is an answer.

    :raises OSError: if it cannot be reached, or says nothing within *timeout* seconds.
    """
    try:
        # Never through the proxy of the environment.
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/health", timeout=timeout).close()
    except urllib.error.HTTPError as refusal:
        refusal.close()
    return True
