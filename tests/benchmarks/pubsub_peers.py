"""The contenders of ``pubsub_cost.py`` and their works, each with the settings that measured best for it.

``pubsub_cost.py`` runs this program once for each contender, work and round, so that the threads and channels of one
contender do not count for another.  The argument is a task as JSON.  The program finds the emulator by
``PUBSUB_EMULATOR_HOST``, and prints its figures as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import contenders
from contenders import (
    BATCH,
    PAYLOAD,
    RESPONSE,
    SENDERS,
    attributes,
    read,
    send_alone,
    send_batches,
    send_concurrently,
)
from contest import Figures, Meter

if TYPE_CHECKING:
    from events_core import ReceivedMessage

PROJECT = "events-benchmark"
SETTLED_IN = 0.2
IDLE = 1.5
"""Seconds for which to measure the cost of waiting, after the work and everything that it left behind."""
LEASE = 10
BLOCKED = 30.0
LISTENED = 5.0
"""Seconds for which a holder of messages listens for their redelivery when its loop runs again."""


@dataclass(frozen=True, kw_only=True)
class Task(contenders.Task):
    """A work on the emulator."""

    @property
    def topic_path(self) -> str:
        return f"projects/{PROJECT}/topics/{self.topic}"

    @property
    def subscription_path(self) -> str:
        return f"projects/{PROJECT}/subscriptions/{self.subscription}"


class Contender(contenders.Contender[Task]):
    """A client of one topic and, where the task names one, of a subscription."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.host = os.environ["PUBSUB_EMULATOR_HOST"]


class Ours(Contender):
    """events-gcp, with its default settings."""

    async def open(self) -> None:
        from events_core import EventConfig, EventMessage, create_client

        self.message = EventMessage
        options = {"emulator_host": self.host}
        if self.task.work.startswith("held"):
            options["ack_deadline"] = str(LEASE)
        config = EventConfig(self.task.topic, PROJECT, options, "gcp")
        self.client = await self.stack.enter_async_context(create_client(config))
        if self.task.subscription:
            self.receiver = await self.client.subscribe(self.task.subscription)

    async def send(self, number: int) -> None:
        await self.client.send_message(self.message(PAYLOAD, attributes(number)))

    async def send_batch(self, numbers: Iterable[int]) -> None:
        await self.client.send_messages([self.message(PAYLOAD, attributes(number)) for number in numbers])

    async def take(self) -> int:
        messages = await self.receiver.receive_messages(RESPONSE)
        for message in messages:
            read(message.data, message.attributes)
        await self.receiver.acknowledge_messages(messages)
        return len(messages)


class Handover:
    """A scheduler of the official client that hands messages to an event loop and wakes it once for many.

    This bridge was the cheapest one measured.  Callbacks in the client's pool of threads cost half as much again.
    """

    def __init__(self) -> None:
        self.queue: queue.Queue[Any] = queue.Queue()  # the client reads acknowledgements from it
        self._messages: deque[Any] = deque()
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._woken = False

    def schedule(self, callback: Callable[..., object], message: Any) -> None:
        self._messages.append(message)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def take(self) -> list[Any]:
        await self._arrived.wait()
        self._arrived.clear()
        self._woken = False
        return [self._messages.popleft() for _ in range(len(self._messages))]

    def shutdown(self, await_msg_callbacks: bool = False) -> list[Any]:
        return [*self._messages]


class Official(Contender):
    """google-cloud-pubsub, its high-level clients, used from asyncio."""

    async def open(self) -> None:
        from google.cloud import pubsub_v1  # type: ignore[import-untyped]

        if self.task.subscription:
            self._subscribe(pubsub_v1)
        else:
            # These measured best of 100 to 1,000 messages and 2 to 50 ms.  A lone message must not wait for a second.
            limit = 1 if self.task.work == "alone" else BATCH
            settings = pubsub_v1.types.BatchSettings(max_messages=limit, max_bytes=9_000_000, max_latency=0.05)
            self.publisher = pubsub_v1.PublisherClient(batch_settings=settings)
            self.stack.callback(self.publisher.stop)

    def _subscribe(self, pubsub_v1: Any) -> None:
        self.handover = Handover()
        subscriber = self.stack.enter_context(pubsub_v1.SubscriberClient())
        pulling = subscriber.subscribe(
            self.task.subscription_path,
            callback=lambda message: None,  # the scheduler does not call it
            # As many as ours has; ten times as many measured the same.
            flow_control=pubsub_v1.types.FlowControl(max_messages=1_000),
            scheduler=self.handover,
        )
        self.stack.callback(pulling.result)
        self.stack.callback(pulling.cancel)

    def publish(self, number: int) -> Any:
        return self.publisher.publish(self.task.topic_path, PAYLOAD, **attributes(number))

    async def send(self, number: int) -> None:
        await asyncio.wrap_future(self.publish(number))

    async def send_batch(self, numbers: Iterable[int]) -> None:
        futures = [self.publish(number) for number in numbers]
        # This costs half of a ``wrap_future`` for each.
        await asyncio.to_thread(lambda: [future.result() for future in futures])

    async def take(self) -> int:
        messages = await self.handover.take()
        for message in messages:
            read(message.data, message.attributes)
            message.ack()
        return len(messages)


