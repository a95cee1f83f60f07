"""Messages that are too large, records as other programs see them, and sends that end."""

from __future__ import annotations

import asyncio
import re
import threading
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from events_core import ErrorCode, EventClient, EventError, EventMessage, PublishError

from ..receiving import numbered
from .console import Console, client


def codes(results: list[object]) -> list[ErrorCode | None]:
    """Return the code of each result; None for a message that was stored."""
    return [result.code if isinstance(result, EventError) else None for result in results]


IN_EITHER_THREAD = pytest.mark.parametrize("before", [0, 1], ids=["home", "caller"])
"""For :func:`opened`: messages that are sent before.  The first send goes through home, and hands nothing over."""


@asynccontextmanager
async def opened(console: Console, before: int, **options: str) -> AsyncIterator[EventClient]:
    """Open a client whose next request begins at home, or in the thread of its caller."""
    async with console.client(**options) as sender:
        for _ in range(before):
            await sender.send_message(EventMessage(b"before", ordering_key="before"))
        yield sender


def test_a_message_is_sent_as_documented(console: Console) -> None:
    """Other programs see the ordering key as key, the attributes as headers, and the id in the record's place."""

    async def scenario() -> str:
        async with console.client() as sender:
            return await sender.send_message(EventMessage(b"1", {"kind": "näw", "nul": "a\0b"}, ordering_key="käy"))

    identity = asyncio.run(scenario())
    (record,) = console.records(1)
    assert record.value() == b"1"
    assert record.key() == "käy".encode()
    assert record.headers() == [("kind", "näw".encode()), ("nul", b"a\0b")]
    assert identity == f"{console.topic}/{record.partition()}/{record.offset()}"


def test_a_message_without_key_and_attributes_has_none(console: Console) -> None:
    """The record has neither a key nor headers, and so goes to any partition."""

    async def scenario() -> None:
        async with console.client() as sender:
            await sender.send_message(EventMessage(b""))

    asyncio.run(scenario())
    (record,) = console.records(1)
    assert (record.key(), record.headers(), record.value()) == (None, None, b"")


@pytest.mark.parametrize("key", ["a", "order-17", "käy", "k" * 300])
def test_a_key_goes_to_the_partition_that_javas_client_chooses(console: Console, key: str) -> None:
    """Records of other programs with the same key are in the same partition."""
    console.create_topic(partitions=7)
    other = console.produce(b"0", key.encode(), partitioner="murmur2")

    async def scenario() -> str:
        async with console.client() as sender:
            return await sender.send_message(EventMessage(b"1", ordering_key=key))

    assert asyncio.run(scenario()) == f"{console.topic}/{other.partition()}/1"


@IN_EITHER_THREAD
def test_the_ids_of_a_batch_are_those_of_its_records(console: Console, before: int) -> None:
    """P2: ids come back in the order of the messages, over all partitions."""
    console.create_topic(partitions=3)
    batch = [EventMessage(b"%d" % number, ordering_key=f"k{number % 5}") for number in range(50)]

    async def scenario() -> list[str]:
        async with opened(console, before) as sender:
            return await sender.send_messages(batch)

    ids = asyncio.run(scenario())
    found = {}
    for partition in range(3):
        for record in console.records(console.end(partition), partition) if console.end(partition) else ():
            found[f"{console.topic}/{partition}/{record.offset()}"] = record.value()
    assert [found[identity] for identity in ids] == [message.data for message in batch]


@IN_EITHER_THREAD
def test_a_message_beyond_the_topics_limit_fails_alone(console: Console, before: int) -> None:
    """P3: the message is INVALID, later ones of its key are not attempted, and all others are stored."""
    console.create_topic(max_message_bytes="10000")
    batch = [
        EventMessage(b"0", ordering_key="a"),
        EventMessage(bytes(10_000), ordering_key="a"),
        EventMessage(b"2", ordering_key="a"),
        EventMessage(b"3", ordering_key="b"),
        EventMessage(b"4"),
    ]

    async def scenario() -> None:
        async with opened(console, before) as sender:
            with pytest.raises(PublishError, match=r"max\.message\.bytes") as caught:
                await sender.send_messages(batch)
            assert codes([*caught.value.results]) == [None, ErrorCode.INVALID, ErrorCode.NOT_ATTEMPTED, None, None]
            # No key stays paused.
            await sender.send_message(EventMessage(b"5", ordering_key="a"))

    asyncio.run(scenario())
    assert [record.value() for record in console.records(4 + before)][before:] == [b"0", b"3", b"4", b"5"]


