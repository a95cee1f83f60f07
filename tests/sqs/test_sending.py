"""Sending: full requests, a result for each message, sizes, and the order of keys."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from typing import Any

import pytest

from events_core import ErrorCode, EventError, EventMessage, EventReceiver, PublishError

from ..receiving import numbered, numbers, settle_all, take
from .console import Console
from .disturbed import SENDS, disturbed, sends
from .faults import FOREVER, Call, FaultyProxy, entries_of
from .server import Server

KINDS = {
    "sns": {"topology": "sns"},
    "sns-fifo": {"topology": "sns", "ordering": "true"},
    "queue": {"topology": "queue"},
    "queue-fifo": {"topology": "queue", "ordering": "true"},
}


@pytest.fixture(params=KINDS)
def any_kind(request: pytest.FixtureRequest, server: Server) -> Console:
    """Return a new topic of each kind."""
    return Console(server, **KINDS[request.param])


@pytest.fixture(params=[kind for kind in KINDS if kind.endswith("fifo")])
def ordered(request: pytest.FixtureRequest, server: Server) -> Console:
    """Return a new topic that keeps order: an SNS topic, and a queue."""
    return Console(server, **KINDS[request.param])


def entries(proxy: FaultyProxy) -> list[list[Any]]:
    """Return the entries of each request to send."""
    return [entries_of(call) for call in proxy.calls if call.operation in SENDS]


def groups(call_entries: list[Any]) -> list[str]:
    return [entry["MessageGroupId"] for entry in call_entries]


async def settled(receiver: EventReceiver, count: int) -> list[int]:
    """Receive and acknowledge *count* messages, and return their numbers in order."""
    came = []
    for _ in range(count):
        message = await take(receiver)
        came.append(message)
        await receiver.acknowledge(message)
    return numbers(came)


def test_concurrent_sends_fill_requests(any_kind: Console) -> None:
    """P5: 1,000 sends at once need hardly more than 100 requests, also if each has a key of its own."""

    async def scenario() -> None:
        async with disturbed(any_kind) as (proxy, both, _):
            keys = [f"k{number}" if any_kind.is_fifo else None for number in range(1000)]
            messages = [EventMessage(b"x", ordering_key=key) for key in keys]
            assert len({*await asyncio.gather(*map(both.send_message, messages))}) == 1000
            assert sends(proxy) <= 115
            assert max(map(len, entries(proxy))) == 10

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_every_message_arrives_with_its_id(any_kind: Console) -> None:
    """P1: text and bytes, odd attributes and none; the id is the one that the send returned."""

    async def scenario() -> None:
        async with any_kind, any_kind.client() as both, both.subscribe() as receiver:
            sent = [
                EventMessage(b"text \xc3\xa4", {"shop": "7"}),
                EventMessage(b"\xff\x00"),
                EventMessage(b""),
                EventMessage(b"x", {"": "", "two words": "\0", "events_core": "mine"}),
                EventMessage(b"x", {f"n{number}": "1" for number in range(30)}),
            ]
            if any_kind.is_fifo:
                sent += [EventMessage(b"x", ordering_key=key) for key in ("k", "two words", "k" * 1000)]
            ids = await both.send_messages(sent)
            came = {}
            while len(came) < len(sent):
                for message in await receiver.receive_messages(10, 60):
                    came[message.message_id] = message
                    await receiver.acknowledge(message)
            assert [came[each] for each in ids] == sent

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_request_has_one_message_of_each_key(ordered: Console) -> None:
    """P3, P4: SQS may store an entry behind a failed one of its group, so no request has two of a group."""

    async def scenario() -> None:
        async with disturbed(ordered) as (proxy, both, receiver):
            messages = [EventMessage(b"%d" % number, ordering_key=f"k{number % 30}") for number in range(300)]
            await both.send_messages(messages)
            assert sends(proxy) <= 45
            for each in entries(proxy):
                assert len({*groups(each)}) == len(each)
            by_key = defaultdict(list)
            while sum(map(len, by_key.values())) < 300:
                for message in await receiver.receive_messages(100, 60):
                    by_key[message.ordering_key].append(int(message.data))
                    await receiver.acknowledge(message)
            assert all(found == sorted(found) for found in by_key.values())

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_messages_without_a_key_share_requests_on_fifo(ordered: Console) -> None:
    """P5: each is its own group."""

    async def scenario() -> None:
        async with disturbed(ordered) as (proxy, both, _):
            await both.send_messages(numbered(50))
            assert sends(proxy) == 5
            assert len({*itertools.chain.from_iterable(map(groups, entries(proxy)))}) == 50

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize("kind", ["sns", "queue"])
def test_an_entry_that_fails_for_a_while_is_sent_again_alone(server: Server, kind: str) -> None:
    """P7: AWS took nine messages of ten; the tenth follows, and nothing is stored twice."""

    async def scenario() -> None:
        async with disturbed(Console(server, topology=kind)) as (proxy, both, receiver):
            for operation in SENDS:
                proxy.fail_entry(operation, lambda text: text == "7", "InternalError", times=2)
            ids = await both.send_messages(numbered(10))
            assert len({*ids}) == 10
            assert [len(each) for each in entries(proxy)] == [10, 1, 1]
            assert sorted(await settle_all(receiver, 10)) == [*range(10)]

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_an_entry_that_is_refused_fails_alone(any_kind: Console) -> None:
    """P3: it has its own error, and the other messages of the request are stored."""

    async def scenario() -> None:
        async with disturbed(any_kind) as (proxy, both, receiver):
            for operation in SENDS:
                proxy.fail_entry(
                    operation, lambda text: text == "3", "InvalidMessageContents", is_senders_fault=True, times=FOREVER
                )
            with pytest.raises(PublishError) as caught:
                await both.send_messages(numbered(6))
            outcomes = [result.code if isinstance(result, EventError) else "sent" for result in caught.value.results]
            assert outcomes == ["sent", "sent", "sent", ErrorCode.INVALID, "sent", "sent"]
            assert sorted(await settled(receiver, 5)) == [0, 1, 2, 4, 5]

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_nothing_of_a_key_is_stored_behind_a_message_that_failed(ordered: Console) -> None:
    """P3, P4: later messages of its key in the call are NOT_ATTEMPTED, and those are not stored."""

    async def scenario() -> None:
        async with disturbed(ordered) as (proxy, both, receiver):
            for operation in SENDS:
                proxy.fail_entry(
                    operation, lambda text: text == "1", "InvalidMessageContents", is_senders_fault=True, times=FOREVER
                )
            messages = [*numbered(4, "k"), EventMessage(b"9", ordering_key="other")]
            with pytest.raises(PublishError) as caught:
                await both.send_messages(messages)
            outcomes = [result.code if isinstance(result, EventError) else "sent" for result in caught.value.results]
            assert outcomes == ["sent", ErrorCode.INVALID, ErrorCode.NOT_ATTEMPTED, ErrorCode.NOT_ATTEMPTED, "sent"]
            proxy.heal()
            await both.send_message(EventMessage(b"5", ordering_key="k"))
            assert sorted(await settled(receiver, 3)) == [0, 5, 9]

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_message_that_is_retried_keeps_its_place(ordered: Console) -> None:
    """P4: later messages of its key wait until it is stored, and other keys do not."""

    async def scenario() -> None:
        async with disturbed(ordered) as (proxy, both, receiver):
            for operation in SENDS:
                proxy.fail_entry(operation, lambda text: text == "1", "Throttling", times=3)
            await both.send_messages(numbered(5, "k"))
            assert await settled(receiver, 5) == [0, 1, 2, 3, 4]

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_lost_answer_stores_a_message_once_on_fifo(ordered: Console) -> None:
    """P7: a message that is sent again has the same deduplication id, and the send returns it."""

    async def scenario() -> None:
        async with disturbed(ordered) as (proxy, both, receiver):
            for operation in SENDS:
                proxy.lose_answer(operation, times=2)
            ids = await both.send_messages(numbered(5))
            assert sends(proxy) == 3
            tried = [[entry["MessageDeduplicationId"] for entry in each] for each in entries(proxy)]
            assert tried == [ids] * 3
            await both.send_message(EventMessage(b"5"))
            assert sorted(await settle_all(receiver, 6)) == [*range(6)]

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_that_is_too_large_is_refused_before_it_is_sent(server: Server, kind: str) -> None:
    """P2: bytes count a third more, and attributes their types; the error names the limit."""
    limit = 1_048_576 if kind.startswith("queue") else 262_144

    async def scenario() -> None:
        async with disturbed(Console(server, **KINDS[kind])) as (proxy, both, _):
            for message in (
                EventMessage(b"x" * (limit + 1)),
                EventMessage(b"\xff" * (limit * 3 // 4 + 3)),
                EventMessage(b"x" * (limit - 10), {"shop": "7"}),
                EventMessage(b"x" * (limit - 200), {"n": "\x01" * 100}),
            ):
                with pytest.raises(PublishError, match="max_message_bytes") as caught:
                    await both.send_message(message)
                assert caught.value.code is ErrorCode.INVALID
            assert sends(proxy) == 0

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_message_arrives(server: Server, kind: str) -> None:
    """P2: text of the declared size."""

    async def scenario() -> None:
        console = Console(server, **KINDS[kind])
        async with console, console.client() as both, both.subscribe() as receiver:
            limit = both.capabilities.limits.max_message_bytes
            assert limit is not None
            await both.send_message(EventMessage(b"x" * limit))
            message = await take(receiver)
            assert message.data == b"x" * limit
            await receiver.acknowledge(message)

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_large_messages_share_no_request(any_kind: Console) -> None:
    """P2: the bytes of a request are bounded as those of a message; base64 counts a third more."""
    limit = 1_048_576 if any_kind.options["topology"] == "queue" else 262_144

    async def scenario() -> None:
        async with disturbed(any_kind) as (proxy, both, receiver):
            size = limit // 4 + 100
            messages = [EventMessage(bytes([number]) + b"\xff" * (size * 3 // 4)) for number in range(8)]
            await both.send_messages(messages)
            assert max(map(len, entries(proxy))) <= 3
            came = set()
            while len(came) < 8:
                message = await take(receiver)
                came.add(message.data)
                await receiver.acknowledge(message)
            assert came == {message.data for message in messages}

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_failure_in_the_middle_of_a_divided_request_sends_the_rest_again(server: Server) -> None:
    """P3, P7: what was stored is not sent again, and the rest is."""

    async def scenario() -> None:
        async with disturbed(Console(server)) as (proxy, both, receiver):
            # The engine counts less than 256 KiB for them, and AWS counts more.
            large = [EventMessage(b"%d" % number + b"\xff" * 60_000) for number in range(4)]
            passed = itertools.count()
            original = proxy._answer

            async def every_second(call: Call) -> Any:
                if call.operation == "PublishBatch" and next(passed) == 1:
                    proxy.refuse("PublishBatch", "InternalError", status=500)
                return await original(call)

            proxy._answer = every_second  # type: ignore[method-assign]  # the second request fails
            assert len({*await both.send_messages(large)}) == 4
            assert [len(each) for each in entries(proxy)] == [3, 1, 1]
            came = []
            while len(came) < 4:
                message = await take(receiver)
                came.append(int(message.data[:1]))
                await receiver.acknowledge(message)
            assert sorted(came) == [0, 1, 2, 3]
            assert await receiver.receive_message(0) is None

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_deleted_topic_is_created_again_if_that_is_allowed(console: Console) -> None:
    """Q2: with create=all a send creates the topic; with create=never it is NOT_FOUND."""

    async def scenario() -> None:
        async with console, console.client(subscription="") as sender:
            await sender.send_message(EventMessage(b"x"))
            await console.sns.delete_topic(TopicArn=console.topic_arn)
            await sender.send_message(EventMessage(b"x"))
            async with console.client(create="never", subscription="") as careful:
                await careful.send_message(EventMessage(b"x"))
                await console.sns.delete_topic(TopicArn=console.topic_arn)
                with pytest.raises(PublishError) as caught:
                    await careful.send_message(EventMessage(b"x"))
                assert caught.value.code is ErrorCode.NOT_FOUND

    asyncio.run(asyncio.wait_for(scenario(), 120))
