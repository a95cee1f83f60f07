"""The engine's client and receiver with a broker that fails on demand, on the engine's own thread."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import itertools
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any

import pytest

from events_core import (
    AcknowledgeError,
    Capabilities,
    ErrorCode,
    EventConfig,
    EventConnectionError,
    EventMessage,
    EventReceiver,
    EventRuntimeError,
    Limits,
    PublishError,
    ReceivedMessage,
    ReceiveError,
)
from events_core.backends.memory import MemoryClient
from events_core.engine import BrokerError, Delivery, Driver, EngineClient, Outcome, Settlement, Source, uptime
from events_core.engine import client as client_module
from events_core.engine import recipients as recipients_module
from events_core.options import CommonOptions

from ..patience import succeeds

CAPABILITIES = Capabilities(ordering="subscription", limits=Limits(max_message_bytes=100))
UNAVAILABLE = BrokerError("the broker is away", ErrorCode.UNAVAILABLE, retryable=True)


class ScriptedDriver(Driver[CommonOptions]):
    """A driver for a broker with one queue, whose next answers a test sets."""

    def __init__(self, topic_name: str, project_id: str, options: CommonOptions) -> None:
        super().__init__(topic_name, project_id, options)
        self.capabilities = CAPABILITIES
        self.address = "broker:1"
        self.requests: list[list[bytes]] = []
        self.publish_errors: list[BaseException | None] = []
        self.open_errors: list[BaseException] = []
        self.refuses: Callable[[EventMessage], bool] = lambda message: False
        self.open_gate: asyncio.Event | None = None
        self.gate: asyncio.Event | None = None
        self.sources: list[ScriptedSource] = []
        self.closed = False
        self.thread: int | None = None

    async def open(self) -> None:
        self.thread = threading.get_ident()
        if self.open_gate is not None:
            await self.open_gate.wait()
        if self.open_errors:
            raise self.open_errors.pop(0)

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        self.requests.append([message.data for message in messages])
        if self.gate is not None:
            await self.gate.wait()
        error = self.publish_errors.pop(0) if self.publish_errors else None
        if error is not None:
            raise error
        if any(self.refuses(message) for message in messages):
            raise BrokerError("a bad message", ErrorCode.INVALID)
        for source in self.sources:
            for message in messages:
                source.arriving.put_nowait(message)
        return [f"id-{message.data.decode()}" for message in messages]

    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> ScriptedSource:
        if subscription == "missing":
            raise BrokerError("no such subscription", ErrorCode.NOT_FOUND)
        source = ScriptedSource()
        source.wake = wake
        self.sources.append(source)
        return source

    async def delete_subscription(self, subscription: str) -> None: ...

    async def ping(self) -> None:
        await asyncio.sleep(60)

    async def close(self) -> None:
        self.closed = True


class ScriptedSource(Source):
    """The receiving side of that broker."""

    subscription = "scripted"
    capabilities = CAPABILITIES
    lease = 0.6

    def __init__(self) -> None:
        self.arriving: asyncio.Queue[EventMessage] = asyncio.Queue()
        self.fetch_errors: list[BaseException] = []
        self.settle_errors: list[BaseException] = []
        self.refusal: BrokerError | None = None
        self.settled: list[Settlement] = []
        self.tokens: list[object] = []
        self.settle_gate: asyncio.Event | None = None
        self.extended = 0
        self.count = 0
        self.wake: Callable[[], None] = lambda: None

    async def fetch(self, limit: int) -> Sequence[Delivery]:
        if self.fetch_errors:
            raise self.fetch_errors.pop(0)
        message = await self.arriving.get()
        self.count += 1
        message_id = message.attributes.get("id", str(self.count))
        return [Delivery(message_id, message.data, {}, message.ordering_key, token=self.count)]

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        if self.settle_errors:
            raise self.settle_errors.pop(0)
        self.settled += settlements
        self.tokens += [settlement.delivery.token for settlement in settlements]
        if self.settle_gate is not None:
            await self.settle_gate.wait()
        return [self.refusal] * len(settlements)

    async def extend(self, deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        self.extended += len(deliveries)
        return ()

    async def close(self) -> None: ...


class ScriptedClient(EngineClient):
    """The client under test."""

    api_version = 1
    driver_class = ScriptedDriver
    full_capabilities = CAPABILITIES

    @property
    def broker(self) -> ScriptedDriver:
        """Return the driver, for a test to script."""
        assert isinstance(self._driver, ScriptedDriver)
        return self._driver


def run(
    test: Callable[[ScriptedClient], Any], *, driver: type[ScriptedDriver] = ScriptedDriver, **options: str
) -> None:
    """Run *test* with a fresh client, and check that nothing is left of it."""

    class Client(ScriptedClient):
        api_version = 1
        driver_class = driver

    async def main() -> None:
        client = Client(EventConfig("topic", options=options, backend="scripted"))
        async with asyncio.timeout(120), client:
            await test(client)
        assert client.broker.closed or client.broker.thread is None
        assert asyncio.all_tasks() == {asyncio.current_task()}

    before = threading.enumerate()
    with pytest.MonkeyPatch.context() as patch:
        # Home may be late on a busy machine.  A caller that gave up would not see what home does in its own 2 s.
        patch.setattr("events_core.engine.client.SHORTEST_CLOSE", 60.0)
        patch.setattr("events_core.engine.receiver.SHORTEST_CLOSE", 60.0)
        asyncio.run(main())
    assert_no_thread_since(before)


def assert_no_thread_since(before: Sequence[threading.Thread]) -> None:
    """Check that no thread is left that did not run *before*; those of other tests may end at any time."""
    assert not set(threading.enumerate()).difference(before)


async def connected(client: ScriptedClient) -> None:
    """Connect, although the sends of the client have a short time."""
    await client.delete_subscription("any")


def message(text: str, key: str = "") -> EventMessage:
    return EventMessage.from_string(text, ordering_key=key)


@contextlib.asynccontextmanager
async def held_back(client: ScriptedClient) -> AsyncIterator[None]:
    """Keep the first request out while the block runs."""
    client.broker.gate = asyncio.Event()
    yield
    gate, client.broker.gate = client.broker.gate, None
    client._home.wake(gate.set)


async def _set(event: asyncio.Event) -> None:
    event.set()


async def two_held(client: ScriptedClient) -> tuple[EventReceiver, ScriptedSource, ReceivedMessage, ReceivedMessage]:
    """Yield a receiver that holds two messages, and whose source leaves settlements without an answer."""
    receiver = await client.subscribe("s")
    source = client.broker.sources[0]
    source.settle_gate = asyncio.Event()
    await client.send_messages([message("1"), message("2")])
    first, second = await receiver.receive_message(60), await receiver.receive_message(60)
    assert first is not None
    assert second is not None
    return receiver, source, first, second


async def until(condition: Callable[[], bool]) -> None:
    """Wait until another thread has made *condition* true; the time of the test bounds the wait."""
    while not condition():  # the other thread knows nothing of this loop
        await asyncio.sleep(0.005)


def test_a_driver_runs_away_from_the_applications_loop() -> None:
    """B1, R6: all coroutines of a driver run in the engine's thread."""

    async def test(client: ScriptedClient) -> None:
        await client.send_message(message("1"))
        assert client.broker.thread != threading.get_ident()

    run(test)


def test_concurrent_sends_share_requests() -> None:
    """P5: messages that are sent while requests are out leave together in the next request."""

    async def test(client: ScriptedClient) -> None:
        await client.send_message(message("0"))
        async with held_back(client):
            sends = [asyncio.create_task(client.send_message(message(str(number)))) for number in range(100)]
            await until(lambda: len(client.broker.requests) >= 2)
        await asyncio.gather(*sends)
        assert len(client.broker.requests) <= 10

    run(test)


def test_a_driver_says_how_many_keys_are_out_at_once() -> None:
    """P5: each key has a request of its own, next to the requests without a key."""

    async def test(client: ScriptedClient) -> None:
        client.broker.gate = asyncio.Event()
        sends = [asyncio.create_task(client.send_message(message("1", str(key)))) for key in range(60)]
        await until(lambda: len(client.broker.requests) == 50)
        other = asyncio.create_task(client.send_message(message("2")))
        await until(lambda: client.broker.requests[-1] == [b"2"])
        assert len(client.broker.requests) == 51
        await client._home.run(_set(client.broker.gate))
        await asyncio.gather(*sends, other)

    run(test, driver=_ManyKeys)


class _ManyKeys(ScriptedDriver):
    publish_max_keys = 50


