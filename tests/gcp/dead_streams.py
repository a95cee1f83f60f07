"""Show, with nothing of this library, that the emulator delivers into streams of lost connections.

Run ``python -m tests.gcp.dead_streams HOST:PORT [seed] [seconds]``.  One program of bare ``grpc`` and protobufs pulls
from a subscription through a proxy that cuts, delays and silences connections for *seconds* (90), while 40,000 messages
are published.  It opens its stream again whenever that ends, and repeats each acknowledgement until it is confirmed.
Then the faults end, and the program prints what it still has not acknowledged, and what the emulator sends.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
import uuid
from collections import Counter
from contextlib import suppress
from typing import Any

import grpc.aio
from google.protobuf.empty_pb2 import Empty
from google.pubsub_v1 import types

from events_core.testing import TcpProxy

MESSAGES = 40_000
WATCHED = 170
LEASE = 10
OPTIONS = [("grpc.max_reconnect_backoff_ms", 250), ("grpc.use_local_subchannel_pool", 1)]


def method(channel: Any, kind: str, name: str, response: Any) -> Any:
    return getattr(channel, kind)(
        f"/google.pubsub.v1.{name}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=response.FromString,
    )


class Subscriber:
    """A subscriber with one stream at a time, and one acknowledgement at a time."""

    def __init__(self, address: str, subscription: str) -> None:
        channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._subscription = subscription
        self._open = method(channel, "stream_stream", "Subscriber/StreamingPull", types.StreamingPullResponse.pb())
        self._acknowledge = method(channel, "unary_unary", "Subscriber/Acknowledge", Empty)
        self._arrived: asyncio.Queue[Any] = asyncio.Queue()
        self.streams = 0
        self.settled: set[str] = set()
        self.attempts: dict[str, int] = {}

    async def read(self) -> None:
        while True:
            self.streams += 1
            with suppress(grpc.RpcError, asyncio.InvalidStateError):
                stream = self._open()
                first = {"subscription": self._subscription, "stream_ack_deadline_seconds": LEASE}
                await stream.write(types.StreamingPullRequest.pb()(**first))
                while (response := await stream.read()) is not grpc.aio.EOF:
                    for received in response.received_messages:
                        self.attempts[received.message.message_id] = received.delivery_attempt
                        self._arrived.put_nowait(received)
            await asyncio.sleep(0.2)

    async def settle(self) -> None:
        while True:
            batch = [await self._arrived.get()]
            while not self._arrived.empty() and len(batch) < 1000:
                batch.append(self._arrived.get_nowait())
            ack_ids = [received.ack_id for received in batch]
            request = types.AcknowledgeRequest.pb()(subscription=self._subscription, ack_ids=ack_ids)
            while not await self._is_confirmed(request):
                await asyncio.sleep(0.2)
            self.settled.update(received.message.message_id for received in batch)

    async def _is_confirmed(self, request: Any) -> bool:
        try:
            await self._acknowledge(request, timeout=5)
        except grpc.RpcError:
            return False
        return True


async def storm(proxy: TcpProxy, seconds: float, chance: random.Random) -> Counter[str]:
    """Disturb the connections, and return the number of each fault."""
    ends, counts = time.monotonic() + seconds, Counter[str]()
    while time.monotonic() < ends:
        await asyncio.sleep(chance.uniform(0.5, 3))
        name = chance.choice(["cut", "delay", "silence"])
        counts[name] += 1
        fault = proxy.delay(chance.uniform(0.1, 1)) if name == "delay" else getattr(proxy, name)()
        with fault:
            await asyncio.sleep(chance.uniform(0.5, 4))
    return counts


async def publish(channel: Any, topic: str, seconds: float) -> set[str]:
    sent: set[str] = set()
    send = method(channel, "unary_unary", "Publisher/Publish", types.PublishResponse.pb())
    for _ in range(MESSAGES // 100):
        sent.update((await send(types.PublishRequest.pb()(topic=topic, messages=[{"data": b"x"}] * 100))).message_ids)
        await asyncio.sleep(0.9 * seconds * 100 / MESSAGES)
    return sent


async def main(address: str, seed: int = 7, seconds: float = 90) -> None:
    direct = grpc.aio.insecure_channel(address)
    topic = f"projects/bare/topics/t-{uuid.uuid4().hex}"
    subscription = topic.replace("/topics/", "/subscriptions/")
    for name in (topic, f"{topic}-dead"):
        await method(direct, "unary_unary", "Publisher/CreateTopic", types.Topic.pb())(types.Topic.pb()(name=name))
    counting = {"dead_letter_topic": f"{topic}-dead", "max_delivery_attempts": 100}
    create = method(direct, "unary_unary", "Subscriber/CreateSubscription", types.Subscription.pb())
    await create(types.Subscription.pb()(name=subscription, topic=topic, dead_letter_policy=counting))
    with TcpProxy(address) as proxy:
        subscriber = Subscriber(proxy.address, subscription)
        running = [asyncio.ensure_future(each()) for each in (subscriber.read, subscriber.settle)]
        sent, faults = await asyncio.gather(publish(direct, topic, seconds), storm(proxy, seconds, random.Random(seed)))
        print(f"seed {seed}: {dict(faults)}, {subscriber.streams} streams; sent {len(sent)}")
        silent, streams, received = 0, subscriber.streams, proxy.received
        for second in range(WATCHED):
            if second % 10 == 0:
                print(f"{second:4} s without faults: {len(sent - subscriber.settled):6} unsettled")
            await asyncio.sleep(1)
            silent += proxy.received - received < 100
            received = proxy.received
            if sent <= subscriber.settled:
                break
        print(f"{len(sent - subscriber.settled)} unsettled; {subscriber.streams - streams} streams more")
        print(f"in {silent} of these seconds the emulator sent nothing; most delivery attempts of a message that came:")
        print(f"{max(subscriber.attempts.values())}, of which none was nacked")
        for task in running:
            task.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
