"""The backend's class, which the registry finds."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from events_core import ConfigurationError, EventConfig
from events_core.engine import EngineClient
from events_core.interface import Location
from events_core.options import read_options
from events_redis.driver import RedisDriver
from events_redis.options import CAPABILITIES, RedisOptions

__all__ = ["RedisClient"]


class RedisClient(EngineClient):
    """A client of a topic on a Redis server: ``redis://localhost:6379/orders``."""

    api_version = 1
    options_class = RedisOptions
    full_capabilities = CAPABILITIES
    driver_class = RedisDriver

    @classmethod
    def parse_location(cls, authority: str, path: str) -> Location:
        """Take the server from the authority of a URL, and the topic from the path."""
        if "@" in authority:  # the URL is not quoted, because it may contain a password
            raise ConfigurationError("the URL names a user; give the options username and password", backend="redis")
        topic_name = super().parse_location("", path).topic_name
        return Location(topic_name, options={"server": authority} if authority else {})

    @classmethod
    @contextmanager
    def scratch(cls, config: EventConfig) -> Iterator[EventConfig]:
        """Enter with a configuration whose keys have a prefix of their own; on leaving, delete these keys."""
        from events_redis.connection import delete_keys  # imports the SDK

        options = read_options(cls.options_class, config.options, origins=config.origins, backend="redis")
        prefix = f"events-check-{secrets.token_hex(4)}"
        try:
            yield attrs.evolve(config, options={**config.options, "prefix": prefix})
        finally:
            delete_keys(options, prefix)