def test_what_timed_out_is_sent_again_in_smaller_requests() -> None:
    """P7: on a slow network a request of the same size would time out again."""

    async def test(client: ScriptedClient) -> None:
        lengths = []

        async def publish(messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
            lengths.append(sum(len(each.data) for each in messages))
            if lengths[-1] > 40_000:
                raise BrokerError("no answer", ErrorCode.TIMEOUT, retryable=True)
            return [each.data.decode() for each in messages]

        client.broker.publish = publish  # type: ignore[method-assign]
        sent = [message(f"{number:90}", "k") for number in range(3_000)]
        assert await client.send_messages(sent) == [each.data.decode() for each in sent]
        assert max(lengths) > 40_000
        assert len(lengths) < 60

    run(test)


def test_what_is_over_is_freed_at_once() -> None:
    """The data of a message is freed with its send, without waiting for the garbage collector."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            gc.collect()
            gc.disable()
            try:
                for _ in range(100):
                    await client.send_message(message("1"))
                for _ in range(100):
                    received = await receiver.receive_message(60)
                    assert received is not None
                    await receiver.acknowledge(received)
                del received
                assert gc.collect() < 100
            finally:
                gc.enable()

    run(test)


def test_transient_failures_are_retried() -> None:
    """P7: a send succeeds when a later try does."""

    async def test(client: ScriptedClient) -> None:
        client.broker.publish_errors = [UNAVAILABLE, UNAVAILABLE]
        assert await client.send_message(message("1")) == "id-1"
        assert len(client.broker.requests) == 3

    run(test)


class _TakesAPart(ScriptedDriver):
    """It stores the first message of a request and asks for the others again, with the ids that it was given."""

    retries_results = True
    wants_ids = True

    def __init__(self, topic_name: str, project_id: str, options: CommonOptions) -> None:
        super().__init__(topic_name, project_id, options)
        self.ids: dict[bytes, list[str]] = {}

    async def publish_with_ids(
        self, messages: Sequence[EventMessage], ids: Sequence[str]
    ) -> Sequence[str | BrokerError]:
        for each, unique in zip(messages, ids, strict=True):
            self.ids.setdefault(each.data, []).append(unique)
        results = await self.publish(messages)
        return [*results[:1], *[UNAVAILABLE] * (len(results) - 1)]


def test_what_the_broker_asks_for_again_is_sent_again() -> None:
    """P7: the rest of a request follows in another one, without what is stored."""

    async def test(client: ScriptedClient) -> None:
        ids = await client.send_messages([message("1", "k"), message("2", "k"), message("3", "k")])
        assert ids == ["id-1", "id-2", "id-3"]
        assert client.broker.requests == [[b"1", b"2", b"3"], [b"2", b"3"], [b"3"]]

    run(test, driver=_TakesAPart)


def test_a_message_keeps_its_id_when_it_is_sent_again() -> None:
    """P7: a broker that knows ids stores the message once; the same object sent twice is two messages."""

    async def test(client: ScriptedClient) -> None:
        driver = client.broker
        assert isinstance(driver, _TakesAPart)
        twice = message("1")
        driver.publish_errors = [UNAVAILABLE]
        await client.send_messages([twice, twice])
        first, second = driver.ids[b"1"][:2]
        assert first != second
        # The request that failed had both, the next one had both, and the last one had the second.
        assert driver.ids[b"1"] == [first, second, first, second, second]
        assert all(len(unique) == 32 and int(unique, 16) >= 0 for unique in (first, second))

    run(test, driver=_TakesAPart)


class _RefusesOneKey(ScriptedDriver):
    """Its requests carry several keys, and it stores nothing of the key "a"."""

    one_of_each_key = True
    retries_results = True

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        results = await super().publish(messages)
        return [
            UNAVAILABLE if each.ordering_key == "a" else result for each, result in zip(messages, results, strict=True)
        ]


def test_a_key_that_is_retried_does_not_hold_up_another_one_of_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """P5: a key that is being retried delays only itself."""
    monkeypatch.setattr("events_core.engine.batching_publisher.Backoff", lambda maximum: itertools.repeat(3600.0))

    async def test(client: ScriptedClient) -> None:
        refused = asyncio.create_task(client.send_messages([message("1", "a"), message("2", "b")]))
        await until(lambda: bool(client.broker.requests))
        await asyncio.wait_for(client.send_message(message("3", "b")), 60)
        refused.cancel()
        await asyncio.wait([refused])

    run(test, driver=_RefusesOneKey, send_timeout="3600")


class _OneOfEachKey(ScriptedDriver):
    one_of_each_key = True
    publish_max_inflight = 1


def test_a_request_may_take_until_the_latest_deadline_of_its_messages() -> None:
    """P7: the last of its messages need not be the one that was accepted last, if it carries several keys."""

    async def test(client: ScriptedClient) -> None:
        driver, publisher = client.broker, client._publisher
        await connected(client)
        async with held_back(client):
            first = asyncio.create_task(client.send_messages([message("1", "a"), message("2", "a")]))
            await until(lambda: driver.requests == [[b"1"]])
            # The key b was there before the key a is ready again, and was accepted later.
            publisher._send_timeout = 60.0
            later = asyncio.create_task(client.send_message(message("3", "b")))
            await until(lambda: len(publisher._outbox.sends) == 2)  # type: ignore[attr-defined]
            gate, driver.gate = driver.gate, asyncio.Event()
            client._home.wake(gate.set)
            await until(lambda: len(driver.requests) == 2)
            with pytest.raises(PublishError):
                await first
        await later
        assert driver.requests == [[b"1"], [b"3", b"2"]]

    run(test, driver=_OneOfEachKey, send_timeout="3")


def test_a_retried_result_ends_with_the_time_of_its_send() -> None:
    """P7: a broker that never takes the rest does not hold the send up for ever."""

    async def test(client: ScriptedClient) -> None:
        sending = asyncio.create_task(client.send_message(message("1")))
        await until(lambda: len(client.broker.requests) == 2)  # the first result is there
        (send,) = client._publisher._outbox.sends  # type: ignore[attr-defined]
        send.deadline = time.monotonic()
        with pytest.raises(PublishError) as caught:
            await asyncio.wait_for(sending, 60)
        assert caught.value.code is ErrorCode.TIMEOUT
        assert str(UNAVAILABLE) in str(caught.value)

    run(test, driver=_TakesNothing, send_timeout="3600")


class _TakesNothing(ScriptedDriver):
    retries_results = True

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        return [UNAVAILABLE for _ in await super().publish(messages)]


def test_maintenance_goes_on_until_the_client_closes(caplog: pytest.LogCaptureFixture) -> None:
    """A driver is asked to maintain its broker again and again, also after a failure, which is logged at DEBUG."""

    class Maintained(ScriptedDriver):
        maintenance_interval = 0.01
        calls = 0

        async def maintain(self) -> None:
            Maintained.calls += 1
            raise UNAVAILABLE

    async def test(client: ScriptedClient) -> None:
        await connected(client)
        await until(lambda: Maintained.calls >= 3)

    with caplog.at_level(logging.DEBUG, "events_core.engine"):
        run(test, driver=Maintained)  # nothing is left of it
    records = [record for record in caplog.records if "maintenance of topic 'topic' failed" in record.getMessage()]
    assert len(records) >= 2
    assert {record.levelno for record in records} == {logging.DEBUG}


def test_after_an_outage_no_more_requests_are_out_than_before() -> None:
    """P5: the bound holds however many messages gathered during the outage."""

    async def test(client: ScriptedClient) -> None:
        await client.send_message(message("0"))
        out = most = 0
        is_away = True

        async def publish(messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
            nonlocal out, most
            if is_away:
                client.broker.requests.append([])
                raise UNAVAILABLE
            out += 1
            most = max(most, out)
            await asyncio.sleep(0.05)
            out -= 1
            return ["id"] * len(messages)

        client.broker.publish = publish  # type: ignore[method-assign]
        sends = [asyncio.create_task(client.send_message(message("1", str(key)))) for key in range(30)]
        await until(lambda: len(client.broker.requests) > 60)
        is_away = False
        await asyncio.gather(*sends)
        assert most == client.broker.publish_max_inflight

    run(test)


def test_connecting_is_retried_by_a_send() -> None:
    """P7: a send tries to connect again until its own time is over."""

    async def test(client: ScriptedClient) -> None:
        client.broker.open_errors = [UNAVAILABLE]
        assert await client.send_message(message("1")) == "id-1"

    run(test)


def test_a_broker_that_cannot_be_reached_is_named_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """V1: only the first failure to connect is a WARNING, and the error of the send names the broker too."""

    async def test(client: ScriptedClient) -> None:
        client.broker.open_errors = [UNAVAILABLE] * 100
        with pytest.raises(PublishError, match="the broker is away"):
            await client.send_message(message("1"))
        assert len(client.broker.open_errors) < 98

    with caplog.at_level(logging.WARNING, "events_core.engine"):
        run(test, send_timeout="4")
    assert [record.getMessage() for record in caplog.records] == [
        "scripted topic: cannot connect, trying again: the broker is away"
    ]


def test_a_broker_that_falls_silent_is_named() -> None:
    """Q1: if connecting takes too long, the error has the address and the failure before."""

    async def test(client: ScriptedClient) -> None:
        tries = 0

        async def connect() -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise UNAVAILABLE
            await asyncio.get_running_loop().create_future()

        client.broker.open = connect  # type: ignore[method-assign]
        with pytest.raises(
            EventConnectionError, match="connect to broker:1: no answer in time; last: the broker is away"
        ):
            await client.subscribe("s")

    run(test, connect_timeout="4")


def test_a_send_that_could_not_connect_says_so() -> None:
    """P7: the error says that there was no connection, and that the message was not sent."""

    async def test(client: ScriptedClient) -> None:
        client.broker.open_gate = asyncio.Event()
        with pytest.raises(PublishError, match="connect to broker:1: no answer") as caught:
            await client.send_message(message("1"))
        assert (caught.value.code, caught.value.retryable) == (ErrorCode.TIMEOUT, True)

    run(test, send_timeout="0.5")


def test_a_send_ends_when_its_time_is_up() -> None:
    """P7: it fails with TIMEOUT and retryable=True, whatever the broker does."""

    async def test(client: ScriptedClient) -> None:
        async with held_back(client):
            with pytest.raises(PublishError) as caught:
                await client.send_message(message("1"))
            assert (caught.value.code, caught.value.retryable) == (ErrorCode.TIMEOUT, True)

    run(test, send_timeout="0.2")


class DeadLoop:
    """A loop that begins sends and then stops, as if its application had blocked it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    async def send(self, client: ScriptedClient, *messages: EventMessage) -> list[asyncio.Task[str]]:
        """Begin to send each of *messages* in a thread of its own, then stop the loop."""

        async def begin() -> list[asyncio.Task[str]]:
            sends = [asyncio.create_task(client.send_message(each)) for each in messages]
            await asyncio.sleep(0)
            return sends

        return await asyncio.to_thread(self._loop.run_until_complete, begin())

    def errors(self, sends: list[asyncio.Task[str]]) -> list[object]:
        """Let the loop run again until *sends* have ended, and return their errors."""

        async def outcomes() -> list[object]:
            return await asyncio.gather(*sends, return_exceptions=True)

        results = self._loop.run_until_complete(outcomes())
        self._loop.close()
        return results

    def codes(self, sends: list[asyncio.Task[str]]) -> set[object]:
        """Do what :meth:`errors` does, and return the codes only."""
        results = self.errors(sends)
        codes = {result.code if isinstance(result, PublishError) else result for result in results}
        results.clear()  # Python 3.12 keeps the list, and with the errors all that their tracebacks refer to
        return codes


def test_a_send_of_a_loop_that_stopped_is_not_retried_beyond_its_time() -> None:
    """P7: the engine retries with pauses, and ends the send at its deadline without its caller."""

    async def test(client: ScriptedClient) -> None:
        await connected(client)
        client.broker.publish_errors = [UNAVAILABLE] * 100_000
        dead = DeadLoop()
        sends = await dead.send(client, message("1"))
        await client.close(timeout=60)  # waits for what is under way, whoever began it
        assert 1 < len(client.broker.requests) < 62  # a pause lasts 0.05 s at least
        assert await asyncio.to_thread(dead.codes, sends) == {ErrorCode.TIMEOUT}

    run(test, send_timeout="3")


def test_a_request_without_an_answer_ends_with_the_time_of_its_sends() -> None:
    """P7: if the loop of its callers has stopped, the request is not sent again."""

    async def test(client: ScriptedClient) -> None:
        await connected(client)
        client.broker.gate = asyncio.Event()
        dead = DeadLoop()
        sends = await dead.send(client, *(message(str(number), "k") for number in range(1, 50)))
        await until(lambda: not client._publisher.is_busy)
        client.broker.gate = None
        await succeeds(lambda: client.send_message(message("50", "k")))
        sent = [data for request in client.broker.requests for data in request if data != b"50"]
        assert sorted(sent) == sorted(set(sent))
        assert await asyncio.to_thread(dead.codes, sends) == {ErrorCode.TIMEOUT}

    run(test, send_timeout="1")


def test_a_failure_is_named_although_the_next_request_has_no_answer() -> None:
    """P7: the error of a send says why its first request failed, if its time ends during the second one."""

    async def test(client: ScriptedClient) -> None:
        tries = 0

        async def publish(messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise UNAVAILABLE
            while True:  # as a file waits for its lock
                time.sleep(0.02)  # noqa: ASYNC251
                await asyncio.sleep(0)

        client.broker.publish = publish  # type: ignore[method-assign]
        dead = DeadLoop()
        sends = await dead.send(client, message("1"))
        await until(lambda: not client._publisher.is_busy)
        assert tries == 2
        (error,) = await asyncio.to_thread(dead.errors, sends)
        assert "last: the broker is away" in str(error)

    run(test, send_timeout="5")


def test_a_send_of_a_loop_that_stopped_ends_while_nothing_connects() -> None:
    """P7: the engine keeps nothing of the send."""

    async def test(client: ScriptedClient) -> None:
        client.broker.open_gate = asyncio.Event()
        dead = DeadLoop()
        unsent = [message(str(number), "k") for number in range(50)]
        held = [weakref.ref(each) for each in unsent]
        sends = await dead.send(client, *unsent)
        unsent.clear()
        await until(lambda: not client._publisher.is_busy)
        assert await asyncio.to_thread(dead.codes, sends) == {ErrorCode.TIMEOUT}
        sends.clear()
        gc.collect()
        assert sum(each() is not None for each in held) < 10

    run(test, send_timeout="3")


def test_a_send_whose_loop_was_closed_may_be_collected_anywhere() -> None:
    """P7: the garbage collector does not hang, even in a thread that holds the engine's lock."""

    async def test(client: ScriptedClient) -> None:
        await client.send_message(message("0"))
        async with held_back(client):
            loop = asyncio.new_event_loop()
            loop.set_exception_handler(lambda loop, context: None)  # a task is destroyed while it is pending
            sending = loop.create_task(client.send_message(message("1")))
            await asyncio.to_thread(loop.run_until_complete, asyncio.wait({sending}, timeout=0.01))
            loop.close()
            del loop, sending
            collecting = threading.Thread(target=_collect_under, args=(client._publisher._lock,), daemon=True)
            collecting.start()
            await asyncio.to_thread(collecting.join, 60)
            assert not collecting.is_alive()

    run(test)


def _collect_under(lock: threading.Lock) -> None:
    with lock:
        gc.collect()


@pytest.mark.parametrize("given", ["billed", {"order": 42}])
def test_a_value_that_is_no_message_is_refused(given: Any) -> None:
    """The TypeError says how to make a message of a text or of a value."""

    async def send() -> None:
        async with MemoryClient(EventConfig("orders", backend="memory")) as client:
            await client.send_message(given)

    with pytest.raises(TypeError, match=r"from_string\(text\) or EventMessage.from_json\(value\)"):
        asyncio.run(send())


def test_permanent_failures_surface_at_once() -> None:
    """P7: the error has the code that the broker gave."""

    async def test(client: ScriptedClient) -> None:
        client.broker.publish_errors = [BrokerError("not yours", ErrorCode.PERMISSION_DENIED)]
        with pytest.raises(PublishError) as caught:
            await client.send_message(message("1"))
        assert (caught.value.code, caught.value.backend, caught.value.topic_name) == (
            ErrorCode.PERMISSION_DENIED,
            "scripted",
            "topic",
        )

    run(test)


def test_a_refused_request_is_split_until_only_the_offender_fails() -> None:
    """P3: the other messages of the request are sent."""

    async def test(client: ScriptedClient) -> None:
        client.broker.refuses = lambda each: each.data == b"3"
        with pytest.raises(PublishError) as caught:
            await client.send_messages([message(str(number)) for number in range(6)])
        ids = [result if isinstance(result, str) else result.code for result in caught.value.results]
        assert ids == ["id-0", "id-1", "id-2", ErrorCode.INVALID, "id-4", "id-5"]

    run(test)


def test_later_messages_of_a_failed_key_are_not_attempted() -> None:
    """P3: this concerns one call only; other keys and the next call are sent."""

    async def test(client: ScriptedClient) -> None:
        client.broker.refuses = lambda each: each.data == b"bad"
        with pytest.raises(PublishError) as caught:
            await client.send_messages([message("1", "k"), message("bad", "k"), message("2", "k"), message("3", "j")])
        outcomes = [result if isinstance(result, str) else result.code for result in caught.value.results]
        assert outcomes == ["id-1", ErrorCode.INVALID, ErrorCode.NOT_ATTEMPTED, "id-3"]
        assert await client.send_message(message("4", "k")) == "id-4"

    run(test)


class _AnswersForEach(ScriptedDriver):
    """It refuses some messages, and does not attempt what follows one of them with the same key."""

    mixed_keys = True

    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        results: list[str | BrokerError] = [*await super().publish(messages)]
        failed: set[str | None] = set()
        for place, each in enumerate(messages):
            if each.ordering_key in failed:
                results[place] = BrokerError("after a bad one", ErrorCode.NOT_ATTEMPTED)
            elif each.data.startswith(b"bad"):
                results[place] = BrokerError("a bad message", ErrorCode.INVALID)
                failed.add(each.ordering_key)
        return results


class _RetriesAfterEach(_AnswersForEach):
    retries_results = True


def outcomes_of(results: Sequence[Any]) -> list[Any]:
    """Return ids and codes of errors."""
    return [result.code if isinstance(result, PublishError) else result for result in results]


@pytest.mark.parametrize("driver", [_AnswersForEach, _RetriesAfterEach])
def test_a_message_behind_a_bad_one_of_another_caller_is_sent(driver: type[ScriptedDriver]) -> None:
    """P3: the driver does not attempt later messages of the key, and does not know which caller sent them."""

    async def test(client: ScriptedClient) -> None:
        await client.send_message(message("0"))
        async with held_back(client):
            out = asyncio.create_task(client.send_message(message("1")))
            await until(lambda: len(client.broker.requests) == 2)
            several = asyncio.create_task(client.send_messages([message("bad", "k"), message("2", "k")]))
            texts = ["3", "bad too", "4"]
            others = [asyncio.create_task(client.send_message(message(text, "k"))) for text in texts]
            await asyncio.sleep(0)
        await out
        with pytest.raises(PublishError) as caught:
            await several
        assert outcomes_of(caught.value.results) == [ErrorCode.INVALID, ErrorCode.NOT_ATTEMPTED]
        results = outcomes_of(await asyncio.gather(*others, return_exceptions=True))
        assert results == ["id-3", ErrorCode.INVALID, "id-4"]
        assert client.broker.requests[2:] == [[b"bad", b"2", b"3", b"bad too", b"4"], [b"3", b"bad too", b"4"], [b"4"]]

    run(test, driver=driver)


def test_a_driver_that_attempts_nothing_ends_the_send() -> None:
    """P7: its messages are not sent again without end."""

    class AttemptsNothing(ScriptedDriver):
        async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
            return [BrokerError("not attempted", ErrorCode.NOT_ATTEMPTED) for _ in messages]

    async def test(client: ScriptedClient) -> None:
        with pytest.raises(PublishError) as caught:
            await client.send_messages([message("1", "k"), message("2", "k")])
        assert outcomes_of(caught.value.results) == [ErrorCode.NOT_ATTEMPTED] * 2

    run(test, driver=AttemptsNothing)


def test_past_the_bound_a_send_waits_for_room() -> None:
    """P6: waiting sends keep their order, and memory does not grow."""

    async def test(client: ScriptedClient) -> None:
        ids = await client.send_messages([message(str(number)) for number in range(50)])
        assert ids == [f"id-{number}" for number in range(50)]
        assert max(map(len, client.broker.requests)) <= 3

    run(test, publish_max_messages="3")


async def one_out(client: ScriptedClient, sent: EventMessage) -> tuple[asyncio.Task[str], asyncio.Event]:
    """Keep one request out until the event is set at home, while the broker answers others."""
    await client.send_message(message("0"))
    gate = client.broker.gate = asyncio.Event()
    sending = asyncio.create_task(client.send_message(sent))
    await until(lambda: len(client.broker.requests) == 2)
    client.broker.gate = None
    return sending, gate


def test_room_that_a_cancelled_send_leaves_is_used_at_once() -> None:
    """P6, P8: a message of another key leaves without waiting for a request to end."""

    async def test(client: ScriptedClient) -> None:
        slow, gate = await one_out(client, message("1", "slow"))
        behind = asyncio.create_task(client.send_message(message("2", "slow")))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(client.send_message(message("3", "other")))
        await asyncio.sleep(0)
        behind.cancel()
        assert await asyncio.wait_for(waiting, 60) == "id-3"
        await client._home.run(_set(gate))
        await slow

    run(test, publish_max_messages="2")


def test_room_that_a_confirmed_send_leaves_is_used_for_all_requests_that_may_be_out() -> None:
    """P5, P6: admitted messages leave in several requests at the same time."""

    async def test(client: ScriptedClient) -> None:
        large, gate = await one_out(client, message("1" * 60))
        client.broker.gate = gates = asyncio.Event()
        sends = [asyncio.create_task(client.send_message(message(key, key))) for key in "ab"]
        await asyncio.sleep(0)
        await client._home.run(_set(gate))
        await large
        await asyncio.wait_for(until(lambda: len(client.broker.requests) == 4), 60)
        client.broker.gate = None
        await client._home.run(_set(gates))
        await asyncio.gather(*sends)

    run(test, publish_max_bytes="60")


def test_room_that_a_large_send_leaves_is_used_at_once() -> None:
    """P6: each of several sends fills the bound, and nothing is in flight after the last one."""

    async def test(client: ScriptedClient) -> None:
        texts = [[f"{number}-{place}" for place in range(3)] for number in range(4)]
        sends = [client.send_messages([message(text) for text in each]) for each in texts]
        ids = await asyncio.wait_for(asyncio.gather(*sends), 60)
        assert ids == [[f"id-{text}" for text in each] for each in texts]
        assert [len(request) for request in client.broker.requests] == [3, 3, 3, 3]
        outbox = client._publisher._outbox  # type: ignore[attr-defined]
        assert (outbox.messages, outbox._bytes, outbox.is_ready, [*outbox.sends]) == (0, 0, False, [])

    run(test, publish_max_messages="3")


class _RefusesAtOnce(ScriptedDriver):
    async def publish(self, messages: Sequence[EventMessage]) -> Sequence[str | BrokerError]:
        if any(self.refuses(each) for each in messages):
            raise BrokerError("a bad message", ErrorCode.INVALID)
        return await super().publish(messages)


def test_room_that_messages_not_attempted_leave_is_used_at_once() -> None:
    """P3, P5, P6: also while the rest of their request is out."""

    async def test(client: ScriptedClient) -> None:
        client.broker.refuses = lambda each: each.data == b"bad"
        first, gate = await one_out(client, message("1", "k"))
        client.broker.gate = gates = asyncio.Event()
        failing = asyncio.create_task(client.send_messages([message("bad", "k"), message("2" * 60, "k")]))
        sends = [asyncio.create_task(client.send_message(each)) for each in (message("3", "k"), message("4" * 40))]
        await asyncio.sleep(0)
        await client._home.run(_set(gate))
        await first
        await asyncio.wait_for(until(lambda: [b"4" * 40] in client.broker.requests), 60)
        client.broker.gate = None
        await client._home.run(_set(gates))
        await asyncio.gather(*sends)
        with pytest.raises(PublishError):
            await failing

    run(test, driver=_RefusesAtOnce, publish_max_bytes="80")


@pytest.mark.parametrize("bound", ["2", "1000"])
def test_sends_that_were_given_up_are_not_kept(bound: str) -> None:
    """P6: memory does not grow while the broker is silent, neither before the bound nor behind a request."""

    async def test(client: ScriptedClient) -> None:
        slow, gate = await one_out(client, message("1", "slow"))
        waiting = [asyncio.create_task(client.send_message(message(text, "slow"))) for text in "23"]
        await asyncio.sleep(0)
        given_up = [message(str(number), "slow") for number in range(500)]
        held = [weakref.ref(each) for each in given_up]
        sends = [asyncio.create_task(client.send_message(each)) for each in given_up]
        given_up.clear()
        await asyncio.sleep(0)
        for each in sends:
            each.cancel()
        await asyncio.wait(sends)
        sends.clear()
        del each
        gc.collect()
        assert sum(each() is not None for each in held) < 10
        await client._home.run(_set(gate))
        assert await asyncio.gather(slow, *waiting) == ["id-1", "id-2", "id-3"]

    run(test, publish_max_messages=bound)


def test_past_the_bound_a_send_may_fail_at_once() -> None:
    """P6: with publish_on_limit=error it does not wait."""

    async def test(client: ScriptedClient) -> None:
        async with held_back(client):
            first = asyncio.create_task(client.send_message(message("1")))
            await until(lambda: bool(client.broker.requests))
            with pytest.raises(PublishError) as caught:
                await client.send_message(message("2"))
            assert (caught.value.code, caught.value.retryable) == (ErrorCode.EXHAUSTED, True)
        await first

    run(test, publish_max_messages="1", publish_on_limit="error")


def test_a_cancelled_send_harms_no_neighbour() -> None:
    """P8: the other messages of the same request are sent."""

    async def test(client: ScriptedClient) -> None:
        await client.send_message(message("0"))
        async with held_back(client):
            sends = [asyncio.create_task(client.send_message(message(str(number)))) for number in range(1, 9)]
            await until(lambda: len(client.broker.requests) >= 2)
            sends[3].cancel()
        results = await asyncio.gather(*sends, return_exceptions=True)
        assert [each for each in results if isinstance(each, BaseException)] == [results[3]]
        assert isinstance(results[3], asyncio.CancelledError)

    run(test)


def test_a_receiver_outlives_an_outage() -> None:
    """F1: it keeps waiting, and is_connected is False during the outage."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            source = client.broker.sources[0]
            # Sent before the outage: an answer to a send would end the outage between its two failures.
            await client.send_messages([message("1"), message("2")])
            await until(lambda: receiver.stats.buffered == 2)
            source.fetch_errors = [UNAVAILABLE, UNAVAILABLE]
            for text in "34":  # the fetch that waits returns the first of them
                client._home.wake(lambda text=text: source.arriving.put_nowait(message(text)))  # type: ignore[misc]
            received = [await receiver.receive_message(60) for _ in range(4)]
            assert [each.data for each in received if each] == [b"1", b"2", b"3", b"4"]
            assert client.is_connected
            assert client.is_connected
            assert receiver.stats.reconnects == 1

    run(test)


def test_a_permanent_failure_raises_and_the_next_call_tries_again() -> None:
    """F1: a failure that is not retryable surfaces from receive, and does not end the receiver."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            source = client.broker.sources[0]
            source.fetch_errors = [BrokerError("not yours", ErrorCode.PERMISSION_DENIED)]
            await client.send_message(message("1"))
            await receiver.receive_message(60)
            with pytest.raises(ReceiveError) as caught:
                await receiver.receive_message(60)
            assert caught.value.code is ErrorCode.PERMISSION_DENIED
            await client.send_message(message("2"))
            assert await receiver.receive_message(60) is not None

    run(test)


def test_a_driver_that_awaited_what_was_cancelled_has_failed() -> None:
    """F1, P7, S5: the callers get the failure at once, and the next call tries again."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            source = client.broker.sources[0]
            source.fetch_errors = [asyncio.CancelledError()]
            await client.send_message(message("1"))
            received = await receiver.receive_message(60)
            assert received is not None
            with pytest.raises(ReceiveError) as receiving:
                await receiver.receive_message(60)
            source.settle_errors = [asyncio.CancelledError()]
            with pytest.raises(AcknowledgeError) as settling:
                await receiver.acknowledge(received)
            await receiver.acknowledge(received)
            client.broker.publish_errors = [asyncio.CancelledError()]
            with pytest.raises(PublishError) as sending:
                await client.send_message(message("2"))
            assert {each.value.code for each in (receiving, settling, sending)} == {ErrorCode.INTERNAL}

    run(test)


def test_a_driver_that_exits_ends_no_other_client() -> None:
    """P7, F1: SystemExit from an SDK is a failure of the request, and nothing else ends."""

    async def test(client: ScriptedClient) -> None:
        other = ScriptedClient(EventConfig("other", backend="scripted"))
        await other.send_message(message("1"))
        client.broker.open_errors = [SystemExit("this SDK needs Python 4")]
        with pytest.raises(PublishError, match="Python 4") as caught:
            await client.send_message(message("1"))
        assert caught.value.code is ErrorCode.INTERNAL
        await asyncio.wait_for(other.send_message(message("2")), 60)
        await other.close()

    run(test)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_the_io_thread_outlives_what_a_library_does_on_it(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """T1: an exception that would end the shared thread is logged, and the thread goes on."""

    async def test(client: ScriptedClient) -> None:
        def leave() -> None:
            raise error

        await client.send_message(message("1"))
        client._home.wake(leave)
        assert await asyncio.wait_for(client.send_message(message("2")), 60) == "id-2"

    run(test)
    assert error.__name__ in caplog.text


def test_subscribing_to_what_is_missing_raises() -> None:
    """Q2: the error has the code NOT_FOUND."""

    async def test(client: ScriptedClient) -> None:
        with pytest.raises(ReceiveError) as caught:
            await client.subscribe("missing")
        assert caught.value.code is ErrorCode.NOT_FOUND

    run(test)


def test_an_outage_that_a_ping_notices_first_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """V1: its beginning and its end are logged as those of any outage."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            source = client.broker.sources[0]
            await client.send_message(message("1"))
            await receiver.receive_message(60)
            with pytest.raises(EventConnectionError):
                await client.ping(0.05)
            assert not client.is_connected
            client._home.wake(lambda: source.arriving.put_nowait(message("2")))
            await receiver.receive_message(60)

    with caplog.at_level(logging.INFO, "events_core.engine"):
        run(test)
    levels = [(record.levelname, record.getMessage().partition(": ")[2].partition(",")[0]) for record in caplog.records]
    assert levels == [("INFO", "connected"), ("WARNING", "connection lost"), ("INFO", "reconnected")]


def test_what_a_source_refuses_by_itself_is_no_sign_of_life(caplog: pytest.LogCaptureFixture) -> None:
    """V1: if a driver knows that the session of a delivery is lost, saying so ends no outage."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            await client.send_message(message("1"))
            held = await receiver.receive_message(60)
            assert held is not None
            with pytest.raises(EventConnectionError):
                await client.ping(0.05)
            client.broker.sources[0].refusal = BrokerError("the session is lost", ErrorCode.EXPIRED)
            with pytest.raises(AcknowledgeError):
                await receiver.acknowledge(held)
            assert not client.is_connected

    with caplog.at_level(logging.INFO, "events_core.engine"):
        run(test)
    assert "reconnected" not in caplog.text


class _LooksUpNames(ScriptedDriver):
    """Uses the threads of the loop, as a library does to look up a name."""

    async def ping(self) -> None:
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.3)


def test_threads_that_a_library_uses_end_with_the_client() -> None:
    """C3: the threads of the I/O loop's executor have ended when ``close`` returns."""

    async def test(client: ScriptedClient) -> None:
        await client.ping()

    run(test, driver=_LooksUpNames)


def test_ping_is_bounded() -> None:
    """If no answer comes in time, ping raises a connection error."""

    async def test(client: ScriptedClient) -> None:
        with pytest.raises(EventConnectionError) as caught:
            await client.ping(0.1)
        assert caught.value.code is ErrorCode.TIMEOUT

    run(test)


@pytest.mark.parametrize("name", ["open", "ping"])
def test_a_failure_for_which_nobody_waits_any_more_is_dropped(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """V1: asyncio does not log it as an exception that was never retrieved."""

    async def test(client: ScriptedClient) -> None:
        begun, gate, failed = threading.Event(), asyncio.Event(), threading.Event()

        async def fail() -> None:
            begun.set()
            await gate.wait()
            failed.set()
            raise UNAVAILABLE

        setattr(client.broker, name, fail)
        pinging = asyncio.create_task(client.ping(30))
        await until(begun.is_set)
        pinging.cancel()
        await asyncio.wait([pinging])
        client._home.wake(gate.set)
        await until(failed.is_set)

    run(test)
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_a_close_does_not_wait_for_ever_for_who_receives(monkeypatch: pytest.MonkeyPatch) -> None:
    """C2: a broker that never tells whether the topic has a subscription does not hold up a close."""
    monkeypatch.setattr(recipients_module, "LOOK_UP", 0.05)

    async def never() -> None:
        await asyncio.Event().wait()

    async def test(client: ScriptedClient) -> None:
        client.broker.has_subscription = never  # type: ignore[method-assign]
        await client.send_message(message("1"))
        await asyncio.wait_for(client.close(timeout=3600), 60)

    run(test)


def test_leases_hold_while_the_applications_loop_is_blocked() -> None:
    """R6: the engine's thread renews them."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            await client.send_message(message("1"))
            held = await receiver.receive_message(60)
            assert held is not None
            ends = time.monotonic() + 60
            while client.broker.sources[0].extended < 2:
                assert time.monotonic() < ends
                time.sleep(0.01)  # noqa: ASYNC251  # blocking the loop is the point
            await receiver.acknowledge(held)

    run(test)


def test_settling_is_retried_and_then_leaves_the_message_held() -> None:
    """S5: after TIMEOUT either outcome may be tried again."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            await client.send_message(message("1"))
            held = await receiver.receive_message(60)
            assert held is not None
            source = client.broker.sources[0]
            source.settle_errors = [UNAVAILABLE] * 10_000  # for some minutes
            with pytest.raises(AcknowledgeError) as caught:
                await receiver.acknowledge(held)
            assert (caught.value.code, receiver.stats.held) == (ErrorCode.TIMEOUT, 1)
            source.settle_errors = []
            receiver._settler._timeout = 60.0  # type: ignore[attr-defined]
            await receiver.nack(held)
            assert [each.outcome for each in source.settled] == [Outcome.NACK]

    run(test, ack_timeout="0.3")


def test_nacking_what_only_the_broker_knows_to_be_over_is_a_no_op() -> None:
    """S3: the message comes again in any case, so a nack that the broker calls EXPIRED succeeds."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            await client.send_message(message("1"))
            held = await receiver.receive_message(60)
            assert held is not None
            client.broker.sources[0].settle_errors = [BrokerError("taken back", ErrorCode.EXPIRED)]
            await receiver.nack(held)
            assert receiver.stats.held == 0
            with pytest.raises(AcknowledgeError) as caught:
                await receiver.acknowledge(held)
            assert caught.value.code is ErrorCode.EXPIRED

    run(test)


def test_closing_lets_settling_go_on_then_returns_the_rest() -> None:
    """C1: what was not settled in time goes back."""

    async def test(client: ScriptedClient) -> None:
        receiver = await client.subscribe("s")
        for text in "123":
            await client.send_message(message(text))
        first, second = [await receiver.receive_message(60) for _ in range(2)]
        assert first is not None
        assert second is not None
        await until(lambda: receiver.stats.buffered == 1)
        closing = asyncio.create_task(receiver.close(timeout=3600))
        await until(lambda: receiver.stats.buffered == 0)
        await receiver.acknowledge(first)
        await receiver.close(timeout=0)  # the time is up
        await closing
        outcomes = [(each.delivery.message_id, each.outcome) for each in client.broker.sources[0].settled]
        assert outcomes == [("3", Outcome.RETURN), ("1", Outcome.ACK), ("2", Outcome.RETURN)]
        with pytest.raises(EventRuntimeError) as caught:
            await receiver.acknowledge(second)
        assert caught.value.code is ErrorCode.CLOSED

    run(test)


def test_a_close_does_not_wait_for_what_the_broker_has_taken_back() -> None:
    """C1: such a delivery is no longer held."""

    async def take_back(deliveries: Sequence[Delivery]) -> Collection[Delivery]:
        return deliveries

    async def test(client: ScriptedClient) -> None:
        receiver = await client.subscribe("s")
        client.broker.sources[0].extend = take_back  # type: ignore[method-assign]
        await client.send_message(message("1"))
        await receiver.receive_message(60)
        await asyncio.wait_for(receiver.close(timeout=3600), 60)

    run(test)


def test_an_acknowledgement_ends_with_its_receiver() -> None:
    """C2: without an answer it fails with CLOSED, and does not wait for ack_timeout."""

    async def test(client: ScriptedClient) -> None:
        receiver, source, first, second = await two_held(client)
        settling = [asyncio.create_task(receiver.acknowledge(first)), asyncio.create_task(receiver.nack(second))]
        await until(lambda: bool(source.settled))
        await receiver.close(timeout=0)
        for each in settling:
            with pytest.raises(EventRuntimeError) as caught:
                await asyncio.wait_for(each, 60)
            assert caught.value.code is ErrorCode.CLOSED

    run(test, ack_timeout="3600")


def test_a_waiting_receive_ends_when_the_client_closes() -> None:
    """C1, C2: it raises CLOSED, and iteration ends."""

    async def test(client: ScriptedClient) -> None:
        receiver = await client.subscribe("s")

        async def iterate() -> list[Any]:
            return [each async for each in receiver]

        waiting = asyncio.create_task(receiver.receive_message())
        iterating = asyncio.create_task(iterate())
        await asyncio.sleep(0)
        await client.close(timeout=1)
        with pytest.raises(EventRuntimeError) as caught:
            await waiting
        assert caught.value.code is ErrorCode.CLOSED
        assert await iterating == []

    run(test)


def test_a_cancelled_close_finishes_in_the_background() -> None:
    """C2: the client is closed within the bound of the close."""

    async def test(client: ScriptedClient) -> None:
        receiver = await client.subscribe("s")
        await client.send_message(message("1"))
        await receiver.receive_message(60)
        closing = asyncio.create_task(client.close(timeout=0.3))
        await asyncio.sleep(0.05)
        closing.cancel()
        await asyncio.wait([closing])
        await until(lambda: client.broker.closed)
        await client.close()

    run(test)


def test_nacking_what_goes_back_behind_another_waits_for_that() -> None:
    """S2, R10: the call returns when the broker has the message back."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            source = client.broker.sources[0]
            await client.send_messages([message("1", "key"), message("2", "key")])
            await until(lambda: receiver.stats.buffered == 2)
            first, second = await receiver.receive_messages(2)
            source.settle_gate = asyncio.Event()
            nacks = [asyncio.create_task(receiver.nack(first))]
            await until(lambda: len(source.settled) == 2)
            nacks.append(asyncio.create_task(receiver.nack(second)))
            _, waiting = await asyncio.wait(nacks, timeout=0.05)
            assert waiting == set(nacks)
            await client._home.run(_set(source.settle_gate))
            await asyncio.gather(*nacks)

    run(test)


def test_an_acknowledgement_that_is_confirmed_late_serves_its_repetition() -> None:
    """S5: if it is repeated after a TIMEOUT, a late confirmation of the first request is enough."""

    async def test(client: ScriptedClient) -> None:
        receiver, source, first, second = await two_held(client)
        blocking = asyncio.create_task(receiver.acknowledge(first))
        await until(lambda: len(source.settled) == 1)
        await asyncio.sleep(1.5)  # so that the next request leaves before its time is up
        following = asyncio.create_task(receiver.acknowledge(second))
        await asyncio.sleep(0)
        receiver._settler._timeout = 3600.0  # type: ignore[attr-defined]  # the next request outlives its caller
        for acknowledgement in (following, blocking):
            with pytest.raises(AcknowledgeError) as caught:
                await acknowledgement
            assert caught.value.code is ErrorCode.TIMEOUT
        again = asyncio.create_task(receiver.acknowledge(second))
        await asyncio.sleep(0)
        client._home.wake(source.settle_gate.set)
        await again
        assert [each.delivery.message_id for each in source.settled].count("2") == 1
        await receiver.acknowledge(first)

    run(test, ack_timeout="4")


def test_two_acknowledgements_of_one_message_have_a_timeout_each() -> None:
    """S5: ack_timeout counts from the beginning of each call."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            source = client.broker.sources[0]
            source.settle_gate = asyncio.Event()
            await client.send_message(message("1"))
            held = await receiver.receive_message(60)
            assert held is not None
            first = asyncio.create_task(receiver.acknowledge(held))
            await until(lambda: bool(source.settled))
            receiver._settler._timeout = 60.0  # type: ignore[attr-defined]
            second = asyncio.create_task(receiver.acknowledge(held))
            with pytest.raises(AcknowledgeError) as caught:
                await first
            assert caught.value.code is ErrorCode.TIMEOUT
            await asyncio.sleep(0)
            client._home.wake(source.settle_gate.set)
            await second

    run(test, ack_timeout="3")


def test_an_answer_for_fewer_messages_is_an_error() -> None:
    """P7: if the backend answers for too few messages, the send fails at once."""

    async def test(client: ScriptedClient) -> None:
        client.broker.publish = lambda messages: asyncio.sleep(0, [])  # type: ignore[method-assign]
        with pytest.raises(PublishError, match="0 of 1 messages") as caught:
            await client.send_message(message("1"))
        assert caught.value.code is ErrorCode.INTERNAL

    run(test)


class NotingSource(ScriptedSource):
    """A source that takes a note of acknowledgements, unless it is told not to."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[str] = []
        self.takes_notes = True
        self.lost: dict[str, BrokerError] = {}
        """The errors of messages that the broker has taken back, by text."""

    def acknowledge_at_once(self, deliveries: Sequence[Delivery]) -> Sequence[BrokerError | None] | None:
        if not self.takes_notes:
            return None
        self.noted += [delivery.data.decode() for delivery in deliveries]
        return [self.lost.get(delivery.data.decode()) for delivery in deliveries]


class NotingDriver(ScriptedDriver):
    async def subscribe(self, subscription: str | None, wake: Callable[[], None]) -> NotingSource:
        source = NotingSource()
        self.sources.append(source)
        return source


async def _noting(client: ScriptedClient, *texts: str) -> tuple[EventReceiver, NotingSource, list[ReceivedMessage]]:
    """Yield a receiver that holds a message of one key for each text."""
    receiver = await client.subscribe("s")
    (source,) = client.broker.sources
    assert isinstance(source, NotingSource)
    await client.send_messages([message(text, "key") for text in texts])
    await until(lambda: receiver.stats.buffered == len(texts))
    return receiver, source, await receiver.receive_messages(len(texts), 60)


def test_acknowledgement_at_once() -> None:
    """S1: if the backend takes a note of acknowledgements, they need no request, and make room at once."""

    async def test(client: ScriptedClient) -> None:
        receiver, source, held = await _noting(client, "1", "2")
        await receiver.acknowledge_messages(held)
        assert source.noted == ["1", "2"]
        assert receiver.stats.held == 0
        await receiver.acknowledge_messages(held)  # settling twice is a success (S2)
        assert source.settled == []
        assert source.noted == ["1", "2"]

    run(test, driver=NotingDriver)


def test_an_answer_for_fewer_acknowledgements_at_once_is_an_error() -> None:
    """S1: nobody knows which of them the backend has taken a note of, so no message stays held."""

    async def test(client: ScriptedClient) -> None:
        receiver, source, held = await _noting(client, "1", "2")
        source.acknowledge_at_once = lambda deliveries: [None]  # type: ignore[method-assign]
        with pytest.raises(AcknowledgeError, match="1 of 2 settlements") as caught:
            await receiver.acknowledge_messages(held)
        assert caught.value.code is ErrorCode.INTERNAL
        assert receiver.stats.held == 0

    run(test, driver=NotingDriver)


def test_acknowledgement_at_once_lets_others_run() -> None:
    """An application that acknowledges all the time lets other tasks of its loop run."""

    async def test(client: ScriptedClient) -> None:
        receiver, _, held = await _noting(client, "1")
        other = asyncio.create_task(_set(asyncio.Event()))
        ends = time.monotonic() + 60
        while not other.done() and time.monotonic() < ends:
            await receiver.acknowledge(held[0])
        assert other.done()

    run(test, driver=NotingDriver)


def test_acknowledgement_at_once_of_a_lost_delivery() -> None:
    """R10: if a delivery was lost, the later ones of its key go back too."""

    async def test(client: ScriptedClient) -> None:
        receiver, source, held = await _noting(client, "1", "2")
        source.lost["1"] = BrokerError("the partition is gone", ErrorCode.EXPIRED)
        with pytest.raises(AcknowledgeError, match="the partition is gone") as caught:
            await receiver.acknowledge(held[0])
        assert caught.value.code is ErrorCode.EXPIRED
        await until(lambda: [(each.delivery.data, each.outcome) for each in source.settled] == [(b"2", Outcome.RETURN)])

    run(test, driver=NotingDriver)


def test_acknowledgement_at_once_behind_a_lost_delivery() -> None:
    """R10: a delivery that is acknowledged does not go back, although an earlier one of its key was lost."""

    async def test(client: ScriptedClient) -> None:
        receiver, source, held = await _noting(client, "1", "2", "3")
        source.lost["1"] = BrokerError("the partition is gone", ErrorCode.EXPIRED)
        with pytest.raises(AcknowledgeError) as caught:
            await receiver.acknowledge_messages(held[:2])
        assert list(caught.value.failed) == [held[0].message_id]
        await until(lambda: [(each.delivery.data, each.outcome) for each in source.settled] == [(b"3", Outcome.RETURN)])
        assert receiver.stats.held == 0
        await receiver.acknowledge(held[1])

    run(test, driver=NotingDriver)


def test_acknowledgement_at_once_of_a_message_twice() -> None:
    """S2: a message that one call names twice is acknowledged once."""

    async def test(client: ScriptedClient) -> None:
        receiver, source, held = await _noting(client, "1")
        await receiver.acknowledge_messages([held[0], held[0], held[0].message_id])
        assert source.noted == ["1"]
        assert receiver.stats.held == 0

    run(test, driver=NotingDriver)


def test_acknowledgement_at_once_next_to_one_under_way() -> None:
    """S2: a call waits for what another one has asked of the broker, and the rest makes room at once."""

    async def test(client: ScriptedClient) -> None:
        receiver, source, held = await _noting(client, "1", "2")
        source.settle_gate, source.takes_notes = asyncio.Event(), False
        first = asyncio.create_task(receiver.acknowledge(held[0]))
        await until(lambda: len(source.settled) == 1)
        source.takes_notes = True
        both = asyncio.create_task(receiver.acknowledge_messages(held))
        await until(lambda: source.noted == ["2"])
        await client.send_messages([message("3"), message("4")])
        await until(lambda: receiver.stats.buffered == 1)  # the bound of two lets one more come
        assert not both.done()
        client._home.wake(source.settle_gate.set)
        await asyncio.gather(first, both)
        assert len(source.settled) == 1

    run(test, driver=NotingDriver, max_outstanding_messages="2")


def test_acknowledgement_at_once_of_a_stranger() -> None:
    """S2: a message of another receiver is refused, and no note is taken of it."""

    async def test(client: ScriptedClient) -> None:
        receiver, source, held = await _noting(client, "1")
        async with await client.subscribe("t") as other:
            with pytest.raises(AcknowledgeError) as caught:
                await other.acknowledge_messages(held)
        assert caught.value.code is ErrorCode.NOT_FOUND
        assert source.noted == []
        await receiver.acknowledge_messages(held)

    run(test, driver=NotingDriver)


def test_acknowledgement_that_cannot_be_noted() -> None:
    """S1: if the backend takes no note now, the acknowledgement is a request as any other."""

    async def test(client: ScriptedClient) -> None:
        receiver, source, held = await _noting(client, "1")
        source.takes_notes = False
        await receiver.acknowledge(held[0])
        assert [each.delivery.data for each in source.settled] == [b"1"]

    run(test, driver=NotingDriver)


async def _answer_nothing(settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
    return []


def test_an_answer_for_fewer_settlements_is_an_error() -> None:
    """S5: if the backend answers for too few settlements, the settlement fails and the message stays held."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            await client.send_message(message("1"))
            received = await receiver.receive_message(60)
            assert received is not None
            source = client.broker.sources[0]
            settle = source.settle
            source.settle = _answer_nothing  # type: ignore[method-assign]
            with pytest.raises(AcknowledgeError, match="0 of 1 settlements") as caught:
                await receiver.acknowledge(received)
            assert caught.value.code is ErrorCode.INTERNAL
            source.settle = settle  # type: ignore[method-assign]
            await receiver.acknowledge(received)

    run(test, ack_timeout="5")


def test_an_inline_answer_for_fewer_settlements_is_an_error() -> None:
    """S5: the same holds for a driver in the caller's thread."""

    async def test() -> None:
        async with MemoryClient(EventConfig("fewer")) as client, await client.subscribe("s") as receiver:
            await client.send_message(message("1"))
            received = await receiver.receive_message(60)
            assert received is not None
            receiver._source.settle = _answer_nothing  # type: ignore[attr-defined]
            with pytest.raises(AcknowledgeError, match="0 of 1 settlements") as caught:
                await receiver.acknowledge(received)
            assert caught.value.code is ErrorCode.INTERNAL
            del receiver._source.settle  # type: ignore[attr-defined]
            await receiver.acknowledge(received)

    asyncio.run(test())


def test_a_send_that_was_accepted_before_the_connection_stood_is_flushed() -> None:
    """C2: a close waits for it as for every other send."""

    async def test(client: ScriptedClient) -> None:
        client.broker.open_gate = asyncio.Event()
        sending = asyncio.create_task(client.send_message(message("1")))
        await asyncio.sleep(0)
        closing = asyncio.create_task(client.close(timeout=10))
        await asyncio.sleep(0)
        client._home.wake(client.broker.open_gate.set)
        await closing
        assert await sending == "id-1"

    run(test)


def test_a_call_that_a_close_interrupts_says_closed() -> None:
    """C3: it raises CLOSED, whatever it was waiting for."""

    async def test(client: ScriptedClient) -> None:
        await client.subscribe("s")
        pinging = asyncio.create_task(client.ping(timeout=60))
        await asyncio.sleep(0.05)
        await client.close(timeout=0)
        with pytest.raises(EventRuntimeError) as caught:
            await pinging
        assert caught.value.code is ErrorCode.CLOSED

    run(test)


@pytest.mark.parametrize("what", ["open", "subscribe", "ping"])
def test_what_the_driver_was_asked_for_is_over_before_it_closes(what: str) -> None:
    """C3: a request that goes on after the close could open something that stays open."""

    async def test(client: ScriptedClient) -> None:
        under_way = 0
        at_close: list[int] = []

        async def slowly(*_: object) -> None:
            nonlocal under_way
            under_way += 1
            try:
                await asyncio.sleep(60)
            finally:
                under_way -= 1

        async def close() -> None:
            at_close.append(under_way)
            client.broker.closed = True

        setattr(client.broker, what, slowly)
        client.broker.close = close  # type: ignore[method-assign]
        call = asyncio.create_task(client.subscribe("s") if what == "subscribe" else client.ping(timeout=60))
        await until(lambda: under_way == 1)
        await client.close(timeout=0)
        assert at_close == [0]
        with pytest.raises(EventRuntimeError):
            await call

    run(test)


def test_a_subscription_that_comes_while_the_client_closes_goes_with_it() -> None:
    """C3: no receiver is returned that stays open."""

    async def test(client: ScriptedClient) -> None:
        asked = threading.Event()
        gate = asyncio.Event()

        async def subscribe(*_: object) -> ScriptedSource:
            asked.set()
            await gate.wait()
            return ScriptedSource()

        client.broker.subscribe = subscribe  # type: ignore[method-assign]
        async with held_back(client):
            sending = asyncio.create_task(client.send_message(message("1")))
            subscribing = asyncio.create_task(client.subscribe("s"))
            await until(asked.is_set)
            closing = asyncio.create_task(client.close(timeout=10))
            await until(lambda: client._publisher.closed)
            client._home.wake(gate.set)
            with pytest.raises(EventRuntimeError) as caught:
                await subscribing
            assert caught.value.code is ErrorCode.CLOSED
            assert not client._receivers
        await asyncio.gather(sending, closing)

    run(test)


def test_the_source_of_a_subscription_that_comes_while_the_client_closes_is_closed_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C3: the client closes it before it cancels tasks and closes the driver."""
    monkeypatch.setattr("events_core.engine.closing.SHORTEST_CLOSE", 60.0)
    closed: list[str] = []

    async def test(client: ScriptedClient) -> None:
        asked, gate, flushed = threading.Event(), asyncio.Event(), asyncio.Event()

        class SlowSource(ScriptedSource):
            close_time = 60

            async def close(self) -> None:
                flushed.set()  # the client, which has waited for a send, goes on
                for _ in range(200):
                    await asyncio.sleep(0)
                closed.append("source")

        async def subscribe(*_: object) -> ScriptedSource:
            asked.set()
            await gate.wait()
            return SlowSource()

        async def close() -> None:
            closed.append("driver")
            client.broker.closed = True

        client.broker.gate = flushed
        client.broker.subscribe = subscribe  # type: ignore[method-assign]
        client.broker.close = close  # type: ignore[method-assign]
        sending = asyncio.create_task(client.send_message(message("1")))
        subscribing = asyncio.create_task(client.subscribe("s"))
        await until(asked.is_set)
        await until(lambda: bool(client.broker.requests))
        closing = asyncio.create_task(client.close(timeout=10))
        await until(lambda: client._publisher.closed)
        client._home.wake(gate.set)
        await asyncio.gather(sending, subscribing, closing, return_exceptions=True)

    run(test)
    assert closed == ["source", "driver"]


def test_a_send_that_waits_to_connect_again_ends_with_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """C2: it does not sleep until its next try."""
    monkeypatch.setattr(client_module, "Backoff", lambda maximum: itertools.repeat(3600.0))

    async def test(client: ScriptedClient) -> None:
        client.broker.open_errors = [UNAVAILABLE] * 100
        sending = asyncio.create_task(client.send_message(message("1")))
        await until(lambda: len(client.broker.open_errors) < 100)
        await client.close(timeout=0)
        with pytest.raises(EventRuntimeError):
            await asyncio.wait_for(sending, 60)

    run(test, send_timeout="36000")


def test_an_io_thread_that_could_not_be_made_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """C3: the next I/O thread ends with its last client."""

    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    async def test(client: ScriptedClient) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "new_event_loop", fail)
            with pytest.raises(EventConnectionError, match="Too many") as caught:
                await client.ping()
            assert (caught.value.code, caught.value.retryable) == (ErrorCode.EXHAUSTED, True)
        await client.send_message(message("2"))

    run(test)


def test_a_close_beside_the_first_use_leaves_no_thread() -> None:
    """C3: this holds whichever of the two comes first."""
    before = threading.enumerate()
    client = ScriptedClient(EventConfig("topic", backend="scripted"))
    closing = threading.Thread(target=lambda: asyncio.run(client.close(timeout=0)))
    start = client._home.start

    def start_while_another_thread_closes() -> None:
        if closing.ident is None:
            closing.start()
            closing.join(0.2)  # as far as it comes by itself
        start()

    client._home.start = start_while_another_thread_closes  # type: ignore[method-assign]
    with contextlib.suppress(EventRuntimeError):
        asyncio.run(client.delete_subscription("s"))
    closing.join(60)
    asyncio.run(client.close())
    assert_no_thread_since(before)


def test_a_ping_that_waits_for_anothers_connection_keeps_its_own_time() -> None:
    """P7: a ping ends with its own timeout, although another call is connecting."""

    async def test(client: ScriptedClient) -> None:
        client.broker.open_errors = [UNAVAILABLE] * 100
        connecting = asyncio.create_task(client.send_message(message("1")))
        await asyncio.sleep(0)
        with pytest.raises(EventConnectionError):
            await asyncio.wait_for(client.ping(timeout=0.2), 60)
        assert not connecting.done()
        client.broker.open_errors.clear()
        assert await connecting == "id-1"

    run(test, send_timeout="600")


def test_a_waiting_receive_keeps_the_time_of_a_delayed_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """R11: it gets the message in time, even if the receive that was to be woken for it is gone."""
    monkeypatch.setattr(ScriptedSource, "redelivers_locally", True)
    # The wait for this warning ends with another look.
    monkeypatch.setattr("events_core.engine.receiver.BLOCKED_WARNING", 3600.0)

    async def test(client: ScriptedClient) -> None:
        receiver = await client.subscribe("s")
        await client.send_message(message("1", key="k"))
        received = await receiver.receive_message(60)
        assert received is not None
        client.broker.sources[0].settle_gate = None
        short = asyncio.create_task(receiver.receive_message(0.3))
        long = asyncio.create_task(receiver.receive_message())
        await asyncio.sleep(0.05)
        await receiver.nack(received, delay=3)
        assert await short is None
        again = await asyncio.wait_for(long, 60)
        assert again is not None
        await receiver.acknowledge(again)

    run(test)


def test_the_least_patient_close_decides() -> None:
    """C2: a client's close is not delayed by a longer timeout of a receiver's close."""

    async def test(client: ScriptedClient) -> None:
        receiver = await client.subscribe("s")
        await client.send_message(message("1"))
        await receiver.receive_message(60)
        closing = asyncio.create_task(receiver.close(timeout=3600))
        await asyncio.sleep(0)
        await asyncio.wait_for(client.close(timeout=0), 60)
        await closing
        assert [each.outcome for each in client.broker.sources[0].settled] == [Outcome.RETURN]

    run(test)


def test_the_least_patient_close_decides_about_sends_too() -> None:
    """C2: of two closes of a client, the shorter timeout counts."""

    async def test(client: ScriptedClient) -> None:
        await client.send_message(message("0"))
        async with held_back(client):
            sending = asyncio.create_task(client.send_message(message("1")))
            await until(lambda: len(client.broker.requests) == 2)
            closing = asyncio.create_task(client.close(timeout=3600))
            await until(lambda: client._publisher.closed)
            await asyncio.wait_for(client.close(timeout=0), 60)
            await closing
            with pytest.raises(EventRuntimeError):
                await sending

    run(test)


def test_one_client_serves_several_loops() -> None:
    """T1: several threads with a loop each use it at once."""
    client = ScriptedClient(EventConfig("topic", backend="scripted"))
    ids: list[str] = []

    def work(name: int) -> None:
        async def sends() -> list[str]:
            return [await client.send_message(message(f"{name}-{number}")) for number in range(50)]

        ids.extend(asyncio.run(sends()))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    asyncio.run(client.close())
    assert len(set(ids)) == 200


async def two_buffered(client: ScriptedClient, receiver: EventReceiver) -> ScriptedSource:
    """Yield a source of which "1" and "2" are buffered, and nothing is handed out."""
    await client.send_messages([message("1"), message("2")])
    await until(lambda: receiver.stats.buffered == 2)
    return client.broker.sources[0]


async def _done(work: Callable[[], object]) -> None:
    work()


@pytest.mark.parametrize("is_home", [True, False])
def test_what_a_source_has_lost_is_not_handed_out(is_home: bool) -> None:
    """F2: lost deliveries are dropped from any thread, without settling them; the others are handed out."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            source = await two_buffered(client, receiver)

            def lose() -> None:
                source.lost(lambda delivery: delivery.token == 1)

            await client._home.run(_done(lose)) if is_home else lose()
            assert [each.data for each in await receiver.receive_messages(10, 60)] == [b"2"]
            assert source.settled == []

    run(test)


def test_what_is_held_in_a_lost_session_is_settled_when_it_has_come_again() -> None:
    """F2, R7: the message is not handed out twice, and the newer token settles it."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            copy = EventMessage(b"1", {"id": "same"})
            await client.send_message(copy)
            held = await receiver.receive_message(60)
            assert held is not None
            source = client.broker.sources[0]
            source.lost(lambda _: True)
            assert receiver.stats.held == 1
            await client.send_message(copy)
            await until(lambda: receiver.stats.duplicates == 1)
            await receiver.acknowledge(held)
            assert source.tokens == [2]

    run(test)


def test_what_goes_back_behind_what_was_lost_goes_back_in_order() -> None:
    """R10: if the first message of a key was lost, no later one is handed out before it."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            await client.send_messages([message("1", "k"), message("2", "k"), message("3")])
            await until(lambda: receiver.stats.buffered == 3)
            source = client.broker.sources[0]
            source.lost(lambda delivery: delivery.token == 1)
            assert [each.data for each in await receiver.receive_messages(10, 60)] == [b"3"]
            await until(lambda: bool(source.settled))
            assert [(each.delivery.data, each.outcome) for each in source.settled] == [(b"2", Outcome.RETURN)]

    run(test)


def test_nothing_is_handed_out_while_a_session_may_be_over() -> None:
    """F2: a receive waits until the session is renewed."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            source = await two_buffered(client, receiver)
            source.safe_until = uptime() - 1
            assert await receiver.receive_message(0) is None
            waiting = asyncio.create_task(receiver.receive_message())
            done, _ = await asyncio.wait([waiting], timeout=0.05)
            assert not done
            source.safe_until = uptime() + 3600
            source.wake()
            received = await asyncio.wait_for(waiting, 60)
            assert received is not None
            assert received.data == b"1"

    run(test)


def test_uptime_counts_the_time_in_which_the_machine_was_suspended() -> None:
    """The clock is CLOCK_BOOTTIME if the system has it, and the monotonic one otherwise."""
    first = uptime()
    assert uptime() >= first
    if hasattr(time, "CLOCK_BOOTTIME"):
        assert first <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_cancelled_acknowledgement_holds_its_message_until_it_has_ended() -> None:
    """S2, S5: until the broker has answered, the other outcome is refused and the message counts as held."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            source = client.broker.sources[0]
            await client.send_message(message("1"))
            held = await receiver.receive_message(60)
            assert held is not None
            gate = source.settle_gate = asyncio.Event()
            acknowledging = asyncio.create_task(receiver.acknowledge(held))
            await until(lambda: bool(source.settled))
            acknowledging.cancel()
            await asyncio.wait([acknowledging])
            with pytest.raises(AcknowledgeError) as caught:
                await receiver.nack(held)
            assert (caught.value.code, receiver.stats.held) == (ErrorCode.ALREADY_SETTLED, 1)
            await client._home.run(_set(gate))
            await receiver.acknowledge(held)
            assert receiver.stats.held == 0

    run(test)


def test_what_expires_here_comes_again_to_a_receive_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """R6, R10: the receiver wakes it, because the broker is not told of the expiry."""
    monkeypatch.setattr(ScriptedSource, "redelivers_locally", True)

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            await client.send_message(message("1", "k"))
            held = await receiver.receive_message(60)
            assert held is not None
            again = await asyncio.wait_for(receiver.receive_message(), 60)
            assert again is not None
            assert again.message_id == held.message_id
            await receiver.acknowledge(again)

    run(test, max_lease_duration="0.5")


def test_a_redelivery_during_a_burial_is_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    """R12: there is one dead letter, and neither copy is handed out again."""
    monkeypatch.setattr(ScriptedSource, "redelivers_locally", True)
    monkeypatch.setattr(ScriptedSource, "local_attempts", 1)

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            source = client.broker.sources[0]
            copy = EventMessage(b"1", {"id": "same"}, ordering_key="k")
            await client.send_message(copy)
            held = await receiver.receive_message(60)
            assert held is not None
            source.settle_gate = asyncio.Event()
            nacking = asyncio.create_task(receiver.nack(held))
            await until(lambda: bool(source.settled))
            await client.send_message(copy)
            await until(lambda: receiver.stats.duplicates == 1)
            gate, source.settle_gate = source.settle_gate, None
            await client._home.run(_set(gate), timeout=30)
            await nacking
            await until(lambda: len(source.tokens) == 2)
            assert source.tokens == [1, 2]
            assert [each.outcome for each in source.settled] == [Outcome.NACK, Outcome.ACK]
            assert await receiver.receive_message(0) is None

    run(test)


def test_a_redelivery_during_an_acknowledgement_takes_its_outcome() -> None:
    """S2: both copies are acknowledged, and neither is handed out again."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            source = client.broker.sources[0]
            copy = EventMessage(b"1", {"id": "same"})
            await client.send_message(copy)
            held = await receiver.receive_message(60)
            assert held is not None
            source.settle_gate = asyncio.Event()
            acknowledging = asyncio.create_task(receiver.acknowledge(held))
            await until(lambda: bool(source.settled))
            await client.send_message(copy)
            await until(lambda: receiver.stats.duplicates == 1)
            gate, source.settle_gate = source.settle_gate, None
            await client._home.run(_set(gate))
            await acknowledging
            assert source.tokens == [1, 2]
            assert await receiver.receive_message(0) is None

    run(test)


class LatestTokenBroker:
    """A broker that answers settlements one by one, and reads the token of each as late as it can."""

    def __init__(self, source: ScriptedSource, answers: Sequence[BrokerError | None]) -> None:
        self.gate = asyncio.Event()
        self.answers = list(answers)
        self.requested = 0
        self.tokens: list[object] = []
        source.settle = self.settle  # type: ignore[method-assign]

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[BrokerError | None]:
        self.requested += 1
        await self.gate.wait()
        (settlement,) = settlements
        self.tokens.append(settlement.delivery.token)
        return [self.answers.pop(0)]


EXPIRED = BrokerError("this token is over", ErrorCode.EXPIRED)


@pytest.mark.parametrize("answers", [[EXPIRED, None], [None, EXPIRED]])
def test_a_request_that_is_out_keeps_its_token(answers: list[BrokerError | None]) -> None:
    """S1, S2: one success is enough, for the older token or for the newer one."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            copy = EventMessage(b"1", {"id": "same"})
            await client.send_message(copy)
            held = await receiver.receive_message(60)
            assert held is not None
            broker = LatestTokenBroker(client.broker.sources[0], answers)
            acknowledging = asyncio.create_task(receiver.acknowledge(held))
            await until(lambda: broker.requested == 1)
            await client.send_message(copy)
            await until(lambda: receiver.stats.duplicates == 1)
            await client._home.run(_set(broker.gate))
            await acknowledging
            assert broker.tokens == [1, 2]
            assert receiver.stats.held == 0

    run(test)


def test_a_late_success_is_not_undone_by_a_newer_token() -> None:
    """S5: repeating the acknowledgement after TIMEOUT succeeds, although the newer token is EXPIRED."""

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            copy = EventMessage(b"1", {"id": "same"})
            await client.send_message(copy)
            held = await receiver.receive_message(60)
            assert held is not None
            broker = LatestTokenBroker(client.broker.sources[0], [None, EXPIRED])
            settler = receiver._settler  # type: ignore[attr-defined]
            settler._request = broker.settle  # without an end of its own: only the caller's time is up
            settler._timeout = 0.2
            while not broker.requested:  # home may not begin before the caller gives up
                with pytest.raises(AcknowledgeError) as caught:
                    await receiver.acknowledge(held)
                assert caught.value.code is ErrorCode.TIMEOUT
            await client.send_message(copy)
            await until(lambda: receiver.stats.duplicates == 1)
            settler._timeout = 30.0
            again = asyncio.create_task(receiver.acknowledge(held))
            await asyncio.sleep(0)
            await client._home.run(_set(broker.gate))
            await again
            assert broker.tokens == [1, 2]
            assert receiver.stats.held == 0

    run(test)


async def warned_while_receiving(receiver: EventReceiver, caplog: pytest.LogCaptureFixture) -> None:
    """Receive until there is a warning, and for a while longer, in which a second one could come."""
    receiving = asyncio.create_task(receiver.receive_message())
    await until(lambda: bool(caplog.records))
    done, _ = await asyncio.wait([receiving], timeout=0.3)
    assert not done
    receiving.cancel()
    await asyncio.wait([receiving])


def test_what_keeps_a_receive_waiting_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """R8: the warning names the key and the ids that are held."""
    monkeypatch.setattr("events_core.engine.receiver.BLOCKED_WARNING", 0.1)

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            await client.send_messages([message("1", "some key"), message("2", "some key")])
            await receiver.receive_message(60)
            await until(lambda: receiver.stats.buffered == 1)
            await warned_while_receiving(receiver, caplog)

    with caplog.at_level(logging.WARNING):
        run(test)
    (record,) = caplog.records
    assert record.getMessage() == "scripted: ordering key 'some key' waits for held messages: 1"


async def _never() -> Collection[str]:
    await asyncio.sleep(60)
    return ()


async def _fail() -> Collection[str]:
    raise KeyError("of the SDK")


@pytest.mark.parametrize("withheld", [_never, _fail])
def test_asking_what_is_withheld_holds_no_receive_up(
    monkeypatch: pytest.MonkeyPatch, withheld: Callable[[], Any]
) -> None:
    """R1, R8: a receive neither waits for the warning nor fails with it."""
    monkeypatch.setattr("events_core.engine.receiver.BLOCKED_WARNING", 0.1)

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            client.broker.sources[0].withheld = withheld  # type: ignore[method-assign]
            assert await asyncio.wait_for(receiver.receive_message(0.3), 60) is None
            waiting = asyncio.create_task(receiver.receive_message())
            await asyncio.sleep(0.2)
            await client.send_message(message("1"))
            assert await asyncio.wait_for(waiting, 60) is not None

    run(test)


def test_a_full_receiver_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """R8: the warning comes if only the bounds of R5 keep a receive waiting."""
    monkeypatch.setattr("events_core.engine.receiver.BLOCKED_WARNING", 0.1)

    async def test(client: ScriptedClient) -> None:
        async with await client.subscribe("s") as receiver:
            await client.send_messages([message("1"), message("2")])
            await receiver.receive_message(60)
            await warned_while_receiving(receiver, caplog)

    with caplog.at_level(logging.WARNING):
        run(test, max_outstanding_messages="1")
    (record,) = caplog.records
    assert "max_outstanding_messages" in record.getMessage()
    assert record.getMessage().endswith("held: 1")
