"""Topics and subscriptions as resources: made where options allow, checked against the options where they exist."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs
from google.pubsub_v1 import types

from events_core import Capabilities, ErrorCode
from events_core.engine import BrokerError
from events_core.options import did_you_mean
from events_gcp.ephemeral import is_ephemeral

if TYPE_CHECKING:
    from events_gcp.api import Api
    from events_gcp.options import GcpOptions

__all__ = ["Admin", "Joined"]

_log = logging.getLogger("events_gcp")

_Subscription = types.Subscription.pb()

_EPHEMERAL_TTL = 86_400
"""Seconds without use after which Pub/Sub deletes an ephemeral subscription; the fewest that it allows."""

_LOOK_TIMEOUT = 2.0
"""Seconds to look for a name that is nearest to one that does not exist."""

_SHORTEST_LEASE = 10
"""Seconds (Subscription.ack_deadline_seconds in types/pubsub.py)."""


@attrs.frozen(kw_only=True)
class Joined:
    """What a subscription promises, and what that asks of its receivers."""

    capabilities: Capabilities
    ack_deadline: int
    """Seconds of the lease of what is pulled; a stream names its own."""
    has_backoff: bool
    """Whether Pub/Sub itself delays what was nacked."""
    dead_letter: tuple[str, int] | None
    """Where order per key keeps Pub/Sub from dead-lettering: the topic, and the attempts after which the receiver
    does."""


class Admin:
    """The resources of one client.

    :param topic: its full name.
    :param dead_letter: the full name of the topic for dead letters, and the attempts that lead there.
    """

    def __init__(
        self,
        api: Api,
        topic: str,
        dead_letter: tuple[str, int] | None,
        options: GcpOptions,
        create: str,
        capabilities: Capabilities,
    ) -> None:
        self._api = api
        self._topic = topic
        self._dead_letter = dead_letter
        self._options = options
        self._create = create
        self._capabilities = capabilities

    async def create_topics(self) -> None:
        """Create the topics where options allow."""
        if self._create == "all":
            await self._api.create_topic(self._topic)
            if self._dead_letter:
                await self._api.create_topic(self._dead_letter[0])

    async def keep_dead_letters(self, subscription: str) -> bool:
        """Create the subscription of this full name on the dead-letter topic, unless that topic has a durable one.

        Return whether the topic has one now.  The new one never expires, keeps the order of keys, and has exactly-once
        delivery if the options ask for it, so that a client with these options can read it.
        """
        assert self._dead_letter is not None
        topic, _ = self._dead_letter
        await self.create_topics()
        if not all(map(is_ephemeral, await self._api.subscriptions(topic))):
            return True
        if self._create == "never":
            return False
        wanted = _Subscription(
            name=subscription,
            topic=topic,
            enable_message_ordering=True,
            enable_exactly_once_delivery=bool(self._options.exactly_once),
            expiration_policy={},
        )
        found = await self._api.create_subscription(wanted) or await self._api.get_subscription(subscription)
        if found.topic != topic:
            raise _unsuitable(subscription, f"belongs to {found.topic!r}, not {topic!r}")
        return True

    async def join(self, subscription: str, *, ephemeral: bool = False, trusting: bool = True) -> Joined:
        """See to it that the subscription of this full name exists, and is what the options ask for.

        :param trusting: whether it is taken for what the options say where the account may not look.
        """
        found = None if ephemeral else await self._find(subscription, trusting)
        if found is None:
            await self.create_topics()
            found = await self._api.create_subscription(self._wanted(subscription, ephemeral=ephemeral))
        if found is None:  # somebody else was faster
            found = await self._api.get_subscription(subscription)
        if found.topic != self._topic:
            raise _unsuitable(found.name, f"belongs to {found.topic!r}, not {self._topic!r}")
        if self._dead_letter and not self._is_ordered and not found.dead_letter_policy.dead_letter_topic:
            raise _unsuitable(found.name, "has no dead-letter policy, and dead_letter_topic is asked for")
        asked = self._options.filter
        if asked is not None and asked != found.filter:
            raise _unsuitable(found.name, f"has the filter {found.filter!r}, and {asked!r} is asked for")
        self.check(
            found.name,
            is_ordered=found.enable_message_ordering,
            exactly_once=found.enable_exactly_once_delivery,
        )
        return self._promised(found)

    def check(self, subscription: str, *, is_ordered: bool, exactly_once: bool) -> None:
        """Compare what a subscription is with what the options ask for.

        :raises BrokerError: where they differ.
        """
        asked = self._options
        if asked.ordering and not is_ordered:
            raise _unsuitable(subscription, "was created without message ordering, and ordering=true is asked for")
        if asked.exactly_once not in (None, exactly_once):
            has = "has" if exactly_once else "has no"
            wanted = str(asked.exactly_once).lower()
            raise _unsuitable(subscription, f"{has} exactly-once delivery, and exactly_once={wanted} is asked for")

    async def _find(self, subscription: str, trusting: bool) -> Any:
        """What the subscription is; ``None`` where there is none, and it may be created."""
        try:
            return await self._api.get_subscription(subscription)
        except BrokerError as error:
            if error.code is ErrorCode.NOT_FOUND:
                if self._create != "never":
                    return None
                text = f"{error}{await self._nearest(subscription)}"
                raise BrokerError(text, error.code) from error.__cause__
            if error.code is not ErrorCode.PERMISSION_DENIED or not trusting:
                raise
            # roles/pubsub.subscriber suffices to receive, and does not let one look.
            _log.info("%s is taken for what the options say: %s", subscription, error)
            wanted = self._wanted(subscription, ephemeral=False)
            wanted.ack_deadline_seconds = _SHORTEST_LEASE
            return wanted

    async def _nearest(self, subscription: str) -> str:
        """Name the nearest subscription of the topic, where the account may list them."""
        with suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(_LOOK_TIMEOUT):
                names = [name.rpartition("/")[2] for name in await self._api.subscriptions(self._topic)]
            return did_you_mean(subscription.rpartition("/")[2], names)
        return ""

    @property
    def _is_ordered(self) -> bool:
        return self._capabilities.ordering != "none"

    def _wanted(self, name: str, *, ephemeral: bool) -> Any:
        """What is created: it never expires unless *ephemeral*."""
        options = self._options
        wanted = _Subscription(
            name=name,
            topic=self._topic,
            enable_message_ordering=self._is_ordered,
            ack_deadline_seconds=options.ack_deadline,
            enable_exactly_once_delivery=bool(options.exactly_once),
            filter=options.filter or "",
            expiration_policy={"ttl": {"seconds": _EPHEMERAL_TTL}} if ephemeral else {},
            labels={"events-ephemeral": "true"} if ephemeral else {},
        )
        if self._dead_letter and not self._is_ordered:
            wanted.dead_letter_policy.dead_letter_topic, wanted.dead_letter_policy.max_delivery_attempts = (
                self._dead_letter
            )
        if options.retry_min_backoff is not None and options.retry_max_backoff is not None:
            wanted.retry_policy.minimum_backoff.FromMilliseconds(round(options.retry_min_backoff * 1000))
            wanted.retry_policy.maximum_backoff.FromMilliseconds(round(options.retry_max_backoff * 1000))
        if options.message_retention is not None:
            wanted.message_retention_duration.FromMilliseconds(round(options.message_retention * 1000))
        return wanted

    def _promised(self, found: Any) -> Joined:
        policy = found.dead_letter_policy
        by_service = bool(policy.dead_letter_topic)
        is_ordered = found.enable_message_ordering and self._is_ordered
        dead_letter = None
        if is_ordered:
            own = (policy.dead_letter_topic, policy.max_delivery_attempts or 5) if by_service else None
            dead_letter = self._dead_letter or own
        return Joined(
            capabilities=attrs.evolve(
                self._capabilities,
                ordering=self._capabilities.ordering if found.enable_message_ordering else "none",
                dead_letter=by_service or dead_letter is not None,
                delivery_attempts=by_service or dead_letter is not None,
                handback_counts=by_service,
                exactly_once=found.enable_exactly_once_delivery,
            ),
            ack_deadline=found.ack_deadline_seconds,
            has_backoff=found.HasField("retry_policy"),
            dead_letter=dead_letter,
        )


def _unsuitable(subscription: str, why: str) -> BrokerError:
    return BrokerError(
        f"subscription {subscription!r} {why}; delete it, name another, or change the option", ErrorCode.INVALID
    )
