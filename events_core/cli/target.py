"""Where a command goes: TARGET, or ``--config`` with ``--client``."""

from __future__ import annotations

from collections.abc import Callable

import click

from events_core import EventConfig

__all__ = ["configured", "read_config", "usage_error"]


def configured(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that stand in for TARGET, ``file`` and ``client``."""
    client = click.option("--client", metavar="NAME", help="With --config: the client's name in it.")
    file = click.option("--config", "file", metavar="FILE", help="A TOML file, in place of TARGET.")
    return file(client(command))


def read_config(target: str | None, file: str | None, client: str | None) -> EventConfig:
    """The configuration that was asked for, in exactly one way.

    :raises click.UsageError: when it was not; never quotes TARGET, which may carry a secret.
    """
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
    """An error that points at the help of the command being run."""
    return click.UsageError(text, click.get_current_context())
