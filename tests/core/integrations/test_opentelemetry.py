"""Spans and metrics of one process, by the conventions for messaging."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagate import inject
from opentelemetry.sdk.metrics.export import HistogramDataPoint
from opentelemetry.semconv import schemas
from opentelemetry.semconv._incubating.attributes import messaging_attributes
from opentelemetry.semconv._incubating.metrics import messaging_metrics
from opentelemetry.semconv.attributes import error_attributes, server_attributes
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from events_core import (
    ErrorCode,
    EventClient,
    EventMessage,
    EventReceiver,
    PublishError,
    ReceivedMessage,
    RetryAfter,
    consume,
    create_client,
    sync,
)
from events_core.engine import BrokerError
from events_core.integrations.opentelemetry import SCHEMA_URL, conventions, instrument
from events_core.integrations.outbox import Outbox
from events_core.observing import observed

from .telemetry import Telemetry, each, ids, links

PATIENCE = 60.0
"""Seconds to wait for what comes at once, unless the machine is very busy."""


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * PATIENCE):
            await test

    asyncio.run(bounded())


async def receive(receiver: EventReceiver) -> ReceivedMessage:
    message = await receiver.receive_message(PATIENCE)
    assert message is not None
    return message


def carried(message: EventMessage) -> tuple[int, int]:
    """Return the ids of the context that *message* carries."""
    context = TraceContextTextMapPropagator().extract(message.attributes, Context())
    return ids(trace.get_current_span(context).get_span_context())


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture(params=["memory", "sqlite"])
def client(request: pytest.FixtureRequest, tmp_path: Path, telemetry: Telemetry) -> EventClient:
    """An instrumented client of each home: memory works in the caller's thread, SQLite in one of its own."""
    # In memory, topics live as long as the process, so each test has a project.
    place = f"memory://{tmp_path.name}" if request.param == "memory" else f"sqlite:{tmp_path}/events.db"
    client = create_client(f"{place}/orders?subscription=billing")
    telemetry.instrument(client)
    return client


# Sending


def test_a_message_carries_the_span_that_sends_it(client: EventClient, telemetry: Telemetry) -> None:
    """The span is of the kind producer, below the current span, and names system, topic and message."""

    async def test() -> None:
        async with client, client.subscribe() as receiver:
            with telemetry.tracer.start_as_current_span("request"):
                message_id = await client.send_message(EventMessage(b"x"))
            message = await receive(receiver)
        span, request = telemetry.span("send orders"), telemetry.span("request")
        assert carried(message) == ids(span.context)
        assert ids(span.parent) == ids(request.context)
        assert (span.kind, span.links, span.status.status_code) == (SpanKind.PRODUCER, (), StatusCode.UNSET)
        assert span.instrumentation_scope is not None
        assert span.instrumentation_scope.schema_url == SCHEMA_URL
        assert span.attributes == {
            "messaging.system": client._backend,  # type: ignore[attr-defined]
            "messaging.destination.name": "orders",
            "messaging.operation.type": "send",
            "messaging.operation.name": "send",
            "messaging.message.id": message_id,
        }

    run(test())


def test_each_message_of_a_batch_has_a_context_of_its_own(client: EventClient, telemetry: Telemetry) -> None:
    """One span ``create`` for each, and one span ``send`` that links to them and counts them."""

    async def test() -> None:
        async with client, client.subscribe() as receiver:
            await client.send_messages([EventMessage(b"1"), EventMessage(b"2")])
            received = [await receive(receiver), await receive(receiver)]
        created, sent = telemetry.spans("create orders"), telemetry.span("send orders")
        assert [carried(message) for message in received] == each(created)
        assert links(sent) == each(created)
        assert {span.kind for span in created} == {SpanKind.PRODUCER}
        assert sent.kind == SpanKind.CLIENT
        assert sent.attributes is not None
        assert sent.attributes["messaging.batch.message_count"] == 2

    run(test())


@pytest.mark.parametrize(("messages", "create_spans"), [(2, False), (1001, True)])
def test_messages_of_a_batch_may_share_a_context(telemetry: Telemetry, messages: int, create_spans: bool) -> None:
    """Without spans ``create``, and in a large batch, all carry the context of the span ``send``."""

    async def test() -> None:
        client = create_client("memory:///orders")
        telemetry.instrument(client, create_spans=create_spans)
        async with client, client.subscribe() as receiver:
            await client.send_messages([EventMessage(b"x")] * messages)
            received = await receiver.receive_messages(messages)
        sent = telemetry.span("send orders")
        assert {carried(message) for message in received} == {ids(sent.context)}
        assert sent.kind == SpanKind.PRODUCER
        assert not telemetry.spans("create orders")

    run(test())


