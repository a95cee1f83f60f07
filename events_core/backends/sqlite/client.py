"""The class that the registry finds, and what its URLs mean."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs

from events_core import ConfigurationError, EventConfig, ReceivedMessage
from events_core.backends.sqlite.driver import SQLiteDriver
from events_core.backends.sqlite.options import FULL_CAPABILITIES, SQLiteOptions
from events_core.engine import EngineClient
from events_core.interface import Location

if TYPE_CHECKING:
    import sqlite3

__all__ = ["SQLiteClient"]

T = TypeVar("T")


class SQLiteClient(EngineClient):
    """A client of a topic in a file: ``sqlite:///absolute/path/events.db/orders``, or ``sqlite:events.db/orders``.

    Clients share topics by file, project and name.  The file must be on a local file system, because SQLite's
    write-ahead log needs memory that is shared between the processes that use it.
    """

    api_version = 1
    options_class = SQLiteOptions
    full_capabilities = FULL_CAPABILITIES
    driver_class = SQLiteDriver

    @classmethod
    def parse_location(cls, authority: str, path: str) -> Location:
        """Split *path* into the file's path and the topic's name, its last part.

        :raises ConfigurationError: for a URL with a host, or without a file or a topic.
        """
        if authority:
            host = authority.rpartition("@")[2].partition(":")[0]  # the rest may be a password
            raise ConfigurationError(
                f"the URL has the host {host!r}, but a file has no host; write sqlite:///absolute/path/events.db/topic "
                "with three slashes, or sqlite:relative/path/events.db/topic with none",
                backend="sqlite",
            )
        file, _, topic_name = path.rpartition("/")
        if not file or not topic_name:
            raise ConfigurationError(
                f"the URL's path is {path!r}; write the file, then the topic, as in sqlite:events.db/orders or "
                "sqlite:///var/lib/events.db/orders",
                backend="sqlite",
            )
        return Location(topic_name, options={"path": file})

    async def run_native(self, work: Callable[[sqlite3.Connection], Awaitable[T]], timeout: float = 30.0) -> T:
        """Call *work* with an :class:`sqlite3.Connection` of its own to the file (rule N1: native objects).

        It runs on the client's thread.

        The connection is in autocommit mode: begin and commit a transaction yourself.  It is closed when *work* has
        ended, which rolls back what is not committed.
        """
        return await super().run_native(work, timeout)

    def native_message(self, message: ReceivedMessage) -> int:
        """Return the ``id`` of the message's row in the table ``messages`` (rule N1: native objects)."""
        row: int = super().native_message(message)
        return row

    @classmethod
    @contextmanager
    def scratch(cls, config: EventConfig) -> Iterator[EventConfig]:
        """Yield *config* with a new file in a temporary folder next to the configured file, and so on the same disk."""
        path = Path(config.options["path"])
        try:
            folder = tempfile.TemporaryDirectory(prefix="events-check-", dir=path.parent, ignore_cleanup_errors=True)
        except OSError as error:
            raise ConfigurationError(f"cannot make a folder in '{path.parent}': {error.strerror}") from error
        with folder as name:
            yield attrs.evolve(config, options={**config.options, "path": str(Path(name, path.name))})
