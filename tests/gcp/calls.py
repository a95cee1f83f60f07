"""Try every status code on every call: once, and for longer than the call may take."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

import grpc

from events_core import AcknowledgeError, ErrorCode, EventError, EventMessage, EventReceiver, ReceivedMessage
from events_gcp import GcpPubSubClient
from events_gcp.endpoint import Endpoint
from events_gcp.scratch import delete_topics

from .broker import Broker
from .console import PROJECT, client
from .faults import serving
from .waiting import PATIENCE, until

STATUSES = [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK]
RETRYABLE = {
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
}
"""What Google's own publisher retries (publisher/transports/base.py in google-cloud-pubsub 2.44.0)."""
TIMEOUT = 5.0
"""Seconds that a call may take if it is repeated in vain."""

Outcomes = Mapping[grpc.StatusCode, tuple[str, str]]
"""For each status: the outcome of a call that gets it once, and of a call that gets it until its timeout."""


@dataclass(frozen=True)
class Case:
    """One call that gets one status.  Each case has a topic and a subscription of its own, both with the same name."""

    broker: Broker
    method: str
    name: str
    status: grpc.StatusCode
    is_long: bool

    def client(self, **options: str) -> GcpPubSubClient:
        timeouts = dict.fromkeys(("send_timeout", "ack_timeout"), f"{self.timeout:g}")
        return client(self.name, emulator_host=self.broker.address, **{"create": "never", **timeouts, **options})

    @property
    def timeout(self) -> float:
        """Seconds that a call may take.  They are many if it ends by itself, because the machine may be busy."""
        return TIMEOUT if self.is_long and self.status in RETRYABLE else PATIENCE

    @contextmanager
    def fault(self) -> Iterator[None]:
        """Let the next request fail, or all requests inside the block."""
        self.broker.fail(self.method, self.name, self.status, left=math.inf if self.is_long else 1)
        yield
        self.mend()

    def mend(self) -> None:
        self.broker.mend(self.method, self.name)

    async def told(self, call: Awaitable[object]) -> str:
        """Return the outcome of *call*, and whether it took several requests."""
        try:
            await call
            ended = "succeeds"
        except EventError as error:
            ended = told(error)
        return f"{ended}{self._effort(ended)}"

    def _effort(self, ended: str) -> str:
        is_repeated = self.broker.requests[self.method, self.name] > 1
        if ended == "succeeds":
            return " after a retry" if is_repeated else ""
        return ", at the timeout" if is_repeated else ", at once"


def told(error: EventError) -> str:
    """Return the class and the code of an error, which are what programs act on."""
    return f"``{type(error).__name__}`` ``{error.code.name}``"


async def measure(call: str) -> Outcomes:
    """Try *call* with all statuses at the same time.  Afterwards each client must work again."""
    method, run = CALLS[call]
    async with serving(Broker()) as broker:
        cases = [
            Case(broker, method, f"{status.name.lower().replace('_', '-')}-{is_long}", status, is_long)
            for status in STATUSES
            for is_long in (False, True)
        ]
        outcomes = await asyncio.gather(*map(run, cases))
    pairs = zip(outcomes[::2], outcomes[1::2], strict=True)
    return dict(zip(STATUSES, pairs, strict=True))


