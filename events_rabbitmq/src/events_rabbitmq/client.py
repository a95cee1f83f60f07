"""The class of this backend, which the registry finds by its entry point."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from events_core import ConfigurationError, EventConfig, ReceivedMessage
from events_core.engine import EngineClient
from events_core.interface import Location
from events_core.options import read_options
from events_rabbitmq.driver import RabbitMQDriver
from events_rabbitmq.limits import FULL_CAPABILITIES
from events_rabbitmq.options import RabbitMQOptions
from events_rabbitmq.scratch import declarations

if TYPE_CHECKING:
    from pika.adapters.asyncio_connection import AsyncioConnection  # type: ignore[import-untyped]

    from events_rabbitmq.codec import NativeMessage

__all__ = ["RabbitMQClient"]

T = TypeVar("T")


class RabbitMQClient(EngineClient):
    """A client of one topic: ``rabbitmq://localhost:5672/orders``."""

    api_version = 1
    options_class = RabbitMQOptions
    full_capabilities = FULL_CAPABILITIES
    driver_class = RabbitMQDriver
    messaging_system = "rabbitmq"

    @classmethod
    def parse_location(cls, authority: str, path: str) -> Location:
        """Return the servers, the authority of the URL, and the topic."""
        if "@" in authority:
            # The error does not repeat it: it may contain a password.
            raise ConfigurationError(
                "the URL names a user; give the options username and password, or the option url", backend="rabbitmq"
            )
        topic_name = super().parse_location("", path).topic_name
        return Location(topic_name, options={"host": authority} if authority else {})

    async def run_native(self, work: Callable[[AsyncioConnection], Awaitable[T]], timeout: float = 30.0) -> T:
        """Call *work* with the client's ``pika.adapters.asyncio_connection.AsyncioConnection``.

        This is rule N1: native objects.  It runs on the engine's I/O loop.  Receivers of the client share the
        connection, so *work* must not close it.  *work* opens its own channels, because an error ends a channel.
        """
        return await super().run_native(work, timeout)

    def native_message(self, message: ReceivedMessage) -> NativeMessage:
        """Return the method, the properties and the body of the message, as pika gives them to a consumer.

        This is rule N1: native objects.
        """
        native: NativeMessage = super().native_message(message)
        return native

    @classmethod
    @asynccontextmanager
    async def scratch(cls, config: EventConfig) -> AsyncIterator[EventConfig]:
        """Yield *config* itself; on leaving, delete the exchanges and queues that this process has declared since.

        RabbitMQ does not say whether a declared queue is new.  So a trial must not declare those of other programs.
        """
        options = read_options(cls.options_class, config.options, origins=config.origins, backend=config.backend)
        async with declarations(options):
            yield config
