"""Typical use, for type checkers only: natural code must pass under the strictest settings."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import assert_type

from websockets.asyncio.server import ServerConnection

from events_core import (
    AcknowledgeError,
    BackendInfo,
    BackendNotFoundError,
    Capabilities,
    ConfigurationError,
    ErrorCode,
    EventClient,
    EventConfig,
    EventError,
    EventMessage,
    EventReceiver,
    EventRuntimeError,
    Operation,
    PublishError,
    ReceivedMessage,
    ReceiverStats,
    Reject,
    RetryAfter,
    available_backends,
    consume,
    create_client,
    load_backend,
    register_backend,
    sync,
)
from events_core.backends.sqlite import SQLiteClient, SQLiteOptions
from events_core.integrations.asgi import ASGIApp, EventsMiddleware
from events_core.integrations.opentelemetry import instrument
from events_core.integrations.outbox import Outbox
from events_core.integrations.websocket_events import WebSocketEvents
from events_core.integrations.websockets import WebSocketServerWithEvents
from events_core.interface import joins
from events_core.testing.fixtures import MemoryBroker


def configurations() -> list[EventConfig]:
    """Every source gives the same type, and takes arguments."""
    return [
        EventConfig("orders", "acme-prod", {"subscription": "billing"}, "gcp"),
        EventConfig(topic_name="orders", backend="memory"),
        EventConfig.from_file("events.toml", "orders", options={"create": "all"}),
        EventConfig.from_url("gcp://acme-prod/orders?subscription=billing", backend="gcp"),
        EventConfig.from_env("orders", {"EVENTS_ORDERS_URL": "memory:///orders"}, project_id="acme-test"),
        EventConfig.from_mapping({"backend": "memory", "topic_name": "orders", "options": {"ordering": True}}),
        EventConfig(
            "orders", options={"path": Path("events.db"), "send_timeout": timedelta(minutes=1), "ordering": True}
        ),
        EventConfig("orders", backend="sqlite", options=SQLiteOptions(path="events.db", durability="normal")),
    ]


def clients() -> list[EventClient]:
    """A client is created from a configuration, a URL or a name, each with arguments."""
    return [
        create_client(configurations()[0]),
        create_client("sqlite:events.db/orders?subscription=billing"),
        create_client("orders"),
        create_client("orders", file="events.toml", options={"create": "all", "ack_timeout": 2.5}),
        create_client("orders", require=["ordering:subscription", "durable:power_loss"]),
        create_client("orders", file=Path("events.toml"), options=SQLiteOptions(path="events.db", retention=600)),
    ]


def mistakes() -> None:
    """Type checkers find a wrong option.  If they did not, they would report the comments."""
    SQLiteOptions(path="events.db", durability="none")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    SQLiteOptions(path="events.db", retension=600)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    create_client("orders", options={"create": None})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]


def messages() -> list[EventMessage]:
    """Messages from bytes, text and JSON."""
    message = EventMessage(b"paid", {"region": "eu"}, ordering_key="customer-7")
    assert_type(message.with_attribute("kind", "order"), EventMessage)
    return [
        message,
        EventMessage(bytearray(b"paid")),
        EventMessage.from_string("paid", attributes={"region": "eu"}),
        EventMessage.from_json({"order": 42, "lines": [1, 2]}, ordering_key="customer-7"),
    ]


def wrong_messages() -> None:
    """A type checker refuses text as data, a third positional argument, and a message id."""
    EventMessage("paid")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EventMessage(b"paid", {}, "customer-7")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    EventMessage(b"paid", message_id="41")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def send(client: EventClient) -> None:
    """Send one message, and many with the outcome of each."""
    assert_type(await client.send_message(EventMessage(b"paid")), str)
    try:
        assert_type(await client.send_messages(message for message in messages()), list[str])
    except PublishError as error:
        for message, result in zip(messages(), error.results, strict=True):
            if isinstance(result, EventError):
                print(message.ordering_key, result.code, result.retryable)
            else:
                assert_type(result, str)


async def receive(receiver: EventReceiver) -> None:
    """Receive in a loop."""
    while True:
        message = await receiver.receive_message(timeout=30)
        if message is None:
            break
        assert_type(message, ReceivedMessage)
        assert_type(message.message_id, str)
        assert_type(message.publish_time, datetime | None)
        assert_type(message.delivery_attempt, int | None)
        try:
            print(message.data_as_json()["order"], message.attributes.get("region"))
        except (ValueError, KeyError):
            await receiver.nack(message, delay=5)
        else:
            await receiver.acknowledge(message)


async def iterate(receiver: EventReceiver) -> None:
    """Receive by iteration."""
    async for message in receiver:
        assert_type(message, ReceivedMessage)
        await receiver.acknowledge(message)


async def batches(receiver: EventReceiver) -> None:
    """Receive batches; a settlement may mix messages and ids."""
    while batch := await receiver.receive_messages(100, timeout=1.5):
        try:
            await receiver.acknowledge_messages([batch[0].message_id, *batch[1:]])
        except AcknowledgeError as error:
            expired = [message_id for message_id, why in error.failed.items() if why.code is ErrorCode.EXPIRED]
            await receiver.nack_messages(expired)


async def settle_by_outcome(receiver: EventReceiver) -> None:
    """Settle each message when its block ends."""
    async for message in receiver:
        async with receiver.processing(message) as processed:
            assert_type(processed, ReceivedMessage)
            print(message.data_as_string())


async def handle(message: ReceivedMessage) -> bool:
    """Return a value, which consume ignores."""
    return message.delivery_attempt == 1


def handle_in_thread(message: ReceivedMessage) -> None:
    """A plain function, and the two exceptions with which a handler decides."""
    if not message.data:
        raise Reject("there is no data")
    if message.delivery_attempt == 1:
        raise RetryAfter(0.5)


async def run_handlers(receiver: EventReceiver, stop: asyncio.Event) -> None:
    """Run a handler for each message."""
    await consume(receiver, handle, concurrency=8, stop=stop)
    await consume(receiver, handle_in_thread, concurrency=8, threads=True)
    threads = len(sys.argv) > 1
    await consume(receiver, handle_in_thread, threads=threads)
    await consume(receiver, handle_in_thread)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Timing:
    """An observer needs no base class."""

    def start(self, operation: Operation) -> None:
        """Begin."""
        operation.context = operation.name
        for index, message in enumerate(operation.outgoing):
            operation.add_attributes(index, {"size": str(len(message.data))})

    def end(self, operation: Operation, error: BaseException | None) -> None:
        """End."""
        print(operation.context, operation.messages, error)


def observe(client: EventClient) -> None:
    """Set the observer of a client."""
    client.observer = Timing()


def trace(config: EventConfig) -> SQLiteClient:
    """Switch on OpenTelemetry; the type of the client stays."""
    return instrument(SQLiteClient(config))


async def join(client: EventClient) -> list[EventReceiver]:
    """Join a subscription in every way in which a coroutine is awaited."""
    receiver = await client.subscribe()
    assert_type(receiver, EventReceiver)
    task = asyncio.create_task(client.subscribe("billing"))
    first, second = await asyncio.gather(task, client.subscribe("audit"))
    assert_type(first, EventReceiver)
    return [receiver, first, second, await asyncio.wait_for(client.subscribe(), timeout=5)]


async def forward(client: EventClient, receiver: EventReceiver) -> None:
    """Send a received message again."""
    for message in await receiver.receive_messages(limit=10):
        await client.send_message(message)
        await client.send_message(message.with_attributes({"forwarded": "yes"}))


async def program(config: EventConfig) -> None:
    """Run a whole program, which tells errors apart by class and code."""
    try:
        async with create_client(config) as client:
            assert_type(client, EventClient)
            assert_type(client.capabilities, Capabilities)
            assert_type(await client.ping(timeout=2), float)
            if client.capabilities.ordering != "none" and client.is_connected:
                await send(client)
            async with client.subscribe("billing") as receiver:
                assert_type(receiver, EventReceiver)
                assert_type(receiver.stats, ReceiverStats)
                await receive(receiver)
            await client.delete_subscription("billing")
    except BackendNotFoundError as error:
        print(error, error.backend)
    except ConfigurationError as error:
        raise SystemExit(str(error)) from error
    except (EventRuntimeError, ConnectionError) as error:
        print(error)
    except EventError as error:
        match error.code:
            case ErrorCode.TIMEOUT | ErrorCode.UNAVAILABLE:
                print("later", error.topic_name)
            case _:
                raise


def backends() -> None:
    """The registry."""
    assert_type(available_backends(), list[BackendInfo])
    client_class = load_backend("memory")
    assert_type(client_class, type[EventClient])
    register_backend("mine", client_class)


async def native(client: SQLiteClient, message: ReceivedMessage) -> int:
    """Each backend declares the types of its native objects."""

    async def count(connection: sqlite3.Connection) -> int:
        return connection.total_changes

    assert_type(client.native_message(message), int)
    assert_type(await client.run_native(count), int)
    return await client.run_native(count, timeout=5)


class OwnClient(EventClient):
    """A backend that does not use the engine."""

    @joins
    async def subscribe(self, subscription: str | None = None) -> EventReceiver:
        """Join a subscription."""
        raise NotImplementedError


async def join_own(client: OwnClient) -> None:
    """Join a subscription of a class that is decorated with joins."""
    assert_type(await client.subscribe("billing"), EventReceiver)
    async with client.subscribe() as receiver:
        assert_type(receiver, EventReceiver)


def without_an_event_loop() -> None:
    """The blocking clients have the same types, without coroutines."""
    with sync.create_client("orders", file="events.toml", options={"ordering": True}) as client:
        assert_type(client, sync.EventClient)
        assert_type(client.send_message(EventMessage(b"x")), str)
        assert_type(client.send_messages([EventMessage(b"x")]), list[str])
        assert_type(client.ping(), float)
        with client.subscribe("billing") as receiver:
            assert_type(receiver, sync.EventReceiver)
            assert_type(receiver.stats, ReceiverStats)
            assert_type(receiver.receive_message(timeout=1), ReceivedMessage | None)
            assert_type(receiver.receive_messages(10), list[ReceivedMessage])
            for message in receiver:
                assert_type(message, ReceivedMessage)
                with receiver.processing(message) as processed:
                    assert_type(processed, ReceivedMessage)
            sync.consume(receiver, print, concurrency=4, stop=threading.Event())


def test_of_an_application(memory_broker: MemoryBroker) -> None:
    """The fixture's broker says what was sent."""
    assert_type(memory_broker.client("orders", file="events.toml", options={"send_timeout": 1}), EventClient)
    with memory_broker.failing(ErrorCode.UNAVAILABLE), memory_broker.stalling():
        assert_type(memory_broker.sent("orders"), list[EventMessage])
    memory_broker.wait_until_handled("orders", timeout=10)


def web_application(app: ASGIApp) -> EventsMiddleware:
    """The functions of a choice know the type of the connection."""
    return EventsMiddleware(
        app,
        clients={"orders": "memory:///orders"},
        websocket_events=WebSocketEvents(
            publish=["client_connected", "client_message"],
            payload=lambda data: len(data),
            client_id=lambda scope: str(scope["path_params"]["user"]),
            details=lambda scope: {"path": scope["path"]},
        ),
        outbox=partial(Outbox, policy="drop_oldest", max_messages=100),
    )


async def web_socket_server(handler: Callable[[ServerConnection], Awaitable[None]], client: EventClient) -> int:
    """The connection of the library websockets has its own type."""
    async with WebSocketServerWithEvents(
        handler,
        client,
        "localhost",
        8001,
        events=WebSocketEvents(client_id=lambda connection: str(connection.id)),
    ) as server:
        return server.outbox.stats.dropped