async def works(call: Callable[[], Awaitable[object]]) -> None:
    """Try until *call* succeeds.  The time limit of the case is short, and a busy machine may need longer."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await call()
            except EventError as error:
                if error.code is not ErrorCode.TIMEOUT:
                    raise
            else:
                return


# Sending


async def _publish(case: Case) -> str:
    async with case.client() as sender:
        await sender.ping(PATIENCE)  # connects, in its own time
        with case.fault():
            outcome = await case.told(sender.send_message(EventMessage(b"x", ordering_key="k")))
        await works(lambda: sender.send_message(EventMessage(b"next", ordering_key="k")))
        return outcome


async def _create_topic(case: Case) -> str:
    async with case.client(create="all") as sender:
        with case.fault():
            outcome = await case.told(sender.send_message(EventMessage(b"x")))
        await works(lambda: sender.send_message(EventMessage(b"next")))
        # The code is that of the last try, which may have been cut off by the timeout.
        return re.sub(r"(``PublishError``).*, (at the timeout)", r"\1, retryable, \2", outcome)


async def _look_for_recipients(case: Case) -> str:
    with _Warnings(case.name) as warnings, case.fault():
        # Leaving the client waits until it has looked.
        async with case.client(send_timeout="60") as sender:
            outcome = await case.told(sender.send_message(EventMessage(b"x")))
    return f"{outcome}; there is no subscription, and {warnings}"


async def _look_for_letters(case: Case) -> str:
    letters = f"{case.name}-dead"
    case.broker.subscription(case.name, case.name, enable_message_ordering=True)
    options = {"ordering": "true", "dead_letter_topic": letters, "max_delivery_attempts": "5"}
    about = replace(case, name=letters)
    with _Warnings(letters) as warnings:
        async with case.client(**options) as subscriber:
            with about.fault():
                outcome = await about.told(subscriber.subscribe(case.name))
    return f"{outcome}; letters have no subscription, and {warnings}"


async def _look_for_names(case: Case) -> str:
    case.broker.subscription(f"{case.name}-s", case.name)
    async with case.client() as subscriber:
        with case.fault():
            try:
                await subscriber.subscribe(f"{case.name}-z")
            except EventError as error:
                named = f"{case.name}-s" in str(error)
                return f"{told(error)}, {'with' if named else 'without'} the nearest name"
    return "succeeds"


class _Warnings(logging.Handler):
    """The warnings of the engine about *topic*, inside the context."""

    def __init__(self, topic: str) -> None:
        super().__init__(logging.WARNING)
        self._topic = topic
        self._came = False

    def emit(self, record: logging.LogRecord) -> None:
        self._came = self._came or repr(self._topic) in record.getMessage()

    def __enter__(self) -> _Warnings:
        logging.getLogger("events_core.engine").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("events_core.engine").removeHandler(self)

    def __str__(self) -> str:
        return "a WARNING says so" if self._came else "no WARNING"


async def _get_topic(case: Case) -> str:
    async with case.client() as asking:
        with case.fault():
            outcome = await case.told(asking.ping(PATIENCE))
        await asking.ping(PATIENCE)
        return outcome


async def _delete_topic(case: Case) -> str:
    path = f"projects/{PROJECT}/topics/{case.name}"
    case.broker.topics[path] = []
    with case.fault():
        await delete_topics(Endpoint(case.broker.address, is_emulator=True), [path])
    return "is deleted" if path not in case.broker.topics else "is not deleted, and a WARNING says so"


# Subscriptions


async def _get_subscription(case: Case) -> str:
    case.broker.subscription(case.name, case.name)
    return await _subscribe(case)


async def _create_subscription(case: Case) -> str:
    return await _subscribe(case, create="subscription")


async def _subscribe(case: Case, **options: str) -> str:
    async with case.client(**options) as subscriber:
        with case.fault():
            outcome = await case.told(subscriber.subscribe(case.name))
        case.broker.subscription(case.name, case.name)
        await subscriber.subscribe(case.name)
        return outcome


async def _delete_subscription(case: Case) -> str:
    case.broker.subscription(case.name, case.name)
    async with case.client() as subscriber:
        with case.fault():
            outcome = await case.told(subscriber.delete_subscription(case.name))
        case.broker.subscription(case.name, case.name)
        await subscriber.delete_subscription(case.name)
        return outcome


# Receiving


async def _stream(case: Case) -> str:
    return await _receive(case, "stream")


async def _pull(case: Case) -> str:
    return await _receive(case, "pull")


async def _receive(case: Case, mode: str) -> str:
    case.broker.subscription(case.name, case.name)
    _add(case, b"x")
    async with case.client(receive_mode=mode) as both:
        with case.fault():
            async with await both.subscribe(case.name) as receiver:
                # A receiver tries again after NOT_FOUND too: it could have created the subscription.
                is_repeated = case.status in {*RETRYABLE, grpc.StatusCode.NOT_FOUND}
                outcome = await _received(receiver, TIMEOUT if case.is_long and is_repeated else PATIENCE)
                case.mend()
                assert outcome == _CAME or await _received(receiver, PATIENCE) == _CAME
        return outcome


_CAME = "the message comes"


async def _received(receiver: EventReceiver, timeout: float) -> str:
    try:
        return _CAME if await receiver.receive_message(timeout) else "``None`` at its own timeout"
    except EventError as error:
        return told(error)


# Settling


async def _acknowledge(case: Case) -> str:
    async with _holding(case) as (receiver, message):
        with case.fault():
            outcome = await case.told(receiver.acknowledge(message))
        outcome += await _afterwards(outcome, lambda: receiver.acknowledge(message))
        assert case.broker.acknowledged.count(message.message_id) == ("has ended" not in outcome)
        assert await _goes_on(case, receiver)
        return outcome


async def _nack(case: Case) -> str:
    async with _holding(case) as (receiver, message):
        with case.fault():
            outcome = await case.told(receiver.nack(message, delay=0))
        outcome += await _afterwards(outcome, lambda: receiver.nack(message, delay=0))
        assert await receiver.receive_message(PATIENCE)
        return outcome


async def _reject(case: Case) -> str:
    options = {"ordering": "true", "dead_letter_topic": f"{case.name}-dead", "max_delivery_attempts": "5"}
    letters = replace(case, name=options["dead_letter_topic"])
    async with _holding(case, **options) as (receiver, message):
        with letters.fault():
            outcome = await letters.told(receiver.reject(message))
        outcome += await _afterwards(outcome, lambda: receiver.reject(message))
        # A request that was not answered may be stored as well, but these all failed.
        assert len(case.broker.topics[f"projects/{PROJECT}/topics/{letters.name}"]) == 1
        assert await _goes_on(case, receiver)
        return outcome


async def _afterwards(outcome: str, again: Callable[[], Awaitable[None]]) -> str:
    """Settle a message a second time, and return what had become of it."""
    try:
        await works(again)
    except AcknowledgeError as error:
        if error.code is not ErrorCode.EXPIRED:
            raise
        return "; the delivery has ended, and the message comes again"
    return "" if outcome.startswith("succeeds") else "; the message stays held"


async def _extend(case: Case) -> str:
    async with _holding(case, receive_mode="pull") as (receiver, message):
        with case.fault():
            await until(lambda: case.broker.requests[case.method, case.name] > 1)
            if case.is_long:
                await until(lambda: receiver.stats.duplicates > 0)
        await until(lambda: bool(case.broker.modified))
        await receiver.acknowledge(message)
        assert case.broker.acknowledged.count(message.message_id) == 1
        if not receiver.stats.duplicates:
            return "is renewed after a retry"
        return "runs out; the redelivery is recognised, and settled with the message"


@asynccontextmanager
async def _holding(case: Case, **options: str) -> AsyncIterator[tuple[EventReceiver, ReceivedMessage]]:
    """Yield a receiver and a message that it holds; a pulled message has a short lease.

    The broker lets it run out only if the fault lasts, because a busy machine may repeat the renewal too late.
    """
    settings = {"ack_deadline_seconds": 4, "enable_message_ordering": "ordering" in options}
    case.broker.subscription(case.name, case.name, grace=0 if case.is_long else PATIENCE, **settings)
    # Not sent by the client: its time limit is that of the case, which a busy machine may need for itself.
    _add(case, b"x")
    async with case.client(**options) as both, await both.subscribe(case.name) as receiver:
        message = await receiver.receive_message(PATIENCE)
        assert message is not None
        yield receiver, message


def _add(case: Case, data: bytes) -> None:
    case.broker.subscriptions[f"projects/{PROJECT}/subscriptions/{case.name}"].add(case.broker.message(data))


async def _goes_on(case: Case, receiver: EventReceiver) -> bool:
    """Return whether another message comes, on the same stream."""
    _add(case, b"next")
    return bool(await receiver.receive_message(PATIENCE)) and case.broker.requests["StreamingPull", case.name] == 1


CALLS: Mapping[str, tuple[str, Callable[[Case], Awaitable[str]]]] = {
    "send_message": ("Publish", _publish),
    "First send, with create=all": ("CreateTopic", _create_topic),
    "First send, looking for subscriptions": ("ListTopicSubscriptions", _look_for_recipients),
    "ping": ("GetTopic", _get_topic),
    "Cleaning up after events check": ("DeleteTopic", _delete_topic),
    "subscribe": ("GetSubscription", _get_subscription),
    "subscribe, with create=subscription": ("CreateSubscription", _create_subscription),
    "subscribe, looking for letters": ("ListTopicSubscriptions", _look_for_letters),
    "subscribe to a name that does not exist": ("ListTopicSubscriptions", _look_for_names),
    "delete_subscription": ("DeleteSubscription", _delete_subscription),
    "receive_message": ("StreamingPull", _stream),
    "receive_message, with receive_mode=pull": ("Pull", _pull),
    "acknowledge": ("Acknowledge", _acknowledge),
    "nack": ("ModifyAckDeadline", _nack),
    "reject": ("Publish", _reject),
    "Renewing a lease": ("ModifyAckDeadline", _extend),
}
"""For each call of an application: the method of Pub/Sub that fails, and the function that tries it."""
