"""A server of SQS and SNS as its administrator and other programs see it, by bare aiobotocore."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Self

from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from events_core import EventConfig
from events_sqs import SQSClient

from .server import KEY, REGION, SECRET, Server

PATIENT = dict.fromkeys(("send_timeout", "ack_timeout", "connect_timeout"), "300")
"""Options with which a call ends when it is done, however busy the machine is."""
LOGIN = {"access_key_id": KEY, "secret_access_key": SECRET}
"""Options of somebody who may do everything."""


class Console:
    """A server, and the topic and the subscription of one test.

    ``async with console:`` connects it.  Then :attr:`sqs` and :attr:`sns` are clients of aiobotocore.

    :param options: options of the clients that :meth:`client` makes.
    """

    def __init__(self, server: Server, **options: str) -> None:
        self.server = server
        self.topic = f"t-{uuid.uuid4().hex[:12]}"
        self.subscription = self.topic if options.get("topology") == "queue" else "s"
        self.options = options
        self.sqs: Any = None
        self.sns: Any = None
        self.iam: Any = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        session = get_session()
        login = {"region_name": REGION, "aws_access_key_id": KEY, "aws_secret_access_key": SECRET}
        self.sqs, self.sns, self.iam = [
            await self._stack.enter_async_context(session.create_client(service, endpoint_url=self.server.url, **login))
            for service in ("sqs", "sns", "iam")
        ]
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._stack.aclose()

    def client(self, topic: str = "", **options: str) -> SQSClient:
        """Return a client of the topic, or of another one."""
        given = {
            "region": REGION,
            "endpoint_url": self.server.url,
            "create": "all",
            "subscription": self.subscription,
            "wait_time": "1",
            **LOGIN,
            **PATIENT,
            **self.options,
            **options,
        }
        left_out = {name: value for name, value in given.items() if value}
        return SQSClient(EventConfig(topic or self.topic, options=left_out, backend="sqs"))

    # Queues

    @property
    def is_fifo(self) -> bool:
        return self.options.get("ordering") == "true"

    @property
    def queue(self) -> str:
        """The name of the subscription's queue."""
        name = self.topic if self.options.get("topology") == "queue" else f"{self.topic}-{self.subscription}"
        return f"{name}.fifo" if self.is_fifo else name

    async def url(self, queue: str = "") -> str:
        return str((await self.sqs.get_queue_url(QueueName=queue or self.queue))["QueueUrl"])

    async def has_queue(self, queue: str = "") -> bool:
        try:
            await self.url(queue)
        except ClientError:
            return False
        return True

    async def attributes(self, queue: str = "") -> Mapping[str, str]:
        answer = await self.sqs.get_queue_attributes(QueueUrl=await self.url(queue), AttributeNames=["All"])
        found: Mapping[str, str] = answer["Attributes"]
        return found

    async def messages(self, queue: str = "") -> int:
        """Return the number of messages in a queue, in flight or not."""
        found = await self.attributes(queue)
        names = ("", "NotVisible", "Delayed")
        return sum(int(found.get(f"ApproximateNumberOfMessages{name}", 0)) for name in names)

    async def delete_queue(self, queue: str = "") -> None:
        await self.sqs.delete_queue(QueueUrl=await self.url(queue))

    async def purge(self) -> None:
        await self.sqs.purge_queue(QueueUrl=await self.url())

    # Topics

    @property
    def topic_arn(self) -> str:
        return f"arn:aws:sns:{REGION}:000000000000:{self.topic}{'.fifo' if self.is_fifo else ''}"

    async def subscriptions(self) -> list[Mapping[str, str]]:
        answer = await self.sns.list_subscriptions_by_topic(TopicArn=self.topic_arn)
        found: list[Mapping[str, str]] = answer["Subscriptions"]
        return found

    # Access

    async def add_user(self, *allowed: str) -> dict[str, str]:
        """Create a user who may do the *allowed* actions, and return the options of a client that is this user."""
        name = uuid.uuid4().hex
        statement = {"Effect": "Allow", "Action": list(allowed), "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        await self.iam.create_user(UserName=name)
        await self.iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=policy)
        made = (await self.iam.create_access_key(UserName=name))["AccessKey"]
        return {"access_key_id": made["AccessKeyId"], "secret_access_key": made["SecretAccessKey"]}


async def add_redrive(console: Console, letters: str, attempts: int) -> None:
    """Give the subscription's queue a redrive policy, whose target is the queue *letters*."""
    arn = (await console.attributes(letters))["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": attempts})
    await console.sqs.set_queue_attributes(QueueUrl=await console.url(), Attributes={"RedrivePolicy": policy})