def test_a_message_beyond_the_topics_limit_fails_nobody_elses(console: Console) -> None:
    """P3: a message of another call that has its key, and leaves in the same batch, is stored."""
    console.create_topic(max_message_bytes="10000")

    async def scenario() -> None:
        async with console.client() as sender:
            await sender.send_message(EventMessage(b"0"))
            # The first one is out at once, and the others gather behind it.
            data = [b"1", bytes(10_000), b"2", bytes(10_000), b"3"]
            sends = [sender.send_message(EventMessage(each, ordering_key="a")) for each in data]
            results = await asyncio.gather(*sends, return_exceptions=True)
            assert codes([*results]) == [None, ErrorCode.INVALID, None, ErrorCode.INVALID, None]

    asyncio.run(scenario())
    assert [record.value() for record in console.records(4)] == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize("count", [1, 30])
def test_the_largest_messages_that_a_topic_takes_are_stored(console: Console, count: int) -> None:
    """The limit of the topic counts for one record, and not for all records of a request together."""
    console.create_topic(max_message_bytes="10000")
    batch = [EventMessage(bytes(9_800), {"a": "b"}, ordering_key="k") for _ in range(count)]

    async def scenario() -> None:
        async with console.client() as sender:
            assert len(await sender.send_messages(batch)) == count

    asyncio.run(scenario())
    assert console.end() == count


def test_attributes_and_key_count_for_the_limit(console: Console) -> None:
    """P3: a message whose headers and key are too large is refused before it is sent."""
    console.create_topic(max_message_bytes="10000")
    large = [
        EventMessage(b"0", {f"attribute {number}": "ä" * 100 for number in range(50)}),
        EventMessage(b"1", ordering_key="ö" * 5000),
    ]

    async def scenario() -> None:
        async with console.client() as sender:
            with pytest.raises(PublishError) as caught:
                await sender.send_messages(large)
            assert codes([*caught.value.results]) == [ErrorCode.INVALID, ErrorCode.INVALID]

    asyncio.run(scenario())
    assert console.end() == 0


@pytest.mark.parametrize(("extra", "is_stored"), [(-100, True), (0, True), (200, False)])
def test_the_size_of_a_record_is_computed_well(console: Console, extra: int, is_stored: bool) -> None:
    """What the client refuses the broker would refuse too, but for some bytes."""
    limit = 10_000
    console.create_topic(max_message_bytes=str(limit))
    attributes = {f"a{number:02}": "ä" * 35 for number in range(99)}  # 73 bytes, and 3 for the lengths
    message = EventMessage(bytes(limit + extra - 97 - 99 * 76), attributes)

    async def scenario() -> None:
        async with console.client() as sender:
            await sender.send_message(message)

    if is_stored:
        asyncio.run(scenario())
    else:
        with pytest.raises(PublishError, match=r"max\.message\.bytes"):
            asyncio.run(scenario())
    assert console.end() == is_stored


def test_a_message_beyond_the_option_is_refused_before_it_is_sent(console: Console) -> None:
    """P2: the error names the message, its size and the limit."""

    async def scenario() -> None:
        async with console.client(max_message_bytes="100") as sender:
            with pytest.raises(PublishError, match="max_message_bytes is 100") as caught:
                await sender.send_message(EventMessage(bytes(200)))
            assert caught.value.code is ErrorCode.INVALID

    asyncio.run(scenario())


def test_a_message_of_many_megabytes_is_stored(console: Console) -> None:
    """With the option and the topic set to it, one message may be larger than a request usually is."""
    console.create_topic(max_message_bytes="30000000")
    data = bytes(range(256)) * 80_000

    async def scenario() -> None:
        async with console.client(max_message_bytes="25000000", compression="lz4") as sender:
            await sender.send_message(EventMessage(data))

    asyncio.run(scenario())
    (record,) = console.records(1)
    assert record.value() == data


def test_an_attribute_key_with_a_nul_is_refused(console: Console) -> None:
    """P2: librdkafka would cut the name of the header there."""

    async def scenario() -> None:
        async with console.client() as sender:
            with pytest.raises(PublishError, match="NUL") as caught:
                await sender.send_message(EventMessage(b"", {"a\0b": "c"}))
            assert caught.value.code is ErrorCode.INVALID

    asyncio.run(scenario())


