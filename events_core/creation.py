"""The construction of a client from a configuration, a URL or a name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Unpack

from events_core.arguments import described
from events_core.config import ConfigOverrides, EventConfig
from events_core.errors import ConfigurationError
from events_core.interface import EventClient
from events_core.registry import available_backends, load_backend

__all__ = ["create_client"]


def create_client(
    config: EventConfig | str,
    *,
    file: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    **overrides: Unpack[ConfigOverrides],
) -> EventClient:
    """Construct a client, without I/O except for reading *file* and importing the backend.

    ::

        create_client("sqlite:events.db/orders?subscription=billing")
        create_client("orders", file="events.toml")
        create_client("orders")  # the URL in the variable EVENTS_ORDERS_URL
        create_client(
            EventConfig(
                "orders", backend="sqlite", options={"path": "events.db"}
            )
        )

    :param config: a configuration, a URL, or the name of a client.  A text with a colon is a URL.  A name is looked up
        in the environment variable ``EVENTS_<NAME>_URL`` and then in *file*.
    :param file: a TOML file with a table ``[clients.NAME]``; only together with a name.
    :param environ: the environment, by default that of the process.
    :param overrides: ``backend``, ``topic_name``, ``project_id``, ``options`` and ``require``; they take precedence
        over *config*.
    :raises ConfigurationError: if the name is configured nowhere, the configuration names no backend, the backend
        refuses it, or the backend does not have what the configuration requires.
    :raises BackendError: if the backend cannot be found or loaded.
    :raises TypeError: for an argument that it does not have.
    """
    unknown = sorted(overrides.keys() - ConfigOverrides.__annotations__.keys())
    if unknown:
        raise TypeError(
            f"create_client() has no argument {unknown[0]!r}; options of the backend go into one mapping, as in "
            "options={'subscription': 'billing'}"
        )
    found = _configuration(config, file, environ, overrides)
    if not found.backend:
        names = ", ".join(dict.fromkeys(info.name for info in available_backends())) or "none"
        raise ConfigurationError(
            f"the configuration names no backend; set backend to one of: {names}", topic_name=found.topic_name
        )
    client = load_backend(found.backend)(found)
    # Check here too: a backend that does not use the engine may not check requirements in its constructor.
    client.check_requirements(found)
    return client


def _configuration(
    config: EventConfig | str,
    file: str | os.PathLike[str] | None,
    environ: Mapping[str, str] | None,
    overrides: ConfigOverrides,
) -> EventConfig:
    # A URL always has a colon, after the name of its backend.
    is_name = isinstance(config, str) and ":" not in config
    if file is not None and not is_name:
        # The URL is not shown: it may have a secret.
        raise ConfigurationError(
            "file=… goes with the name of a client, as in create_client('orders', file='events.toml'); "
            "a URL or an EventConfig has everything already"
        )
    if isinstance(config, EventConfig):
        return config.overridden(**overrides)
    if not isinstance(config, str):
        raise ConfigurationError(
            f"a client is created from an EventConfig, a URL or the name of a client, not from {described(config)}"
        )
    if not is_name:
        return EventConfig.from_url(config, **overrides)
    if file is None:
        return EventConfig.from_env(config, environ, **overrides)
    return EventConfig.from_file(file, config, environ=environ, **overrides)
