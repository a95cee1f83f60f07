"""Topics and subscriptions as resources.

If they do not exist, this module creates them where the options allow.  If they exist, it compares them with the
options and never changes them.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs
from google.pubsub_v1 import types

from events_core import Capabilities, ErrorCode
from events_core.engine import BrokerError, Gate
from events_core.options import did_you_mean
from events_gcp.ephemeral import is_ephemeral
from events_gcp.subscription import JoinedSubscription

if TYPE_CHECKING:
    from events_gcp.api import Api
    from events_gcp.options import GcpOptions

__all__ = ["Admin"]

_log = logging.getLogger("events_gcp")

_Subscription = types.Subscription.pb()

_EPHEMERAL_TTL = 86_400
"""Seconds without use after which Pub/Sub deletes an ephemeral subscription.  It allows no fewer."""

_LOOK_TIMEOUT = 2.0
"""Seconds to look for the existing name that is closest to a missing one."""

_SHORTEST_LEASE = 10
"""Seconds; the lower bound of ``Subscription.ack_deadline_seconds`` (types/pubsub.py)."""

_DEFAULT_ATTEMPTS = 5
"""The attempts of a dead-letter policy that names none (``DeadLetterPolicy`` in types/pubsub.py)."""


class Admin:
    """The resources of one client.  Topics and subscriptions are named in full, ``projects/…``.

    :param topic: the topic of the client.
    :param dead_letter: the topic for dead letters, and the failed attempts after which a message goes there.
    :param create: what may be created: ``never``, ``subscription`` or ``all``.
    :param capabilities: what the options promise of a subscription that fits them.
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
        self._joined: dict[str, bool] = {}
        """The subscriptions that this client has joined, and whether they are ephemeral."""
        self.gate = Gate()
        """The gate in front of the topic, which :meth:`create_again` makes whole."""

    async def create_topics(self) -> None:
        """Create the topics that do not exist, if the options allow it."""
        if self._create != "all":
            return
        if self.gate.is_open and self._joined and await self._is_deleted():
            await self.gate.restore(self.create_again)
            return
        await self._api.create_topic(self._topic)
        if self._dead_letter:
            await self._api.create_topic(self._dead_letter[0])

    async def _is_deleted(self) -> bool:
        try:
            await self._api.get_topic(self._topic)
        except BrokerError as error:
            if error.code is ErrorCode.NOT_FOUND:
                return True
            if error.code is not ErrorCode.PERMISSION_DENIED:
                raise
        return False

    async def create_again(self) -> None:
        """Create the topics again, which were deleted, with the subscriptions that this client has joined.

        An emulator that was restarted has forgotten all of them.

        :raises BrokerError: ``INVALID`` if one is still there: Pub/Sub cannot attach it to the new topic.
        """
        await self.create_topics()
        for subscription, ephemeral in [*self._joined.items()]:
            await self.join(subscription, ephemeral=ephemeral)

    def forget(self, subscription: str) -> None:
        """Do not create *subscription* again if its topic is deleted."""
        self._joined.pop(subscription, None)

    async def keep_dead_letters(self, subscription: str) -> bool:
        """Create *subscription* on the dead-letter topic, unless that topic has a durable one.

        The new subscription never expires and keeps the order of keys.  It has exactly-once delivery if the options ask
        for that, so that a client with the same options can read it.

        :returns: whether the topic has a durable subscription now.
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
        # If the name exists already, the subscription may belong to another topic.
        found = await self._api.create_subscription(wanted) or await self._api.get_subscription(subscription)
        if found.topic != topic:
            raise _unsuitable(subscription, f"belongs to {found.topic!r}, not {topic!r}")
        return True

    async def join(self, subscription: str, *, ephemeral: bool = False, trusting: bool = True) -> JoinedSubscription:
        """Return *subscription*, created if it is missing and the options allow that.

        :param trusting: if the account may not look it up, believe that it is what the options say.
        :raises BrokerError: ``INVALID`` if it contradicts the options.
        """
        found = None if ephemeral else await self._find(subscription, trusting)
        if found is None:
            await self.create_topics()
            found = await self._api.create_subscription(self._wanted(subscription, ephemeral=ephemeral))
        if found is None:  # another process was faster
            found = await self._api.get_subscription(subscription)
        if found.topic != self._topic:
            raise _unsuitable(found.name, f"belongs to {found.topic!r}, not {self._topic!r}")
        if self._dead_letter:
            self._check_letters(found, self._dead_letter[0])
        asked = self._options.filter
        if asked is not None and asked != found.filter:
            raise _unsuitable(found.name, f"has the filter {found.filter!r}, but the options ask for {asked!r}")
        self.check(
            found.name,
            is_ordered=found.enable_message_ordering,
            exactly_once=found.enable_exactly_once_delivery,
        )
        self._joined[subscription] = ephemeral
        return self._describe(subscription, found, ephemeral=ephemeral)

    def _check_letters(self, found: Any, asked: str) -> None:
        topic = found.dead_letter_policy.dead_letter_topic
        if not topic and not self._is_ordered:
            raise _unsuitable(found.name, "has no dead-letter policy, but the options ask for dead_letter_topic")
        # With order too: Pub/Sub moves letters by this policy, although it loses the order.
        if topic not in ("", asked):
            raise _unsuitable(found.name, f"sends dead letters to {topic!r}, but the options ask for {asked!r}")

    def check(self, subscription: str, *, is_ordered: bool, exactly_once: bool) -> None:
        """Compare a subscription with the options.

        :raises BrokerError: ``INVALID`` where they differ.
        """
        asked = self._options
        if asked.ordering and not is_ordered:
            raise _unsuitable(
                subscription, "was created without message ordering, but the options ask for ordering=true"
            )
        if asked.exactly_once not in (None, exactly_once):
            has = "has" if exactly_once else "has no"
            wanted = str(asked.exactly_once).lower()
            raise _unsuitable(
                subscription, f"{has} exactly-once delivery, but the options ask for exactly_once={wanted}"
            )

    async def _find(self, subscription: str, trusting: bool) -> Any:
        """Return the subscription, or ``None`` if it is missing and may be created.

        :raises BrokerError: if it is missing and may not be created, or the account may not look it up.
        """
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
            # roles/pubsub.subscriber is enough to receive, but does not allow a look.  A stream may correct this later.
            _log.info("%s cannot be looked up; the receiver believes the options: %s", subscription, error)
            wanted = self._wanted(subscription, ephemeral=False)
            wanted.ack_deadline_seconds = _SHORTEST_LEASE  # a renewal that is too early does no harm
            return wanted

    async def _nearest(self, subscription: str) -> str:
        """Return a hint with the closest name among the topic's subscriptions, or ``""`` if it cannot list them."""
        with suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(_LOOK_TIMEOUT):
                names = [name.rpartition("/")[2] for name in await self._api.subscriptions(self._topic)]
            return did_you_mean(subscription.rpartition("/")[2], names)
        return ""

    @property
    def _is_ordered(self) -> bool:
        return self._capabilities.ordering != "none"

    def _wanted(self, name: str, *, ephemeral: bool) -> Any:
        """Return the subscription that the options describe.  It never expires unless it is *ephemeral*."""
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
            # With order, the receiver moves dead letters itself: Pub/Sub would lose the order.
            policy = wanted.dead_letter_policy
            policy.dead_letter_topic, policy.max_delivery_attempts = self._dead_letter
        if options.retry_min_backoff is not None and options.retry_max_backoff is not None:
            wanted.retry_policy.minimum_backoff.FromMilliseconds(round(options.retry_min_backoff * 1000))
            wanted.retry_policy.maximum_backoff.FromMilliseconds(round(options.retry_max_backoff * 1000))
        if options.message_retention is not None:
            wanted.message_retention_duration.FromMilliseconds(round(options.message_retention * 1000))
        return wanted

    def _describe(self, path: str, found: Any, *, ephemeral: bool) -> JoinedSubscription:
        policy = found.dead_letter_policy
        by_service = bool(policy.dead_letter_topic)
        own = (policy.dead_letter_topic, policy.max_delivery_attempts or _DEFAULT_ATTEMPTS) if by_service else None
        dead_letter = self._dead_letter or own
        # Without order, only Pub/Sub can count attempts, and it does so only under a policy.
        counts_here = found.enable_message_ordering and self._is_ordered and dead_letter is not None
        return JoinedSubscription(
            name=path.rpartition("/")[2],
            path=path,
            is_ephemeral=ephemeral,
            capabilities=attrs.evolve(
                self._capabilities,
                ordering=self._capabilities.ordering if found.enable_message_ordering else "none",
                dead_letter=by_service or counts_here,
                reject=dead_letter is not None,
                delivery_attempts=by_service or counts_here,
                handback_counts=by_service,
                exactly_once=found.enable_exactly_once_delivery,
            ),
            ack_deadline=found.ack_deadline_seconds,
            has_backoff=found.HasField("retry_policy"),
            dead_letter_topic=dead_letter[0] if dead_letter else None,
            local_attempts=dead_letter[1] if counts_here and dead_letter else None,
        )


def _unsuitable(subscription: str, why: str) -> BrokerError:
    return BrokerError(
        f"subscription {subscription!r} {why}; delete it, name another, or change the option", ErrorCode.INVALID
    )
