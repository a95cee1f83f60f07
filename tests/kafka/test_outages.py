"""Brokers stop, die or fall silent, and connections break."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from itertools import pairwise

import pytest

from events_core import ErrorCode, EventClient, EventConnectionError, EventMessage, PublishError
from events_core.testing import TcpProxy
from events_kafka.settings import _SCOPES

from ..receiving import PATIENCE, acknowledge_what_is_left, numbered, numbers, settle_all, settle_data, take
from ..waiting import until
from ..warning import warnings
from .console import Console, client
from .server import Server

SHORT = {"session_timeout": "6"}
"""A session that a test can wait for."""


def through_a_proxy(console: Console) -> TcpProxy:
    """Return the proxy of the server, or skip the test if the server is not ours."""
    if console.server.proxy is None:
        pytest.skip("the server does not tell its clients the address of a proxy")
    return console.server.proxy


def test_client_and_receiver_outlive_a_stop(own: Console, caplog: pytest.LogCaptureFixture) -> None:
    """F1, V1: after an orderly stop and a start, both go on.  One WARNING tells of each outage."""
    with caplog.at_level(logging.INFO, "events_core.engine"):
        asyncio.run(outlive(own, own.server.stop))
    # The first answer ends an outage.  A request over a connection that is still broken begins another one.
    news = re.findall("connection lost|reconnected", caplog.text)
    assert all(one != another for one, another in pairwise(news)), caplog.text
    assert len(warnings(caplog)) == news.count("connection lost") > 0, caplog.text


def test_client_and_receiver_outlive_a_kill(own: Console) -> None:
    """F1: after SIGKILL and a start, both go on."""
    asyncio.run(outlive(own, own.server.kill))


async def outlive(own: Console, end: Callable[[], None]) -> None:
    async with own.client() as both, both.subscribe() as receiver:
        await both.send_message(EventMessage(b"before"))
        await receiver.acknowledge(await take(receiver))
        waiting = asyncio.create_task(receiver.receive_message())
        await asyncio.to_thread(end)
        sending = asyncio.create_task(both.send_message(EventMessage(b"during")))
        await until(lambda: not both.is_connected)
        await asyncio.to_thread(own.server.start)
        await sending
        message = await asyncio.wait_for(waiting, PATIENCE)
        assert message is not None
        assert message.data == b"during"
        await receiver.acknowledge(message)
        await until(lambda: both.is_connected)
        assert receiver.stats.reconnects >= 1


def test_nothing_is_lost_when_the_broker_is_killed(own: Console) -> None:
    """F1, F3, P4: a broker is killed and restarted while messages flow; all come, and those of a key in order."""

    async def scenario() -> None:
        async with own.client(partitions="4", ordering="true") as both, both.subscribe() as receiver:
            came: list[int] = []

            async def receive() -> None:
                while len(set(came)) < 2000:
                    some = await receiver.receive_messages(50)
                    came.extend(numbers(await acknowledge_what_is_left(receiver, some)))

            receiving = asyncio.create_task(receive())
            for batch in range(20):
                start = batch * 100
                await both.send_messages(
                    EventMessage(b"%d" % number, ordering_key=f"k{number % 5}") for number in range(start, start + 100)
                )
                if batch == 5:
                    await asyncio.to_thread(own.server.restart)
            await asyncio.wait_for(receiving, 2 * PATIENCE)
            for key in range(5):
                of_key = [number for number in dict.fromkeys(came) if number % 5 == key]
                assert of_key == sorted(of_key)

    asyncio.run(scenario())


def test_a_held_message_is_acknowledged_after_a_kill(own: Console) -> None:
    """F2, F3: a message that was held during the outage is acknowledged afterwards, or it comes again."""

    async def scenario() -> None:
        async with own.client() as both, both.subscribe() as receiver:
            identity = await both.send_message(EventMessage(b"held"))
            held = await take(receiver)
            await asyncio.to_thread(own.server.kill)
            await until(lambda: not both.is_connected)
            await asyncio.to_thread(own.server.start)
            if not await acknowledge_what_is_left(receiver, [held]):  # EXPIRED, so the message comes again
                again = await take(receiver)
                assert again.message_id == identity
                await receiver.acknowledge(again)
            await until(lambda: own.committed() == 1)
            assert await receiver.receive_message(0.5) is None

    asyncio.run(scenario())


def test_what_was_acknowledged_is_committed_before_a_kill(own: Console) -> None:
    """R1: an acknowledgement that was committed holds after the broker was killed and started again."""

    async def scenario() -> None:
        async with own.client() as both:
            async with both.subscribe() as receiver:
                await both.send_message(EventMessage(b"done"))
                await receiver.acknowledge(await take(receiver))
            await until(lambda: own.members() == 0)  # the last commit may follow the close
            assert own.committed() == 1
            await asyncio.to_thread(own.server.restart)
            await both.send_message(EventMessage(b"next"))
            async with both.subscribe() as receiver:
                assert (await take(receiver)).data == b"next"

    asyncio.run(scenario())


def test_a_short_pause_of_the_server_is_no_outage(own: Console, caplog: pytest.LogCaptureFixture) -> None:
    """P7: a send waits for the server, and nothing is said."""

    async def scenario() -> None:
        async with own.client() as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"before"))
            await receiver.acknowledge(await take(receiver))
            await until(lambda: own.committed() == 1)  # while it joins, it would warn of the pause
            own.server.pause()
            sending = asyncio.create_task(both.send_message(EventMessage(b"during")))
            await asyncio.wait([sending], timeout=1)
            assert not sending.done()
            own.server.resume()
            await sending
            await settle_data(receiver, {b"during"})

    asyncio.run(scenario())
    assert warnings(caplog) == []


def test_a_receiver_goes_on_after_a_silence_longer_than_its_session(own: Console) -> None:
    """F1, R7: a broker that is silent for longer than a session loses nothing of what was received."""

    async def scenario() -> None:
        async with own.client(**SHORT) as both, both.subscribe() as receiver:
            await both.send_messages(numbered(10))
            first = await take(receiver)
            own.server.pause()
            await asyncio.sleep(8)
            own.server.resume()
            await both.send_message(EventMessage(b"10"))
            settled = numbers(await acknowledge_what_is_left(receiver, [first]))
            left = set(range(11)) - set(settled)
            await settle_data(receiver, {b"%d" % number for number in left})
            await until(lambda: own.committed() == 11)

    asyncio.run(scenario())


def test_a_send_ends_while_the_server_is_silent(own: Console) -> None:
    """P7: the send raises TIMEOUT after its send_timeout, because it may be stored.  The next send succeeds."""

    async def scenario() -> None:
        async with own.client(send_timeout="2") as sender:
            await sender.ping(timeout=60)
            await send_at_last(sender, b"before")  # so that the time goes by in silence
            own.server.pause()
            with pytest.raises(PublishError, match="may be stored or not") as caught:
                await sender.send_message(EventMessage(b"during"))
            assert caught.value.code is ErrorCode.TIMEOUT
            assert caught.value.retryable
            own.server.resume()
            await send_at_last(sender, b"after")

    asyncio.run(scenario())


def test_a_producer_that_has_failed_for_good_is_replaced(own: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """P7: after an error that librdkafka calls fatal, its producer sends nothing more.  The next send has another."""
    # With this, a message that times out is such an error.  Otherwise it takes a broker that loses records.
    monkeypatch.setitem(_SCOPES, "enable.gapless.guarantee", ("producer",))

    async def scenario() -> None:
        async with own.client(send_timeout="5", librdkafka="enable.gapless.guarantee=true") as sender:
            await sender.ping(timeout=60)
            await send_at_last(sender, b"before")
            own.server.pause()
            with pytest.raises(PublishError):
                await sender.send_message(EventMessage(b"during"))
            own.server.resume()
            place = (await send_at_last(sender, b"after")).split("/")
            records = await asyncio.to_thread(own.records, int(place[-1]) + 1)
            assert records[-1].value() == b"after"

    asyncio.run(scenario())


async def send_at_last(sender: EventClient, data: bytes, seconds: float | None = PATIENCE) -> str:
    """Send a message again until it is stored, and return its id."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await sender.send_message(EventMessage(data))
            except PublishError as error:
                if error.code is not ErrorCode.TIMEOUT:
                    raise


