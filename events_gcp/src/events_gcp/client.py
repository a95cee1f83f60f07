"""The backend's class, as the registry finds it."""

from __future__ import annotations

from events_core.engine import EngineClient
from events_gcp.driver import GcpDriver
from events_gcp.limits import FULL_CAPABILITIES
from events_gcp.options import GcpOptions

__all__ = ["GcpPubSubClient"]


class GcpPubSubClient(EngineClient):
    """A client of one Pub/Sub topic: ``gcp://project/topic``."""

    api_version = 1
    options_class = GcpOptions
    full_capabilities = FULL_CAPABILITIES
    driver_class = GcpDriver
