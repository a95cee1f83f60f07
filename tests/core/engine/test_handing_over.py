"""A lone send, whose request begins in the thread of its caller and is completed by a thread of the driver."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from events_core import ErrorCode, EventMessage, EventRuntimeError, PublishError
from events_core.engine import BrokerError, Publishing
from events_core.options import CommonOptions

from .test_client import UNAVAILABLE, ScriptedClient, ScriptedDriver, message, run, until


class HandsOver(ScriptedDriver):
    """It takes messages in any thread.  A thread of its own confirms them, unless the test does that."""

    hands_over = True

    def __init__(self, topic_name: str, project_id: str, options: CommonOptions) -> None:
        super().__init__(topic_name, project_id, options)
        self.takes = True
        self.confirms = True
        self.handed: list[list[bytes]] = []
        self.threads: list[int] = []
        self.confirming: list[threading.Thread] = []
        self.reports: list[Callable[[Sequence[str] | Publishing], None]] = []

    def hand_over(self, messages: Sequence[EventMessage], report: Callable[[Sequence[str] | Publishing], None]) -> bool:
        if not self.takes:
            return False
        self.handed.append([message.data for message in messages])
        self.threads.append(threading.get_ident())
        self.reports.append(report)
        if self.confirms:
            ids = [f"id-{message.data.decode()}" for message in messages]
            self.confirming.append(threading.Thread(target=report, args=[ids]))
            self.confirming[-1].start()
        return True

    async def close(self) -> None:
        # What a thread does last is to wake the sender, who may close at once.
        for thread in self.confirming:
            thread.join()
        await super().close()


def _driver(client: ScriptedClient) -> HandsOver:
    assert isinstance(client.broker, HandsOver)
    return client.broker


async def _opened(client: ScriptedClient) -> HandsOver:
    """Return the driver after the first send, which goes through home."""
    await client.send_message(message("first"))
    driver = _driver(client)
    assert driver.handed == []
    return driver


async def _send_without_report(client: ScriptedClient, text: str, key: str = "") -> asyncio.Task[str]:
    """Send a message that is handed over, and that the test must report."""
    driver = _driver(client)
    driver.confirms = False
    task = asyncio.create_task(client.send_message(message(text, key)))
    await until(lambda: driver.handed[-1:] == [[text.encode()]])
    return task


def _published(results: Sequence[str | BrokerError]) -> Publishing:
    async def publishing() -> Sequence[str | BrokerError]:
        return results

    return publishing


def test_a_lone_send_does_not_wait_for_home() -> None:
    """P1: its request begins in the thread of its caller, and it is complete when the broker has stored it."""

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        may_go_on = threading.Event()
        client._home.wake(lambda: may_go_on.wait(60))  # home stands still
        try:
            assert [await client.send_message(message(text)) for text in "12"] == ["id-1", "id-2"]
        finally:
            may_go_on.set()
        assert driver.handed == [[b"1"], [b"2"]]
        assert set(driver.threads) == {threading.get_ident()}
        assert driver.requests == [[b"first"]]

    run(test, driver=HandsOver)


def test_what_a_driver_does_not_take_goes_through_home() -> None:
    """P1: a driver may be unable to begin a request at the moment."""

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        driver.takes = False
        assert await client.send_message(message("1")) == "id-1"
        assert driver.requests == [[b"first"], [b"1"]]

    run(test, driver=HandsOver)


def test_the_messages_of_one_send_are_handed_over_together() -> None:
    """P2, P5: they leave in one request, and their ids come back in their order."""

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        assert await client.send_messages([message("1"), message("2")]) == ["id-1", "id-2"]
        assert driver.handed == [[b"1", b"2"]]
        assert driver.requests == [[b"first"]]

    run(test, driver=HandsOver)


def test_what_exceeds_a_request_that_was_handed_over_goes_through_home() -> None:
    """P4, P6: it leaves when there is room again, and the results keep the order of the messages."""

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        assert await client.send_messages([message(text) for text in "123"]) == ["id-1", "id-2", "id-3"]
        assert driver.handed == [[b"1", b"2"]]
        assert driver.requests == [[b"first"], [b"3"]]

    run(test, driver=HandsOver, publish_max_messages="2")


def test_a_part_that_failed_is_looked_at_by_home() -> None:
    """P3: home sends again what was not attempted; each of the others has its result."""

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        driver.confirms = False
        sending = asyncio.create_task(client.send_messages([message(text) for text in "123"]))
        await until(lambda: bool(driver.handed))
        unattempted = BrokerError("no room", ErrorCode.NOT_ATTEMPTED, retryable=True)
        driver.reports[0](_published(["id-1", BrokerError("too large", ErrorCode.INVALID), unattempted]))
        with pytest.raises(PublishError, match="too large") as caught:
            await sending
        stored, refused, again = caught.value.results
        assert (stored, again) == ("id-1", "id-3")
        assert isinstance(refused, PublishError)
        assert driver.requests == [[b"first"], [b"3"]]

    run(test, driver=HandsOver)


def test_ids_that_are_too_few_fail_the_send() -> None:
    """P2: nobody knows which messages they are of."""

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        driver.confirms = False
        sending = asyncio.create_task(client.send_messages([message("1"), message("2")]))
        await until(lambda: bool(driver.handed))
        driver.reports[0](["id-1"])
        with pytest.raises(PublishError, match="answered for 1 of 2 messages") as caught:
            await sending
        assert caught.value.code is ErrorCode.INTERNAL

    run(test, driver=HandsOver)


def test_the_first_send_after_an_outage_goes_through_home() -> None:
    """F1: a client whose send has succeeded is connected."""

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        client._link.down(UNAVAILABLE)
        assert await client.send_message(message("1")) == "id-1"
        assert client.is_connected
        assert driver.handed == []

    run(test, driver=HandsOver)


def test_a_confirmation_shows_that_the_client_is_connected() -> None:
    """F1: something else may have found the broker away while the request was out."""

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        sending = await _send_without_report(client, "1")
        client._link.down(UNAVAILABLE)
        driver.reports[0](["id-1"])
        assert await sending == "id-1"
        assert client.is_connected

    run(test, driver=HandsOver)


def test_sends_wait_for_one_that_was_handed_over() -> None:
    """P4, P5: those of its key leave when it is stored, in one request; others do not wait."""

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        sending = await _send_without_report(client, "1", "k")
        later = [asyncio.create_task(client.send_message(message(text, "k"))) for text in "23"]
        await asyncio.sleep(0)
        # The request without a key shows that home has looked for what may leave.
        await client.send_message(message("other"))
        assert driver.requests == [[b"first"], [b"other"]]
        driver.reports[0](["id-1"])
        assert await asyncio.gather(sending, *later) == ["id-1", "id-2", "id-3"]
        assert driver.requests == [[b"first"], [b"other"], [b"2", b"3"]]

    run(test, driver=HandsOver)


def test_a_send_that_waits_for_room_leaves_when_the_one_before_is_stored() -> None:
    """P6: what a lone send leaves is used at once."""

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        sending = await _send_without_report(client, "1")
        later = asyncio.create_task(client.send_message(message("2")))
        await until(lambda: len(client._publisher._outbox.sends) == 2)  # type: ignore[attr-defined]
        driver.reports[0](["id-1"])
        assert await asyncio.gather(sending, later) == ["id-1", "id-2"]

    run(test, driver=HandsOver, publish_max_messages="1")


def test_home_takes_over_a_request_that_is_slow() -> None:
    """P1: it waits for the result with the function that the driver has reported."""

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        sending = await _send_without_report(client, "1")
        driver.reports[0](_published(["slow"]))
        assert await sending == "slow"
        assert driver.requests == [[b"first"]]

    run(test, driver=HandsOver)


def test_a_message_that_was_handed_over_and_refused_fails() -> None:
    """P3: its own result is the reason."""

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        sending = await _send_without_report(client, "1")
        driver.reports[0](_published([BrokerError("too large", ErrorCode.INVALID)]))
        with pytest.raises(PublishError, match="too large"):
            await sending

    run(test, driver=HandsOver)


def test_a_request_that_was_handed_over_is_retried_by_home() -> None:
    """P7: a transient failure is no failure of the send."""

    async def publishing() -> Sequence[str | BrokerError]:
        raise UNAVAILABLE

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        sending = await _send_without_report(client, "1")
        driver.reports[0](publishing)
        assert await sending == "id-1"
        assert driver.requests == [[b"first"], [b"1"]]

    run(test, driver=HandsOver)


def test_home_ends_a_request_that_was_handed_over_in_time() -> None:
    """P7: the caller's own timer cannot do so while its loop is blocked."""
    cancelled = threading.Event()

    async def publishing() -> Sequence[str | BrokerError]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return []

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        client._publisher._send_timeout = 3.0
        sending = await _send_without_report(client, "1")
        driver.reports[0](publishing)
        assert cancelled.wait(60)  # it blocks the loop
        with pytest.raises(PublishError) as caught:
            await sending
        assert caught.value.code is ErrorCode.TIMEOUT

    run(test, driver=HandsOver)


