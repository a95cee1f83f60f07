"""Tests on AWS itself: what its documentation says and emulators show differently, and the backend.

You need credentials that botocore finds, of an account in which you may create topics and queues::

    EVENTS_TEST_AWS_REGION=eu-west-1 pytest tests/real_aws

README.rst says what they create and remove.  Without a region or credentials all tests are skipped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ReadTimeoutError

from events_core import AcknowledgeError, ErrorCode, EventMessage, EventReceiver, PublishError, ReceivedMessage

from .conftest import EMULATED, Account

T = TypeVar("T")
PATIENCE = 120.0
"""Seconds after which what must happen has not happened."""

on_service = pytest.mark.skipif(EMULATED, reason="emulators differ")


def run(test: Awaitable[T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(300):
            return await test

    return asyncio.run(bounded())


def eventually(check: Callable[[], T | None]) -> T:
    """Return the first true result of *check*, which itself waits for the service."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        if found := check():
            return found
    raise AssertionError(f"not within {PATIENCE:g} s")


def refusal(request: Callable[..., object], **arguments: Any) -> str:
    """Return the code with which AWS refuses a request."""
    with pytest.raises(ClientError) as raised:
        request(**arguments)
    code: str = raised.value.response["Error"]["Code"]
    return code


def take(account: Account, url: str, limit: int = 1, **more: Any) -> list[dict[str, Any]]:
    """Receive messages of a queue, at least one."""

    def receive() -> list[dict[str, Any]]:
        asked = {"MaxNumberOfMessages": limit, "WaitTimeSeconds": 5, "MessageAttributeNames": ["All"], **more}
        got: list[dict[str, Any]] = account.sqs.receive_message(QueueUrl=url, **asked).get("Messages", [])
        return got

    return eventually(receive)


def entries(bodies: Iterable[str], **more: str) -> list[dict[str, Any]]:
    return [
        {"Id": str(number), "MessageBody": body, **({**more, "MessageDeduplicationId": f"d{number}"} if more else {})}
        for number, body in enumerate(bodies)
    ]


def failed(answer: Mapping[str, Any]) -> set[str]:
    return {entry["Id"] for entry in answer.get("Failed", [])}


# Sending: what fails an entry, and what fails a request


@pytest.mark.parametrize("body", ["\x00", "\uffff"])
def test_a_character_that_is_not_allowed(account: Account, body: str) -> None:
    """The entry with it, or the whole request, is refused; nothing of it is stored."""
    url = account.queue(f"characters-{ord(body):x}")
    refused = False
    try:
        refused = failed(account.sqs.send_message_batch(QueueUrl=url, Entries=entries(["good", body]))) == {"1"}
    except ClientError as error:
        refused = error.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert refused
    account.sqs.send_message(QueueUrl=url, MessageBody="last")
    stored = {message["Body"] for message in take(account, url, 10)}
    assert stored <= {"good", "last"}


def test_an_empty_body(account: Account) -> None:
    """SQS refuses a message without a body."""
    url = account.queue("empty-body")
    assert refusal(account.sqs.send_message, QueueUrl=url, MessageBody="")


@on_service
def test_an_attribute_with_an_empty_value(account: Account) -> None:
    """SQS refuses an attribute of the type String whose value is empty."""
    url = account.queue("empty-attribute")
    empty = {"a": {"DataType": "String", "StringValue": ""}}
    assert refusal(account.sqs.send_message, QueueUrl=url, MessageBody="x", MessageAttributes=empty)


@on_service
def test_attributes_count_towards_the_size(account: Account) -> None:
    """A message of the largest size has no room for an attribute."""
    url = account.queue("size", {"MaximumMessageSize": "1024"})
    one = {"a": {"DataType": "String", "StringValue": "b"}}
    account.sqs.send_message(QueueUrl=url, MessageBody="x" * (1024 - 8), MessageAttributes=one)
    assert refusal(account.sqs.send_message, QueueUrl=url, MessageBody="x" * (1024 - 7), MessageAttributes=one)


@on_service
def test_eleven_attributes(account: Account) -> None:
    """SQS takes ten attributes, and not eleven."""
    url = account.queue("eleven")
    values = {f"a{number}": {"DataType": "String", "StringValue": "x"} for number in range(11)}
    assert refusal(account.sqs.send_message, QueueUrl=url, MessageBody="x", MessageAttributes=values)
    values.popitem()
    account.sqs.send_message(QueueUrl=url, MessageBody="x", MessageAttributes=values)