@IN_EITHER_THREAD
def test_a_message_that_the_topic_refuses_fails_alone(console: Console, before: int) -> None:
    """P3: a compacted topic takes no record without a key, and the neighbours of such a record are stored."""
    console.create_topic(cleanup_policy="compact")
    batch = [EventMessage(b"%d" % number, ordering_key=None if number == 2 else f"k{number}") for number in range(5)]

    async def scenario() -> None:
        async with opened(console, before) as sender:
            with pytest.raises(PublishError, match="compacted") as caught:
                await sender.send_messages(batch)
            assert codes([*caught.value.results]) == [None, None, ErrorCode.INVALID, None, None]

    asyncio.run(scenario())
    assert {record.value() for record in console.records(4 + before)[before:]} == {b"0", b"1", b"3", b"4"}


@IN_EITHER_THREAD
def test_a_small_queue_of_librdkafka_delays_a_send(console: Console, before: int) -> None:
    """P6: a send waits for room in the producer, and stores all messages in order."""

    async def scenario() -> None:
        async with opened(console, before, librdkafka="queue.buffering.max.messages=10") as sender:
            await sender.send_messages(numbered(100, key="k"))

    asyncio.run(scenario())
    assert [record.value() for record in console.records(100 + before)][before:] == [
        b"%d" % number for number in range(100)
    ]


@pytest.mark.parametrize(("name", "value"), [("batch.size", "s3cret"), ("batch.num.messages", "98765432")])
def test_a_setting_that_librdkafka_refuses_is_named(console: Console, name: str, value: str) -> None:
    """O1, O2: the value of another setting is checked when the client connects, and no traceback shows it."""

    async def scenario() -> None:
        async with console.client(librdkafka=f"{name}={value}") as sender:
            with pytest.raises(EventError, match=re.escape(name)) as caught:
                await sender.send_message(EventMessage(b""))
            assert caught.value.code is ErrorCode.INVALID
            assert value not in "".join(traceback.format_exception(caught.value))

    asyncio.run(scenario())


def test_a_lone_send_does_not_wait_for_the_engines_loop(console: Console) -> None:
    """P1: the caller hands its messages to the producer, and the thread that polls confirms them."""

    async def scenario() -> None:
        async with console.client() as sender:
            await sender.send_message(EventMessage(b"first"))
            may_go_on = threading.Event()
            sender._home.wake(lambda: may_go_on.wait(120))
            try:
                ids = [await sender.send_message(message) for message in numbered(3)]
                ids += await sender.send_messages(numbered(1000))
            finally:
                may_go_on.set()
            assert ids == [f"{console.topic}/0/{offset}" for offset in range(1, 1004)]

    asyncio.run(scenario())


def test_a_lone_message_beyond_the_topics_limit_fails(console: Console) -> None:
    """P3: its caller gets the error, and the next one is stored."""
    console.create_topic(max_message_bytes="1000")

    async def scenario() -> None:
        async with console.client() as sender:
            await sender.send_message(EventMessage(b"first"))
            with pytest.raises(PublishError, match=r"its record has 1[0-9]{3} bytes"):
                await sender.send_message(EventMessage(b"x" * 1000))
            assert await sender.send_message(EventMessage(b"last")) == f"{console.topic}/0/1"

    asyncio.run(scenario())


def test_sends_go_on_after_one_was_cancelled(console: Console) -> None:
    """P8: a send that is cancelled while it is out does no harm to the next one."""

    async def scenario() -> None:
        async with console.client() as sender:
            for _ in range(20):
                task = asyncio.create_task(sender.send_messages(numbered(100)))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            assert await sender.send_message(EventMessage(b"last"))

    asyncio.run(scenario())


def test_a_topic_that_was_deleted_and_created_again_gets_messages(console: Console) -> None:
    """Q2: with create=all a send creates the topic again; ids begin at its first offset."""

    async def scenario() -> None:
        async with console.client() as sender:
            await sender.send_messages(numbered(3, key="k"))
            await asyncio.to_thread(console.delete_topic)
            assert await sender.send_message(EventMessage(b"3", ordering_key="k")) == f"{console.topic}/0/0"
            await sender.send_message(EventMessage(b"4", ordering_key="k"))

    asyncio.run(scenario())
    assert [record.value() for record in console.records(2)] == [b"3", b"4"]


def test_a_send_to_a_topic_that_was_deleted_is_not_found(console: Console) -> None:
    """P7: with create=never the send fails as soon as librdkafka knows, and says what to do."""
    console.create_topic()

    async def scenario() -> None:
        async with client(console.topic, bootstrap_servers=console.address, create="never") as sender:
            await sender.send_message(EventMessage(b"0"))
            await asyncio.to_thread(console.delete_topic)
            with pytest.raises(PublishError, match="create") as caught:
                await sender.send_message(EventMessage(b"1"))
            assert caught.value.code is ErrorCode.NOT_FOUND

    asyncio.run(scenario())
