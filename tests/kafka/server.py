"""Kafka servers for tests: one that runs already, a container, or the broker's jars on this machine.

::

    with find_or_start(folder) as server:
        client = create_client(f"kafka://{server.address}/orders")

A server that the tests have started is *ours*: a test may stop it, kill it and pause it.  The methods for that raise
:class:`Missing` for a server that ran already, because other programs may use it.
"""

from __future__ import annotations

import base64
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from events_core.testing import TcpProxy

START_TIMEOUT = 120.0
"""Seconds that a server may take to answer.  It takes 4 on a quiet machine."""
STOP_TIMEOUT = 120.0
"""Seconds that an orderly stop may take."""
USER, PASSWORD = "alice", "s3cret"
"""The user whom :attr:`Server.sasl` and :attr:`Server.sasl_tls` know, by PLAIN and by both forms of SCRAM."""


class Missing(Exception):
    """The reason why there is no server, or why it cannot do what a test needs."""


class Server:
    """A server at *address*, which may belong to somebody else.

    A client of Kafka connects to the address that the broker tells it.  So a proxy in front of the broker must be known
    when the broker starts.  Ours has a listener that tells its clients the address of :attr:`proxy`.
    """

    is_ours = False
    version = ""
    """The version of Kafka, if it is ours."""
    proxy: TcpProxy | None = None
    """A proxy to this server; a client that connects to it sends everything through it."""
    sasl = ""
    """The ``host:port`` of a listener where clients log in, without TLS: see :data:`USER`.  Or they send an unsigned
    OAUTHBEARER token."""
    sasl_tls = ""
    """The ``host:port`` of the same with TLS."""
    tls = ""
    """The ``host:port`` of a listener with TLS, and without a login unless the client has a certificate."""
    certificates: Path | None = None
    """A folder with ``ca.pem``, which signed the server's certificate, and with ``client.pem`` and ``client.key``."""

    def __init__(self, address: str) -> None:
        self.address = address
        """One ``host:port``, or several with commas."""

    def start(self) -> None:
        """Start the server on the same port with the data that it has stored, and wait until it answers."""
        raise self._not_ours()

    def stop(self) -> None:
        """Stop the server in an orderly way."""
        raise self._not_ours()

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        raise self._not_ours()

    def pause(self) -> None:
        """Stop the server from running.  Connections stay open and nobody answers on them."""
        raise self._not_ours()

    def resume(self) -> None:
        """Let a paused server run again."""
        raise self._not_ours()

    def restart(self) -> bool:
        """Kill the server and start it again; return False if it is not ours."""
        if not self.is_ours:
            return False
        self.kill()
        self.start()
        return True

    def restore(self) -> None:
        """Bring the server back to the state in which every test finds it: it runs."""
        raise self._not_ours()

    def _not_ours(self) -> Missing:
        return Missing(f"the server at {self.address} was not started by the tests, so they leave it alone")


def new_cluster_id() -> str:
    """Return the id of a new cluster: 16 bytes in base64, which do not begin with a hyphen, as an option would."""
    return base64.urlsafe_b64encode(b"events" + os.urandom(10)).decode().rstrip("=")


@contextmanager
def reserved_ports(number: int) -> Iterator[list[int]]:
    """Yield ports of 127.0.0.1 on which servers may listen, now or later, and which nothing else gets meanwhile.

    While a server is down, a client that tries to reconnect could get the server's own port for its end.  On loopback
    it would then connect to itself, and the server could not listen there any more.  The ports are below those that the
    system gives to outgoing connections.
    """
    with ExitStack() as keeping:
        found: list[int] = []
        for port in random.sample(range(10_000, 32_768), 1000):
            if len(found) == number:
                break
            keeper = keeping.enter_context(socket.socket())
            with suppress(OSError):
                keeper.bind(("127.0.0.1", port))
                # Only now: with this option, a port that another program keeps in this way would count as free.
                keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                found.append(port)
        else:
            raise Missing(f"no {number} unused ports of 127.0.0.1 between 10000 and 32767")
        yield found


def await_answer(address: str, died: Callable[[], int | None] = lambda: None) -> None:
    """Wait until the broker at *address* answers a request.  It does that when the cluster has admitted it.

    :param died: returns the exit code of the broker, or None while it runs.
    :raises Missing: if the broker does not answer, or has ended.
    """
    ends = time.monotonic() + START_TIMEOUT
    while time.monotonic() < ends:
        if (code := died()) is not None:
            raise Missing(f"ended with exit code {code}")
        with suppress(OSError):
            if answers(address, 5):
                return
        time.sleep(0.05)
    raise Missing(f"no answer at {address} within {START_TIMEOUT:g} s")


def answers(address: str, timeout: float) -> bool:
    """Ask a broker for the versions of its requests (ApiVersions 0), and return whether it answered.

    :raises OSError: if it cannot be reached, or says nothing within *timeout* seconds.
    """
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout) as connection:
        connection.settimeout(timeout)
        request = struct.pack(">hhih", 18, 0, 1, -1)  # the API, its version, our number for the request, no client id
        connection.sendall(struct.pack(">i", len(request)) + request)
        return len(connection.recv(1)) == 1
