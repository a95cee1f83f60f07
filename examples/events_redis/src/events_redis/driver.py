"""A topic: a stream, with a consumer group for each subscription.

The commands on it are in ``topic.lua``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import attrs

from events_core import ConfigurationError, ErrorCode, EventMessage
from events_core.engine import BrokerError, Driver, off_loop
from events_core.options import did_you_mean
from events_redis.codec import encode, quoted
from events_redis.options import CAPABILITIES, RedisOptions
from events_redis.source import RedisSource

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from events_redis.connection import Connection

__all__ = ["RedisDriver"]

T = TypeVar("T")


class RedisDriver(Driver[RedisOptions]):
    """One topic."""

    mixed_keys = True  # a script stores a batch in order, whatever its keys
    # The server does nothing else while it stores or settles a batch.
    max_batch_messages = 500
    max_batch_bytes = 4 * 2**20
    max_settle_batch = 500

    def __init__(
        self, topic_name: str, project_id: str, options: RedisOptions
    ) -> None:
        super().__init__(topic_name, project_id, options)
        if project_id:
            raise ConfigurationError(
                f"project_id is {project_id!r}; "
                "this backend has no projects, leave it out"
            )
        self.capabilities = attrs.evolve(
            CAPABILITIES,
            durable=options.durable,
            ordering="none"
            if options.ordering is False
            else "subscription",
        )
        self.address = options.server
        # The braces are Redis's hash tag: all keys of a topic are together.
        self.log = f"{options.prefix}:{{{quoted(topic_name)}}}"
        self._connection: Connection | None = None

    async def open(self) -> None:
        for option, given in (
            ("dead_letter_topic", self.options.dead_letter_topic),
            ("start=earliest", self.options.start == "earliest"),
        ):
            if given:
                raise BrokerError(
                    f"{option}: this backend does not offer that; "
                    "leave it out",
                    ErrorCode.UNSUPPORTED,
                )
        connect = await off_loop(_import_connection)
        self._connection = connect(self.options)
        try:
            await self._prepare(self._connection)
        except BaseException:  # a cancellation must leave nothing open too
            await self.close()
            raise

    async def _prepare(self, connection: Connection) -> None:
        durable = self.options.durable
        if durable != "none" and not await connection.is_persistent():
            raise BrokerError(
                f"durable={durable}: {self.address} confirms before it "
                "writes to its file; set its appendonly=yes and "
                "appendfsync=always, or leave the option out",
                ErrorCode.INVALID,
            )
        await self._find_topic(self.options.create)
        if self.options.subscription and self.options.create != "never":
            await self.join(self.options.subscription)

    async def run(self, command: str, *arguments: str | bytes | int) -> Any:
        """Run a command of ``topic.lua`` on this topic.

        :raises BrokerError: if the request failed.
        """
        assert self._connection is not None
        asked = f"{command} on topic {self.topic_name!r} of {self.address}"
        return await self._connection.run(
            asked, self.log, command, *arguments
        )

    async def wait(
        self, streams: dict[str, str], milliseconds: int
    ) -> None:
        """Wait until one of *streams* has an entry after the given id.

        :raises BrokerError: if the request failed.
        """
        assert self._connection is not None
        asked = f"wait for messages on {self.address}"
        await self._connection.wait(asked, streams, milliseconds)

    async def _find_topic(self, create: str = "never") -> None:
        if not await self.run("open", create):
            raise self._missing()

    def _missing(self) -> BrokerError:
        return BrokerError(
            f"topic {self.topic_name!r} does not exist on {self.address}; "
            "create it with create=all",
            ErrorCode.NOT_FOUND,
        )

    async def publish(
        self, messages: Sequence[EventMessage]
    ) -> Sequence[str | BrokerError]:
        fields = [field for each in messages for field in encode(each)]
        ids = await self.run("publish", *fields)
        if not ids:
            raise self._missing()
        return [message_id.decode() for message_id in ids]

    async def subscribe(
        self, subscription: str | None, wake: Callable[[], None]
    ) -> RedisSource:
        if subscription is not None and subscription.startswith("~"):
            raise BrokerError(
                f"{subscription!r}: the name of a subscription does not "
                "begin with ~",
                ErrorCode.INVALID,
            )
        name = subscription or f"~{token_hex(8)}"
        await self.join(name)
        return RedisSource(self, name, ephemeral=subscription is None)

    async def join(self, subscription: str) -> None:
        """Find the topic and *subscription*; create them if allowed.

        :raises BrokerError: ``NOT_FOUND`` if one of them is missing.
        """
        create = self.options.create
        await self._find_topic(create)
        name, is_ephemeral = quoted(subscription), subscription[0] == "~"
        if is_ephemeral:  # which is always created (Q2)
            create = "all"
        if not await self.run("join", name, create, int(is_ephemeral)):
            raise await self._no_subscription(
                subscription, "create it with create=subscription"
            )

    async def _no_subscription(self, name: str, what: str) -> BrokerError:
        near = did_you_mean(name, await self._subscriptions())
        return BrokerError(
            f"topic {self.topic_name!r} has no subscription {name!r}; "
            f"{what}{near}",
            ErrorCode.NOT_FOUND,
        )

    async def _subscriptions(self) -> list[str]:
        names = await self.run("subscriptions")
        return [unquote(name.decode()) for name in names]

    async def has_subscription(self) -> bool:
        return bool(await self._subscriptions())

    async def delete_subscription(self, subscription: str) -> None:
        if not await self.run("delete", quoted(subscription)):
            raise await self._no_subscription(
                subscription, "nothing was deleted"
            )

    async def ping(self) -> None:
        await self._find_topic()

    async def run_native(self, work: Callable[[Redis], Awaitable[T]]) -> T:
        assert self._connection is not None
        return await work(self._connection.redis)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _import_connection() -> type[Connection]:
    from events_redis.connection import Connection  # imports the SDK

    return Connection