def test_a_context_of_the_application_stays(client: EventClient, telemetry: Telemetry) -> None:
    """A message that carries one keeps it, and the span that sends it links to it, is no producer, and creates none."""
    own = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}

    async def test() -> None:
        async with client, client.subscribe() as receiver:
            await client.send_messages([EventMessage(b"1", own), EventMessage(b"2", own)])
            for _ in range(2):
                assert (await receive(receiver)).attributes == own
        sent = telemetry.span("send orders")
        assert links(sent) == [(int("a" * 32, 16), int("b" * 16, 16))] * 2
        assert sent.kind == SpanKind.CLIENT
        assert not telemetry.spans("create orders")

    run(test())


def test_an_event_of_an_outbox_belongs_to_the_trace_of_its_caller(client: EventClient, telemetry: Telemetry) -> None:
    """A task sends it later, in no trace; ``prepare`` has added the caller's context, and the send keeps it."""

    def traced(message: EventMessage) -> EventMessage:
        carrier: dict[str, str] = {}
        inject(carrier)
        return message.with_attributes(carrier)

    async def test() -> None:
        async with client, client.subscribe() as receiver:
            async with Outbox(client, prepare=traced) as outbox:
                with telemetry.tracer.start_as_current_span("connection") as connection:
                    outbox.put_nowait(EventMessage(b"x"))
            async with receiver.processing(message := await receive(receiver)):
                pass
        assert carried(message) == ids(connection.get_span_context())
        assert links(telemetry.span("process orders")) == [carried(message)]
        assert telemetry.span("send orders").parent is None

    run(test())


def test_a_message_without_room_is_sent_without_a_context(client: EventClient, telemetry: Telemetry) -> None:
    """Telemetry never fails a send."""
    full = {f"a{number}": "x" for number in range(100)}

    async def test() -> None:
        async with client, client.subscribe() as receiver:
            await client.send_message(EventMessage(b"x", full))
            assert (await receive(receiver)).attributes == full

    run(test())
    assert telemetry.span("send orders").status.status_code == StatusCode.UNSET


def test_a_send_that_fails_is_an_error(client: EventClient, telemetry: Telemetry) -> None:
    """The span has the code of the error, and its text."""

    async def test() -> None:
        async with client:
            with pytest.raises(PublishError) as caught:
                await client.send_message(EventMessage(bytes(20_000_000)))
        span = telemetry.span("send orders")
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, str(caught.value))
        assert span.attributes is not None
        assert span.attributes["error.type"] == "INVALID"
        assert [event.name for event in span.events] == ["exception"]

    run(test())


# Receiving


def test_a_receive_links_to_what_it_returns(client: EventClient, telemetry: Telemetry) -> None:
    """Each link names its message."""

    async def test() -> None:
        async with client, client.subscribe() as receiver:
            sent = await client.send_messages([EventMessage(b"1"), EventMessage(b"2")])
            received: list[ReceivedMessage] = []
            while len(received) < 2:
                received += await receiver.receive_messages(2, PATIENCE)
        spans = telemetry.spans("receive orders")
        found = [link for span in spans for link in span.links]
        assert [ids(link.context) for link in found] == each(telemetry.spans("create orders"))
        if len(spans) == 1:  # both were there when the receive looked
            assert [(link.attributes or {})["messaging.message.id"] for link in found] == sent
        for span in spans:
            assert span.kind == SpanKind.CLIENT
            assert span.attributes is not None
            assert span.attributes["messaging.destination.subscription.name"] == "billing"

    run(test())


def test_what_returns_nothing_makes_no_span(client: EventClient, telemetry: Telemetry) -> None:
    """Neither a timeout, nor a cancellation, nor a close, nor fetching in advance."""

    async def test() -> None:
        async with client, client.subscribe() as receiver:
            assert await receiver.receive_message(0) is None
            waiting = asyncio.create_task(receiver.receive_message())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            await client.send_message(EventMessage(b"x"))
            while client._backend == "sqlite" and not receiver.stats.buffered:  # type: ignore[attr-defined]
                await asyncio.sleep(0.001)  # SQLite fetches in advance
            await receiver.close(timeout=0)
        assert [name for name in telemetry.names() if name != "send orders"] == []

    run(test())


