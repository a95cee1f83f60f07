"""The backend's class, as the registry finds it."""

from __future__ import annotations

from events_acme.driver import AcmeDriver
from events_acme.options import CAPABILITIES, AcmeOptions
from events_core.engine import EngineClient

__all__ = ["AcmeClient"]


class AcmeClient(EngineClient):
    """A client of a topic that is a folder: ``acme:///orders?path=/var/spool/acme``."""

    api_version = 1
    options_class = AcmeOptions
    full_capabilities = CAPABILITIES
    driver_class = AcmeDriver
