"""A topic: a folder, with a folder for each subscription.

Each message is written as a file into the folder of each subscription.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from events_acme.errors import translated
from events_acme.options import CAPABILITIES, AcmeOptions
from events_acme.source import AcmeSource
from events_core import ConfigurationError, ErrorCode, EventMessage
from events_core.engine import BrokerError, Driver

__all__ = ["AcmeDriver"]

_NAME = re.compile(r"\w[\w.-]*")
EPHEMERAL = "~"
"""The first character of an ephemeral subscription, and of no other."""
IDLE = 3600.0
"""Seconds after which a subscription without a process ends (Q1)."""


class AcmeDriver(Driver[AcmeOptions]):
    """One topic."""

    blocking = True  # each call waits for the file system
    max_batch_messages = 100
    capabilities = CAPABILITIES

    def __init__(
        self, topic_name: str, project_id: str, options: AcmeOptions
    ) -> None:
        super().__init__(topic_name, project_id, options)
        if project_id:
            raise ConfigurationError(
                f"project_id is {project_id!r}; "
                "this backend has no projects, leave it out"
            )
        for name in (topic_name, options.subscription):
            if name is not None and not _NAME.fullmatch(name):
                raise ConfigurationError(_objection(name))
        self._topic = Path(options.path).absolute() / topic_name

    async def open(self) -> None:
        for option, given in (
            ("ordering=true", self.options.ordering),
            ("dead_letter_topic", self.options.dead_letter_topic),
            ("start=earliest", self.options.start == "earliest"),
        ):
            if given:
                raise BrokerError(
                    f"{option}: this backend does not offer that; "
                    "leave it out",
                    ErrorCode.UNSUPPORTED,
                )
        with translated(f"open topic '{self._topic}'"):
            if self.options.create == "all":
                self._topic.mkdir(parents=True, exist_ok=True)
            self._topic.stat()
        if self.options.subscription and self.options.create != "never":
            self.join(self.options.subscription)

    async def publish(
        self, messages: Sequence[EventMessage]
    ) -> Sequence[str | BrokerError]:
        with translated(f"publish to '{self._topic}'"):
            folders = list(self._subscriptions())
            return [_store(message, folders) for message in messages]

    def _subscriptions(self) -> Iterator[Path]:
        for folder in self._topic.iterdir():
            # Another process may delete the folder at any moment.
            with suppress(FileNotFoundError):
                if _is_idle(folder):
                    _remove(folder)
                elif not folder.name.startswith(".") and folder.is_dir():
                    yield folder

    async def subscribe(
        self, subscription: str | None, wake: Callable[[], None]
    ) -> AcmeSource:
        if subscription is not None and not _NAME.fullmatch(subscription):
            raise BrokerError(_objection(subscription), ErrorCode.INVALID)
        name = subscription or EPHEMERAL + token_hex(8)
        self.join(name)
        return AcmeSource(self, name, ephemeral=subscription is None)

    def join(self, subscription: str) -> Path:
        """Return the folder of *subscription*; create it if allowed.

        :raises BrokerError: ``NOT_FOUND`` if it is missing.
        """
        create = self.options.create
        folder = self._topic / subscription
        with translated(f"subscribe to '{folder}'"):
            if create != "never" or subscription.startswith(EPHEMERAL):
                folder.mkdir(parents=create == "all", exist_ok=True)
            folder.stat()
        return folder

    async def delete_subscription(self, subscription: str) -> None:
        with translated(f"delete '{self._topic / subscription}'"):
            _remove(self._topic / subscription)

    async def ping(self) -> None:
        with translated(f"look at '{self._topic}'"):
            self._topic.stat()

    async def close(self) -> None:
        """Do nothing: no file stays open between two calls."""


def _objection(name: str) -> str:
    return (
        f"{name!r} cannot name a folder; begin with a letter, a digit or _ "
        "and go on with those, . or -"
    )


def _is_idle(folder: Path) -> bool:
    is_ephemeral = folder.name.startswith(EPHEMERAL)
    return is_ephemeral and folder.stat().st_mtime < time.time() - IDLE


def _store(message: EventMessage, folders: Sequence[Path]) -> str:
    """Write *message* into each of *folders*, and return its id.

    The first line of the file has the attributes, the rest is the data.
    """
    message_id = f"{time.time_ns()}-{token_hex(4)}"
    attributes = json.dumps(dict(message.attributes)).encode()
    for folder in folders:
        part = folder / f".{message_id}"
        # The subscription may just have been deleted.
        with suppress(FileNotFoundError):
            part.write_bytes(attributes + b"\n" + message.data)
            # A rename is atomic: receivers see the whole message or none.
            part.rename(folder / f"{message_id}.0")
    return message_id


def _remove(folder: Path) -> None:
    """Delete a subscription.

    The rename comes first, because it is atomic: no receiver sees a folder
    that is half deleted.
    """
    grave = folder.with_name(f".{token_hex(8)}")
    folder.rename(grave)
    shutil.rmtree(grave)
