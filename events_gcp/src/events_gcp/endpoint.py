"""The address of Pub/Sub, and the account to use there.  This module does not import Google's packages."""

from __future__ import annotations

import logging
import os

import attrs

from events_core import ConfigurationError, EventConfig
from events_gcp.options import GcpOptions, is_address, shown

__all__ = ["Endpoint", "check_emulator"]

_log = logging.getLogger("events_gcp")

_CALLER = ("credentials_file", "credentials", "impersonate_service_account")
"""Options that name an account.  An emulator needs none."""


@attrs.frozen
class Endpoint:
    """The address and the account of a channel.  Clients with equal endpoints share channels."""

    target: str
    """``host:port``."""
    is_emulator: bool
    credentials_file: str | None = None
    credentials: str | None = attrs.field(default=None, repr=False, kw_only=True)
    """The JSON of a credentials file."""
    impersonate_service_account: str | None = None
    quota_project_id: str | None = None

    @classmethod
    def of(cls, options: GcpOptions) -> Endpoint:
        """Return the endpoint that *options* and the environment name."""
        emulator = options.emulator_host or os.environ.get("PUBSUB_EMULATOR_HOST")
        if emulator:
            return cls(emulator, is_emulator=True)
        host = options.endpoint or (
            f"{options.region}-pubsub.googleapis.com" if options.region else "pubsub.googleapis.com"
        )
        return cls(
            host if is_address(host) else f"{host}:443",
            is_emulator=False,
            credentials_file=options.credentials_file,
            credentials=options.credentials,
            impersonate_service_account=options.impersonate_service_account,
            quota_project_id=options.quota_project_id,
        )


def check_emulator(config: EventConfig) -> None:
    """Check that *config* does not name both an emulator and credentials.

    If both come from one place, for example from one URL, they contradict each other.  If the emulator comes from
    another place, it redirects the configuration, for a test or by mistake.  That is logged as a WARNING.

    :raises ConfigurationError: for the contradiction.
    """
    options, origins = config.options, config.origins
    given = [name for name in _CALLER if name in options]
    if "emulator_host" in options:
        for name in given:
            if origins.get(name) == origins.get("emulator_host"):
                raise ConfigurationError(
                    f"options 'emulator_host' and {name!r} contradict each other, because an emulator takes no "
                    "credentials; give one of them",
                    backend=config.backend,
                    topic_name=config.topic_name,
                )
        emulator = f"emulator_host{_from(config, 'emulator_host')}"
    elif found := os.environ.get("PUBSUB_EMULATOR_HOST"):
        emulator = "the environment variable PUBSUB_EMULATOR_HOST"
        if not is_address(found):
            raise ConfigurationError(
                f"{emulator}: {shown(found)!r} is not a host and port, for example localhost:8085",
                backend=config.backend,
                topic_name=config.topic_name,
            )
    else:
        return
    for name in given:
        _log.warning("%s: option %r%s is not used; unset one of them", emulator, name, _from(config, name))


def _from(config: EventConfig, name: str) -> str:
    return f" (from {config.origins[name]})" if name in config.origins else ""