def test_a_client_outlives_that_its_brokers_know_of_no_broker(own: Console) -> None:
    """F1: a broker that its controller does not admit tells clients so.  They go on when it does."""

    async def scenario() -> None:
        # Without this, librdkafka recovers by itself, unless it loses a race.
        options = {**SHORT, "send_timeout": "10", "librdkafka": "metadata.recovery.strategy=none"}
        async with own.client(**options) as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"before"))
            await receiver.acknowledge(await take(receiver))
            await asyncio.to_thread(own.unregister, 1)
            sending = asyncio.create_task(send_at_last(both, b"during", None))
            await until(lambda: not both.is_connected)
            await asyncio.to_thread(own.server.restart)
            await asyncio.wait_for(sending, PATIENCE)
            await settle_data(receiver, {b"during"})
            await both.ping(timeout=60)

    asyncio.run(scenario())


def test_closing_while_the_server_is_silent_ends(own: Console) -> None:
    """C2: ``close`` returns within its time although nobody answers."""

    async def scenario() -> None:
        both = own.client()
        receiver = await both.subscribe()
        await both.send_message(EventMessage(b"held"))
        await take(receiver)
        own.server.pause()
        async with asyncio.timeout(PATIENCE):
            await both.close(timeout=2)

    asyncio.run(scenario())


