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
from events_rabbitmq.address import addresses
from events_rabbitmq.connection import Connection, connect
from events_rabbitmq.options import RabbitMQOptions

__all__ = ["Link", "Links"]


class Link:
    """A connection that is opened when it is first asked for, and again after it was lost."""

    def __init__(self, options: RabbitMQOptions, name: str, restored: Callable[[], None]) -> None:
        self._options = options
        self._name = name
        self._restored = restored
        self._addresses = addresses(options)
        self._tls: ssl.SSLContext | None = None
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()

    async def get(self) -> Connection:
        """Return the open connection.

        :raises BrokerError: if no server can be reached.
        """
        async with self._connecting:
            connection = self._connection
            if connection is None or not connection.is_open:
                self._connection = await self._connect()
                if connection is not None:
                    self._restored()
                connection = self._connection
            return connection

    async def _connect(self) -> Connection:
        """Connect to the first server that answers."""
        if self._tls is None and any(address.tls for address in self._addresses):
            try:
                self._tls = await off_loop(lambda: _tls_context(self._options))
            except OSError as error:  # also when a file is no certificate
                text = f"read the certificates: {error}; check the options tls_…"
                raise BrokerError(text, ErrorCode.INVALID) from error
        errors: list[BrokerError] = []
        timeout = self._options.connect_timeout / len(self._addresses)
        for address in self._addresses:
            try:
                return await connect(address, self._tls, self._options.heartbeat, timeout, self._name)
            except BrokerError as reason:
                errors.append(reason)
        is_worth_it = any(error.retryable for error in errors)
        raise BrokerError("; ".join(map(str, errors)), errors[-1].code, retryable=is_worth_it) from errors[-1].__cause__

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

    def __init__(self, options: RabbitMQOptions, name: str, restored: Callable[[], None]) -> None:
        self._make: Callable[[], Link] = lambda: Link(options, name, restored)
        self._first = self._make()
        self._roles: dict[str, Link] = {}

    async def any(self) -> Connection:
        """Return a connection for requests about topics and subscriptions: not that of senders, if there is another."""
        return await self._roles.get("receive", self._first).get()

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
