"""A topic: a folder with a folder for each subscription, into each of which every message is written as a file."""

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
"""First character of an ephemeral subscription; no other name begins with it."""
IDLE = 3600.0
"""Seconds after which an ephemeral subscription whose process died is removed (Q1)."""


class AcmeDriver(Driver[AcmeOptions]):
    """One topic."""

    blocking = True  # each call, for the time that the file system takes
    max_batch_messages = 100
    capabilities = CAPABILITIES

    def __init__(self, topic_name: str, project_id: str, options: AcmeOptions) -> None:
        super().__init__(topic_name, project_id, options)
        if project_id:
            raise ConfigurationError(f"project_id is {project_id!r}; this backend has no projects, leave it out")
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
                raise BrokerError(f"{option}: this backend does not offer that; leave it out", ErrorCode.UNSUPPORTED)
        with translated(f"open topic '{self._topic}'"):
            if self.options.create == "all":
                self._topic.mkdir(parents=True, exist_ok=True)
            self._topic.stat()
        if self.options.subscription and self.options.create != "never":
            self.join(self.options.subscription)

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        with translated(f"publish to '{self._topic}'"):
            folders = list(self._subscriptions())
            return [_store(message, folders) for message in messages]

    def _subscriptions(self) -> Iterator[Path]:
        for folder in self._topic.iterdir():
            with suppress(FileNotFoundError):  # deleted meanwhile
                if folder.name.startswith(EPHEMERAL) and folder.stat().st_mtime < time.time() - IDLE:
                    _remove(folder)
                elif not folder.name.startswith(".") and folder.is_dir():
                    yield folder

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> AcmeSource:
        if subscription is not None and not _NAME.fullmatch(subscription):
            raise BrokerError(_objection(subscription), ErrorCode.INVALID)
        name = subscription or EPHEMERAL + token_hex(8)
        self.join(name)
        return AcmeSource(self, name, ephemeral=subscription is None)

    def join(self, subscription: str) -> Path:
        """The folder of a subscription, made where allowed."""
        folder = self._topic / subscription
        with translated(f"subscribe to '{folder}'"):
            if self.options.create != "never" or subscription.startswith(EPHEMERAL):
                folder.mkdir(parents=self.options.create == "all", exist_ok=True)
            folder.stat()
        return folder

    async def delete_subscription(self, subscription: str) -> None:
        with translated(f"delete '{self._topic / subscription}'"):
            _remove(self._topic / subscription)

    async def ping(self) -> None:
        with translated(f"look at '{self._topic}'"):
            self._topic.stat()

    async def close(self) -> None:
        """Nothing is kept open."""


def _objection(name: str) -> str:
    return f"{name!r} cannot name a folder here; begin with a letter, digit or _ and go on with those, . or -"


def _store(message: EventMessage, folders: Sequence[Path]) -> str:
    """Write *message* into each of *folders*: attributes on the first line, then the data."""
    message_id = f"{time.time_ns()}-{token_hex(4)}"
    content = json.dumps(dict(message.attributes)).encode() + b"\n" + message.data
    for folder in folders:
        part = folder / f".{message_id}"
        with suppress(FileNotFoundError):  # the subscription was deleted meanwhile
            part.write_bytes(content)
            part.rename(folder / f"{message_id}.0")  # receivers see the whole message or none
    return message_id


def _remove(folder: Path) -> None:
    """Delete a subscription: first out of everybody's sight, then from the disk."""
    grave = folder.with_name(f".{token_hex(8)}")
    folder.rename(grave)
    shutil.rmtree(grave)
