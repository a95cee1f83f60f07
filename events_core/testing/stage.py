"""The stage of one test: its topic, clients on it, and ways to wait for messages.

A test never sleeps and hopes.  If a message must come, the test waits for it, up to ``Harness.patience``.  If none may
come, the test listens for ``Harness.settle_time``, and then believes the silence.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest

from events_core import (
    AcknowledgeError,
    Capabilities,
    ErrorCode,
    EventClient,
    EventConfig,
    EventError,
    EventMessage,
    EventReceiver,
    ReceivedMessage,
    create_client,
)
from events_core.testing.explaining import described
from events_core.testing.harness import Harness
from events_core.testing.processes import Child, environment, order
from events_core.testing.skipping import not_applicable, not_declared, not_shown

__all__ = ["Stage", "numbered", "texts"]

T = TypeVar("T")


def numbered(count: int, *, key: str | None = None, prefix: str = "") -> list[EventMessage]:
    """Return *count* different messages, whose texts sort in the order of the list."""
    # So a test sends them in this order, compares sorted texts, and needs no book-keeping.
    return [EventMessage.from_string(f"{prefix}{number:04}", ordering_key=key) for number in range(count)]


def texts(messages: Iterable[EventMessage]) -> list[str]:
    """Return the data of *messages* as text, for comparing."""
    return [message.data_as_string() for message in messages]


def _place(error: BaseException) -> str:
    """Return the place where a test waited when its time was up: the test's own line, and the innermost line."""
    cause = error.__cause__ or error
    frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if "asyncio" not in frame.filename]
    # The first frame is the one of :meth:`Stage.bounded`, which caught the error.  The next one is the test's.
    outer, inner = (frames[1:] or frames)[0], frames[-1]
    return f"waiting in {Path(outer.filename).name}:{outer.lineno}, there in {Path(inner.filename).name}:{inner.lineno}"


