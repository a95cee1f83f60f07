"""AWS is busy or fails, for whole requests and for single entries of them."""

from __future__ import annotations

import asyncio
import logging

import pytest

from events_core import ErrorCode, EventError, EventMessage, PublishError

from ..receiving import numbered, numbers, settle_all, take
from ..waiting import until
from .console import Console
from .disturbed import SENDS, disturbed, outcome, refuse_sends, sends
from .faults import FOREVER
from .server import Server

BUSY = [
    ("RequestThrottled", 403),
    ("ThrottlingException", 400),
    ("Throttling", 400),
    ("Throttled", 429),
    ("KMSThrottling", 400),
    ("InternalError", 500),
    ("InternalFailure", 500),
    ("ServiceUnavailable", 503),
]
"""The errors with which AWS asks for patience, and the status of each."""


@pytest.fixture(params=["sns", "queue"])
def either(request: pytest.FixtureRequest, server: Server) -> Console:
    """Return a new topic that is an SNS topic, and one that is a queue."""
    return Console(server, topology=request.param)


def test_a_send_outlives_a_busy_server(either: Console) -> None:
    """P7: the engine sends again what AWS had no time for, and it is stored once."""

    async def scenario() -> None:
        async with disturbed(either) as (proxy, both, receiver):
            for number, (code, status) in enumerate(BUSY):
                refuse_sends(proxy, code, status, 2)
                await both.send_message(EventMessage(b"%d" % number))
                assert sends(proxy) == 3 * (number + 1), code
            assert sorted(await settle_all(receiver, len(BUSY))) == list(range(len(BUSY)))

    asyncio.run(scenario())


def test_only_the_engine_tries_again(console: Console) -> None:
    """P7: each request is the first attempt of the client library, which would wait without a bound of ours."""

    async def scenario() -> None:
        async with disturbed(console, send_timeout="10") as (proxy, both, _):
            refuse_sends(proxy, "Throttling", 400, FOREVER)
            with pytest.raises(PublishError) as caught:
                await both.send_message(EventMessage(b"x"))
            assert outcome(caught.value) == (ErrorCode.TIMEOUT, True)
            assert "Throttling" in str(caught.value)
            tries = [call.headers.get("amz-sdk-request", "attempt=1") for call in proxy.calls]
            assert {text.partition(";")[0] for text in tries} == {"attempt=1"}

    asyncio.run(scenario())


def test_a_receiver_outlives_a_failing_server(console: Console, caplog: pytest.LogCaptureFixture) -> None:
    """F1, V1: while requests to receive fail, ``receive`` goes on waiting.  One WARNING tells of the outage."""

    async def scenario() -> None:
        async with disturbed(console) as (proxy, both, receiver):
            proxy.break_down("ReceiveMessage", status=502, times=2)
            proxy.refuse("ReceiveMessage", "ServiceUnavailable", status=503, times=2)
            waiting = asyncio.create_task(take(receiver))
            await until(lambda: receiver.stats.reconnects >= 1)
            await both.send_message(EventMessage(b"x"))
            assert (await waiting).data == b"x"
            await receiver.acknowledge(await waiting)
            await until(lambda: both.is_connected)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert caplog.text.count(f"{console.topic}: connection lost") == 1


def test_an_acknowledgement_outlives_a_busy_server(console: Console) -> None:
    """S5: the engine acknowledges again, and the message is gone."""

    async def scenario() -> None:
        async with disturbed(console) as (proxy, both, receiver):
            await both.send_messages(numbered(len(BUSY)))
            for number, (code, status) in enumerate(BUSY):
                message = await take(receiver)
                proxy.refuse("DeleteMessageBatch", code, status=status, times=2)
                await receiver.acknowledge(message)
                assert proxy.count("DeleteMessageBatch") == 3 * (number + 1), code
            assert await console.messages() == 0

    asyncio.run(scenario())


def test_an_entry_that_failed_for_a_moment_is_sent_again_alone(either: Console) -> None:
    """P3, P7: nine messages of a request are stored, and only the tenth is sent again."""

    async def scenario() -> None:
        async with disturbed(either) as (proxy, both, receiver):
            for operation in SENDS:
                proxy.fail_entry(operation, lambda text: text == "3", "InternalError")
            await both.send_messages(numbered(10))
            came = await settle_all(receiver, 10)
            assert sorted(came) == list(range(10))

    asyncio.run(scenario())


def test_an_entry_that_is_refused_fails_alone(either: Console) -> None:
    """P3: a message that AWS refuses for good has its own error, and the others are stored."""

    async def scenario() -> None:
        async with disturbed(either) as (proxy, both, receiver):
            for operation in SENDS:
                proxy.fail_entry(
                    operation,
                    lambda text: text == "3",
                    "InvalidParameterValue",
                    is_senders_fault=True,
                    times=FOREVER,
                )
            with pytest.raises(PublishError) as caught:
                await both.send_messages(numbered(10))
            results = caught.value.results
            assert [number for number, result in enumerate(results) if isinstance(result, EventError)] == [3]
            assert isinstance(results[3], EventError)
            assert outcome(results[3]) == (ErrorCode.INVALID, False)
            left = [await take(receiver) for _ in range(9)]
            assert sorted(numbers(left)) == [0, 1, 2, 4, 5, 6, 7, 8, 9]

    asyncio.run(scenario())


@pytest.mark.parametrize("topology", ["sns", "queue"])
def test_what_follows_a_refused_message_of_its_key_is_not_stored(server: Server, topology: str) -> None:
    """P3, P4: later messages of the key are NOT_ATTEMPTED.  Those of other keys are stored."""

    async def scenario() -> None:
        async with disturbed(Console(server, topology=topology, ordering="true")) as (proxy, both, receiver):
            for operation in SENDS:
                proxy.fail_entry(
                    operation,
                    lambda text: text == "1",
                    "InvalidParameterValue",
                    is_senders_fault=True,
                    times=FOREVER,
                )
            keyed = [*numbered(3, key="k"), EventMessage(b"3", ordering_key="other")]
            with pytest.raises(PublishError) as caught:
                await both.send_messages(keyed)
            codes = [result.code if isinstance(result, EventError) else "" for result in caught.value.results]
            assert codes == ["", ErrorCode.INVALID, ErrorCode.NOT_ATTEMPTED, ""]
            came = [await take(receiver) for _ in range(2)]
            assert sorted(numbers(came)) == [0, 3]
            assert await receiver.receive_message(1) is None

    asyncio.run(scenario())


def test_an_acknowledgement_that_failed_for_a_moment_is_repeated_alone(console: Console) -> None:
    """S4, S5: of ten acknowledgements in one request, one fails for a moment; all are confirmed."""

    async def scenario() -> None:
        async with disturbed(console) as (proxy, both, receiver):
            await both.send_messages(numbered(10))
            held = [await take(receiver) for _ in range(10)]
            first = both.native_message(held[0])["ReceiptHandle"]
            proxy.fail_entry("DeleteMessageBatch", lambda text: text == first, "InternalError")
            await receiver.acknowledge_messages(held)
            assert await console.messages() == 0
            deleted = [
                len(call.parameters["Entries"]) for call in proxy.calls if call.operation == "DeleteMessageBatch"
            ]
            assert sum(deleted) == 11

    asyncio.run(scenario())
