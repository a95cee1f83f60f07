"""A topic: a stream of messages, with a consumer group for each subscription (``topic.lua``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from secrets import token_hex
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import attrs

from events_core import ConfigurationError, ErrorCode, EventMessage
from events_core.engine import BrokerError, Driver, off_loop
from events_core.options import did_you_mean
from events_redis.codec import encode, quoted
from events_redis.options import CAPABILITIES, RedisOptions
from events_redis.source import RedisSource

if TYPE_CHECKING:
    from events_redis.connection import Connection

__all__ = ["RedisDriver"]


class RedisDriver(Driver[RedisOptions]):
    """One topic."""

    mixed_keys = True  # a script stores a whole batch in order
    max_batch_messages = 500
    max_batch_bytes = 4 * 2**20  # the server does nothing else while it stores a batch
    max_settle_batch = 500

    def __init__(self, topic_name: str, project_id: str, options: RedisOptions) -> None:
        super().__init__(topic_name, project_id, options)
        if project_id:
            raise ConfigurationError(f"project_id is {project_id!r}; this backend has no projects, leave it out")
        ordering = "none" if options.ordering is False else CAPABILITIES.ordering
        self.capabilities = attrs.evolve(CAPABILITIES, durable=options.durable, ordering=ordering)
        self.address = options.server
        # The braces are Redis's hash tag: they keep all keys of a topic on one node of a cluster.
        self.log = f"{options.prefix}:{{{quoted(topic_name)}}}"
        self._connection: Connection | None = None

    async def open(self) -> None:
        for option, given in (
            ("dead_letter_topic", self.options.dead_letter_topic),
            ("start=earliest", self.options.start == "earliest"),
        ):
            if given:
                raise BrokerError(f"{option}: this backend does not offer that; leave it out", ErrorCode.UNSUPPORTED)
        connect = await off_loop(_import_connection)
        self._connection = connect(self.options)
        try:
            await self._prepare(self._connection)
        except BaseException:  # a cancellation too: what was begun must be undone
            await self.close()
            raise

    async def _prepare(self, connection: Connection) -> None:
        if self.options.durable != "none" and not await connection.is_persistent():
            raise BrokerError(
                f"durable={self.options.durable}: {self.address} confirms before it writes to its file; set its "
                "appendonly=yes and appendfsync=always, or leave the option out",
                ErrorCode.INVALID,
            )
        await self._check_topic(create=self.options.create)
        if self.options.subscription and self.options.create != "never":
            await self.join(self.options.subscription)

    async def run(self, asked: str, command: str, *arguments: str | bytes | int) -> Any:
        """Run a command of ``topic.lua`` on this topic."""
        assert self._connection is not None
        return await self._connection.run(f"{asked} on {self.address}", self.log, command, *arguments)

    async def wait(self, streams: dict[str, str], milliseconds: int) -> None:
        """Wait until one of *streams* has a newer entry, at most *milliseconds*."""
        assert self._connection is not None
        await self._connection.wait(f"wait for messages on {self.address}", streams, milliseconds)

    async def _check_topic(self, create: str = "never") -> None:
        if not await self.run(f"look for topic {self.topic_name!r}", "open", create):
            raise self._missing()

    def _missing(self) -> BrokerError:
        return BrokerError(
            f"topic {self.topic_name!r} does not exist on {self.address}; create it with create=all",
            ErrorCode.NOT_FOUND,
        )

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        fields = [field for message in messages for field in encode(message)]
        ids = await self.run(f"publish to topic {self.topic_name!r}", "publish", *fields)
        if not ids:
            raise self._missing()
        return [message_id.decode() for message_id in ids]

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> RedisSource:
        if subscription is not None and subscription.startswith("~"):
            raise BrokerError(f"{subscription!r}: a subscription's name does not begin with ~", ErrorCode.INVALID)
        name = subscription or f"~{token_hex(8)}"
        await self.join(name)
        return RedisSource(self, name, ephemeral=subscription is None)

    async def join(self, subscription: str) -> None:
        """Check that the topic and *subscription* exist; create what is missing and may be created.

        :raises BrokerError: ``NOT_FOUND`` if one of them is missing.
        """
        await self._check_topic(create=self.options.create)
        is_ephemeral = subscription.startswith("~")  # these are created whatever the option says
        create = "subscription" if is_ephemeral else self.options.create
        asked = f"subscribe to {subscription!r} of topic {self.topic_name!r}"
        if not await self.run(asked, "join", quoted(subscription), create, int(is_ephemeral)):
            raise BrokerError(
                f"topic {self.topic_name!r} has no subscription {subscription!r}; create it with create=subscription"
                f"{did_you_mean(subscription, await self._subscriptions())}",
                ErrorCode.NOT_FOUND,
            )

    async def _subscriptions(self) -> list[str]:
        names = await self.run(f"list the subscriptions of topic {self.topic_name!r}", "subscriptions")
        return [unquote(name.decode()) for name in names]

    async def has_subscription(self) -> bool:
        return bool(await self._subscriptions())

    async def delete_subscription(self, subscription: str) -> None:
        if not await self.run(f"delete subscription {subscription!r}", "delete", quoted(subscription)):
            raise BrokerError(
                f"topic {self.topic_name!r} has no subscription {subscription!r}; nothing was deleted"
                f"{did_you_mean(subscription, await self._subscriptions())}",
                ErrorCode.NOT_FOUND,
            )

    async def ping(self) -> None:
        await self._check_topic()

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _import_connection() -> type[Connection]:
    from events_redis.connection import Connection  # imports the SDK

    return Connection