@on_service
def test_a_message_of_1_mib(account: Account) -> None:
    """SQS takes 1 MiB, and not one byte more."""
    url = account.queue("mebibyte")
    account.sqs.send_message(QueueUrl=url, MessageBody="x" * (1 << 20))
    assert refusal(account.sqs.send_message, QueueUrl=url, MessageBody="x" * ((1 << 20) + 1))


@on_service
def test_a_topic_takes_256_kib(account: Account) -> None:
    """SNS takes 256 KiB, and not one byte more, unless the topic has another MaximumMessageSize."""
    arn = account.topic("kibibytes")
    account.sns.publish(TopicArn=arn, Message="x" * (1 << 18))
    assert refusal(account.sns.publish, TopicArn=arn, Message="x" * ((1 << 18) + 1))


def test_a_fifo_queue_recognises_a_message_that_was_deleted(account: Account) -> None:
    """A deduplication id counts for five minutes, also after its message was received and deleted."""
    url = account.queue("deduplication", fifo=True)
    message = {"QueueUrl": url, "MessageBody": "x", "MessageGroupId": "g", "MessageDeduplicationId": "d"}
    account.sqs.send_message(**message)
    (got,) = take(account, url)
    account.sqs.delete_message(QueueUrl=url, ReceiptHandle=got["ReceiptHandle"])
    account.sqs.send_message(**message)
    assert not account.sqs.receive_message(QueueUrl=url, WaitTimeSeconds=5).get("Messages")


@on_service
def test_whether_a_batch_stores_an_entry_behind_a_failed_one_of_its_group(account: Account) -> None:
    """The second entry fails.  If the third one of its group is stored all the same, a request may have one per group.

    This is why the backend puts one message of each group into a request.  The test shows whether that is needed.
    """
    url = account.queue("behind", {"MaximumMessageSize": "1024"}, fifo=True)
    wanted = entries(["first", "x" * 2000, "third"], MessageGroupId="g")
    try:
        answer = account.sqs.send_message_batch(QueueUrl=url, Entries=wanted)
    except ClientError:
        return  # the request is refused as a whole, so nothing is stored behind the failed entry
    assert failed(answer) >= {"1"}
    stored = {entry["Id"] for entry in answer.get("Successful", [])}
    assert "2" in stored, "a batch never stores an entry behind a failed one: the backend may send whole groups"


# Receiving and settling


@on_service
def test_a_message_that_is_deleted_twice(account: Account) -> None:
    """The second delete succeeds too."""
    url = account.queue("twice")
    account.sqs.send_message(QueueUrl=url, MessageBody="x")
    (message,) = take(account, url)
    for _ in range(2):
        account.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])


@on_service
def test_a_standard_queue_takes_an_old_receipt_handle(account: Account) -> None:
    """A delete with the handle of an earlier delivery succeeds, whatever it does."""
    url = account.queue("old-handle")
    account.sqs.send_message(QueueUrl=url, MessageBody="x")
    (first,) = take(account, url, VisibilityTimeout=1)
    (second,) = take(account, url)
    assert first["ReceiptHandle"] != second["ReceiptHandle"]
    account.sqs.delete_message(QueueUrl=url, ReceiptHandle=first["ReceiptHandle"])


@on_service
def test_a_fifo_queue_refuses_an_old_receipt_handle(account: Account) -> None:
    """A delete after the visibility timeout is an error, and the message stays."""
    url = account.queue("old-handle", fifo=True)
    account.sqs.send_message(QueueUrl=url, MessageBody="x", MessageGroupId="g", MessageDeduplicationId="d")
    (first,) = take(account, url, VisibilityTimeout=1)
    (second,) = take(account, url)
    assert refusal(account.sqs.delete_message, QueueUrl=url, ReceiptHandle=first["ReceiptHandle"])
    account.sqs.delete_message(QueueUrl=url, ReceiptHandle=second["ReceiptHandle"])


@on_service
def test_a_visibility_timeout_of_more_than_12_hours(account: Account) -> None:
    """SQS refuses 43,201 s."""
    url = account.queue("long")
    account.sqs.send_message(QueueUrl=url, MessageBody="x")
    (message,) = take(account, url)
    handle = {"QueueUrl": url, "ReceiptHandle": message["ReceiptHandle"]}
    assert refusal(account.sqs.change_message_visibility, **handle, VisibilityTimeout=43_201)


