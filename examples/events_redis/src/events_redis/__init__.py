"""Redis Streams as a backend of events-core."""

from events_redis.client import RedisClient
from events_redis.options import RedisOptions

__all__ = ["RedisClient", "RedisOptions"]