def test_a_server_that_comes_late_is_found(own: Console, caplog: pytest.LogCaptureFixture) -> None:
    """F1, V1: a program may start before its server.  A WARNING names the address."""

    async def scenario() -> None:
        await asyncio.to_thread(own.server.stop)
        async with own.client() as both:
            subscribing = asyncio.create_task(both.subscribe())
            await until(lambda: bool(warnings(caplog)))
            assert not subscribing.done()
            await asyncio.to_thread(own.server.start)
            receiver = await subscribing
            await both.send_message(EventMessage(b"late"))
            assert (await take(receiver)).data == b"late"

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert own.address in caplog.text


def test_an_unreachable_server_is_named() -> None:
    """F1: connecting fails with the address and the reason."""

    async def scenario() -> None:
        async with client("orders", bootstrap_servers="127.0.0.1:9", connect_timeout="60") as sender:
            with pytest.raises(EventConnectionError, match=r"127\.0\.0\.1:9.*[Rr]efused"):
                await sender.ping(timeout=60)  # it ends with the first refusal

    asyncio.run(scenario())


def test_a_batch_is_cut_in_the_middle(console: Console) -> None:
    """P1, P7: the connection breaks while a batch is on its way; nothing is lost, and nothing is stored twice."""
    proxy = through_a_proxy(console)

    async def scenario() -> None:
        async with console.client() as receiving, receiving.subscribe() as receiver:
            async with console.client(bootstrap_servers=proxy.address) as sender:
                await sender.ping(timeout=60)
                with proxy.limit(300_000):
                    before = proxy.sent
                    sending = asyncio.create_task(sender.send_messages(numbered(1000, size=1000)))
                    await until(lambda: proxy.sent > before + 200_000)
                    proxy.drop()
                ids = await sending
            assert len(set(ids)) == 1000
            await settle_all(receiver, 1000)
        assert await asyncio.to_thread(console.end) == 1000

    asyncio.run(scenario())


def test_a_keyed_batch_that_is_cut_keeps_its_order(console: Console) -> None:
    """P4: what is sent again keeps the order of its key, without repetitions."""
    proxy = through_a_proxy(console)

    async def scenario() -> None:
        async with console.client(ordering="true") as receiving, receiving.subscribe() as receiver:
            async with console.client(bootstrap_servers=proxy.address, ordering="true") as sender:
                await sender.ping(timeout=60)
                with proxy.limit(300_000):
                    before = proxy.sent
                    sending = asyncio.create_task(sender.send_messages(numbered(1000, key="k", size=1000)))
                    await until(lambda: proxy.sent > before + 200_000)
                    proxy.drop()
                await sending
            assert await settle_all(receiver, 1000) == list(range(1000))

    asyncio.run(scenario())


def test_answers_that_are_lost_double_nothing(console: Console) -> None:
    """P7: if the connection breaks before the answer comes, librdkafka sends again, and the broker stores it once."""
    proxy = through_a_proxy(console)

    async def scenario() -> None:
        async with console.client() as receiving, receiving.subscribe() as receiver:
            async with console.client(bootstrap_servers=proxy.address) as sender:
                await sender.send_message(EventMessage(b"before"))
                await receiver.acknowledge(await take(receiver))
                with proxy.lose_answers():
                    sending = asyncio.create_task(sender.send_message(EventMessage(b"once")))
                    first = await take(receiver)
                    assert not sending.done()
                assert await sending == first.message_id
            await receiver.acknowledge(first)
            assert await receiver.receive_message(0.5) is None
        assert await asyncio.to_thread(console.end) == 2

    asyncio.run(scenario())