# Processing and settling


def test_one_trace_leads_from_the_sender_to_the_handler(client: EventClient, telemetry: Telemetry) -> None:
    """Without a current span, the handler's span is below that of the sender, and links to it."""

    async def test() -> None:
        async with client, client.subscribe() as receiver:
            await client.send_message(EventMessage(b"x"))
            stop = asyncio.Event()

            async def handle(_: ReceivedMessage) -> None:
                with telemetry.tracer.start_as_current_span("in the handler"):
                    stop.set()

            await consume(receiver, handle, stop=stop)
        sent, processed = telemetry.span("send orders"), telemetry.span("process orders")
        assert processed.kind == SpanKind.CONSUMER
        assert ids(processed.parent) == ids(sent.context)
        assert links(processed) == [ids(sent.context)]
        assert ids(telemetry.span("in the handler").parent) == ids(processed.context)
        settled = telemetry.span("ack orders")
        assert settled.kind == SpanKind.CLIENT
        assert ids(settled.parent) == ids(processed.context)
        assert links(settled) == [ids(sent.context)]
        # The time of the handler, without the time that the broker takes to settle.
        assert processed.end_time is not None
        assert settled.start_time is not None
        assert processed.end_time <= settled.start_time

    run(test())


def test_a_handler_in_a_thread_is_part_of_the_trace(client: EventClient, telemetry: Telemetry) -> None:
    """The thread has the context of the task that handles the message."""

    async def test() -> None:
        async with client, client.subscribe() as receiver:
            await client.send_message(EventMessage(b"x"))
            stop, loop = asyncio.Event(), asyncio.get_running_loop()

            def handle(_: ReceivedMessage) -> None:
                with telemetry.tracer.start_as_current_span("in the thread"):
                    loop.call_soon_threadsafe(stop.set)

            await consume(receiver, handle, threads=True, stop=stop)
        assert ids(telemetry.span("in the thread").parent) == ids(telemetry.span("process orders").context)

    run(test())


def test_a_body_without_an_event_loop_is_part_of_the_trace(client: EventClient, telemetry: Telemetry) -> None:
    """The body of a blocking ``processing`` is below the span of the sender, and its settlement is too."""
    with sync.EventClient(client) as blocking, blocking.subscribe() as receiver:
        blocking.send_message(EventMessage(b"x"))
        message = receiver.receive_message(PATIENCE)
        assert message is not None
        with receiver.processing(message), telemetry.tracer.start_as_current_span("in the body"):
            pass
    processed = telemetry.span("process orders")
    assert ids(processed.parent) == ids(telemetry.span("send orders").context)
    for name in ("in the body", "ack orders"):
        assert ids(telemetry.span(name).parent) == ids(processed.context)


def test_a_current_span_stays_the_parent(client: EventClient, telemetry: Telemetry) -> None:
    """The spans ``process`` and ``ack`` then belong to it, and link to the sender's."""

    async def test() -> None:
        async with client, client.subscribe() as receiver:
            await client.send_message(EventMessage(b"x"))
            message = await receive(receiver)
            with telemetry.tracer.start_as_current_span("request"):
                async with receiver.processing(message):
                    pass
            assert not trace.get_current_span().get_span_context().is_valid
        request, sent = telemetry.span("request"), telemetry.span("send orders")
        for name in ("process orders", "ack orders"):
            assert ids(telemetry.span(name).parent) == ids(request.context)
            assert links(telemetry.span(name)) == [ids(sent.context)]

    run(test())


@pytest.mark.parametrize("failure", [ArithmeticError("no"), RetryAfter(0)])
def test_a_handler_that_fails_is_an_error(client: EventClient, telemetry: Telemetry, failure: Exception) -> None:
    """The span has the class of the exception, and the settlement is a nack without an error."""

    async def fail(receiver: EventReceiver, message: ReceivedMessage) -> None:
        async with receiver.processing(message):
            raise failure

    async def test() -> None:
        async with client, client.subscribe() as receiver:
            await client.send_message(EventMessage(b"x"))
            message = await receive(receiver)
            with pytest.raises(type(failure)):
                await fail(receiver, message)
        processed, settled = telemetry.span("process orders"), telemetry.span("nack orders")
        assert processed.status.status_code == StatusCode.ERROR
        assert processed.attributes is not None
        assert processed.attributes["error.type"] == conventions.error_type(failure)
        assert settled.status.status_code == StatusCode.UNSET
        assert settled.attributes is not None
        assert settled.attributes["messaging.operation.type"] == "settle"

    run(test())


