"""A Kafka server for tests, alone or a broker of a cluster.

::

    with find_or_start(folder) as server:
        client = create_client(f"kafka://{server.address}/orders")
"""

from __future__ import annotations

import base64
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from events_core.testing import TcpProxy

from ..servers import server
from ..servers.server import Runner

USER, PASSWORD = "alice", "s3cret"
"""The user whom :attr:`Server.sasl` and :attr:`Server.sasl_tls` know, by PLAIN and by both forms of SCRAM."""


class Server(server.Server):
    """A server at *address*, which is one ``host:port``, or several with commas.

    A client of Kafka connects to the address that the broker tells it.  So a proxy in front of the broker must be known
    when the broker starts.  Ours has a listener that tells its clients the address of :attr:`proxy`.
    """

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

    def answers(self, timeout: float) -> bool:
        """Ask for the versions of requests (ApiVersions 0).  A broker answers when its cluster has admitted it."""
        host, _, port = self.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout) as connection:
            connection.settimeout(timeout)
            request = struct.pack(">hhih", 18, 0, 1, -1)  # the API, its version, our number for it, no client id
            connection.sendall(struct.pack(">i", len(request)) + request)
            return len(connection.recv(1)) == 1


class OwnServer(Server):
    """A server that the tests have started.

    :param addresses: the ``host:port`` of each listener, as clients reach it.
    :param certificates: the folder that ``write_certificates`` filled.
    """

    def __init__(
        self, addresses: Mapping[str, str], runner: Runner, version: str, proxy: TcpProxy, certificates: Path
    ) -> None:
        super().__init__(addresses["PLAINTEXT"], runner)
        self.sasl, self.sasl_tls, self.tls = addresses["SASL"], addresses["SASLTLS"], addresses["TLS"]
        self.version = version
        self.proxy = proxy
        self.certificates = certificates


def new_cluster_id() -> str:
    """Return the id of a new cluster: 16 bytes in base64, which do not begin with a hyphen, as an option would."""
    return base64.urlsafe_b64encode(b"events" + os.urandom(10)).decode().rstrip("=")
