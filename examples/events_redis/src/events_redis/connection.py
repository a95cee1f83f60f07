"""The connection to the server.

This module and the table of errors are the only ones that use redis-py.
The driver imports them when it connects, so that importing
``events_redis`` does not import redis-py (B1).
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from events_redis.errors import translated
from events_redis.options import RedisOptions

__all__ = ["Connection", "delete_keys"]

_ANSWER_TIMEOUT = 5.0
"""Seconds to wait for an answer.

A connection may be cut without a word.  The engine does not bound
``fetch``, so a receiver would wait for such an answer without end.
"""


class Connection:
    """A pool of connections to one server, for one event loop."""

    def __init__(self, options: RedisOptions) -> None:
        """Prepare; the first request connects."""
        # The engine retries, so redis-py must not.  RESP2 is enough, and
        # its handshake needs fewer round trips than that of RESP3.
        self.redis = Redis(
            **_address(options), retry=Retry(NoBackoff(), 0), protocol=2
        )
        script = files("events_redis").joinpath("topic.lua").read_text()
        self._script = self.redis.register_script(script)

    async def run(
        self, asked: str, log: str, *arguments: str | bytes | int
    ) -> Any:
        """Run a command of ``topic.lua``, and return its reply.

        :param asked: the operation, for the text of an error.
        :param log: the name of the topic's stream.
        :param arguments: the name of the command, and its arguments.
        :raises BrokerError: if the request failed.
        """
        with translated(asked):
            return await self._script(keys=[log], args=arguments)

    async def wait(
        self, asked: str, streams: dict[Any, Any], milliseconds: int
    ) -> None:
        """Wait until one of *streams* has an entry after the given id.

        :param streams: the ids, by the names of the streams.
        :param milliseconds: the longest wait; it must not be 0.
        :raises BrokerError: if the request failed.
        """
        with translated(asked):
            await self.redis.xread(streams, count=1, block=milliseconds)

    async def is_persistent(self) -> bool:
        """Return whether the server writes to its file before it answers.

        :raises BrokerError: if the request failed.
        """
        with translated("look whether the server is persistent"):
            found = await self.redis.config_get("append*")
        return bool(
            found["appendonly"] == "yes"
            and found["appendfsync"] == "always"
        )

    async def close(self) -> None:
        """Close all connections."""
        await self.redis.aclose()


async def delete_keys(options: RedisOptions, prefix: str) -> None:
    """Delete all keys that begin with *prefix*.

    :raises BrokerError: if a request failed.
    """
    connection = Connection(options)
    redis = connection.redis
    try:
        with translated(f"delete the keys of '{prefix}'"):
            async for key in redis.scan_iter(f"{prefix}:*", count=1000):
                await redis.unlink(key)
    finally:
        await connection.close()


def _address(options: RedisOptions) -> dict[str, Any]:
    host, _, port = options.server.rpartition(":")
    return {
        "host": host.strip("[]"),
        "port": int(port),
        "db": options.database,
        "username": options.username,
        "password": options.password,
        "ssl": options.tls,
        "socket_timeout": _ANSWER_TIMEOUT,
        "socket_connect_timeout": _ANSWER_TIMEOUT,
    }
