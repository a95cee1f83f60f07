"""The broker of a command: TARGET, or ``--config`` with ``--client``."""

from __future__ import annotations

from collections.abc import Callable

import click

from events_core import EventConfig

__all__ = ["configured", "read_config", "usage_error"]


def configured(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options ``file`` and ``client``, which may replace TARGET."""
    client = click.option("--client", metavar="NAME", help="With --config: the client's name in it.")
    file = click.option("--config", "file", metavar="FILE", help="A TOML file, in place of TARGET.")
    return file(client(command))


def read_config(target: str | None, file: str | None, client: str | None) -> EventConfig:
    """Return the configuration of a command.

    :raises click.UsageError: unless it is given in exactly one way; the error never quotes TARGET, which may contain a
        secret.
    """
    # Never a default broker: a command that was typed in a hurry must not reach the wrong one.
    if file is None and client is None:
        if target is None:
            raise usage_error("give TARGET, or --config FILE with --client NAME")
        return EventConfig.from_url(target)
    if target is not None:
        raise usage_error("give either TARGET, or --config FILE with --client NAME, not both")
    if file is None or client is None:
        raise usage_error("--config FILE and --client NAME go together")
    return EventConfig.from_file(file, client)


def usage_error(text: str) -> click.UsageError:
    """Return an error that points at the help of the running command."""
    return click.UsageError(text, click.get_current_context())
