"""Measure the outcomes of ten faults here and with Google's own client, on the same server.

This is a separate program: ``python -m tests.gcp.official`` prints the outcomes as JSON.  Google's client leaves
threads running, which would disturb other tests.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import TimeoutError as NotDone
from contextlib import contextmanager, suppress
from typing import Any

import grpc
from google.api_core.exceptions import GoogleAPIError, InternalServerError, ServiceUnavailable
from google.api_core.retry import Retry, if_exception_type
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.cloud.pubsub_v1.publisher.exceptions import PublishToPausedOrderingKeyException
from google.cloud.pubsub_v1.types import FlowControl, PublisherOptions
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from events_core import EventError, EventMessage
from events_gcp import GcpPubSubClient

from .broker import Broker, Fault
from .calls import told
from .console import PROJECT, client
from .faults import serving
from .waiting import close_patiently, until

TIMEOUT = 2.0
"""Seconds that a send or an acknowledgement may take if the fault lasts longer."""
PATIENCE = 6.0
"""Seconds after which a send with a key counts as having no outcome, although it may take TIMEOUT."""
BUSY = 60.0
"""Seconds for a call that ends by itself, even on a busy machine."""
FOREVER = float("inf")


class Place:
    """The topic and the subscription of one trial, on a broker that all trials share."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.broker = broker
        self.name = name
        self.timeout = BUSY
        self.topic = f"projects/{PROJECT}/topics/{name}"
        self.path = f"projects/{PROJECT}/subscriptions/{name}"
        self.subscription = broker.subscription(name, name, enable_message_ordering=True)

    def ours(self) -> GcpPubSubClient:
        timeouts = dict.fromkeys(("send_timeout", "ack_timeout"), f"{self.timeout:g}")
        return client(self.name, emulator_host=self.broker.address, create="never", **timeouts)

    def deliver(self, count: int = 1, key: str = "") -> None:
        for number in range(count):
            self.subscription.add(self.broker.message(b"%d" % number, key=key))

    @contextmanager
    def publisher(self, *, ordering: bool) -> Iterator[Callable[[str], str]]:
        """Yield a function that sends a message with a key by Google's client, and returns the outcome."""
        channel = grpc.insecure_channel(self.broker.address)
        options = PublisherOptions(enable_message_ordering=ordering)
        publisher = PublisherClient(publisher_options=options, transport=PublisherGrpcTransport(channel=channel))

        def send(key: str = "") -> str:
            try:
                retry = Retry(_MAY_PASS, initial=0.1, maximum=1.0, timeout=self.timeout)
                sent = publisher.publish(self.topic, b"x", key, retry=retry, timeout=self.timeout)
                sent.result(PATIENCE if key and self.timeout == TIMEOUT else BUSY)
            except NotDone:
                return f"no outcome within {PATIENCE:g} s"
            except (GoogleAPIError, PublishToPausedOrderingKeyException) as error:
                return f"``{type(error).__name__}``"
            return "succeeds"

        try:
            yield send
        finally:
            self.broker.mend("Publish", self.name)
            publisher.stop()
            channel.close()

    @contextmanager
    def subscriber(self, **settings: Any) -> Iterator[tuple[Any, queue.Queue[Any]]]:
        """Yield the future of a subscription of Google's client, and the messages that its callback got."""
        channel = grpc.insecure_channel(self.broker.address)
        subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        messages: queue.Queue[Any] = queue.Queue()
        future = subscriber.subscribe(self.path, messages.put, **settings)
        try:
            yield future, messages
        finally:
            self.broker.mend("Acknowledge", self.name)
            future.cancel()
            _ended(future)
            subscriber.close()
            channel.close()


_MAY_PASS = if_exception_type(InternalServerError, ServiceUnavailable)


def _ended(future: Any) -> str:
    try:
        future.result(timeout=BUSY)
    except NotDone:
        return "nothing, and hangs"
    except GoogleAPIError as error:
        return f"``{type(error).__name__}``"
    return "nothing"


async def _attempt(call: Awaitable[object]) -> str:
    try:
        await call
    except EventError as error:
        return told(error)
    return "succeeds"


# Each of these: how the fault begins, then our outcome, or the one of Google's client


async def _send(place: Place) -> str:
    async with place.ours() as sender:
        return await _attempt(sender.send_message(EventMessage(b"x")))


async def _send_keyed(place: Place) -> str:
    async with place.ours() as sender:
        return await _attempt(sender.send_message(EventMessage(b"x", ordering_key="k")))


async def _send_next(place: Place) -> str:
    async with place.ours() as sender:
        await _attempt(sender.send_message(EventMessage(b"x", ordering_key="k")))
        return await _attempt(sender.send_message(EventMessage(b"y", ordering_key="k")))


def _their_send(place: Place) -> str:
    with place.publisher(ordering=False) as send:
        return send("")


def _their_send_keyed(place: Place) -> str:
    with place.publisher(ordering=True) as send:
        return send("k")


def _their_send_next(place: Place) -> str:
    with place.publisher(ordering=True) as send:
        send("k")
        return send("k")


