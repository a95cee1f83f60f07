"""The class of this backend, which the registry finds by its entry point."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from events_core import EventConfig, ReceivedMessage
from events_core.engine import EngineClient
from events_core.options import read_options
from events_gcp.driver import GcpDriver
from events_gcp.endpoint import Endpoint, check_emulator
from events_gcp.limits import FULL_CAPABILITIES, TRACE_PREFIX
from events_gcp.options import GcpOptions
from events_gcp.scratch import creations, delete_topics

if TYPE_CHECKING:
    import grpc.aio  # type: ignore[import-untyped]
    from google.pubsub_v1 import types

__all__ = ["GcpPubSubClient"]

T = TypeVar("T")


class GcpPubSubClient(EngineClient):
    """A client of one Pub/Sub topic: ``gcp://project/topic``."""

    api_version = 1
    options_class = GcpOptions
    full_capabilities = FULL_CAPABILITIES
    driver_class = GcpDriver
    messaging_system = "gcp_pubsub"
    trace_prefix = TRACE_PREFIX

    def __init__(self, config: EventConfig) -> None:
        super().__init__(config)
        # Not in the options class: only the configuration knows which place gave each option.
        check_emulator(config)

    async def run_native(self, work: Callable[[grpc.aio.Channel], Awaitable[T]], timeout: float = 30.0) -> T:
        """Call *work* with the client's ``grpc.aio.Channel``, on the engine's I/O loop (rule N1: native objects).

        The channel carries the client's credentials.  Other clients share it, so *work* must not close it.  To use
        Google's own asyncio clients on it, pass their transport the channel.
        """
        return await super().run_native(work, timeout)

    def native_message(self, message: ReceivedMessage) -> types.ReceivedMessage:
        """Return the message as ``google.pubsub_v1.types.ReceivedMessage``, with the newest ack id.

        This is rule N1: native objects.  It is made from what the delivery has kept.  So ``publish_time`` is exact to
        the microsecond only.
        """
        native: types.ReceivedMessage = super().native_message(message)
        return native

    @classmethod
    @contextmanager
    def scratch(cls, config: EventConfig) -> Iterator[EventConfig]:
        """Yield *config* itself; on leaving, delete the topics that this process has created since."""
        options = read_options(cls.options_class, config.options, origins=config.origins, backend=config.backend)
        with creations() as topics:
            try:
                yield config
            finally:
                asyncio.run(delete_topics(Endpoint.of(options), topics))
