"""§1, §3, §4: messages arrive as they were sent, and clients and receivers tell their state."""

from __future__ import annotations

from datetime import timedelta

import pytest

from events_core import EventMessage, ReceivedMessage
from events_core.testing.rules import rule
from events_core.testing.stage import Stage

__all__ = ["Values"]


class Values:
    """Messages, clients and receivers, as values."""

    @pytest.mark.parametrize(
        "message",
        [
            pytest.param(EventMessage(b"", {"kind": "nothing"}), id="empty"),
            pytest.param(EventMessage(bytes(range(256))), id="every byte"),
            pytest.param(EventMessage(bytes(range(256)) * 256), id="64 KiB"),
            pytest.param(EventMessage("grün ☃ 🎈".encode()), id="unicode"),
            # A protocol that carries attributes as headers tends to strip, split or fold such names and values.
            pytest.param(EventMessage(b"x", {"größe": "ünïcødé ☃", "a b/c.d=e": " \n\t", "none": ""}), id="attributes"),
        ],
    )
    @rule("§1")
    async def test_a_message_arrives_as_it_was_sent(self, stage: Stage, message: EventMessage) -> None:
        """Data and attributes arrive unchanged, and no attribute is added."""
        client, receiver = await stage.open()
        await client.send_message(message)
        received = await stage.receive(receiver)
        assert received == message
        assert type(received.data) is bytes

    @rule("§1")
    async def test_a_received_message_says_where_it_stands(self, stage: Stage) -> None:
        """A received message has the id that sending returned, an aware time in UTC or none, and attempt 1 or none."""
        client, receiver = await stage.open()
        message_id = await client.send_message(EventMessage(b"x"))
        received = await stage.receive(receiver)
        assert type(received) is ReceivedMessage
        assert received.message_id == message_id
        assert received.ordering_key is None
        assert received.publish_time is None or received.publish_time.utcoffset() == timedelta()
        assert received.delivery_attempt == (1 if receiver.capabilities.delivery_attempts else None)

    @rule("§1")
    async def test_a_received_message_can_be_sent_again(self, stage: Stage) -> None:
        """A received message that is sent again gets a new id."""
        client, receiver = await stage.open()
        await client.send_message(EventMessage(b"x", {"a": "b"}))
        (first,) = await stage.drain(receiver, 1)
        message_id = await client.send_message(first)
        (second,) = await stage.drain(receiver, 1)
        assert second == first
        assert second.message_id == message_id != first.message_id

    @rule("§1")
    async def test_an_ordering_key_arrives(self, stage: Stage) -> None:
        """An ordering key arrives unchanged, and an empty one arrives as ``None``."""
        client, receiver = await stage.open_ordered()
        for key in ("Schlüssel/1 ☃", ""):
            await client.send_message(EventMessage(b"x", ordering_key=key))
            (received,) = await stage.drain(receiver, 1)
            assert received.ordering_key == (key or None)

    @rule("§3")
    async def test_a_topic_keeps_its_messages(self, stage: Stage) -> None:
        """A message that is sent to one topic does not reach another."""
        _, receiver = await stage.open()
        other = stage.client(stage.name("other"))
        elsewhere = await other.subscribe(stage.name("elsewhere"))
        await other.send_message(EventMessage(b"other"))
        assert (await stage.receive(elsewhere)).data == b"other"
        # The message has reached its own topic, so it has had the time to go astray.
        await stage.silence(receiver)

    @rule("§3")
    async def test_a_client_tells_its_topic_and_state(self, stage: Stage) -> None:
        """Topic and project are as configured, and a client is connected from its first use until it closes."""
        config, client = stage.config(), stage.client()
        assert (client.topic_name, client.project_id) == (config.topic_name, config.project_id)
        assert not client.is_connected
        await client.subscribe()
        assert client.is_connected
        assert (client.topic_name, client.project_id) == (config.topic_name, config.project_id)
        await client.close()
        assert not client.is_connected

    @rule("§3")
    async def test_ping_tells_how_long_the_broker_took(self, stage: Stage) -> None:
        """A ping returns seconds, not more than its timeout."""
        client = stage.client()
        await client.send_message(EventMessage(b"x"))
        assert 0 <= await client.ping(stage.harness.patience) <= stage.harness.patience

    @rule("§4")
    async def test_stats_count_what_is_held(self, stage: Stage) -> None:
        """``held`` grows when a message is handed out, and shrinks when it is settled."""
        client, receiver = await stage.open()
        assert (receiver.stats.held, receiver.stats.last_message_age) == (0, None)
        await client.send_messages([EventMessage(b"1"), EventMessage(b"2")])
        first, second = await stage.receive_all(receiver, 2)
        assert receiver.stats.held == 2
        await receiver.acknowledge(first)
        await receiver.nack(second, delay=stage.short_delay)
        stats = receiver.stats
        assert (stats.held, stats.reconnects) == (0, 0)
        assert stats.last_message_age is not None
