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

    async def use(config: EventConfig) -> None:
        async with RedisClient(config) as client:
            await client.send_message(EventMessage(b"x", ordering_key="k"))

    with Redis.from_url(f"redis://{server.address}") as redis:
        with RedisClient.scratch(config) as trial:
            asyncio.run(use(trial))
            assert redis.keys(f"{trial.options['prefix']}:*")
        assert redis.keys(f"{trial.options['prefix']}:*") == []
        assert redis.keys("scratched:*") == []