class Stage:
    """The topic of one test and everything that the test opens; all of it is closed afterwards."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.topic_name = harness.topic_name()
        self.subscription = self.name("shared")
        self._clients: list[EventClient] = []
        self._children: list[Child] = []
        self._waited_on: EventReceiver | None = None
        self._bound = harness.bound + 4 * harness.lease  # a test may wait until several leases are over
        # Counted from here and not from each loop, because a test may run several loops.
        self._ends = time.monotonic() + self._bound
        self.closing = 0.0
        """Seconds that closing the clients took."""

    def name(self, word: str) -> str:
        """Return a name for a subscription or another topic that no other test uses."""
        return self.harness.name(self.topic_name, word)

    # Clients

    def config(self, topic_name: str | None = None, **options: str) -> EventConfig:
        """Return a configuration of the test's topic, or of another one."""
        return self.harness.config(topic_name or self.topic_name, options)

    def client(self, topic_name: str | None = None, **options: str) -> EventClient:
        """Return a new client, not yet connected."""
        return self.added(create_client(self.config(topic_name, **options)))

    def added(self, client: EventClient) -> EventClient:
        """Close *client* at the end of the test, with the others.  Return it."""
        self._clients.append(client)
        return client

    async def open(self, **options: str) -> tuple[EventClient, EventReceiver]:
        """Return a client, and a receiver of the test's subscription."""
        client = self.client(**options)
        return client, await client.subscribe(self.subscription)

    async def open_ordered(self, **options: str) -> tuple[EventClient, EventReceiver]:
        """Do what :meth:`open` does, with order per key.  If the backend keeps no order, end the test."""
        await self.require_ordering()
        return await self.open(ordering="true", **options)

    async def require_ordering(self) -> None:
        """End the test if the backend keeps no order per key, after it has refused a message with a key."""
        if type(self.client()).full_capabilities.ordering == "none":
            await self.refused("ordering", lambda: self.client().send_message(EventMessage(b"x", ordering_key="k")))

    async def close(self) -> None:
        """Close every client, all at the same time.  An error of one does not keep another open.

        :raises AssertionError: if one takes longer than a test may.
        """
        while self._children:
            self._children.pop().end()
        # Without time to settle: the test has settled what it wanted to, and the rest goes back at once.
        closing = [asyncio.create_task(client.close(timeout=0)) for client in self._clients]
        self._clients.clear()
        if not closing:
            return
        began = time.monotonic()
        done, pending = await asyncio.wait(closing, timeout=self.harness.bound)
        self.closing += time.monotonic() - began
        # If a client hangs, the test fails, and the kit still prints its table of rules.
        for task in pending:
            task.cancel()
        assert not pending, f"{len(pending)} of {len(closing)} clients did not close within {self.harness.bound} s (C2)"
        for task in done:
            task.result()

    # Bounds

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* on a new event loop, before the test's time is up.  Return its result."""
        return asyncio.run(self.bounded(coroutine))

    async def bounded(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await *coroutine* before the test's time is up.  Return its result."""
        try:
            async with asyncio.timeout(self._ends - time.monotonic()) as timeout:
                return await coroutine
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise TimeoutError(f"the test was not over within its {self._bound:g} s, {_place(error)}") from error

    # Capabilities

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of the harness's configuration."""
        return self.client().capabilities

    def require(self, capability: str) -> Any:
        """Return the value of *capability*, such as ``limits.max_attributes``.  End the test if it is not declared."""
        value = attrgetter(capability)(self.capabilities)
        if value in (False, None, "none"):
            not_declared(f"{capability}")
        return value

    def require_lease(self) -> float:
        """Return the broker's lease, in seconds.  End the test if the harness does not know it."""
        if not self.harness.lease:
            self.lacks("lease", "the end of a lease", "give events check --lease SECONDS, or set Harness.lease")
        return self.harness.lease

    def require_refused_message(self) -> EventMessage:
        """Return a message that only the broker refuses.  End the test if the harness knows none."""
        if self.harness.refused_message is None:
            self.lacks("refused_message", "a message that only the broker refuses")
        return self.harness.refused_message

    async def refused(self, capability: str, call: Callable[[], Awaitable[object]]) -> None:
        """End the test because *capability* is not declared, after the backend has refused *call*, which needs it."""
        with pytest.raises(EventError) as caught:
            await call()
        assert caught.value.code is ErrorCode.UNSUPPORTED, (
            f"{capability} is not declared, so asking for it must raise UNSUPPORTED; it raised {caught.value!r}"
        )
        not_declared(f"{capability}")

    @property
    def short_delay(self) -> float:
        """A delay for a nack, in seconds: within the backend's limit, and short enough for a test to wait for."""
        return self._permitted(0.5)

    @property
    def long_delay(self) -> float:
        """A delay for a nack, in seconds: within the backend's limit, and longer than a test waits for a message."""
        return self._permitted(self._bound)

    def _permitted(self, delay: float) -> float:
        longest = self.capabilities.limits.max_nack_delay
        return delay if longest is None else min(delay, longest)

    @property
    def dead_letters(self) -> dict[str, str]:
        """Options that dead-letter a message to a topic of this test, after the fewest attempts."""
        attempts = self.harness.dead_letter_attempts
        return {"dead_letter_topic": self.name("dead"), "max_delivery_attempts": str(attempts)}

    async def undertaker(self, **options: str) -> EventReceiver:
        """Return a receiver of the topic of :attr:`dead_letters`."""
        return await self.client(self.name("dead"), **options).subscribe(self.name("undertaker"))

    # Waiting

    async def receive(self, receiver: EventReceiver) -> ReceivedMessage:
        """Return the next message, which must come."""
        self._waited_on = receiver
        message = await receiver.receive_message(self.harness.patience)
        assert message is not None, f"no message within {self.harness.patience} s"
        return message

    async def receive_all(self, receiver: EventReceiver, count: int) -> list[ReceivedMessage]:
        """Return the next *count* messages, all held."""
        self._waited_on = receiver
        messages: list[ReceivedMessage] = []
        while len(messages) < count:
            more = await receiver.receive_messages(count - len(messages), self.harness.patience)
            assert more, f"{len(messages)} of {count} messages came, then none within {self.harness.patience} s"
            messages += more
        return messages

    async def drain(self, receiver: EventReceiver, count: int) -> list[ReceivedMessage]:
        """Return the next *count* messages, each acknowledged when it came."""
        self._waited_on = receiver
        messages: list[ReceivedMessage] = []
        while len(messages) < count:
            more = await receiver.receive_messages(count - len(messages), self.harness.patience)
            assert more, f"{len(messages)} of {count} messages came, then none within {self.harness.patience} s"
            await receiver.acknowledge_messages(more)
            messages += more
        return messages

    async def drain_until(
        self, receiver: EventReceiver, have_come: Callable[[Sequence[ReceivedMessage]], bool]
    ) -> list[ReceivedMessage]:
        """Return the messages that come until *have_come* is true of them, and all that still come.

        Each is acknowledged when it came.
        """
        messages: list[ReceivedMessage] = []
        while not have_come(messages):
            messages += await self.drain(receiver, 1)
        return messages + await self.rest(receiver)

    async def drain_together(self, receivers: Sequence[EventReceiver], count: int) -> list[list[ReceivedMessage]]:
        """Let *receivers* compete for *count* messages, which they acknowledge.  Return the messages of each.

        They give up when none has come for as long as the harness is patient.
        """
        received: list[list[ReceivedMessage]] = [[] for _ in receivers]
        ends = time.monotonic() + self.harness.patience

        async def work(receiver: EventReceiver, mine: list[ReceivedMessage]) -> None:
            nonlocal ends
            while sum(map(len, received)) < count and time.monotonic() < ends:
                # Three at a time, so that each receiver gets a share.  For 0.1 s, so that each soon notices the end.
                if more := await receiver.receive_messages(3, 0.1):
                    ends = time.monotonic() + self.harness.patience
                mine += more
                await receiver.acknowledge_messages(more)

        await asyncio.gather(*map(work, receivers, received))
        return received

    async def expired(self, receiver: EventReceiver, messages: Sequence[ReceivedMessage]) -> set[str]:
        """Acknowledge *messages*, and return the ids of those that expired before.  These come again.

        For messages that are held for a short time only, which a busy machine may exceed.
        """
        try:
            await receiver.acknowledge_messages(messages)
        except AcknowledgeError as error:
            if {each.code for each in error.failed.values()} != {ErrorCode.EXPIRED}:
                raise
            return set(error.failed)
        return set()

    async def rest(self, receiver: EventReceiver) -> list[ReceivedMessage]:
        """Return all messages that still come, each acknowledged when it came."""
        self._waited_on = receiver
        messages: list[ReceivedMessage] = []
        # Twice the settle time: what goes back may have to be fetched by the broker first.
        while more := await receiver.receive_messages(100, 2 * self.harness.settle_time):
            await receiver.acknowledge_messages(more)
            messages += more
        return messages

    async def silence(self, *receivers: EventReceiver, seconds: float = 0.0) -> None:
        """Check that no message comes in the settle time and *seconds* more."""
        listened = self.harness.settle_time + seconds
        self._waited_on = receivers[0]
        heard = await asyncio.gather(*(receiver.receive_message(listened) for receiver in receivers))
        self._waited_on = next((each for each, found in zip(receivers, heard, strict=True) if found), receivers[0])
        assert not any(heard), f"no message should come, but these came: {[message for message in heard if message]}"

    async def prefetched(self, receiver: EventReceiver, count: int) -> None:
        """Give *receiver* time to buffer *count* messages, if it buffers any."""
        await self.until(lambda: receiver.stats.buffered >= count)

    async def until(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait until *condition* holds, for *seconds* at most; the default is the settle time."""
        ends = time.monotonic() + (self.harness.settle_time if seconds is None else seconds)
        # Nothing reports that a buffer has filled, so look again and again.
        while not condition() and time.monotonic() < ends:
            await asyncio.sleep(0.01)

    # Other processes

    async def child(self, action: str, **options: str) -> dict[str, Any]:
        """Run an action of :mod:`events_core.testing.child` on the test's topic.  Return its report."""
        # In a thread, because waiting for a process blocks.
        return await asyncio.to_thread(self._run_child, action, self.config(**options))

    def _run_child(self, action: str, config: EventConfig) -> dict[str, Any]:
        output = self.python(["-m", "events_core.testing.child", action, str(self.harness.patience)], order(config))
        report: dict[str, Any] = json.loads(output)
        return report

    def start(self, action: str, **options: str) -> Child:
        """Start an action of :mod:`events_core.testing.child` that goes on.  It ends with the test."""
        child = Child(action, self.config(**options), self.harness.patience, self._bound)
        self._children.append(child)
        return child

    def python(self, arguments: Sequence[str], standard_input: str = "") -> str:
        """Run an interpreter like this one.  Return its standard output."""
        done = subprocess.run(
            [sys.executable, *arguments],
            input=standard_input,
            capture_output=True,
            text=True,
            timeout=self._bound,
            env=environment(),
        )
        assert done.stdout, f"the process ended with code {done.returncode} and printed nothing: {done.stderr}"
        return done.stdout

    # Faults of the broker

    def require_outage(self) -> AbstractContextManager[None]:
        """Return a context in which the broker cannot be reached; end the test if the harness cannot do that."""
        outage = self.harness.outage()
        return self.lacks("outage", "an outage") if outage is None else outage

    def require_lost_answers(self) -> AbstractContextManager[None]:
        """Return a context in which answers of the broker are lost; end the test if the harness cannot do that."""
        lost = self.harness.lost_answers()
        return self.lacks("lost_answers", "lost answers of the broker") if lost is None else lost

    async def restart(self) -> None:
        """Restart the broker; end the test if the harness cannot do that."""
        if not await asyncio.to_thread(self.harness.restart):
            self.lacks("restart", "a restart of the broker")

    def lacks(self, member: str, situation: str, remedy: str = "") -> NoReturn:
        """End the test because the harness cannot cause *situation*, for which it has *member*."""
        if member in self.harness.not_applicable:
            not_applicable(self.harness.not_applicable[member])
        # ``events check`` has no such harness: only the author of the backend can write one.
        needed = remedy or f"it needs Harness.{member} in a backend's tests"
        not_shown(f"{situation}; {needed}")

    # Explaining a failure

    def where(self) -> str:
        """Return the topic, in a line."""
        return f"topic: {self.topic_name!r}"

    def waited_on(self) -> str:
        """Return a line about the receiver that the test waited for last, ``""`` if there was none."""
        return described(self._waited_on) if self._waited_on else ""
