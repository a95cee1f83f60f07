"""One publisher whose calls overlap, as those of dead letters do, and messages that a broker refuses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from confluent_kafka.cimpl import KafkaError, Producer

from events_core import ErrorCode, EventMessage
from events_core.engine import BrokerError
from events_kafka import sender as sending
from events_kafka.options import KafkaOptions
from events_kafka.producing import Begun, Publisher

from ..receiving import PATIENCE
from ..waiting import until
from .console import Console
from .test_outages import through_a_proxy


async def answers() -> None:
    """Do nothing, as a probe whose broker answers."""


def publisher_of(console: Console, probe: Callable[[], Awaitable[object]] = answers, **options: str) -> Publisher:
    console.create_topic()
    return Publisher(console.topic, KafkaOptions(**{"bootstrap_servers": console.address, **options}), probe)


def join_the_thread() -> None:
    """Keep home busy until the thread of its producer has ended."""
    for thread in threading.enumerate():
        if thread.name == "events kafka producer":
            thread.join(PATIENCE)


@pytest.mark.parametrize("is_home_busy", [False, True])
def test_a_call_that_is_cancelled_ends_those_that_overlap_it(console: Console, is_home_busy: bool) -> None:
    """P7: its producer is thrown away.  One of the others is out, and one waits for room in the producer.

    Home may look for room only when the producer has ended already.
    """
    proxy = through_a_proxy(console)

    async def scenario() -> None:
        options = {"librdkafka": "queue.buffering.max.messages=2", "bootstrap_servers": proxy.address}
        publisher = publisher_of(console, **options)
        await publisher.publish([EventMessage(b"0")])
        with proxy.silence():
            calls = [asyncio.create_task(publisher.publish([EventMessage(b"%d" % number)])) for number in (1, 2, 3)]
            await until(lambda: publisher._current is not None and len(publisher._current._out) == len(calls))
            calls[0].cancel()
            while publisher._current is not None:
                await asyncio.sleep(0)
            if is_home_busy:
                join_the_thread()
            async with asyncio.timeout(PATIENCE):
                for call in calls[1:]:
                    assert (await failure(call)).retryable
        await publisher.publish([EventMessage(b"4")])
        await publisher.close()

    asyncio.run(scenario())


async def failure(call: Awaitable[Sequence[str | BrokerError]]) -> BrokerError:
    """Return the error that *call* raises or returns for its only message."""
    try:
        (result,) = await call
    except BrokerError as error:
        return error
    assert isinstance(result, BrokerError)
    return result


def test_a_producer_that_ends_during_a_probe_is_replaced(console: Console) -> None:
    """P7: an overlapping call may throw the producer away while this one asks the brokers."""

    async def probe() -> None:
        await publisher.close()

    publisher = publisher_of(console, probe)

    async def scenario() -> None:
        await publisher.publish([EventMessage(b"0")])
        assert publisher._current is not None
        publisher._current.is_down = True
        assert [*await publisher.publish([EventMessage(b"1")])] == [f"{console.topic}/0/1"]
        await publisher.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("is_home_busy", [False, True])
def test_a_send_may_look_for_room_any_number_of_times(monkeypatch: pytest.MonkeyPatch, is_home_busy: bool) -> None:
    """P6, P7: ``send_timeout`` has no maximum, and the queue of the producer may be full all the time.

    The messages that never left fail as such, also if home sees only later that the producer has ended.
    """

    async def scenario() -> None:
        producer = Producer({"bootstrap.servers": "127.0.0.1:1", "queue.buffering.max.messages": 1, "log_level": 0})
        monkeypatch.setattr(sending, "_TURN", 0.0)
        sender = sending.Sender("orders")
        sender._producer = producer
        task = asyncio.create_task(sender.send([EventMessage(b"%d" % number) for number in range(3)], 1000))
        for _ in range(300_000):
            await asyncio.sleep(0)
        monkeypatch.setattr(sending, "_TURN", 0.1)
        if is_home_busy:
            sender.start(producer)
            sender.end()
            join_the_thread()
        else:
            sender.end()
            (batch,) = sender._out
            await until(lambda: all(result is not None for result in batch.results[1:]))
            sender.start(producer)
        purged, *replaced = await asyncio.wait_for(task, PATIENCE)
        assert isinstance(purged, KafkaError)
        assert [error.code for error in replaced] == [ErrorCode.UNAVAILABLE] * 2

    asyncio.run(scenario())


class _Refusing(Publisher):
    """It answers as librdkafka does if the broker refuses records, for example because a schema does not fit.

    Apache Kafka refuses no record with a key in this way.
    """

    def __init__(self) -> None:
        super().__init__("orders", KafkaOptions(), answers)
        self.stored: list[bytes] = []

    async def _publish(self, messages: Sequence[EventMessage], begun: Begun | None) -> list[Any]:
        bad = [message.data.startswith(b"bad") for message in messages]
        if any(bad):
            codes = [KafkaError.INVALID_RECORD if each else KafkaError._INVALID_DIFFERENT_RECORD for each in bad]
            return [KafkaError(code) for code in codes]
        self.stored += [message.data for message in messages]
        return [message.data.decode() for message in messages]


def test_later_messages_of_a_refused_key_are_not_attempted() -> None:
    """P3: this holds also if the broker refuses both together, and they are published again in halves."""
    keys = {"1": "j", "bad": "k", "2": "k", "3": "j", "4": "", "5": "k"}
    messages = [EventMessage.from_string(text, ordering_key=key) for text, key in keys.items()]
    publisher = _Refusing()
    results = asyncio.run(publisher.publish(messages))
    codes = [result.code if isinstance(result, BrokerError) else result for result in results]
    after = ErrorCode.NOT_ATTEMPTED
    assert codes == ["1", ErrorCode.INVALID, after, "3", "4", after]
    assert publisher.stored == [b"1", b"3", b"4"]