@on_service
def test_12_hours_count_from_the_receipt(account: Account) -> None:
    """Some seconds after the receipt, SQS refuses 43,200 s more."""
    url = account.queue("total")
    account.sqs.send_message(QueueUrl=url, MessageBody="x")
    (message,) = take(account, url)
    handle = {"QueueUrl": url, "ReceiptHandle": message["ReceiptHandle"]}
    time.sleep(5)
    assert refusal(account.sqs.change_message_visibility, **handle, VisibilityTimeout=43_200)
    account.sqs.change_message_visibility(**handle, VisibilityTimeout=43_100)


@on_service
def test_the_visibility_of_a_message_that_is_not_in_flight(account: Account) -> None:
    """SQS refuses to change it."""
    url = account.queue("not-in-flight")
    account.sqs.send_message(QueueUrl=url, MessageBody="x")
    (message,) = take(account, url)
    handle = {"QueueUrl": url, "ReceiptHandle": message["ReceiptHandle"]}
    account.sqs.change_message_visibility(**handle, VisibilityTimeout=0)
    assert refusal(account.sqs.change_message_visibility, **handle, VisibilityTimeout=10) == "MessageNotInflight"


def test_a_fifo_group_with_a_message_in_flight(account: Account) -> None:
    """When the message in the middle of a run goes back alone, nothing of its group comes until the others are done."""
    url = account.queue("middle", fifo=True)
    account.sqs.send_message_batch(QueueUrl=url, Entries=entries("abcd", MessageGroupId="g"))
    held = take(account, url, 3)
    assert [message["Body"] for message in held] == ["a", "b", "c"]
    middle = held[1]["ReceiptHandle"]
    account.sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=middle, VisibilityTimeout=0)
    assert not account.sqs.receive_message(QueueUrl=url, WaitTimeSeconds=3).get("Messages")
    for message in (held[0], held[2]):
        account.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    assert take(account, url, 10)[0]["Body"] == "b"


@on_service
def test_an_attempt_to_receive_that_is_repeated(account: Account) -> None:
    """On FIFO, a request with the same ReceiveRequestAttemptId gets the same messages again."""
    url = account.queue("attempt", fifo=True)
    account.sqs.send_message_batch(QueueUrl=url, Entries=entries("abc", MessageGroupId="g"))
    first = take(account, url, 10, ReceiveRequestAttemptId="one")
    again = take(account, url, 10, ReceiveRequestAttemptId="one")
    assert [message["MessageId"] for message in again] == [message["MessageId"] for message in first]


def test_a_long_poll_that_is_cut_off(account: Account) -> None:
    """A message that comes after the client has gone may be in flight although nobody has it.

    It comes again after its visibility timeout, at the latest.
    """
    url = account.queue("cut", {"VisibilityTimeout": "10"})
    impatient = botocore.session.get_session().create_client(
        "sqs",
        config=Config(region_name=account.region, read_timeout=2, retries={"total_max_attempts": 1}),
    )
    with pytest.raises(ReadTimeoutError):
        impatient.receive_message(QueueUrl=url, WaitTimeSeconds=20)
    account.sqs.send_message(QueueUrl=url, MessageBody="x")
    (message,) = take(account, url)
    assert message["Body"] == "x"


@on_service
def test_a_queue_that_is_deleted_during_a_long_poll(account: Account) -> None:
    """The poll ends with an error, or empty."""
    url = account.queue("gone")

    async def test() -> str:
        poll = asyncio.create_task(
            asyncio.to_thread(account.sqs.receive_message, QueueUrl=url, WaitTimeSeconds=20, MaxNumberOfMessages=10)
        )
        await asyncio.sleep(2)
        await asyncio.to_thread(account.sqs.delete_queue, QueueUrl=url)
        try:
            assert not (await poll).get("Messages")
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return "empty"

    assert run(test()) in ("empty", "AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist")


@on_service
def test_a_second_purge_within_a_minute(account: Account) -> None:
    """SQS refuses it."""
    url = account.queue("purge")
    account.sqs.purge_queue(QueueUrl=url)
    assert "PurgeQueueInProgress" in refusal(account.sqs.purge_queue, QueueUrl=url)