def test_a_cancelled_handler_hands_its_message_back(client: EventClient, telemetry: Telemetry) -> None:
    """The settlement is called so, and the task that was cancelled has its old context."""

    async def test() -> None:
        async with client, client.subscribe() as receiver:
            await client.send_message(EventMessage(b"x"))
            message = await receive(receiver)
            with pytest.raises(asyncio.CancelledError):
                await cancelled(receiver, message)
            assert not trace.get_current_span().get_span_context().is_valid
        span = telemetry.span("process orders")
        assert span.attributes is not None
        assert span.attributes["error.type"].endswith("CancelledError")  # type: ignore[union-attr]
        telemetry.span("hand_back orders")

    async def cancelled(receiver: EventReceiver, message: ReceivedMessage) -> None:
        async with receiver.processing(message):
            raise asyncio.CancelledError

    run(test())


def test_messages_settled_by_hand_are_linked(client: EventClient, telemetry: Telemetry) -> None:
    """One span for the batch, with a link to each message that was given as such."""

    async def test() -> None:
        async with client, client.subscribe() as receiver:
            await client.send_messages([EventMessage(b"1"), EventMessage(b"2")])
            first, second = await receive(receiver), await receive(receiver)
            await receiver.acknowledge_messages([first, second.message_id])
        span = telemetry.span("ack orders")
        assert links(span) == each(telemetry.spans("create orders"))[:1]
        assert span.parent is None
        assert span.attributes is not None
        assert span.attributes["messaging.batch.message_count"] == 2

    run(test())


def test_a_dead_letter_keeps_its_context(telemetry: Telemetry) -> None:
    """The trace goes on where the letters are read."""

    async def test() -> None:
        client = create_client(
            "memory://letters/orders?subscription=billing&max_delivery_attempts=5&dead_letter_topic=dead"
            "&dead_letter_subscription=letters"
        )
        dead = create_client("memory://letters/dead?subscription=letters")
        telemetry.instrument(client, dead)
        async with client, dead, client.subscribe() as receiver, dead.subscribe() as letters:
            await client.send_message(EventMessage(b"x"))
            await receiver.reject(await receive(receiver), "no")
            assert carried(await receive(letters)) == ids(telemetry.span("send orders").context)
        telemetry.span("reject orders")

    run(test())


# Metrics


def facts(point: Any) -> dict[str, object]:
    """Return the attributes of *point*, with short names."""
    return {name.removeprefix("messaging."): value for name, value in point.attributes.items()}


def test_metrics_count_what_was_sent_received_and_processed(client: EventClient, telemetry: Telemetry) -> None:
    """By the conventions' names, and with its error for what failed."""
    orders = {"system": client._backend, "destination.name": "orders"}  # type: ignore[attr-defined]
    billing = {**orders, "destination.subscription.name": "billing"}

    async def test() -> None:
        async with client, client.subscribe() as receiver:
            await client.send_messages([EventMessage(b"1"), EventMessage(b"2")])
            with pytest.raises(PublishError):
                await client.send_message(EventMessage(bytes(20_000_000)))
            for _ in range(2):
                async with receiver.processing(await receive(receiver)):
                    pass

    run(test())
    send = {**orders, "operation.name": "send", "operation.type": "send"}
    counted = [(facts(point), point.value) for point in telemetry.points("messaging.client.sent.messages")]  # type: ignore[union-attr]
    assert counted == [(send, 2), ({**send, "error.type": "INVALID"}, 1)]
    receiving = {**billing, "operation.name": "receive", "operation.type": "receive"}
    (point,) = telemetry.points("messaging.client.consumed.messages")
    assert (facts(point), point.value) == (receiving, 2)  # type: ignore[union-attr]
    (point,) = telemetry.points("messaging.process.duration")
    assert isinstance(point, HistogramDataPoint)
    assert facts(point) == {**billing, "operation.name": "process", "operation.type": "process"}
    assert (point.count, tuple(point.explicit_bounds)) == (2, conventions.DURATION_BOUNDARIES)
    durations = {
        (facts(point)["operation.name"], facts(point).get("error.type")): point
        for point in telemetry.points("messaging.client.operation.duration")
    }
    assert {key: point.count for key, point in durations.items()} == {  # type: ignore[union-attr]
        ("send", None): 1,
        ("send", "INVALID"): 1,
        ("receive", None): 2,
        ("ack", None): 2,
    }


