"""A trial, such as ``events check``, has keys of its own."""

from __future__ import annotations

import asyncio

from redis import Redis

from events_core import EventConfig, EventMessage
from events_redis import RedisClient

from .servers import Server


def test_a_trial_leaves_nothing(server: Server) -> None:
    """All keys of the trial begin with its prefix, and are deleted with it."""
    options = {"server": server.address, "subscription": "s", "create": "all", "prefix": "scratched"}
    config = EventConfig("orders", options=options, backend="redis")

    async def use(redis: Redis) -> str:
        async with RedisClient.scratch(config) as trial:
            async with RedisClient(trial) as client:
                await client.send_message(EventMessage(b"x", ordering_key="k"))
            assert redis.keys(f"{trial.options['prefix']}:*")
            return trial.options["prefix"]

    with Redis.from_url(f"redis://{server.address}") as redis:
        prefix = asyncio.run(use(redis))
        assert redis.keys(f"{prefix}:*") == []
        assert redis.keys("scratched:*") == []
