"""A queue or an exchange is deleted while clients use it."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from events_core import ErrorCode, EventMessage, PublishError, ReceiveError
from events_rabbitmq.topology import Topology

from ..receiving import PATIENCE, take, take_after
from ..waiting import until
from .console import Console, client


def test_a_deleted_queue_is_created_again(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """F1, Q2: with create=all a receiver declares its queue again and goes on; a log record says so."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"before"))
            await receiver.acknowledge(await take(receiver))
            console.delete_queue()
            await until(console.has_queue)
            await until(lambda: console.consumers() == 1)
            await both.send_message(EventMessage(b"after"))
            assert (await take(receiver)).data == b"after"

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert f"{console.subscription!r} was deleted and has been created again" in caplog.text


def test_a_deleted_queue_is_told_where_nothing_may_be_created(console: Console) -> None:
    """F1: with create=never the receive raises NOT_FOUND and names the queue; when it is back, receiving works."""
    console.declare_exchange()
    console.declare_queue()

    async def scenario() -> None:
        async with console.client(create="never") as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"before"))
            await receiver.acknowledge(await take(receiver))
            console.delete_queue()
            with pytest.raises(ReceiveError, match=console.queue) as caught:
                await receiver.receive_message(60)
            assert caught.value.code is ErrorCode.NOT_FOUND
            console.declare_queue()
            await both.send_message(EventMessage(b"after"))
            assert (await take_after(receiver, ErrorCode.NOT_FOUND)).data == b"after"

    asyncio.run(scenario())


def test_a_held_message_of_a_deleted_queue_cannot_be_acknowledged_by_mistake(console: Console) -> None:
    """F2: when the receiver has its new queue, settling a delivery of the old one says EXPIRED or does nothing."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"lost"))
            held = await take(receiver)
            console.delete_queue()
            await until(console.has_queue)
            await until(lambda: console.consumers() == 1)
            await both.send_message(EventMessage(b"kept"))
            fresh = await take(receiver)
            assert fresh.data == b"kept"
            await receiver.nack(held)
            await receiver.acknowledge(fresh)
            await until(lambda: console.ready() == 0)
            assert await receiver.receive_message(0.5) is None

    asyncio.run(scenario())


def test_a_deleted_exchange_is_created_again_by_a_send(console: Console) -> None:
    """Q2: with create=all the send declares its exchange again and succeeds."""

    async def scenario() -> None:
        async with console.client() as both:
            await both.send_message(EventMessage(b"before"))
            console.delete_exchange()
            await both.send_message(EventMessage(b"after"))
            assert console.has_exchange()

    asyncio.run(scenario())


def test_a_deleted_exchange_is_told_where_nothing_may_be_created(console: Console) -> None:
    """P3: with create=never the send raises NOT_FOUND and names the exchange; when it is back, sending works."""
    console.declare_exchange()
    console.declare_queue()

    async def scenario() -> None:
        async with console.client(create="never") as both:
            await both.send_message(EventMessage(b"before"))
            console.delete_exchange()
            with pytest.raises(PublishError, match=console.topic) as caught:
                await both.send_message(EventMessage(b"nowhere"))
            assert caught.value.code is ErrorCode.NOT_FOUND
            console.declare_exchange()
            console.declare_queue()
            await both.send_message(EventMessage(b"after"))
            assert console.ready() == 2

    asyncio.run(scenario())


def test_receivers_are_bound_again_when_their_exchange_was_deleted(console: Console) -> None:
    """F1: a client that creates its exchange again also binds the queues of its receivers."""

    async def scenario() -> None:
        async with (
            console.client() as both,
            both.subscribe() as configured,
            both.subscribe("named") as named,
            client(console.topic, url=console.url) as other,
            other.subscribe() as ephemeral,
        ):
            for sender, receivers in ((both, [configured, named]), (other, [ephemeral])):
                console.delete_exchange()
                await sender.send_message(EventMessage(b"after"))
                for receiver in receivers:
                    message = await take(receiver)
                    assert message.data == b"after"
                    await receiver.acknowledge(message)

    asyncio.run(scenario())


def test_a_deleted_subscription_is_not_created_with_its_exchange(console: Console) -> None:
    """F1: what the application has deleted, or what ended with its receiver, does not come back."""

    async def scenario() -> None:
        async with client(console.topic, url=console.url) as both:
            async with both.subscribe() as ephemeral, both.subscribe("named"):
                pass
            await both.delete_subscription("named")
            console.delete_exchange()
            await both.send_message(EventMessage(b"after"))
            for subscription in (ephemeral.subscription, "named"):
                assert not console.has_queue(console.queue_of(subscription))

    asyncio.run(scenario())


def test_a_receiver_whose_queue_was_deleted_with_the_exchange(console: Console) -> None:
    """F1: it creates both again, and no message shows that the queues of other receivers are not bound any more."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver, both.subscribe("named"):
            named = console.queue_of("named")
            console.delete_exchange()
            console.delete_queue(named)
            await until(lambda: console.has_queue(named))
            await until(lambda: console.consumers(named) == 1)
            await both.send_message(EventMessage(b"after"))
            assert (await take(receiver)).data == b"after"

    asyncio.run(scenario())


def test_a_new_receiver_does_not_hide_that_the_exchange_was_deleted(console: Console) -> None:
    """F1: it creates the exchange again, and binds the queues of the others too."""

    async def scenario() -> None:
        async with console.client() as both, both.subscribe() as receiver:
            console.delete_exchange()
            async with both.subscribe("named"):
                await both.send_message(EventMessage(b"after"))
                assert (await take(receiver)).data == b"after"

    asyncio.run(scenario())


def test_an_exchange_whose_creation_took_too_long_gets_its_queues(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F1: the send that declared it was given up, and the next one finds it."""
    declared = threading.Event()
    bind = Topology._bind

    async def hanging(self: Topology, topic: str, queue: str) -> None:
        if not declared.is_set():
            declared.set()
            await asyncio.Event().wait()
        await bind(self, topic, queue)

    async def scenario() -> None:
        async with console.client(send_timeout="5") as both, both.subscribe() as receiver:
            console.delete_exchange()
            monkeypatch.setattr(Topology, "_bind", hanging)
            while not declared.is_set():
                with pytest.raises(PublishError):
                    await both.send_message(EventMessage(b"before"))
            assert console.has_exchange()
            monkeypatch.setattr(both._publisher, "_send_timeout", PATIENCE)
            await both.send_message(EventMessage(b"after"))
            assert (await take(receiver)).data == b"after"

    asyncio.run(scenario())


def test_a_letter_is_kept_when_its_exchange_was_deleted(console: Console) -> None:
    """R12: the dead-letter topic is created again with the queue of the letters."""
    dead = f"{console.topic}-dead"
    options = {"dead_letter_topic": dead, "max_delivery_attempts": "2", "dead_letter_subscription": "kept"}

    async def scenario() -> None:
        async with console.client(**options) as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"x"))
            message = await take(receiver)
            console.delete_exchange(dead)
            await receiver.reject(message, reason="the test wants a letter")
            assert console.ready(f"{dead}:kept") == 1

    asyncio.run(scenario())
