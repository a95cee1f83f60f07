"""Queues of ephemeral subscriptions: they end with their receiver, or when they are no longer renewed.

Each carries two tags: the time at which it expires, and its topic.  Its client renews the first one.  If the process
was killed, nobody does, and another client of the topic removes the queue and its subscription.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from secrets import token_hex

import attrs

from events_core import ErrorCode
from events_core.engine import BrokerError
from events_sqs.errors import translated
from events_sqs.options import SQSOptions
from events_sqs.session import Services
from events_sqs.topology import Queue, Topic, Topology

__all__ = ["EXPIRES", "TOPIC", "EphemeralQueues"]

_log = logging.getLogger("events_sqs")

EXPIRES = "events-core:expires"
"""The tag of an ephemeral queue: the ``time.time()`` from which on it may be removed."""

TOPIC = "events-core:topic"
"""The tag with the name of the topic.  The queues of several topics may have the same pattern (option ``queue_name``),
and only a client of the right topic finds the subscription of a queue.  An ARN may be too long for a tag."""

_PREFIX = "ephemeral-"
_SUFFIX_BYTES = 8
_ID = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(_PREFIX + _ID.pattern)
"""Not only the prefix, because the name of a topic may contain that."""
_SAMPLE = 50
"""Queues whose tags one call asks for.  Otherwise 1,000 clients would ask for 1,000 each."""


class EphemeralQueues:
    """The ephemeral queues of one client, and those that other clients of the topic have left behind."""

    def __init__(self, services: Services, topology: Topology, topic: Topic, options: SQSOptions) -> None:
        self._services = services
        self._topology = topology
        self._topic = topic
        self._options = options
        self._own: dict[str, Queue] = {}
        """Those of this client, by their URLs."""
        self._left: dict[str, Queue] = {}
        """Those whose receivers are closed, until they are deleted; by their URLs."""
        self._is_forbidden = False
        """True if this client may not remove the queues of others."""

    async def create(self) -> tuple[str, Queue]:
        """Create an ephemeral subscription; return its name and its queue."""
        name = f"{_PREFIX}{token_hex(_SUFFIX_BYTES)}"
        return name, await self._create(self._topology.queue_name(self._topic, name))

    async def _create(self, name: str) -> Queue:
        tags = {EXPIRES: self._expiry(), TOPIC: self._topic.name}
        created = await self._topology.create(self._topic, name, tags)
        queue = self._own[created.url] = attrs.evolve(created, is_ephemeral=True)
        return queue

    async def restore(self, queue: Queue) -> None:
        """Create a queue of this client again, which was deleted."""
        await self._create(queue.name)

    def _expiry(self) -> str:
        return str(int(time.time() + self._options.ephemeral_idle))

    async def remove(self, queue: Queue) -> None:
        """Delete a queue of this client.

        If that fails, or has too little time, :meth:`remove_left` does it later.
        """
        own = self._own.pop(queue.url, None)
        if own is not None:
            own = self._left[own.url] = self._topology.forget(self._topic, own)
            await self._remove(own)

    async def remove_left(self) -> None:
        """Delete the queues whose receivers are closed, if that has failed before.

        :raises BrokerError: if it fails again for one of them.
        """
        for result in await asyncio.gather(*map(self._remove, self._left.values()), return_exceptions=True):
            if result is not None:
                raise result

    async def _remove(self, queue: Queue) -> None:
        with _unless_gone():
            await self._topology.delete(self._topic, queue)
        self._left.pop(queue.url, None)

    async def renew(self) -> None:
        """Let the queues of this client live on."""
        for queue in list(self._own.values()):
            # A queue that is gone must not end the others.  Its receiver creates it again.
            with _unless_gone(), translated(f"renew the tag of queue {queue.name!r}"):
                await self._services.sqs.tag_queue(QueueUrl=queue.url, Tags={EXPIRES: self._expiry()})

    async def remove_expired(self) -> None:
        """Delete queues whose clients were killed, among some that are chosen at random.

        If AWS forbids that, this client does not ask again: each request costs, and shows as an error in the account.

        :raises BrokerError: if a request failed.
        """
        if self._is_forbidden:
            return
        try:
            await self._remove_expired()
        except BrokerError as error:
            self._is_forbidden = error.code is ErrorCode.PERMISSION_DENIED
            raise

    async def _remove_expired(self) -> None:
        others = [(name, url) async for name, url in self._candidates() if url not in self._own]
        for name, url in random.sample(others, min(len(others), _SAMPLE)):
            if not await self._has_expired(name, url):
                continue
            arn = await self._services.arn("sqs", name)
            with _unless_gone():  # another client was quicker
                await self._topology.delete(self._topic, Queue(name, url, arn, self._topic.is_fifo))
                _log.info("removed queue %r of an ephemeral subscription whose process is gone", name)

    @staticmethod
    def is_ephemeral(queue: str) -> bool:
        """Return whether a queue with this name belongs to an ephemeral subscription, of whatever topic."""
        return bool(_NAME.search(queue))

    async def _has_expired(self, name: str, url: str) -> bool:
        try:
            with translated(f"ask for the tags of queue {name!r}"):
                tags = (await self._services.sqs.list_queue_tags(QueueUrl=url)).get("Tags", {})
        except BrokerError as error:
            if error.code is ErrorCode.NOT_FOUND:  # another client was quicker
                return False
            raise
        expires = tags.get(EXPIRES, "")
        return tags.get(TOPIC) == self._topic.name and expires.isdecimal() and int(expires) < time.time()

    async def _candidates(self) -> AsyncIterator[tuple[str, str]]:
        """Yield the name and the URL of each queue that may be an ephemeral one of this topic."""
        start, _, end = self._topology.queue_name(self._topic, f"{_PREFIX}{'0' * 16}").partition("0" * 16)
        page: dict[str, str] = {}
        while True:
            with translated(f"list the queues that begin with {start!r}"):
                answer = await self._services.sqs.list_queues(QueueNamePrefix=start, MaxResults=1000, **page)
            for url in answer.get("QueueUrls", ()):
                name = url.rpartition("/")[2]
                # Exactly, because the name of another topic may begin or end with the name of this one.
                if name.endswith(end) and _ID.fullmatch(name.removesuffix(end)[len(start) :]):
                    yield name, url
            if not answer.get("NextToken"):
                return
            page = {"NextToken": answer["NextToken"]}


@contextmanager
def _unless_gone() -> Iterator[None]:
    """Pass over a queue that is not there: ``NOT_FOUND``."""
    try:
        yield
    except BrokerError as error:
        if error.code is not ErrorCode.NOT_FOUND:
            raise
