"""The backend's class, as the registry finds it."""

from __future__ import annotations

from events_acme.driver import AcmeDriver
from events_acme.options import CAPABILITIES, AcmeOptions
from events_core import ConfigurationError
from events_core.engine import EngineClient
from events_core.interface import Location

__all__ = ["AcmeClient"]


class AcmeClient(EngineClient):
    """A client of a topic that is a folder: ``acme:///var/spool/acme/orders``, or ``acme:spool/orders``."""

    api_version = 1
    options_class = AcmeOptions
    full_capabilities = CAPABILITIES
    driver_class = AcmeDriver

    @classmethod
    def parse_location(cls, authority: str, path: str) -> Location:
        """The path is the option ``path``, then the topic."""
        folder, _, topic_name = path.rpartition("/")
        if authority or not folder or not topic_name:
            raise ConfigurationError(
                f"the URL has the authority {authority!r} and the path {path!r}; write a folder, then the topic, as in "
                "acme:///var/spool/acme/orders"
            )
        return Location(topic_name, options={"path": folder})
