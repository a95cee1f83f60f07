"""P1 to P8: sending."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Iterable

import pytest

from events_core import ErrorCode, EventError, EventMessage, PublishError, ReceivedMessage
from events_core.testing.rules import rule
from events_core.testing.stage import Stage, numbered, texts

__all__ = ["Publishing"]

_SIZED: dict[str, Callable[[int], EventMessage]] = {
    # Text, because some brokers carry other data in a longer form.
    "max_message_bytes": lambda size: EventMessage(b"x" * size),
    "max_attributes": lambda count: EventMessage(b"x", {f"a{number}": "" for number in range(count)}),
    "max_attribute_key_bytes": lambda size: EventMessage(b"x", {"a" * size: ""}),
    "max_attribute_value_bytes": lambda size: EventMessage(b"x", {"a": "b" * size}),
    "max_ordering_key_bytes": lambda size: EventMessage(b"x", ordering_key="k" * size),
}
"""For each limit, a function that makes a message of a given size."""


def _ids(messages: Iterable[ReceivedMessage]) -> set[str]:
    return {message.message_id for message in messages}


class Publishing:
    """Sending one message, several, and many at once."""

    @rule("P1")
    async def test_ids_are_unique_and_those_that_receivers_see(self, stage: Stage) -> None:
        """Every id is not empty, unique, and the ``message_id`` of the message that arrives."""
        client, receiver = await stage.open()
        ids = [await client.send_message(message) for message in numbered(20)]
        ids += await client.send_messages(numbered(180))
        assert all(ids)
        assert len(set(ids)) == 200
        received = await stage.drain(receiver, 200)
        assert sorted(message.message_id for message in received) == sorted(ids)

    @rule("P1")
    async def test_what_is_confirmed_is_stored(self, stage: Stage) -> None:
        """A message arrives although its client closed as soon as the send returned."""
        _, receiver = await stage.open()
        sender = stage.client()
        message_id = await sender.send_message(EventMessage(b"x"))
        # Without time to flush: a message that is not yet stored would be lost here.
        await sender.close(timeout=0)
        assert (await stage.receive(receiver)).message_id == message_id

    @pytest.mark.parametrize("limit", sorted(_SIZED))
    @rule("P2")
    async def test_a_message_at_the_limit_is_sent_and_beyond_it_none_is(self, stage: Stage, limit: str) -> None:
        """A message at the limit arrives; one beyond it fails the whole call, and the error names index and limit."""
        largest = stage.require(f"limits.{limit}")
        opening = stage.open_ordered() if limit == "max_ordering_key_bytes" else stage.open()
        client, receiver = await opening
        with pytest.raises(PublishError, match=limit) as caught:
            await client.send_messages([EventMessage(b"good"), _SIZED[limit](largest + 1)])
        assert caught.value.code is ErrorCode.INVALID
        assert not caught.value.retryable
        assert re.search(r"\b1\b", str(caught.value)), "the error does not name the index"
        await client.send_message(_SIZED[limit](largest))
        assert await stage.drain(receiver, 1) == [_SIZED[limit](largest)]
        await stage.silence(receiver)

    @rule("P2")
    async def test_ids_come_back_in_input_order(self, stage: Stage) -> None:
        """Each id stands at the index of its message."""
        client, receiver = await stage.open()
        messages = numbered(50)
        ids = await client.send_messages(messages)
        received = {message.message_id: message.data for message in await stage.drain(receiver, 50)}
        assert [received[message_id] for message_id in ids] == [message.data for message in messages]

    @rule("P2")
    async def test_sending_nothing_is_a_no_op(self, stage: Stage) -> None:
        """No messages give no ids, without connecting."""
        client = stage.client()
        assert await client.send_messages([]) == []
        assert not client.is_connected

    @pytest.mark.parametrize(
        # More messages than a request may carry, and more bytes: both must be split.
        ("count", "size"),
        [pytest.param(2001, 8, id="many messages"), pytest.param(24, 512 * 1024, id="many bytes")],
    )
    @rule("P2")
    async def test_a_large_send_is_split(self, stage: Stage, count: int, size: int) -> None:
        """A send that is larger than a request may be arrives completely."""
        client, receiver = await stage.open()
        largest = client.capabilities.limits.max_message_bytes
        if largest is not None and size > largest:
            # As many bytes together, but no more messages than in the other case.
            count, size = min(2001, -(-count * size // largest)), largest
        messages = [EventMessage(f"{number:0{size}}".encode()) for number in range(count)]
        ids = await client.send_messages(messages)
        assert len(set(ids)) == count
        received = await stage.drain(receiver, count)
        assert sorted(message.data for message in received) == [message.data for message in messages]

    @rule("P3")
    async def test_a_bad_message_fails_nobody_elses(self, stage: Stage) -> None:
        """Concurrent sends of good messages succeed although another one is refused."""
        largest = stage.require("limits.max_message_bytes")
        client, receiver = await stage.open()
        bad = client.send_message(EventMessage(bytes(largest + 1)))
        sends = [client.send_message(message) for message in numbered(20)]
        refusal, *ids = await asyncio.gather(bad, *sends, return_exceptions=True)
        assert isinstance(refusal, PublishError)
        received = await stage.drain(receiver, 20)
        assert sorted(message.message_id for message in received) == sorted(map(str, ids))

    @rule("P3")
    async def test_a_failure_pauses_no_key(self, stage: Stage) -> None:
        """After a refused message, the next call with its key succeeds."""
        largest = stage.require("limits.max_message_bytes")
        client, receiver = await stage.open_ordered()
        with pytest.raises(PublishError):
            await client.send_message(EventMessage(bytes(largest + 1), ordering_key="k"))
        # Google's own client pauses a key after a failure, until the application resumes it.  This library does not.
        await client.send_message(EventMessage(b"next", ordering_key="k"))
        assert texts(await stage.drain(receiver, 1)) == ["next"]

    @rule("P3")
    async def test_results_tell_the_outcome_of_each_message(self, stage: Stage) -> None:
        """If the broker refuses one message, later ones of its key are NOT_ATTEMPTED and all others are sent."""
        refused = stage.require_refused_message()
        client, receiver = await stage.open_ordered()
        good = [EventMessage.from_string(key, ordering_key=key) for key in ("k", "l", "m")]
        after = EventMessage(b"after", ordering_key="k")
        with pytest.raises(PublishError) as caught:
            await client.send_messages([good[0], good[1], refused.with_ordering_key("k"), after, good[2]])
        first, second, refusal, unattempted, last = caught.value.results
        assert isinstance(refusal, PublishError), f"it is a {type(refusal).__name__}"
        assert isinstance(unattempted, PublishError), f"it is a {type(unattempted).__name__}"
        assert (caught.value.code, unattempted.code) == (refusal.code, ErrorCode.NOT_ATTEMPTED)
        received = {message.message_id: message for message in await stage.drain(receiver, 3)}
        assert [received.get(str(message_id)) for message_id in (first, second, last)] == good
        # ``NOT_ATTEMPTED`` promises that sending the message again makes no duplicate.
        await client.send_message(after)
        assert await stage.drain(receiver, 1) == [after]
        await stage.silence(receiver)

    @rule("P3")
    async def test_a_message_that_the_broker_refuses_fails_nobody_elses(self, stage: Stage) -> None:
        """Concurrent sends of good messages succeed although they may share a request with a refused one."""
        refused = stage.require_refused_message()
        client, receiver = await stage.open()
        messages = numbered(20)
        sends = [*map(client.send_message, [*messages[:10], refused, *messages[10:]])]
        results = await asyncio.gather(*sends, return_exceptions=True)
        assert isinstance(results.pop(10), PublishError)
        received = await stage.drain(receiver, 20)
        assert sorted(message.message_id for message in received) == sorted(map(str, results))

    @rule("P4", "P5")
    async def test_concurrent_sends_keep_order_per_key(self, stage: Stage) -> None:
        """200 sends that begin one after the other are stored in that order, for each key."""
        client, receiver = await stage.open_ordered()
        keys = ["a", "b", "c", "d", "e"]
        messages = [EventMessage.from_string(f"{n:03}", ordering_key=keys[n % len(keys)]) for n in range(200)]
        await asyncio.gather(*map(client.send_message, messages))
        received = await stage.drain(receiver, 200)
        for key in keys:
            sent = [message for message in messages if message.ordering_key == key]
            assert [message for message in received if message.ordering_key == key] == sent

    @rule("P4")
    async def test_a_batch_keeps_order_per_key(self, stage: Stage) -> None:
        """Messages of a key in one call are stored in input order, after those of the call before."""
        client, receiver = await stage.open_ordered()
        messages = numbered(60, key="k")
        await client.send_messages(messages[:30])
        await client.send_messages(messages[30:])
        assert texts(await stage.drain(receiver, 60)) == texts(messages)

    @rule("P5")
    async def test_concurrent_sends_lose_nothing(self, stage: Stage) -> None:
        """200 concurrent sends are all stored, once each."""
        client, receiver = await stage.open()
        messages = numbered(200)
        ids = await asyncio.gather(*map(client.send_message, messages))
        received = await stage.drain(receiver, 200)
        assert sorted(message.message_id for message in received) == sorted(ids)
        assert sorted(texts(received)) == texts(messages)

    @pytest.mark.parametrize("bound", ["publish_max_messages", "publish_max_bytes"])
    @rule("P6")
    async def test_past_the_bound_a_send_waits(self, stage: Stage, bound: str) -> None:
        """With a bound of 1, sends wait for each other, and a message larger than the bound is sent alone."""
        client, receiver = await stage.open(**{bound: "1"})
        messages = numbered(30)
        sends = [client.send_message(message) for message in messages[:20]]
        await asyncio.gather(client.send_messages(messages[20:]), *sends)
        assert sorted(texts(await stage.drain(receiver, 30))) == texts(messages)

    @pytest.mark.parametrize("bound", ["publish_max_messages", "publish_max_bytes"])
    @rule("P6")
    async def test_past_the_bound_a_send_fails_by_option(self, stage: Stage, bound: str) -> None:
        """With ``publish_on_limit=error`` a send raises EXHAUSTED at once, and only messages with an id are sent."""
        client, receiver = await stage.open(**{bound: "1"}, publish_on_limit="error")
        # Two messages are beyond the bound although nothing else is under way.
        with pytest.raises(PublishError) as caught:
            await client.send_messages(numbered(2, prefix="never "))
        assert (caught.value.code, caught.value.retryable) == (ErrorCode.EXHAUSTED, True)
        results = await asyncio.gather(*map(client.send_message, numbered(50)), return_exceptions=True)
        ids = [result for result in results if isinstance(result, str)]
        assert ids
        assert {result.code for result in results if isinstance(result, EventError)} <= {ErrorCode.EXHAUSTED}
        received = await stage.drain(receiver, len(ids))
        assert sorted(message.message_id for message in received) == sorted(ids)
        await stage.silence(receiver)

    @rule("P6", "P8")
    async def test_a_send_that_waits_for_room_may_be_cancelled(self, stage: Stage) -> None:
        """A cancelled send gives its place back: all sends that wait get room."""
        client, receiver = await stage.open(publish_max_messages="1")
        sends = [asyncio.create_task(client.send_message(message)) for message in numbered(20)]
        await asyncio.sleep(0)
        # Every second one, so that those behind it must still get room.
        for doomed in sends[1::2]:
            doomed.cancel()
        _, pending = await asyncio.wait(sends, timeout=stage.harness.patience)
        assert not pending, f"sends that were not cancelled still wait for room: {pending}"
        async with asyncio.timeout(stage.harness.patience):
            last = await client.send_message(EventMessage(b"last"))
        confirmed = {send.result() for send in sends if not send.cancelled()} | {last}
        await stage.drain_until(receiver, lambda came: confirmed <= _ids(came))

    @rule("P7")
    async def test_a_permanent_error_surfaces_at_once(self, stage: Stage) -> None:
        """Sending to a topic that does not exist and may not be created raises NOT_FOUND, long before send_timeout."""
        # Long before this send_timeout, a permanent error must be raised.
        client = stage.client(create="never", send_timeout="600")
        with pytest.raises(PublishError) as caught:
            async with asyncio.timeout(stage.harness.patience):
                await client.send_message(EventMessage(b"x"))
        assert (caught.value.code, caught.value.retryable) == (ErrorCode.NOT_FOUND, False)

    @rule("P8")
    async def test_cancelled_sends_harm_nobody(self, stage: Stage) -> None:
        """Cancelled sends are stored at most once, their neighbours once, and the client goes on."""
        client, receiver = await stage.open()
        # A fixed seed, so that a failure can be repeated.
        chance = random.Random(8)
        sends = [asyncio.create_task(client.send_message(message)) for message in numbered(100)]
        await asyncio.sleep(0)
        # Every second send is cancelled: its neighbours share requests with it.
        for doomed in sends[::2]:
            doomed.cancel()
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
        await asyncio.wait(sends)
        assert not any(send.cancelled() for send in sends[1::2]), "a send was cancelled together with its neighbour"
        last = await client.send_message(EventMessage(b"last"))
        confirmed = {send.result() for send in sends if not send.cancelled()} | {last}
        came = await stage.drain_until(receiver, lambda came: confirmed <= _ids(came))
        assert len(came) == len(_ids(came)), "a message came twice"
