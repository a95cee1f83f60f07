"""The backend's class, which the registry finds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from events_acme.driver import AcmeDriver
from events_acme.options import CAPABILITIES, AcmeOptions
from events_core import ConfigurationError, EventConfig
from events_core.engine import EngineClient

__all__ = ["AcmeClient"]


class AcmeClient(EngineClient):
    """A client of a topic: ``acme:///orders?path=/var/spool/acme``."""

    api_version = 1
    options_class = AcmeOptions
    full_capabilities = CAPABILITIES
    driver_class = AcmeDriver

    @classmethod
    @contextmanager
    def scratch(cls, config: EventConfig) -> Iterator[EventConfig]:
        """Make a folder next to the configured one, for a trial."""
        parent = Path(config.options["path"]).absolute().parent
        try:
            folder = tempfile.TemporaryDirectory(
                prefix="events-check-",
                dir=parent,
                ignore_cleanup_errors=True,
            )
        except OSError as error:
            raise ConfigurationError(
                f"cannot make a folder in '{parent}': {error.strerror}"
            ) from error
        with folder as path:
            options = {**config.options, "path": path}
            yield attrs.evolve(config, options=options)