def test_messages_that_were_not_attempted_do_not_count(telemetry: Telemetry) -> None:
    """Of a batch that failed in part, each message counts with its own outcome."""

    async def test() -> None:
        client = create_client("memory:///orders")
        telemetry.instrument(client)
        driver = client._driver  # type: ignore[attr-defined]
        publish = driver.publish

        async def refuse(messages: list[EventMessage]) -> list[object]:
            results = list(await publish(messages[:1]))
            refused = BrokerError("full", ErrorCode.EXHAUSTED)
            return [*results, refused, BrokerError("after", ErrorCode.NOT_ATTEMPTED)]

        driver.publish = refuse
        async with client:
            with pytest.raises(PublishError):
                await client.send_messages([EventMessage(b"x", ordering_key="k")] * 3)

    run(test())
    counted = {
        facts(point).get("error.type"): point.value for point in telemetry.points("messaging.client.sent.messages")
    }  # type: ignore[union-attr]
    assert counted == {None: 1, "EXHAUSTED": 1}


def test_a_generated_name_is_in_no_metric(telemetry: Telemetry) -> None:
    """Each ephemeral subscription would begin time series of its own.  Its spans have the name."""

    async def test() -> None:
        client = create_client("memory:///orders")
        telemetry.instrument(client)
        async with client, client.subscribe() as receiver:
            await client.send_message(EventMessage(b"x"))
            async with receiver.processing(await receive(receiver)):
                pass
            span = telemetry.span("process orders")
            assert span.attributes is not None
            assert span.attributes["messaging.destination.subscription.name"] == receiver.subscription

    run(test())
    for name in ("consumed.messages", "operation.duration"):
        for point in telemetry.points(f"messaging.client.{name}"):
            assert "destination.subscription.name" not in facts(point)


# The door


def test_a_second_observer_is_refused(telemetry: Telemetry) -> None:
    """A client has one, and no observer disappears silently."""
    client = create_client("memory:///orders")
    telemetry.instrument(client)
    observer = client.observer
    with pytest.raises(ValueError, match="already has an observer"):
        instrument(client)
    assert client.observer is observer


def test_without_an_sdk_nothing_is_added() -> None:
    """The API alone makes no spans, and messages stay as they are."""

    async def test() -> None:
        client = instrument(create_client("memory:///orders"), tracer_provider=trace.NoOpTracerProvider())
        async with client, client.subscribe() as receiver:
            await client.send_messages([EventMessage(b"1"), EventMessage(b"2")])
            async with receiver.processing(await receive(receiver)) as message:
                assert message.attributes == {}

    run(test())


def test_a_backend_that_shows_no_messages_has_spans_all_the_same(telemetry: Telemetry) -> None:
    """A backend of the first version of the contract tells a name, places and a count."""
    client = create_client("memory:///orders")
    telemetry.instrument(client)
    assert client.observer is not None
    with observed(client.observer, "publish", backend="old", topic_name="orders", messages=2):
        pass
    span = telemetry.span("send orders")
    assert span.kind == SpanKind.PRODUCER
    assert span.attributes is not None
    assert (span.attributes["messaging.system"], span.attributes["messaging.batch.message_count"]) == ("old", 2)


def test_the_names_are_those_of_the_conventions() -> None:
    """The version is one that the installed package knows, and it has the same names."""
    assert SCHEMA_URL in {schema.value for schema in schemas.Schemas}
    theirs = {
        value
        for module in (messaging_attributes, messaging_metrics, error_attributes, server_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    ours = {
        value
        for name, value in vars(conventions).items()
        if name.isupper() and isinstance(value, str) and name not in ("SCHEMA_URL", "RECONNECT_DURATION")
    }
    assert len(ours) == 14
    assert ours <= theirs


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", {}),
        ("localhost:5672", {"server.address": "localhost", "server.port": 5672}),
        ("[::1]:5672", {"server.address": "::1", "server.port": 5672}),
        ("a:1,b:2", {}),
    ],
)
def test_the_server_is_named_if_there_is_one(address: str, expected: dict[str, object]) -> None:
    """Several servers have no single address."""
    assert conventions.server_of(address) == expected