def test_a_report_after_the_send_was_cancelled_frees_the_place() -> None:
    """P8: the request is not sent again, and the next one of its key follows it."""

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        sending = await _send_without_report(client, "1", "k")
        sending.cancel()
        await asyncio.wait([sending])
        driver.confirms = True
        later = asyncio.create_task(client.send_message(message("2", "k")))
        await asyncio.sleep(0)
        await client.send_message(message("other"))
        assert driver.handed == [[b"1"]]
        assert not later.done()
        driver.reports[0](["id-1"])
        assert await later == "id-2"
        assert client._publisher._outbox.messages == 0  # type: ignore[attr-defined]
        assert [b"1"] not in driver.requests

    run(test, driver=HandsOver)


def test_a_second_report_changes_nothing() -> None:
    """P5: otherwise the place would be freed twice."""
    waits: list[bool] = []

    async def publishing() -> Sequence[str | BrokerError]:
        waits.append(True)
        return ["id-2"]

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        sending = await _send_without_report(client, "1", "k")
        driver.reports[0](["id-1"])
        driver.reports[0](publishing)
        assert await sending == "id-1"
        driver.takes = False
        assert await client.send_message(message("2", "k")) == "id-2"  # home has done by then what it was woken for
        assert not waits

    run(test, driver=HandsOver)