@on_service
def test_a_queue_of_a_name_that_was_just_deleted(account: Account) -> None:
    """SQS refuses to create it within 60 s."""
    url = account.queue("again")
    account.sqs.delete_queue(QueueUrl=url)
    name = url.rpartition("/")[2]
    assert "QueueDeletedRecently" in refusal(account.sqs.create_queue, QueueName=name)


# Access


@on_service
def test_a_topic_needs_the_queue_s_policy(account: Account) -> None:
    """Without it, SNS accepts a message, and the queue does not get it."""
    arn, url = account.topic("policy"), account.queue("policy-queue")
    raw = {"RawMessageDelivery": "true"}
    account.sns.subscribe(TopicArn=arn, Protocol="sqs", Endpoint=account.arn(url), Attributes=raw)
    account.sns.publish(TopicArn=arn, Message="x")
    assert not account.sqs.receive_message(QueueUrl=url, WaitTimeSeconds=20).get("Messages")


@on_service
def test_wrong_credentials(account: Account) -> None:
    """A wrong key and an expired or wrong token are refused with codes of their own."""
    url = account.queue("credentials")
    session = botocore.session.get_session()
    for key, token, codes in [
        ("AKIAIOSFODNN7EXAMPLE", None, ("InvalidClientTokenId", "InvalidAccessKeyId")),
        ("ASIAIOSFODNN7EXAMPLE", "nonsense", ("InvalidClientTokenId", "InvalidSecurity", "ExpiredToken")),
    ]:
        client = session.create_client(
            "sqs", account.region, aws_access_key_id=key, aws_secret_access_key="x" * 40, aws_session_token=token
        )
        code = refusal(client.get_queue_attributes, QueueUrl=url, AttributeNames=["QueueArn"])
        assert any(each in code for each in codes), code


# The backend


async def gather(receiver: EventReceiver, count: int) -> list[ReceivedMessage]:
    """Receive *count* messages; they stay held."""
    received: list[ReceivedMessage] = []
    ends = asyncio.get_running_loop().time() + PATIENCE
    while len(received) < count:
        left = ends - asyncio.get_running_loop().time()
        got = await receiver.receive_messages(count - len(received), max(left, 0.1))
        assert got, f"{len(received)} of {count} came"
        received += got
    return received


@pytest.mark.parametrize("topology", ["sns", "queue"])
@pytest.mark.parametrize("ordering", ["false", "true"])
def test_what_is_sent_arrives(account: Account, topology: str, ordering: str) -> None:
    """P1: a hundred messages of every form arrive with their ids, data, attributes and keys."""
    forms = [b"text", b"\x00\xff", b"", "é\n".encode()]

    def made(number: int) -> EventMessage:
        values = {"number": str(number), "empty": "", **{f"a{each}": "x" for each in range(10)}}
        key = f"k {number % 10} é" if ordering == "true" else None
        return EventMessage(forms[number % len(forms)], values, ordering_key=key)

    async def test() -> None:
        name = f"arrives-{topology}-{ordering}"
        # A topic that is a queue has one subscription, with its own name.
        subscription = "s" if topology == "sns" else f"{account.prefix}{name}"
        async with (
            account.client(name, topology=topology, ordering=ordering, subscription=subscription) as both,
            both.subscribe() as receiver,
        ):
            sent = [made(number) for number in range(100)]
            ids = await both.send_messages(sent)
            received: dict[str, ReceivedMessage] = {}
            while len(received) < 100:
                # One after the other: a message waits while an earlier one of its key is held.
                (message,) = await gather(receiver, 1)
                received[message.message_id] = message
                await receiver.acknowledge(message)
            assert set(received) == set(ids)
            assert all(received[each] == message for each, message in zip(ids, sent, strict=True))

    run(test())


def test_a_nacked_key_goes_on_where_it_failed(account: Account) -> None:
    """R10: the nacked message comes, then the later ones of its key, in order."""

    async def test() -> None:
        async with account.client("nacked", ordering="true", subscription="s") as both, both.subscribe() as receiver:
            await both.send_messages(EventMessage(b"%d" % n, ordering_key="k") for n in range(4))
            (first,) = await gather(receiver, 1)
            await receiver.nack(first, delay=1)
            order = []
            while len(order) < 4:
                (message,) = await gather(receiver, 1)
                order.append(message.data)
                await receiver.acknowledge(message)
            assert order == [b"0", b"1", b"2", b"3"]

    run(test())


