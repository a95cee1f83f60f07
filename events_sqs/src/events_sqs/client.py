"""The class of this backend, which the registry finds by its entry point."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from events_core import ConfigurationError, EventConfig, ReceivedMessage
from events_core.engine import EngineClient
from events_core.interface import Location
from events_core.options import read_options
from events_sqs.driver import SQSDriver
from events_sqs.limits import FULL_CAPABILITIES
from events_sqs.options import SQSOptions
from events_sqs.scratch import creations

__all__ = ["SQSClient"]

T = TypeVar("T")


class SQSClient(EngineClient):
    """A client of one topic: ``sqs://us-east-1/orders``."""

    api_version = 1
    options_class = SQSOptions
    full_capabilities = FULL_CAPABILITIES
    driver_class = SQSDriver
    messaging_system = "aws_sqs"

    @classmethod
    def parse_location(cls, authority: str, path: str) -> Location:
        """Return the region, which is the authority of the URL, and the topic."""
        if "@" in authority:  # Celery and Kombu take URLs with a key in front of the region
            # The error does not repeat it: it contains a secret.
            raise ConfigurationError(
                "the URL has credentials; give the options access_key_id and secret_access_key, or leave them to the "
                "environment",
                backend="sqs",
            )
        topic_name = super().parse_location("", path).topic_name
        return Location(topic_name, options={"region": authority} if authority else {})

    @classmethod
    @asynccontextmanager
    async def scratch(cls, config: EventConfig) -> AsyncIterator[EventConfig]:
        """Yield *config* itself; on leaving, delete the topics and queues that this process has created since."""
        options = read_options(cls.options_class, config.options, origins=config.origins, backend=config.backend)
        async with creations(options):
            yield config

    async def run_native(self, work: Callable[[Any], Awaitable[T]], timeout: float = 30.0) -> T:
        """Call *work* with the client's own AWS clients: an object with the attributes ``sqs`` and ``sns``.

        This is rule N1: native objects.  Both are clients of aiobotocore, and ``sns`` is ``None`` with
        ``topology=queue``.  *work* runs on the engine's I/O loop, so it must not block.
        """
        return await super().run_native(work, timeout)

    def native_message(self, message: ReceivedMessage) -> dict[str, Any]:
        """Return the message as ``ReceiveMessage`` returned it: a dictionary with ``Body``, ``ReceiptHandle`` and more.

        This is rule N1: native objects.
        """
        native: dict[str, Any] = super().native_message(message)
        return native
