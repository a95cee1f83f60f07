"""T1, T2, R3, R4: many threads, many loops, and forks."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from events_core import EventMessage, EventReceiver, ReceivedMessage
from events_core.testing.rules import rule
from events_core.testing.stage import Stage, numbered, texts

__all__ = ["Threads"]


class Threads:
    """One client in more than one thread, loop or process."""

    @rule("T1")
    def test_one_client_serves_loops_one_after_the_other(self, stage: Stage) -> None:
        """A client and its receiver work although each call runs in another event loop."""
        client, receiver = stage.run(stage.open())
        for number in range(3):
            message_id = stage.run(client.send_message(EventMessage(b"%d" % number)))
            message = stage.run(stage.receive(receiver))
            assert message.message_id == message_id
            stage.run(receiver.acknowledge(message))
        stage.run(client.close())

    @rule("T1", "R4")
    def test_one_client_serves_threads_at_the_same_time(self, stage: Stage) -> None:
        """Two threads, each with its own loop, send 50 messages each, and every message is received once."""
        client, receiver = stage.run(stage.open())
        received: list[ReceivedMessage] = []
        ends = time.monotonic() + stage.harness.patience

        async def work(prefix: str) -> None:
            nonlocal ends
            sending = asyncio.gather(*map(client.send_message, numbered(50, prefix=prefix)))
            while len(received) < 100 and time.monotonic() < ends:
                # The batches are small, so that both threads get messages.
                if batch := await receiver.receive_messages(3, 0.1):
                    ends = time.monotonic() + stage.harness.patience
                received.extend(batch)
                await receiver.acknowledge_messages(batch)
            await sending

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda prefix: stage.run(work(prefix)), ["a", "b"]))
        sent = [*numbered(50, prefix="a"), *numbered(50, prefix="b")]
        assert sorted(texts(received)) == texts(sent)

    @rule("T1")
    async def test_a_receive_is_woken_from_another_thread(self, stage: Stage) -> None:
        """A receive in one loop is woken by a send in another loop."""
        client, receiver = await stage.open()
        receiving = asyncio.create_task(stage.receive(receiver))
        await asyncio.wait([receiving], timeout=0.05)
        await asyncio.to_thread(stage.run, client.send_message(EventMessage(b"x")))
        await receiver.acknowledge(await receiving)

    @rule("R3", "T1")
    async def test_a_stopped_loop_hinders_nobody(self, stage: Stage) -> None:
        """A receive that waits in a stopped loop does not keep messages from a running loop."""
        client, receiver = await stage.open()
        with _Stopped(receiver):
            await client.send_messages(numbered(5))
            assert sorted(texts(await stage.drain(receiver, 5))) == texts(numbered(5))

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
    @rule("T2")
    async def test_a_client_not_yet_connected_works_in_a_forked_child(self, stage: Stage) -> None:
        """A client that is constructed before the fork sends, receives and acknowledges after it."""
        assert await stage.child("fork_fresh", subscription=stage.subscription) == {"child": "received x"}

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
    @rule("T2")
    async def test_a_connected_client_refuses_to_work_in_a_forked_child(self, stage: Stage) -> None:
        """Every call in the child raises WRONG_PROCESS, and the parent goes on."""
        report = await stage.child("fork_connected", subscription=stage.subscription)
        assert report["child"] == dict.fromkeys(report["child"], "WRONG_PROCESS")
        assert report["parent"] == "received y"

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
    @rule("T2")
    async def test_a_new_client_in_a_forked_child_stores_what_it_confirms_or_refuses(self, stage: Stage) -> None:
        """A new client in the child loses nothing, or raises WRONG_PROCESS, while the parent's client closes."""
        report = await stage.child("fork_beside_connected", subscription=stage.subscription)
        if report["child"] == "WRONG_PROCESS":
            return
        assert report["child"] == "sent"
        if stage.capabilities.durable == "none":
            return  # the broker may have been in the child, and have ended with it
        _, receiver = await stage.open()
        assert sorted(texts(await stage.drain(receiver, 3))) == ["after", "before", "parent"]


class _Stopped:
    """A context in which a receive waits in a loop that does not run."""

    def __init__(self, receiver: EventReceiver) -> None:
        self._loop = asyncio.new_event_loop()
        self._receiver = receiver

    def __enter__(self) -> None:
        self._in_thread(self._wait)

    def __exit__(self, *_: object) -> None:
        self._in_thread(self._end)

    def _in_thread(self, function: Callable[[], None]) -> None:
        # A thread can run one loop at a time, and the test's own loop is running in this one.
        thread = threading.Thread(target=function)
        thread.start()
        thread.join()

    def _wait(self) -> None:
        self._receiving = self._loop.create_task(self._receiver.receive_message())
        # Abandoned while it waits: nothing of this loop runs until it is cancelled in ``_end``.
        self._loop.run_until_complete(asyncio.wait([self._receiving], timeout=0.05))

    def _end(self) -> None:
        self._receiving.cancel()
        self._loop.run_until_complete(asyncio.wait([self._receiving]))
        self._loop.close()