def test_what_a_receiver_gives_back_comes_to_the_next_in_order(account: Account) -> None:
    """C1, R8: messages of a key that a closing receiver held come to the next one in order."""

    async def test() -> None:
        async with account.client("given-back", ordering="true", subscription="s") as both:
            async with both.subscribe() as first:
                await both.send_messages(EventMessage(b"%d" % n, ordering_key="k") for n in range(4))
                await gather(first, 1)
            async with both.subscribe() as second:
                order = []
                while len(order) < 4:
                    (message,) = await gather(second, 1)
                    order.append(message.data)
                    await second.acknowledge(message)
                assert order == [b"0", b"1", b"2", b"3"]

    run(test())


@pytest.mark.parametrize("topology", ["sns", "queue"])
def test_a_backlog_comes_in_few_requests(account: Account, topology: str) -> None:
    """R5: 1,000 messages need 100 full answers; AWS may send smaller ones.  The report says how many there were."""
    asked: list[object] = []

    async def count(services: Any) -> None:
        services.sqs.meta.events.register("before-call.sqs.ReceiveMessage", lambda **_: asked.append(None))

    async def test() -> None:
        # A queue alone is the only subscription of its topic.
        more = {"subscription": "s"} if topology == "sns" else {}
        async with account.client(f"backlog-{topology}", topology=topology, **more) as both:
            await both.run_native(count)
            await both.send_messages([EventMessage(b"%d" % number) for number in range(1000)])
            name = more.get("subscription", f"{account.prefix}backlog-{topology}")
            async with both.subscribe(name) as receiver:
                received = 0
                while received < 1000:
                    some = await gather(receiver, 100)
                    await receiver.acknowledge_messages(some)
                    received += len(some)

    run(test())
    print(f"{len(asked)} requests brought 1,000 messages")
    assert len(asked) <= (150 if EMULATED else 300)


def test_a_lease_is_extended(account: Account) -> None:
    """R6: a message that is held for 12 s with a visibility timeout of 4 s does not come again."""

    async def test() -> None:
        async with (
            account.client("lease", visibility_timeout="4", subscription="s") as both,
            both.subscribe() as receiver,
            both.subscribe() as other,
        ):
            await both.send_message(EventMessage(b"x"))
            (message,) = await gather(receiver, 1)
            assert await other.receive_message(12) is None
            await receiver.acknowledge(message)

    run(test())


@on_service
def test_a_send_without_permission(account: Account) -> None:
    """P2: a topic of an account that does not exist is refused, and the error says so."""

    async def test() -> None:
        async with account.client("nobody", create="never", account_id="000000000000", send_timeout="10") as sender:
            with pytest.raises(PublishError) as raised:
                await sender.send_message(EventMessage(b"x"))
            assert raised.value.code in (ErrorCode.PERMISSION_DENIED, ErrorCode.NOT_FOUND, ErrorCode.INVALID)

    run(test())


def test_a_dead_letter_arrives(account: Account) -> None:
    """R12: a message that failed twice is in the dead-letter topic."""

    async def test() -> None:
        more = {"dead_letter_topic": "dead", "max_delivery_attempts": "2", "dead_letter_subscription": "letters"}
        async with account.client("failing", subscription="s", **more) as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"x"))
            for _ in range(2):
                (message,) = await gather(receiver, 1)
                await receiver.nack(message, delay=0)
            async with account.client("dead") as letters, letters.subscribe("letters") as reader:
                # The receiver must ask again, because SQS moves a letter when it would deliver it.
                looking = asyncio.create_task(receiver.receive_message(60))
                (letter,) = await gather(reader, 1)
                assert letter.data == b"x"
                await reader.acknowledge(letter)
                looking.cancel()

    run(test())


def test_an_old_delivery_is_expired(account: Account) -> None:
    """S3: a message that was handed out again cannot be acknowledged with its first delivery."""

    async def test() -> None:
        more = {"visibility_timeout": "2", "max_lease_duration": "2"}
        async with account.client("expired", subscription="s", **more) as both, both.subscribe() as receiver:
            await both.send_message(EventMessage(b"x"))
            (first,) = await gather(receiver, 1)
            (second,) = await gather(receiver, 1)
            with pytest.raises(AcknowledgeError) as raised:
                await receiver.acknowledge(first)
            assert raised.value.code is ErrorCode.EXPIRED
            await receiver.acknowledge(second)

    run(test())