def test_a_letter_outlives_the_close_of_another_receiver(console: Console) -> None:
    """R12, S5: the letters of all receivers have one producer.  A receiver that closes with a letter out ends it."""
    proxy = through_a_proxy(console)
    dead = Console(console.server)

    async def scenario() -> None:
        options = {"dead_letter_topic": dead.topic, "max_delivery_attempts": "5", "bootstrap_servers": proxy.address}
        async with console.client(**options) as both, both.subscribe("a") as closing, both.subscribe("b") as staying:
            await both.send_messages(numbered(2))
            await closing.reject(await take(closing))
            await staying.reject(await take(staying))
            held = {receiver: await take(receiver) for receiver in (closing, staying)}
            with proxy.lose_answers():
                given_up, rejecting = (
                    asyncio.create_task(receiver.reject(message)) for receiver, message in held.items()
                )
                await until(lambda: dead.end() == 4)
                await closing.close(timeout=2)
            await asyncio.wait_for(rejecting, PATIENCE)
            await asyncio.gather(given_up, return_exceptions=True)

    asyncio.run(scenario())


def test_a_receiver_that_is_cut_gets_the_rest(console: Console) -> None:
    """R9: the connection of a receiver breaks again and again while it works; every message comes."""
    proxy = through_a_proxy(console)

    async def scenario() -> None:
        async with (
            console.client() as sender,
            console.client(bootstrap_servers=proxy.address) as receiving,
            receiving.subscribe() as receiver,
        ):
            await sender.send_messages(numbered(2000, size=200))
            left = set(range(2000))
            while left:
                some = await receiver.receive_messages(50, 60)
                assert some, f"{len(left)} never came"
                before = len(left) // 500
                left -= set(numbers(await acknowledge_what_is_left(receiver, some)))
                if len(left) // 500 < before:
                    proxy.drop()

    asyncio.run(scenario())


def test_a_killed_leader_is_replaced(start_cluster: Callable[[int], list[Server]]) -> None:
    """F1, F3: of three brokers, the one that leads the topic is killed; nothing is lost or stored twice."""
    brokers = start_cluster(3)
    console = Console(brokers[0], ",".join(broker.address for broker in brokers))

    async def scenario() -> None:
        options = {"replication_factor": "3", "ordering": "true", **SHORT}
        async with console.client(**options) as both, both.subscribe() as receiver:
            await both.send_messages(numbered(100, key="k"))
            held = await take(receiver)
            leader = await asyncio.to_thread(console.leader)
            await asyncio.to_thread(brokers[leader - 1].kill)
            later = [EventMessage(b"%d" % number, ordering_key="k") for number in range(100, 200)]
            await both.send_messages(later)
            assert await asyncio.to_thread(console.leader) not in (leader, -1)
            # If it has expired with the session, it comes again.
            came = numbers(await acknowledge_what_is_left(receiver, [held]))
            while len(set(came)) < 200:
                some = await receiver.receive_messages(100, PATIENCE)
                assert some, f"{len(set(came))} of 200 came"
                came += numbers(await acknowledge_what_is_left(receiver, some))
            # If the session ends, what is acknowledged and not committed comes again too.
            assert list(dict.fromkeys(came)) == list(range(200))
        assert await asyncio.to_thread(console.end) == 200

    asyncio.run(scenario())


def test_a_topic_without_a_leader_is_not_missing(
    start_cluster: Callable[[int], list[Server]], caplog: pytest.LogCaptureFixture
) -> None:
    """F1: a client that comes while the only replica is away waits until it is back."""
    brokers = start_cluster(3)
    console = Console(brokers[0], ",".join(broker.address for broker in brokers))

    async def scenario() -> None:
        async with console.client(replication_factor="1") as first:
            await first.send_message(EventMessage(b"before"))
        leader = brokers[await asyncio.to_thread(console.leader) - 1]
        await asyncio.to_thread(leader.kill)
        while await asyncio.to_thread(console.leader) != -1:
            await asyncio.sleep(0.1)
        async with console.client(subscription="other") as later:
            sending = asyncio.create_task(later.send_message(EventMessage(b"after")))
            await until(lambda: sending.done() or "cannot connect" in caplog.text)
            await asyncio.to_thread(leader.start)
            await sending
        assert await asyncio.to_thread(console.end) == 2

    asyncio.run(scenario())
