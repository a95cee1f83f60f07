"""The connections of one client: one for sending, one for everything else.

A server whose memory or disk is full reads nothing more from a connection that has sent a message
(rabbitmq.com/docs/alarms).  Receivers share no connection with senders, so they can acknowledge then, and make room.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from events_core import ErrorCode
from events_core.engine import BrokerError, off_loop
from events_rabbitmq.address import Address, addresses
from events_rabbitmq.connection import Connection, connect
from events_rabbitmq.options import RabbitMQOptions

__all__ = ["Link", "Links", "Servers"]

_PATIENCE = 2.0
"""Seconds for the first try of one server of several.  Doubled after each round in which none has answered."""


class Servers:
    """The servers of one client, and how to connect to one of them."""

    def __init__(self, options: RabbitMQOptions, name: str) -> None:
        self._options = options
        self._name = name
        self._order = addresses(options)
        """The one to try next is the first."""
        self._patience = _PATIENCE
        self._tls: ssl.SSLContext | None = None

    async def connect(self) -> Connection:
        """Connect to a server that answers: the one that answered last, or else one that was not tried for longest.

        :raises BrokerError: if no server can be reached.
        """
        if self._tls is None and any(address.tls for address in self._order):
            try:
                self._tls = await off_loop(lambda: _tls_context(self._options))
            except OSError as error:  # also when a file is no certificate
                text = f"read the certificates: {error}; check the options tls_…"
                raise BrokerError(text, ErrorCode.INVALID) from error
        errors: list[BrokerError] = []
        timeout = self._options.connect_timeout
        if len(self._order) > 1:
            timeout = min(timeout / len(self._order), self._patience)
        for address in tuple(self._order):
            self._move(address, len(self._order))  # before it is tried: the caller may give up meanwhile
            try:
                connection = await connect(address, self._tls, self._options.heartbeat, timeout, self._name)
            except BrokerError as reason:
                errors.append(reason)
            else:
                self._move(address, 0)
                self._patience = _PATIENCE
                return connection
        self._patience *= 2
        is_worth_it = any(error.retryable for error in errors)
        raise BrokerError("; ".join(map(str, errors)), errors[-1].code, retryable=is_worth_it) from errors[-1].__cause__

    def _move(self, address: Address, place: int) -> None:
        self._order.remove(address)
        self._order.insert(place, address)


class Link:
    """A connection that is opened when it is first asked for, and again after it was lost."""

    def __init__(self, servers: Servers, restored: Callable[[], None] = lambda: None) -> None:
        self._servers = servers
        self._restored = restored
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()

    async def get(self) -> Connection:
        """Return the open connection.

        :raises BrokerError: if no server can be reached.
        """
        async with self._connecting:
            connection = self._connection
            if connection is None or not connection.is_open:
                self._connection = await self._servers.connect()
                if connection is not None:
                    self._restored()
                connection = self._connection
            return connection

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            await self._connection.close()


def _tls_context(options: RabbitMQOptions) -> ssl.SSLContext:
    """Return the context of encrypted connections; this reads files.

    :raises OSError: if a file cannot be read, or is no certificate.
    """
    for path in (options.tls_ca_file, options.tls_cert_file, options.tls_key_file):
        if path is not None:
            open(path, "rb").close()  # its error names the file, and that of ssl does not
    context = ssl.create_default_context(cafile=options.tls_ca_file)
    if options.tls_cert_file is not None:
        context.load_cert_chain(options.tls_cert_file, options.tls_key_file)
    return context


class Links:
    """The connections of one client.

    The first connection takes the first role that is needed, so a client that only sends has one connection.
    """

    def __init__(self, servers: Servers, restored: Callable[[], None]) -> None:
        self._make: Callable[[], Link] = lambda: Link(servers, restored)
        self._first = self._make()
        self._roles: dict[str, Link] = {}

    async def any(self) -> Connection:
        """Return a connection for requests about topics and subscriptions.

        It is not one that has sent: in an alarm, the server would not read the request.
        """
        return await (self._link("receive") if self._roles else self._first).get()

    async def sending(self) -> Connection:
        """Return the connection for messages to send."""
        return await self._link("send").get()

    async def receiving(self) -> Connection:
        """Return the connection for receivers."""
        return await self._link("receive").get()

    def _link(self, role: str) -> Link:
        if role not in self._roles:
            self._roles[role] = self._make() if self._roles else self._first
        return self._roles[role]

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(link.close() for link in {self._first, *self._roles.values()}))