def test_an_interrupted_hand_over_is_not_sent_again() -> None:
    """P4, P5: a signal handler may raise when some messages are out.  The place is freed, and the next send leaves."""

    class Interrupted(HandsOver):
        def hand_over(
            self, messages: Sequence[EventMessage], report: Callable[[Sequence[str] | Publishing], None]
        ) -> bool:
            raise KeyboardInterrupt

    async def test(client: ScriptedClient) -> None:
        await client.send_message(message("first"))
        with pytest.raises(KeyboardInterrupt):
            client._publisher.send([message("1", "k")], client._open)
        await until(lambda: not client._publisher.is_busy)
        client.broker.__class__ = HandsOver
        _driver(client).takes = False
        assert await client.send_message(message("2", "k")) == "id-2"
        assert client.broker.requests == [[b"first"], [b"2"]]

    run(test, driver=Interrupted)


def test_a_close_does_not_wait_for_ever_for_a_request_that_was_handed_over() -> None:
    """C2: its send fails with CLOSED when the time of the close is over."""

    async def test(client: ScriptedClient) -> None:
        await _opened(client)
        sending = await _send_without_report(client, "1")
        began = time.monotonic()
        await client.close(timeout=0)
        assert time.monotonic() - began < 60
        with pytest.raises(EventRuntimeError) as caught:
            await sending
        assert caught.value.code is ErrorCode.CLOSED

    run(test, driver=HandsOver)


def test_a_report_after_a_close_is_not_logged_as_a_connection(caplog: pytest.LogCaptureFixture) -> None:
    """V1: nothing connects a client that was closed."""

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        sending = await _send_without_report(client, "1")
        await client.close(timeout=0)
        await asyncio.wait([sending])
        caplog.clear()
        driver.reports[0](["id-1"])
        assert not client._link.is_up
        assert caplog.messages == []

    with caplog.at_level(logging.INFO, "events_core.engine"):
        run(test, driver=HandsOver)


def test_a_close_ends_when_a_request_that_was_handed_over_is_stored() -> None:
    """C2: the close waits for the send, and no longer."""

    async def test(client: ScriptedClient) -> None:
        driver = await _opened(client)
        sending = await _send_without_report(client, "1")
        closing = asyncio.create_task(client.close(timeout=3600))
        await until(lambda: client._publisher._drained is not None)
        driver.reports[0](["id-1"])
        await closing
        assert await sending == "id-1"

    run(test, driver=HandsOver)
