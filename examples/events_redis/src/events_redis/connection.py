"""The connection to the server: the one module that uses redis-py, besides the table of errors.

The driver imports it when it connects, so that importing ``events_redis`` does not import redis-py (B1).
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from events_redis.errors import translated
from events_redis.options import RedisOptions

__all__ = ["Connection", "delete_keys"]

_ANSWER_TIMEOUT = 5.0
"""Seconds to wait for an answer.  A connection that was cut without a word must not keep a request for longer."""


class Connection:
    """A pool of connections to one server.  Its methods may be called concurrently, on one event loop."""

    def __init__(self, options: RedisOptions) -> None:
        """Prepare; the first request connects."""
        # Without retries, because the engine retries.  With RESP2, because RESP3 begins with a longer handshake.
        self._redis = Redis(**_address(options), retry=Retry(NoBackoff(), 0), protocol=2)
        script = files("events_redis").joinpath("topic.lua").read_text()
        self._script = self._redis.register_script(script)

    async def run(self, asked: str, log: str, command: str, *arguments: str | bytes | int) -> Any:
        """Run one command of ``topic.lua`` on the topic whose stream is *log*, and return its reply.

        :param asked: the operation, for the text of an error.
        :raises BrokerError: if the request failed.
        """
        with translated(asked):
            return await self._script(keys=[log], args=[command, *arguments])

    async def wait(self, asked: str, streams: dict[Any, Any], milliseconds: int) -> None:
        """Wait until one of *streams* has an entry after the given id, at most *milliseconds*.

        :raises BrokerError: if the request failed.
        """
        with translated(asked):
            await self._redis.xread(streams, count=1, block=milliseconds)

    async def is_persistent(self) -> bool:
        """Return whether the server writes each change to a file before it answers.

        :raises BrokerError: if the request failed.
        """
        with translated("ask the server whether it is persistent"):
            settings = await self._redis.config_get("appendonly", "appendfsync")
        return bool(settings == {"appendonly": "yes", "appendfsync": "always"})

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()


def delete_keys(options: RedisOptions, prefix: str) -> None:
    """Delete all keys that begin with *prefix*.  This blocks: a trial has no event loop to wait on.

    :raises BrokerError: if a request failed.
    """
    with translated(f"delete the keys of '{prefix}'"), BlockingRedis(**_address(options)) as redis:
        for key in redis.scan_iter(match=f"{prefix}:*", count=1000):
            redis.unlink(key)


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
