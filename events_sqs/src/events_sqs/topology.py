"""Topics, queues and the subscriptions between them: what a client finds, creates and deletes.

A topic is an SNS topic, and a subscription is a queue that is subscribed to it with raw delivery.  With
``topology=queue``, a topic is one queue, which is also its only subscription.

A queue is created with the policy that lets SNS send to it, because a policy that is set later takes up to 60 seconds.
What exists already is never changed.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import attrs

from events_core import ErrorCode
from events_core.engine import BrokerError, Gate
from events_sqs.errors import translated
from events_sqs.limits import queue_objection
from events_sqs.options import SQSOptions
from events_sqs.policy import lets_send, policy, statement
from events_sqs.scratch import created
from events_sqs.session import Services

__all__ = ["Queue", "Topic", "Topology"]

_log = logging.getLogger("events_sqs")


@attrs.frozen
class Topic:
    """The destination of what is sent."""

    name: str
    """The name, with ``.fifo``."""
    address: str
    """The ARN of the SNS topic, or the URL of the queue."""
    is_sns: bool
    is_fifo: bool

    def __str__(self) -> str:
        return f"SNS topic {self.name!r}" if self.is_sns else f"queue {self.name!r}"


@attrs.frozen
class Queue:
    """The queue of a subscription."""

    name: str
    url: str
    """The ``QueueUrl`` of all requests."""
    arn: str
    is_fifo: bool
    """True if SQS keeps the order of each message group.  All receipts of such a group are held up while one of its
    messages is in flight."""
    redrives: bool = False
    """True if SQS itself moves messages, because the redrive policy of the queue is that of the options.  The library
    then moves none, except those that the application rejects.  Never on FIFO."""
    is_ephemeral: bool = False
    link: str = ""
    """The ARN of its subscription to the SNS topic, if that is known."""
    policy: str | None = attrs.field(default=None, repr=False)
    """Its policy in JSON, if it existed already and has one."""


class Topology:
    """The topics and queues of one client."""

    def __init__(self, services: Services, options: SQSOptions) -> None:
        self._services = services
        self._options = options
        self._is_sns = options.topology == "sns"
        self._linked_queues: dict[str, dict[str, Queue]] = {}
        """The queues that this client has subscribed or joined, by their ARNs, for each topic that it has found.

        A queue of letters that others have created has no URL here.
        """
        self._gates: dict[str, Gate] = defaultdict(Gate)
        """The gates in front of topics.  One that was deleted is closed until its queues are subscribed again."""

    # Topics

    async def find_topic(self, name: str) -> Topic:
        """Return the topic *name*; create it if the options allow that.

        A topic that was deleted has lost its subscriptions.  Here it gets back those that this client knows.

        :raises BrokerError: ``NOT_FOUND`` if there is none.
        """
        full = self._options.topic_of(name)
        try:
            topic = await self.look_for_topic(name)
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND or self._options.create != "all":
                raise
            if full in self._linked_queues:
                await self._gates[full].close()
            topic = await self._create_topic(full)
        queues = self._linked_queues.setdefault(full, {})
        if not self._gates[full].is_open:
            await self._link_again(topic, queues)
        return topic

    async def _create_topic(self, full: str) -> Topic:
        if not self._is_sns:
            return self._found(full, await self._create_queue(full, {}, {}))
        await self._services.check_account()
        with translated(f"create SNS topic {full!r}"):
            answer = await self._services.sns.create_topic(Name=full, Attributes=self._topic_attributes())
        created("topic", answer["TopicArn"])
        return self._found(full, answer["TopicArn"])

    async def _link_again(self, topic: Topic, queues: Mapping[str, Queue]) -> None:
        # The list of a new topic may still have subscriptions of the old one.  So they are not looked for.
        for queue in [*queues.values()]:
            if queue.arn not in queues:
                continue  # it was deleted meanwhile
            with _unless(ErrorCode.INVALID):  # somebody has subscribed it with other attributes
                await self._link(topic, queue)
        gate = self._gates[topic.name]
        if not gate.is_open:  # several sends may have done this at the same time
            gate.open()
            others = "; queues of other clients must be subscribed again" if self._is_sns else ""
            _log.warning("%s was deleted and has been created again%s", topic, others)

    def gate(self, name: str) -> Gate:
        """Return the gate of the topic *name*.  If it is closed, call :meth:`find_topic` before you send."""
        return self._gates[self._options.topic_of(name)]

    async def look_for_topic(self, name: str) -> Topic:
        """Return the topic *name*, which must exist."""
        full = self._options.topic_of(name)
        if not self._is_sns:
            return self._found(full, await self._queue_url(full))
        arn = await self._services.arn("sns", full)
        # A program that may only publish may not ask this.  Its first send then tells whether there is a topic.
        with _unless(ErrorCode.PERMISSION_DENIED), translated(f"look for SNS topic {full!r}"):
            await self._services.sns.get_topic_attributes(TopicArn=arn)
        return self._found(full, arn)

    def _found(self, name: str, address: str) -> Topic:
        return Topic(name, address, self._is_sns, self._options.is_fifo)

    def _topic_attributes(self) -> dict[str, str]:
        attributes: dict[str, str] = {}
        if self._options.is_fifo:
            # Without it, all message groups share a rate of 300 requests a second.
            attributes |= {"FifoTopic": "true", "FifoThroughputScope": "MessageGroup"}
        if self._options.max_message_bytes is not None:
            attributes["MaximumMessageSize"] = str(self._options.max_message_bytes)
        return attributes

    # Subscriptions

    async def join(self, topic: Topic, subscription: str) -> Queue:
        """Return the queue of *subscription*; create what is missing as the options allow.

        :raises BrokerError: ``NOT_FOUND``; ``INVALID`` for a subscription that contradicts the options.
        """
        name = self.queue_name(topic, subscription)
        try:
            queue = await self._look_for_queue(name)
        except BrokerError as error:
            if error.code is not ErrorCode.NOT_FOUND or not self._options.creates_queues:
                raise
            return await self.create(topic, name)
        if not self._is_sns:
            return queue
        _check_policy(topic, queue)
        return await self._linked(topic, queue)

    def queue_name(self, topic: Topic, subscription: str) -> str:
        """Return the name of a subscription's queue.

        :raises BrokerError: ``INVALID`` if no queue can have it.
        """
        name = self._options.queue_of(topic.name.removesuffix(".fifo"), subscription)
        if objection := queue_objection(subscription, name):
            raise BrokerError(objection, ErrorCode.INVALID)
        return name

    async def create(self, topic: Topic, name: str, tags: Mapping[str, str] | None = None) -> Queue:
        """Create a queue, and subscribe it to *topic*.

        If that fails, an ephemeral queue, which has *tags*, is deleted.  A named queue stays, because SQS does not tell
        who has created it: another client may have been quicker.  The next call subscribes it.
        """
        if not self._is_sns:
            return await self._look_for_queue(name, await self._create_queue(name, {}, tags or {}))
        arn = await self._services.arn("sqs", name)
        url = await self._create_queue(name, {"Policy": policy(arn, topic.address)}, tags or {})
        queue = Queue(name, url, arn, topic.is_fifo)
        try:
            return await self._link(topic, queue)
        except BaseException:  # also when cancelled
            if tags:
                with suppress(BrokerError):  # the answer may be all that was lost
                    await self._unlink(topic, queue)
                with suppress(BrokerError):
                    await self._delete_queue(queue)
            raise

    async def delete_subscription(self, topic: Topic, subscription: str) -> None:
        """Delete *subscription* with its queue.

        :raises BrokerError: ``NOT_FOUND`` if there is none.
        """
        queue = await self._look_for_queue(self.queue_name(topic, subscription))
        if self._is_sns and not await self._belongs(topic, queue):
            raise BrokerError(
                f"queue {queue.name!r} is not subscribed to {topic} and its policy is not for it, so it is no "
                f"subscription {subscription!r}; delete the queue yourself if nobody needs it",
                ErrorCode.NOT_FOUND,
            )
        await self.delete(topic, queue)

    async def _belongs(self, topic: Topic, queue: Queue) -> bool:
        """Return whether *queue* is subscribed to *topic*, or was created for that.

        Queues of two topics may have the same name.
        """
        with _unless(ErrorCode.NOT_FOUND):  # the topic was deleted
            if await self._find_link(topic, queue):
                return True
        return lets_send(queue.policy, queue.arn, topic.address) is True

    async def delete(self, topic: Topic, queue: Queue) -> None:
        """Delete *queue*, and its subscription first: without it, nobody would find that any more."""
        queue = self.forget(topic, queue)
        if self._is_sns:
            with _unless(ErrorCode.NOT_FOUND):  # the topic was deleted
                await self._unlink(topic, queue)
        await self._delete_queue(queue)

    async def _delete_queue(self, queue: Queue) -> None:
        with translated(f"delete queue {queue.name!r}"):
            await self._services.sqs.delete_queue(QueueUrl=queue.url)

    def forget(self, topic: Topic, queue: Queue) -> Queue:
        """Do not subscribe *queue* again if *topic* is deleted; return it with its latest subscription."""
        return self._linked_queues.get(topic.name, {}).pop(queue.arn, queue)

    async def keep_letters(self, topic: Topic, subscription: str, is_ephemeral: Callable[[str], bool]) -> bool:
        """Create *subscription* if the dead-letter topic has no other that lasts; return whether it has one now.

        :param is_ephemeral: says whether a queue with this name ends with its receiver.
        """
        if not self._is_sns:
            return True
        async for link in self._links(topic):
            arn = link["Endpoint"]
            name = arn.rpartition(":")[2]
            if is_ephemeral(name):
                continue
            if link["Protocol"] == "sqs":  # to subscribe it again if the topic is deleted
                self._remembered(topic, Queue(name, "", arn, topic.is_fifo, link=link["SubscriptionArn"]))
            return True
        if self._options.create == "never":
            return False
        await self.join(topic, subscription)
        return True

    async def has_subscription(self, topic: Topic) -> bool:
        """Return whether any subscription gets what is sent to *topic*."""
        if not self._is_sns:
            return True
        async for _ in self._links(topic):
            return True
        return False

    # Queues

    async def _queue_url(self, name: str) -> str:
        owner = {} if self._options.account_id is None else {"QueueOwnerAWSAccountId": self._options.account_id}
        with translated(f"look for queue {name!r}"):
            url: str = (await self._services.sqs.get_queue_url(QueueName=name, **owner))["QueueUrl"]
        return url

    async def _look_for_queue(self, name: str, url: str = "") -> Queue:
        url = url or await self._queue_url(name)
        with translated(f"ask for the attributes of queue {name!r}"):
            answer = await self._services.sqs.get_queue_attributes(
                QueueUrl=url, AttributeNames=["Policy", "QueueArn", "RedrivePolicy"]
            )
        attributes = answer.get("Attributes", {})
        redrives = not self._options.is_fifo and self._is_asked_for(attributes.get("RedrivePolicy"))
        arn, found = attributes["QueueArn"], attributes.get("Policy")
        return Queue(name, url, arn, self._options.is_fifo, redrives, policy=found)

    def _is_asked_for(self, policy: str | None) -> bool:
        """Return whether the redrive policy of a queue is the one that the options describe."""
        options = self._options
        if policy is None or options.dead_letter_topic is None:
            return False
        found = json.loads(policy)
        letters = options.queue_of(options.dead_letter_topic, options.letters_subscription)
        is_target = found.get("deadLetterTargetArn", "").rpartition(":")[2] == letters
        return is_target and int(found.get("maxReceiveCount", 0)) == options.max_delivery_attempts

    async def _create_queue(self, name: str, attributes: dict[str, str], tags: Mapping[str, str]) -> str:
        options = self._options
        if options.is_fifo:
            # Without the last two, all message groups share a rate of 300 requests a second.
            attributes |= {
                "FifoQueue": "true",
                "DeduplicationScope": "messageGroup",
                "FifoThroughputLimit": "perMessageGroupId",
            }
        if options.retention is not None:
            attributes["MessageRetentionPeriod"] = str(options.retention)
        if options.max_message_bytes is not None:
            attributes["MaximumMessageSize"] = str(options.max_message_bytes)
        await self._services.check_account()
        with translated(f"create queue {name!r}"):
            answer = await self._services.sqs.create_queue(QueueName=name, Attributes=attributes, tags=tags)
        url: str = answer["QueueUrl"]
        created("queue", url)
        return url

    # Links between a topic and its queues

    async def _linked(self, topic: Topic, queue: Queue) -> Queue:
        """Return *queue*, which exists, with its subscription to *topic*.

        :raises BrokerError: ``NOT_FOUND`` if it has none and may not get one.
        """
        try:
            link = await self._find_link(topic, queue)
        except BrokerError as error:
            if error.code is ErrorCode.PERMISSION_DENIED:  # a program that may only receive cannot ask
                return queue
            raise
        if not link:
            if self._options.create == "never":
                raise BrokerError(
                    f"queue {queue.name!r} is not subscribed to {topic}; subscribe it, or set the option create",
                    ErrorCode.NOT_FOUND,
                )
            return await self._link(topic, queue)
        with _unless(ErrorCode.PERMISSION_DENIED), translated(f"ask for the subscription of queue {queue.name!r}"):
            answer = await self._services.sns.get_subscription_attributes(SubscriptionArn=link)
            if answer["Attributes"].get("RawMessageDelivery") != "true":
                raise BrokerError(
                    f"the subscription of queue {queue.name!r} to {topic} wraps each message; set its attribute "
                    "RawMessageDelivery to true",
                    ErrorCode.INVALID,
                )
        return self._remembered(topic, attrs.evolve(queue, link=link))

    async def _link(self, topic: Topic, queue: Queue) -> Queue:
        with translated(f"subscribe queue {queue.name!r} to {topic}"):
            answer = await self._services.sns.subscribe(
                TopicArn=topic.address,
                Protocol="sqs",
                Endpoint=queue.arn,
                Attributes={"RawMessageDelivery": "true"},
                ReturnSubscriptionArn=True,
            )
        return self._remembered(topic, attrs.evolve(queue, link=answer["SubscriptionArn"]))

    async def _unlink(self, topic: Topic, queue: Queue) -> None:
        link = queue.link or await self._find_link(topic, queue)
        if link:
            with translated(f"unsubscribe queue {queue.name!r} from {topic}"):
                await self._services.sns.unsubscribe(SubscriptionArn=link)

    def _remembered(self, topic: Topic, queue: Queue) -> Queue:
        self._linked_queues.setdefault(topic.name, {})[queue.arn] = queue
        return queue

    async def _find_link(self, topic: Topic, queue: Queue) -> str:
        async for link in self._links(topic):
            if link["Endpoint"] == queue.arn:
                found: str = link["SubscriptionArn"]
                return found
        return ""

    async def _links(self, topic: Topic) -> AsyncIterator[Mapping[str, Any]]:
        page: dict[str, str] = {}
        while True:
            with translated(f"list the subscriptions of {topic}"):
                answer = await self._services.sns.list_subscriptions_by_topic(TopicArn=topic.address, **page)
            for link in answer.get("Subscriptions", ()):
                yield link
            if not answer.get("NextToken"):
                return
            page = {"NextToken": answer["NextToken"]}


def _check_policy(topic: Topic, queue: Queue) -> None:
    """Refuse a queue into which SNS may not write: its receivers would wait in vain, and no error would say so.

    :raises BrokerError: ``INVALID``.
    """
    allowed = lets_send(queue.policy, queue.arn, topic.address)
    if allowed:
        return
    advice = f"add this statement to its policy: {json.dumps(statement(queue.arn, topic.address))}"
    if allowed is None:
        _log.warning(
            "it cannot be told whether queue %r lets %s send to it; if no message comes, %s", queue.name, topic, advice
        )
        return
    raise BrokerError(f"queue {queue.name!r} does not let {topic} send to it; {advice}", ErrorCode.INVALID)


@contextmanager
def _unless(code: ErrorCode) -> Iterator[None]:
    """Pass over an error with this code."""
    try:
        yield
    except BrokerError as error:
        if error.code is not code:
            raise
