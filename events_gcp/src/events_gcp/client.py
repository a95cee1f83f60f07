"""The class of this backend, which the registry finds by its entry point."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from events_core import EventConfig
from events_core.engine import EngineClient
from events_core.options import read_options
from events_gcp.driver import GcpDriver
from events_gcp.endpoint import Endpoint, check_emulator
from events_gcp.limits import FULL_CAPABILITIES
from events_gcp.options import GcpOptions
from events_gcp.scratch import creations, delete_topics

__all__ = ["GcpPubSubClient"]


class GcpPubSubClient(EngineClient):
    """A client of one Pub/Sub topic: ``gcp://project/topic``."""

    api_version = 1
    options_class = GcpOptions
    full_capabilities = FULL_CAPABILITIES
    driver_class = GcpDriver

    def __init__(self, config: EventConfig) -> None:
        super().__init__(config)
        check_emulator(config)

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
