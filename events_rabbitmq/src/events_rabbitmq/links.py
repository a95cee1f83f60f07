"""The connections of one client: one for sending, one for everything else.

A server whose memory or disk is full reads nothing more from a connection that has sent a message
(rabbitmq.com/docs/alarms).  Receivers share no connection with senders, so they can acknowledge then, and make room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from events_core import ErrorCode
from events_core.engine import BrokerError, off_loop
from events_rabbitmq.address import addresses, ssl_context
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
        self._tls: Any = None
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()

    async def get(self) -> Connection:
        """Return the open connection.

        :raises BrokerError: if no server can be reached.
        """
        connection = self._connection
        if connection is not None and connection.is_open:
            return connection
        async with self._connecting:
            connection = self._connection
            if connection is None or not connection.is_open:
                was_lost = connection is not None
                connection = self._connection = await self._connect()
                if was_lost:
                    self._restored()
            return connection

    async def _connect(self) -> Connection:
        """Connect to the first server that answers."""
        if self._tls is None and any(address.tls for address in self._addresses):
            try:
                self._tls = await off_loop(lambda: ssl_context(self._options))
            except OSError as error:  # also when a file is no certificate
                text = f"read the certificates: {error}; check the options tls_…"
                raise BrokerError(text, ErrorCode.INVALID) from error
        errors: list[BrokerError] = []
        for address in self._addresses:
            try:
                return await connect(
                    address,
                    tls=self._tls,
                    heartbeat=self._options.heartbeat,
                    timeout=self._options.connect_timeout / len(self._addresses),
                    client_name=self._name,
                )
            except BrokerError as reason:
                errors.append(reason)
        if len(errors) == 1:
            raise errors[0]
        last = errors[-1]
        is_worth_it = any(error.retryable for error in errors)
        raise BrokerError("; ".join(map(str, errors)), last.code, retryable=is_worth_it) from last.__cause__

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            await self._connection.close()


class Links:
    """The connections of one client.

    The first connection takes the first role that is needed, so a client that only sends has one connection.
    """

    def __init__(self, options: RabbitMQOptions, name: str, restored: Callable[[], None]) -> None:
        self._make: Callable[[], Link] = lambda: Link(options, name, restored)
        self._all = [self._make()]
        self._roles: dict[str, Link] = {}

    async def any(self) -> Connection:
        """Return a connection for requests about topics and subscriptions: not that of senders, if there is another."""
        return await (self._roles.get("receive") or self._all[0]).get()

    async def sending(self) -> Connection:
        """Return the connection for messages to send."""
        return await self._link("send").get()

    async def receiving(self) -> Connection:
        """Return the connection for receivers."""
        return await self._link("receive").get()

    def _link(self, role: str) -> Link:
        link = self._roles.get(role)
        if link is None:
            if self._roles:
                self._all.append(self._make())
            link = self._roles[role] = self._all[-1]
        return link

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(link.close() for link in self._all))
