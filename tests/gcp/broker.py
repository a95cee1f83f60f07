"""A small Pub/Sub in memory, which stores messages and fails as a test tells it to.

Unlike the emulator, it runs on the event loop of the test and can refuse, ignore or damage any request.  It serves many
topics, so that a test can try many faults at the same time.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from google.protobuf.empty_pb2 import Empty
from google.pubsub_v1 import types

from .console import PROJECT

_Message = types.PubsubMessage.pb()

_ACK_ID_BYTES = 220
"""The length of an ack id of the service (googleapis/google-cloud-go#20391)."""

_RESPONSE_MESSAGES = 100
"""Messages in one response.  Like the emulator, and unlike the service, this broker has no other bound."""


@dataclass(eq=False)
class Fault:
    """A fault in the requests of one method for one topic or subscription.

    If it has neither a status nor an answer, the request is never answered.
    """

    status: grpc.StatusCode | None = None
    answer: bytes | None = None
    """Bytes instead of the true answer.  The client may be unable to read them."""
    after: bool = False
    """Whether the request takes effect, and only its answer is lost."""
    left: float = 1
    """The number of requests that still get this fault."""


@dataclass(eq=False)
class Subscription:
    """A subscription and its messages."""

    resource: Any
    waiting: deque[Any] = field(default_factory=deque)
    out: dict[str, Any] = field(default_factory=dict)
    """Messages by ack id."""
    timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    arrival: asyncio.Event = field(default_factory=asyncio.Event)
    grace: float = 0
    """Seconds for which a lease goes on after its deadline, because a busy machine may renew it too late."""

    def add(self, message: Any) -> None:
        self.waiting.append(message)
        self.arrival.set()


class Broker:
    """Topics and subscriptions by name.  :meth:`fail` makes a method fail."""

    def __init__(self) -> None:
        self.address = ""
        self.topics: defaultdict[str, list[Any]] = defaultdict(list)
        """All messages that were ever published, by the full name of the topic."""
        self.subscriptions: dict[str, Subscription] = {}
        self.faults: dict[tuple[str, str], Fault] = {}
        self.requests: Counter[tuple[str, str]] = Counter()
        """The number of requests, by method and short name."""
        self.acknowledged: list[str] = []
        """The ids of acknowledged messages, in order."""
        self.modified: list[tuple[str, int]] = []
        """Message ids, and the deadlines that requests set for them."""
        self.revoked: set[str] = set()
        """Tokens that the broker refuses."""
        self.expired: list[str] = []
        """The ids of messages whose leases ran out."""
        self.largest = 0
        """The bytes of the largest request to settle."""
        self.peers: set[str] = set()
        """The connections that sent requests."""
        self.pulling: set[asyncio.Task[Any]] = set()
        """Pulls that wait for a message, including those that the client has cancelled."""
        self._pings: list[asyncio.Queue[bool]] = []
        """For each open stream, what ``_listen`` puts there."""
        self.keeps_bounds = False
        """Whether a stream has at most as many unsettled messages as the client allows, as on the service."""
        self._numbers = itertools.count(1)

    @property
    def streaming(self) -> int:
        """The number of open streams."""
        return len(self._pings)

    # What goes wrong

    def fail(self, method: str, name: str, status: grpc.StatusCode | None = None, **settings: Any) -> Fault:
        """Let requests of *method* for the topic or subscription *name* fail, by default once."""
        fault = self.faults[method, name] = Fault(status, **settings)
        return fault

    def mend(self, method: str, name: str) -> None:
        """Let these requests succeed again."""
        self.faults.pop((method, name), None)

    async def _begin(self, method: str, path: str, context: Any) -> Fault | None:
        """Count a request, and apply its fault unless the request is to take effect first."""
        name = path.rpartition("/")[2]
        self.requests[method, name] += 1
        self.peers.add(context.peer())
        if dict(context.invocation_metadata()).get("authorization", "").removeprefix("Bearer ") in self.revoked:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is not valid")
        fault = self.faults.get((method, name))
        if fault is None:
            return None
        fault.left -= 1
        if fault.left <= 0:
            del self.faults[method, name]
        if not fault.after:
            await _strike(fault, context)
        return fault

    async def _end(self, fault: Fault | None, context: Any, answer: Any) -> Any:
        if fault is None:
            return answer
        if fault.after:
            await _strike(fault, context)
        return fault.answer if fault.answer is not None else answer

    # Publisher

    async def create_topic(self, request: Any, context: Any) -> Any:
        fault = await self._begin("CreateTopic", request.name, context)
        if request.name in self.topics:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "it exists")
        self.topics[request.name] = []
        return await self._end(fault, context, request)

    async def get_topic(self, request: Any, context: Any) -> Any:
        fault = await self._begin("GetTopic", request.topic, context)
        return await self._end(fault, context, types.Topic.pb()(name=request.topic))

    async def delete_topic(self, request: Any, context: Any) -> Any:
        fault = await self._begin("DeleteTopic", request.topic, context)
        self.topics.pop(request.topic, None)
        return await self._end(fault, context, Empty())

    async def list_topic_subscriptions(self, request: Any, context: Any) -> Any:
        fault = await self._begin("ListTopicSubscriptions", request.topic, context)
        names = [path for path, each in self.subscriptions.items() if each.resource.topic == request.topic]
        answer = types.ListTopicSubscriptionsResponse.pb()(subscriptions=names)
        return await self._end(fault, context, answer)

    async def publish(self, request: Any, context: Any) -> Any:
        fault = await self._begin("Publish", request.topic, context)
        ids = []
        for message in request.messages:
            stored = self.message(message.data, message.attributes, message.ordering_key)
            ids.append(stored.message_id)
            self.topics[request.topic].append(stored)
            for subscription in self.subscriptions.values():
                if subscription.resource.topic == request.topic:
                    subscription.add(stored)
        return await self._end(fault, context, types.PublishResponse.pb()(message_ids=ids))

    def message(self, data: bytes, attributes: Mapping[str, str] | None = None, key: str = "") -> Any:
        """Return a message with a new id."""
        identity = str(next(self._numbers))
        return _Message(data=data, attributes=attributes, ordering_key=key, message_id=identity)

    # Subscriber

    def subscription(self, name: str, topic: str, *, grace: float = 0, **settings: Any) -> Subscription:
        """Create a subscription, as another program would."""
        path = f"projects/{PROJECT}/subscriptions/{name}"
        resource = types.Subscription.pb()(
            name=path, topic=f"projects/{PROJECT}/topics/{topic}", **{"ack_deadline_seconds": 10, **settings}
        )
        made = self.subscriptions[path] = Subscription(resource, grace=grace)
        return made

    async def create_subscription(self, request: Any, context: Any) -> Any:
        fault = await self._begin("CreateSubscription", request.name, context)
        if request.name in self.subscriptions:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "it exists")
        self.subscriptions[request.name] = Subscription(request)
        return await self._end(fault, context, request)

    async def get_subscription(self, request: Any, context: Any) -> Any:
        fault = await self._begin("GetSubscription", request.subscription, context)
        found = await self._find(request, context)
        return await self._end(fault, context, found.resource)

    async def delete_subscription(self, request: Any, context: Any) -> Any:
        fault = await self._begin("DeleteSubscription", request.subscription, context)
        await self._find(request, context)
        del self.subscriptions[request.subscription]
        return await self._end(fault, context, Empty())

    async def _find(self, request: Any, context: Any) -> Subscription:
        found = self.subscriptions.get(request.subscription)
        if found is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is none")
        assert found is not None
        return found

    # Deliveries

    async def pull(self, request: Any, context: Any) -> Any:
        fault = await self._begin("Pull", request.subscription, context)
        found = await self._find(request, context)
        pulling = asyncio.ensure_future(self._pull(found, request.max_messages, context.time_remaining()))
        self.pulling.add(pulling)
        pulling.add_done_callback(self.pulling.discard)
        return await self._end(fault, context, await asyncio.shield(pulling))

    async def _pull(self, found: Subscription, limit: int, seconds: float) -> Any:
        """Answer, also if the client has cancelled the request.  The messages are then lost until the lease ends."""
        response = types.PullResponse.pb()()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wait(found)
            self._deliver(found, response, limit, found.resource.ack_deadline_seconds)
        return response

    async def stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        first = await anext(requests)
        fault = await self._begin("StreamingPull", first.subscription, context)
        found = await self._find(first, context)
        if fault is not None:
            yield await self._end(fault, context, types.StreamingPullResponse.pb()())
        pings: asyncio.Queue[bool] = asyncio.Queue()
        listening = asyncio.ensure_future(_listen(requests, pings))
        brought: set[str] = set()

        def room() -> int:
            bound = first.max_outstanding_messages if self.keeps_bounds else math.inf
            return int(min(_RESPONSE_MESSAGES, bound - len(brought & found.out.keys())))

        self._pings.append(pings)
        try:
            while True:
                arriving = asyncio.ensure_future(self._wait(found, room))
                pinged = asyncio.ensure_future(pings.get())
                await asyncio.wait([arriving, pinged], return_when=asyncio.FIRST_COMPLETED)
                arriving.cancel()
                pinged.cancel()
                if pinged.done() and not pinged.cancelled() and not pinged.result():
                    return
                response = types.StreamingPullResponse.pb()()
                properties = response.subscription_properties
                properties.message_ordering_enabled = found.resource.enable_message_ordering
                properties.exactly_once_delivery_enabled = found.resource.enable_exactly_once_delivery
                self._deliver(found, response, room(), first.stream_ack_deadline_seconds)
                brought.update(received.ack_id for received in response.received_messages)
                yield response
        finally:
            self._pings.remove(pings)
            listening.cancel()

    def end_streams(self) -> None:
        """End all streams, as the service does now and then."""
        for pings in self._pings:
            pings.put_nowait(False)

    async def _wait(self, found: Subscription, room: Callable[[], int] = lambda: 1) -> None:
        """Wait for a message to deliver, and for room for it."""
        while not found.waiting or room() < 1:
            found.arrival.clear()
            await found.arrival.wait()

    def _deliver(self, found: Subscription, response: Any, limit: int, deadline: int) -> None:
        while found.waiting and len(response.received_messages) < limit:
            message = found.waiting.popleft()
            ack_id = f"{message.message_id}-{next(self._numbers)}".ljust(_ACK_ID_BYTES, "_")
            response.received_messages.add(ack_id=ack_id, message=message)
            found.out[ack_id] = message
            self._lease(found, ack_id, deadline)

    def _lease(self, found: Subscription, ack_id: str, seconds: int) -> None:
        if ack_id not in found.out:
            return
        if ack_id in found.timers:
            found.timers.pop(ack_id).cancel()
        if seconds:
            loop = asyncio.get_running_loop()
            found.timers[ack_id] = loop.call_later(seconds + found.grace, self._expire, found, ack_id)
        else:
            found.add(found.out.pop(ack_id))

    def _expire(self, found: Subscription, ack_id: str) -> None:
        del found.timers[ack_id]
        self.expired.append(found.out[ack_id].message_id)
        found.add(found.out.pop(ack_id))

    async def acknowledge(self, request: Any, context: Any) -> Any:
        fault = await self._begin("Acknowledge", request.subscription, context)
        found = await self._find(request, context)
        self.largest = max(self.largest, request.ByteSize())
        for ack_id in request.ack_ids:
            message = found.out.pop(ack_id, None)
            if message is not None:
                found.timers.pop(ack_id).cancel()
                found.arrival.set()  # a stream may have room now
                self.acknowledged.append(message.message_id)
        return await self._end(fault, context, Empty())

    async def modify(self, request: Any, context: Any) -> Any:
        fault = await self._begin("ModifyAckDeadline", request.subscription, context)
        found = await self._find(request, context)
        self.largest = max(self.largest, request.ByteSize())
        for ack_id in request.ack_ids:
            if ack_id in found.out:
                self.modified.append((found.out[ack_id].message_id, request.ack_deadline_seconds))
            self._lease(found, ack_id, request.ack_deadline_seconds)
        return await self._end(fault, context, Empty())


async def _strike(fault: Fault, context: Any) -> None:
    if fault.status is not None:
        await context.abort(fault.status, "as the test wants it")
    if fault.answer is None:
        await asyncio.Event().wait()


async def _listen(requests: AsyncIterator[Any], pings: asyncio.Queue[bool]) -> None:
    """Put ``True`` for each ping of the client, and ``False`` when it has closed its half."""
    async for _ in requests:
        pings.put_nowait(True)
    pings.put_nowait(False)