async def _acknowledge(place: Place) -> str:
    place.deliver()
    async with place.ours() as both, await both.subscribe(place.name) as receiver:
        message = await receiver.receive_message(BUSY)
        assert message is not None
        return await _attempt(receiver.acknowledge(message))


def _their_acknowledge(place: Place) -> str:
    place.deliver()
    with place.subscriber() as (_, messages):
        outcome = messages.get(timeout=BUSY).ack_with_response().result(timeout=BUSY)
        return f"reports ``{outcome.name}``"


async def _receive(place: Place) -> str:
    place.deliver()
    async with place.ours() as both, await both.subscribe(place.name) as receiver:
        outcome = await _attempt(receiver.receive_message(BUSY))
        if outcome == "succeeds":
            return "the message comes"
        return f"{outcome}; the next receive {await _attempt(receiver.receive_message(BUSY))}"


def _their_receive(place: Place) -> str:
    place.deliver()
    with place.subscriber() as (future, messages):
        for _ in range(120):
            with suppress(queue.Empty):
                messages.get(timeout=0.5)
                return "the message comes"
            if future.done():
                return f"the subscriber ends with {_ended(future)}"
        return "nothing comes within a minute"


async def _close(place: Place) -> str:
    place.deliver(5, "k")
    async with place.ours() as both, await both.subscribe(place.name) as receiver:
        assert await receiver.receive_message(BUSY)
        await until(lambda: receiver.stats.buffered == 4)
    return _given_back(place)


def _their_close(place: Place) -> str:
    place.deliver(5, "k")
    with place.subscriber(flow_control=FlowControl(max_messages=10)) as (_, messages):
        messages.get(timeout=BUSY)
    return _given_back(place)


def _given_back(place: Place) -> str:
    ids = {message.message_id for message in [*place.subscription.out.values(), *place.subscription.waiting]}
    back = {message for message, seconds in place.broker.modified if message in ids and not seconds}
    return f"{len(back)} of 5 go back at once"


def _fails(method: str, *statuses: grpc.StatusCode, **settings: Any) -> Callable[[Place], Fault | None]:
    return lambda place: place.broker.fail(method, place.name, *statuses, **settings)


_UNAVAILABLE, _DENIED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED
_Ours = Callable[[Place], Awaitable[str]]
_Theirs = Callable[[Place], str]

TRIALS: Mapping[str, tuple[Callable[[Place], Fault | None], _Ours, _Theirs]] = {
    "A send gets ``UNAVAILABLE`` once": (_fails("Publish", _UNAVAILABLE), _send, _their_send),
    "A send gets ``UNAVAILABLE`` for longer than its timeout": (
        _fails("Publish", _UNAVAILABLE, left=FOREVER),
        _send,
        _their_send,
    ),
    "The same, and the message has an ordering key": (
        _fails("Publish", _UNAVAILABLE, left=FOREVER),
        _send_keyed,
        _their_send_keyed,
    ),
    "A send with a key got ``PERMISSION_DENIED`` once; the next one": (
        _fails("Publish", _DENIED),
        _send_next,
        _their_send_next,
    ),
    "The answer to a send is damaged": (_fails("Publish", answer=b"\x0a\x05ab"), _send, _their_send),
    "An acknowledgement gets ``UNAVAILABLE`` for longer than its timeout": (
        _fails("Acknowledge", _UNAVAILABLE, left=FOREVER),
        _acknowledge,
        _their_acknowledge,
    ),
    "An acknowledgement gets ``NOT_FOUND``": (
        _fails("Acknowledge", grpc.StatusCode.NOT_FOUND, left=1_000_000),  # it needs no short timeout
        _acknowledge,
        _their_acknowledge,
    ),
    "A stream gets ``UNAVAILABLE`` once": (_fails("StreamingPull", _UNAVAILABLE), _receive, _their_receive),
    "A stream gets ``PERMISSION_DENIED`` once": (_fails("StreamingPull", _DENIED), _receive, _their_receive),
    "Closing with five messages of a key, of which the program has one": (lambda place: None, _close, _their_close),
}
"""For each fault: how it begins, and the functions that try it here and with Google's client."""


async def measure() -> Mapping[str, tuple[str, str]]:
    """Try all faults at the same time; return our outcome and that of Google's client."""
    async with serving(Broker()) as broker:
        trials = [_measured(broker, number, *trial) for number, trial in enumerate(TRIALS.values())]
        return dict(zip(TRIALS, await asyncio.gather(*trials), strict=True))


async def _measured(
    broker: Broker, number: int, begin: Callable[[Place], Fault | None], ours: _Ours, theirs: _Theirs
) -> tuple[str, str]:
    place, other = Place(broker, f"ours-{number}"), Place(broker, f"theirs-{number}")
    for each in (place, other):
        fault = begin(each)
        if fault is not None and fault.left == FOREVER:
            each.timeout = TIMEOUT
    return await ours(place), await asyncio.to_thread(theirs, other)


if __name__ == "__main__":
    logging.disable()
    close_patiently()
    print(json.dumps(asyncio.run(asyncio.wait_for(measure(), 300)), indent=1))
