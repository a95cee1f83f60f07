"""The class of this backend, which the registry finds by its entry point."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from events_core import ConfigurationError, EventConfig, ReceivedMessage
from events_core.engine import EngineClient
from events_core.interface import Location
from events_core.options import read_options
from events_kafka.driver import KafkaDriver
from events_kafka.limits import FULL_CAPABILITIES
from events_kafka.options import KafkaOptions
from events_kafka.scratch import creations

if TYPE_CHECKING:
    from confluent_kafka import Message
    from confluent_kafka.admin import AdminClient

__all__ = ["KafkaClient"]

T = TypeVar("T")


class KafkaClient(EngineClient):
    """A client of one topic: ``kafka://localhost:9092/orders``."""

    api_version = 1
    options_class = KafkaOptions
    full_capabilities = FULL_CAPABILITIES
    driver_class = KafkaDriver
    messaging_system = "kafka"

    @classmethod
    def parse_location(cls, authority: str, path: str) -> Location:
        """Return the servers, which are the authority of the URL, and the topic."""
        if "@" in authority:
            # The error does not repeat it: it may contain a password.
            raise ConfigurationError(
                "the URL names a user; give the options username and password, and sasl_mechanism", backend="kafka"
            )
        topic_name = super().parse_location("", path).topic_name
        return Location(topic_name, options={"bootstrap_servers": authority} if authority else {})

    async def run_native(self, work: Callable[[AdminClient], Awaitable[T]], timeout: float = 30.0) -> T:
        """Call *work* with the client's ``confluent_kafka.admin.AdminClient``.

        This is rule N1: native objects.  It runs on the engine's I/O loop.  So *work* must not block: await
        ``asyncio.wrap_future`` of the futures that the admin client returns.
        """
        return await super().run_native(work, timeout)

    def native_message(self, message: ReceivedMessage) -> Message:
        """Return the record as a ``confluent_kafka.Message``.

        This is rule N1: native objects.
        """
        native: Message = super().native_message(message)
        return native

    @classmethod
    @asynccontextmanager
    async def scratch(cls, config: EventConfig) -> AsyncIterator[EventConfig]:
        """Yield *config* itself; on leaving, delete the topics that this process has created since."""
        options = read_options(cls.options_class, config.options, origins=config.origins, backend=config.backend)
        async with creations(options):
            yield config