class GcloudAio(Contender):
    """gcloud-aio-pubsub: JSON over HTTP.  It gathers no batches, and renews no leases."""

    async def open(self) -> None:
        import aiohttp
        from gcloud.aio import pubsub

        self.message = pubsub.PubsubMessage
        # With aiohttp's default limit of 100 connections; 10, 30 and 300 measured no better.
        session: Any = await self.stack.enter_async_context(aiohttp.ClientSession())
        self.publisher = pubsub.PublisherClient(session=session)
        self.subscriber = pubsub.SubscriberClient(session=session)

    async def send(self, number: int) -> None:
        await self.send_batch([number])

    async def send_batch(self, numbers: Iterable[int]) -> None:
        messages = [self.message(PAYLOAD, **attributes(number)) for number in numbers]
        await self.publisher.publish(self.task.topic_path, messages, timeout=60)

    async def take(self) -> int:
        messages = await self.subscriber.pull(self.task.subscription_path, BATCH)
        for message in messages:
            read(message.data, message.attributes)
        await self.subscriber.acknowledge(self.task.subscription_path, [message.ack_id for message in messages])
        return len(messages)


class Floor(Contender):
    """Bare ``grpc.aio`` and protobuf in the application's own loop, without retries, leases or bounds."""

    async def open(self) -> None:
        import grpc.aio  # type: ignore[import-untyped]
        from google.pubsub_v1 import types

        self.channel = await self.stack.enter_async_context(grpc.aio.insecure_channel(self.host))
        await self.channel.channel_ready()
        self.eof = grpc.aio.EOF
        self.message = types.PubsubMessage.pb()
        self.request = types.PublishRequest.pb()
        self.publish = self._method("unary_unary", "Publisher/Publish", self.request, types.PublishResponse.pb())
        if self.task.subscription:
            self._subscribe(types)

    def _method(self, kind: str, name: str, request: Any, response: Any) -> Any:
        return getattr(self.channel, kind)(
            f"/google.pubsub.v1.{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )

    def _subscribe(self, types: Any) -> None:
        from google.protobuf.empty_pb2 import Empty

        self.confirmation = types.AcknowledgeRequest.pb()
        self.acknowledge = self._method("unary_unary", "Subscriber/Acknowledge", self.confirmation, Empty)
        request = types.StreamingPullRequest.pb()
        pull = self._method("stream_stream", "Subscriber/StreamingPull", request, types.StreamingPullResponse.pb())
        self.ending = asyncio.Event()
        self.stream = pull(
            self._requests(request(subscription=self.task.subscription_path, stream_ack_deadline_seconds=60))
        )
        self.stack.push_async_callback(self._end)

    async def _requests(self, first: object) -> AsyncIterator[object]:
        yield first
        await self.ending.wait()

    async def _end(self) -> None:
        """Let the emulator end the stream, because it keeps a cancelled one alive."""
        self.ending.set()
        while await self.stream.read() is not self.eof:
            continue

    async def send(self, number: int) -> None:
        await self.send_batch([number])

    async def send_batch(self, numbers: Iterable[int]) -> None:
        messages = [self.message(data=PAYLOAD, attributes=attributes(number)) for number in numbers]
        await self.publish(self.request(topic=self.task.topic_path, messages=messages))

    async def send_concurrently(self, messages: int) -> None:
        """Send as many messages at a time, in batches.  No task waits for a single message."""

        async def lane(firsts: Iterable[int]) -> None:
            for first in firsts:
                await self.send_batch(range(first, min(first + BATCH, messages)))

        await asyncio.gather(*(lane(range(first, messages, SENDERS)) for first in range(0, SENDERS, BATCH)))

    async def take(self) -> int:
        received = (await self.stream.read()).received_messages
        for each in received:
            read(each.message.data, each.message.attributes)
        ack_ids = [each.ack_id for each in received]
        await self.acknowledge(self.confirmation(subscription=self.task.subscription_path, ack_ids=ack_ids))
        return len(ack_ids)


# Works


async def receive(contender: Contender) -> Figures:
    """Receive and acknowledge a backlog.  Then wait while nothing comes, to measure the cost of waiting."""
    figures = await contenders.receive(contender)
    await asyncio.sleep(SETTLED_IN)
    meter = Meter()
    await asyncio.sleep(IDLE)
    idle = meter.read(0)
    return {"idle": idle["cpu"] / idle["seconds"], **figures}


def work_in_python(seconds: float) -> None:
    number, ends = 0, time.monotonic() + seconds
    while time.monotonic() < ends:
        number = (number * 31 + 7) % 1_000_003


async def hold(contender: Contender) -> Figures:
    """Hold messages while the loop is blocked, then listen, then acknowledge them."""
    from events_core import AcknowledgeError

    assert isinstance(contender, Ours)
    receiver = contender.receiver
    held: list[ReceivedMessage] = []
    while len(held) < contender.task.messages:
        held += await receiver.receive_messages(contender.task.messages - len(held))
    print("held", flush=True)
    block = work_in_python if contender.task.work == "held-work" else time.sleep
    block(BLOCKED)
    late = await receiver.receive_messages(BATCH, LISTENED)
    duplicates = receiver.stats.duplicates
    try:
        await receiver.acknowledge_messages(held)
    except AcknowledgeError as error:
        refused = len(error.failed)
    else:
        refused = 0
    return {"messages": len(held), "redelivered": len(late) + duplicates, "refused": refused}


CONTENDERS: dict[str, type[Contender]] = {
    "ours": Ours,
    "official": Official,
    "gcloud-aio": GcloudAio,
    "floor": Floor,
}
WORKS: dict[str, Callable[[Contender], Awaitable[Figures]]] = {
    "concurrently": send_concurrently,
    "batches": send_batches,
    "alone": send_alone,
    "receive": receive,
    "ordered": receive,
    "held-sleep": hold,
    "held-work": hold,
}


async def main(task: Task) -> None:
    async with CONTENDERS[task.contender](task) as contender:
        print(json.dumps(await WORKS[task.work](contender)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Task(**json.loads(sys.argv[1]))))
