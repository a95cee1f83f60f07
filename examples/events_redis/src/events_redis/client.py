"""The backend's class, which the registry finds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import TYPE_CHECKING, TypeVar

import attrs

from events_core import ConfigurationError, EventConfig
from events_core.engine import EngineClient
from events_core.interface import Location
from events_core.options import read_options
from events_redis.driver import RedisDriver
from events_redis.options import CAPABILITIES, RedisOptions

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisClient"]

T = TypeVar("T")


class RedisClient(EngineClient):
    """A client of a topic: ``redis://localhost:6379/orders``."""

    api_version = 1
    options_class = RedisOptions
    full_capabilities = CAPABILITIES
    driver_class = RedisDriver

    @classmethod
    def parse_location(cls, authority: str, path: str) -> Location:
        """Return the server, the authority of the URL, and the topic."""
        if "@" in authority:
            # The error does not repeat it: it may contain a password.
            raise ConfigurationError(
                "the URL names a user; give options username and password",
                backend="redis",
            )
        topic_name = super().parse_location("", path).topic_name
        options = {"server": authority} if authority else {}
        return Location(topic_name, options=options)

    async def run_native(
        self, work: Callable[[Redis], Awaitable[T]], timeout: float = 30.0
    ) -> T:
        """Call *work* with the client's own ``redis.asyncio.Redis``.

        The stream of a topic is ``events:{orders}``; ``events`` is the
        option ``prefix``.
        """
        return await super().run_native(work, timeout)

    @classmethod
    @asynccontextmanager
    async def scratch(
        cls, config: EventConfig
    ) -> AsyncIterator[EventConfig]:
        """Give the keys of a trial a prefix of their own; delete them."""
        from events_redis.connection import delete_keys  # imports the SDK

        options = read_options(cls.options_class, config.options)
        prefix = f"events-check-{token_hex(4)}"
        try:
            own = {**config.options, "prefix": prefix}
            yield attrs.evolve(config, options=own)
        finally:
            await delete_keys(options, prefix)
