"""Memory and SQLite against a model, in any interleaving.

Nothing confirmed is lost, nothing acknowledged comes back, and while a message of a key is unsettled its successors go
to no other call.  ``EVENTS_TEST_EXAMPLES`` sets how many random examples are tried instead of the few that are always
the same; a failure then prints how to repeat it.

Memory runs on a simulated clock, so its examples are the same on every machine.  SQLite has threads and processes of
its own.  There each rule waits for its condition, and a receiver that the machine kept from renewing its session may
lose what it holds: the file tells when that happened.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from events_core import (
    AcknowledgeError,
    ErrorCode,
    EventClient,
    EventConfig,
    EventMessage,
    EventReceiver,
    ReceivedMessage,
    create_client,
)

from .engine.simulated_clock import SimulatedLoop

EXAMPLES = os.environ.get("EVENTS_TEST_EXAMPLES")
PATIENCE = 60.0
"""Seconds after which a wait for a condition fails; no wait lasts that long unless something is wrong."""
LONG_LEASE = 3600.0
SHORT_LEASE = 0.1
"""Seconds for which a hasty receiver keeps what it holds."""
SESSION = 2.0
"""Seconds after which SQLite takes a silent client for dead."""
KEYS = st.sampled_from([None, "a", "b"])
ANY = st.integers(0, 1000)
FEW = st.integers(1, 4)


class Held:
    """One delivery, and until when it is certainly the receiver's."""

    def __init__(self, message: ReceivedMessage, call: int, until: float) -> None:
        self.message = message
        self.text: str = message.data_as_string()
        self.key: str | None = message.ordering_key
        self.call = call
        self.until = until

    @property
    def is_certain(self) -> bool:
        return time.monotonic() < self.until


class Model:
    """The state of every message of one subscription, by its text, which is unique and rises."""

    def __init__(self, *, fails_unseen: bool) -> None:
        """Begin empty.

        :param fails_unseen: whether a message may fail that no receive has returned: in a buffer, with its receiver.
        """
        self.fails_unseen = fails_unseen
        self.sent: dict[str, str | None] = {}
        """In order, with its key: what must come, until acknowledged."""
        self.doubtful: dict[str, str | None] = {}
        """Sent, or acknowledged, by a call that was cancelled."""
        self.ids: dict[str, str] = {}
        """Of what was sent, or came."""
        self.gone: set[str] = set()
        """Acknowledged, or never stored."""
        self.seen: set[str] = set()
        self.newest: dict[str, str] = {}
        """Of each key, the last that came."""
        self.not_before: dict[str, float] = {}
        self.failures: Counter[str] = Counter()
        """The least number of failures, for each message."""
        self.chances: Counter[str] = Counter()
        """The greatest possible number of failures, for each message."""

    def check(self, batch: list[Held], others: list[Held], now: float) -> None:
        """One call handed out *batch*, while *others* are held."""
        certain = [held for held in others if held.until > now]
        by_key: dict[str, list[str]] = defaultdict(list)
        for held in batch:
            text = held.text
            assert text not in self.gone, f"{text} was acknowledged, or never stored, and came"
            assert self.sent.get(text, self.doubtful.get(text, "?")) == held.key, f"{text} was never sent so"
            assert held.message.attributes == {"text": text}, f"{text} came with {held.message.attributes}"
            assert held.message.message_id == self.ids.setdefault(text, held.message.message_id), f"{text} has two ids"
            assert text not in {other.text for other in certain}, f"{text} is held already"
            assert self.not_before.pop(text, 0.0) <= now, f"{text} came before its delay was over"
            self._check_attempt(text, held.message.delivery_attempt)
            if held.key is not None:
                by_key[held.key].append(text)
        for key, texts in by_key.items():
            self._check_key(key, texts, certain)
        for held in batch:
            self.seen.add(held.text)
            if held.text in self.doubtful:
                self.known(held.text)

    def _check_attempt(self, text: str, attempt: int | None) -> None:
        assert attempt is not None, f"{text} has no attempt"
        least, most = 1 + self.failures[text], math.inf if self.fails_unseen else 1 + self.chances[text]
        assert least <= attempt <= most, f"{text} is at attempt {attempt}, not at {least} to {most}"

    def _check_key(self, key: str, texts: list[str], certain: list[Held]) -> None:
        assert texts == sorted(set(texts)), f"{texts} came of {key} in one call"
        assert key not in {other.key for other in certain}, f"key {key} is with another call"
        queue = [text for text, its in self.sent.items() if its == key]
        run = [text for text in texts if text in self.sent]
        assert run == queue[: len(run)], f"{run} came of {key}, of which {queue} is unsettled"
        for text in texts:
            if text not in self.seen:
                newest = self.newest.get(key, "")
                assert text > newest, f"{text} of {key} came for the first time after {newest}"
                self.newest[key] = text
        # Of what is in doubt, nothing can come after its successor.
        for text in [text for text, its in self.doubtful.items() if its == key and text < texts[-1]]:
            if text not in texts:
                self.settled(text)

    def known(self, text: str) -> None:
        """It came, so it was sent, and not acknowledged."""
        self.sent[text] = self.doubtful.pop(text)
        self.sent = dict(sorted(self.sent.items()))

    def settled(self, text: str) -> None:
        self.gone.add(text)
        self.sent.pop(text, None)
        self.doubtful.pop(text, None)

    def doubt(self, text: str) -> None:
        if text in self.sent:
            self.doubtful[text] = self.sent.pop(text)


class Receiver:
    """A receiver, its client, and what it holds in the order of handing out."""

    def __init__(self, client: EventClient, receiver: EventReceiver, lease: float, model: Model) -> None:
        self.client = client
        self.receiver = receiver
        self.lease = lease
        self.model = model
        self.held: list[Held] = []
        self.is_settling = False
        """True if an acknowledgement may be under way whose caller was cancelled."""
        self.has_lapsed = False
        """True if the broker may have taken this receiver for dead while it was alive."""

    @property
    def is_hasty(self) -> bool:
        return self.lease == SHORT_LEASE

    @property
    def keeps(self) -> bool:
        """True if no other receiver can get its messages until it settles them."""
        return not self.is_hasty and not self.has_lapsed

    def lapse(self) -> None:
        """Note that another receiver may have its messages from now on."""
        self.has_lapsed = True
        for held in self.held:
            held.until = 0.0


class Machine(RuleBasedStateMachine):
    """Up to four receivers of one subscription, each with a client of its own, and one of another, which is a copy.

    What is drawn must not depend on what came, which is a matter of time.  So a rule that needs messages sends and
    receives some where there are none, and :attr:`done` counts what had an effect.
    """

    done: ClassVar[Counter[str]]
    buffer: ClassVar[int]
    """Number of messages that a receiver fetches ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = self.new_loop()
        self.model = Model(fails_unseen=self.buffer > 0)
        self.copied = Model(fails_unseen=False)
        self.receivers: list[Receiver] = []
        self.copy: Receiver | None = None
        self.forgotten: list[EventClient] = []
        self.numbers = 0
        self.calls = 0
        self.quiet_from = 0.0
        """The time at which dead receivers have lost all their messages."""
        self._begin()

    def config(self, **options: str) -> EventConfig:
        raise NotImplementedError

    def new_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    def run(self, work: Awaitable[Any]) -> Any:
        try:
            return self.loop.run_until_complete(asyncio.wait_for(work, 2 * PATIENCE))
        finally:
            self.notice_lapses()  # before anything is checked

    def notice_lapses(self) -> None:
        """Find the receivers that live and have lost what they held."""

    def receiver(self, choice: int) -> Receiver:
        return self.receivers[choice % len(self.receivers)]

    def message(self, key: str | None) -> EventMessage:
        self.numbers += 1
        text = f"{self.numbers:04}"
        return EventMessage.from_string(text, attributes={"text": text}, ordering_key=key)

    async def _join(self, client: EventClient, lease: float) -> None:
        self.receivers.append(await self._joined(client, "s", lease, self.model))

    async def _joined(self, client: EventClient, subscription: str, lease: float, model: Model) -> Receiver:
        return Receiver(client, await client.subscribe(subscription), lease, model)

    @invariant()
    def stats_agree(self) -> None:
        for receiver in self.receivers:
            if receiver.keeps and all(held.until for held in receiver.held):
                self.run(self._settled(receiver))
                held = receiver.receiver.stats.held
                assert held == len(receiver.held), f"{held} are held, they say, and {len(receiver.held)} are"

    async def _settled(self, receiver: Receiver) -> None:
        """Wait for an acknowledgement whose caller was cancelled: until its end the message counts as held (S5)."""
        async with asyncio.timeout(PATIENCE):
            while receiver.is_settling and receiver.receiver.stats.held > len(receiver.held):
                await asyncio.sleep(0.001)
        receiver.is_settling = False

    # Sending

    @rule(key=KEYS, count=FEW)
    def send(self, key: str | None, count: int) -> None:
        self._send([self.message(key) for _ in range(count)])

    def _send(self, messages: Sequence[EventMessage]) -> None:
        self._sent(messages, self.run(self.sender.send_messages(messages)))

    def _supply(self) -> None:
        """Send so much that something is left when all others have filled their buffers."""
        self._send([self.message(None) for _ in range(self.buffer * len(self.receivers) + 2)])

    def _sent(self, messages: Sequence[EventMessage], ids: Sequence[str]) -> None:
        for model in (self.model, self.copied):
            for message, message_id in zip(messages, ids, strict=True):
                model.sent[message.data_as_string()] = message.ordering_key
                model.ids[message.data_as_string()] = message_id

    def _may_be_sent(self, messages: Sequence[EventMessage]) -> None:
        for model in (self.model, self.copied):
            model.doubtful.update((message.data_as_string(), message.ordering_key) for message in messages)

    @rule(key=KEYS, turns=st.integers(0, 3))
    def cancel_a_send(self, key: str | None, turns: int) -> None:
        message = self.message(key)
        self._may_be_sent([message])
        sent = self.run(self._cancelled(self.sender.send_message(message), turns))
        self.done["send cancelled"] += sent is None
        if sent is not None:
            self._sent([message], [sent])
            for model in (self.model, self.copied):
                del model.doubtful[message.data_as_string()]

    # Receiving

    @rule(choice=ANY, limit=st.integers(1, 5), timeout=st.sampled_from([0.0, 0.02, 0.05]))
    def receive(self, choice: int, limit: int, timeout: float) -> None:
        self._receive(self.receiver(choice), limit, timeout)

    def _receive(self, receiver: Receiver, limit: int, timeout: float) -> None:
        began = time.monotonic()
        self._took(receiver, self.run(receiver.receiver.receive_messages(limit, timeout)), began)

    @rule(choice=ANY, key=KEYS, turns=st.integers(0, 3))
    def cancel_a_receive(self, choice: int, key: str | None, turns: int) -> None:
        receiver = self.receiver(choice)
        began = time.monotonic()
        message = self.message(key)
        self._may_be_sent([message])
        receiving = self._cancelled(receiver.receiver.receive_messages(3), turns)
        message_id, received = self.run(self._both(self.sender.send_message(message), receiving))
        for model in (self.model, self.copied):
            model.known(message.data_as_string())
            model.ids[message.data_as_string()] = message_id
        self.done["receive cancelled"] += received is None
        self._took(receiver, received or [], began)

    async def _both(self, *coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
        return await asyncio.gather(*coroutines)

    async def _cancelled(self, coroutine: Coroutine[Any, Any, Any], turns: int) -> Any:
        """Run *coroutine* for so many turns of the loop, then cancel it.  Return its result, or ``None``."""
        task = asyncio.create_task(coroutine)
        for _ in range(turns):
            await asyncio.sleep(0 if turns < 3 else 0.002)
        task.cancel()
        await asyncio.wait([task])
        return None if task.cancelled() else task.result()

    def _fill(self, receiver: Receiver) -> None:
        """Let *receiver* hold something, unless it holds as much as it may."""
        self._supply()
        if not self.buffer or len(receiver.held) < self.buffer:
            self._receive(receiver, 2, PATIENCE)

    def _took(self, receiver: Receiver, messages: Sequence[ReceivedMessage], began: float) -> None:
        self.calls += 1
        until = 0.0 if receiver.has_lapsed else began + receiver.lease
        batch = [Held(message, self.calls, until) for message in messages]
        model = receiver.model
        others = [held for each in self.receivers for held in each.held if each.model is model]
        self.done["received again"] += len([held for held in batch if held.text in model.seen])
        keys = Counter(held.key for held in batch if held.key)
        self.done["run of a key"] += len([key for key, count in keys.items() if count > 1])
        model.check(batch, others, time.monotonic())
        receiver.held += batch
        if not receiver.keeps:
            self._may_fail(held.text for held in batch)

    def _may_fail(self, texts: Any) -> None:
        self.model.chances.update(texts)

    def _hold(self, choice: int, count: int = 1) -> tuple[Receiver, list[Held]]:
        """Return up to *count* messages that one receiver holds, in order.  If none are held, send and receive some."""
        if not any(each.held for each in self._steady):
            self._send([self.message(None) for _ in range(count + 1)])
        ends = time.monotonic() + PATIENCE
        while not any(each.held for each in self._steady):
            assert time.monotonic() < ends, "of what was sent nothing comes"
            began = time.monotonic()
            calls = [each.receiver.receive_messages(count, 0.05) for each in self._steady]
            for each, received in zip(self._steady, self.run(self._both(*calls)), strict=True):
                self._took(each, received, began)
        # A hasty receiver's may be over by the time that they are settled, but not always.
        holding = [each for each in self.receivers if each.held]
        receiver = holding[choice % len(holding)]
        first = choice % len(receiver.held)
        return receiver, receiver.held[first : first + count]

    @property
    def _steady(self) -> list[Receiver]:
        return [receiver for receiver in self.receivers if not receiver.is_hasty]

    # Settling

    @rule(choice=ANY, count=FEW)
    def acknowledge(self, choice: int, count: int) -> None:
        receiver, batch = self._hold(choice, count)
        codes = self._codes(receiver.receiver.acknowledge_messages([held.message for held in batch]))
        for held in batch:
            receiver.held.remove(held)
            code = codes.get(held.message.message_id)
            if code is None:
                self.done["acknowledged"] += 1
                self.model.settled(held.text)
            else:
                assert (code, held.is_certain) == (ErrorCode.EXPIRED, False), f"{held.text} is gone too early: {code}"

    @rule(choice=ANY, turns=st.integers(0, 3))
    def cancel_an_acknowledgement(self, choice: int, turns: int) -> None:
        """Then its message is held, or gone."""
        receiver, (held,) = self._hold(choice)
        self.model.doubt(held.text)
        held.until = 0.0
        receiver.is_settling = True
        self.run(self._cancelled(self._acknowledged(receiver, held), turns))
        self.done["acknowledgement cancelled"] += 1

    async def _acknowledged(self, receiver: Receiver, held: Held) -> ErrorCode | None:
        """Acknowledge one message; return ``EXPIRED`` if its delivery was over."""
        try:
            await receiver.receiver.acknowledge(held.message)
        except AcknowledgeError as error:
            if error.code is not ErrorCode.EXPIRED:
                raise
            return error.code
        return None

    @rule(choice=ANY, count=FEW, delay=st.sampled_from([None, 0.0, 0.05]))
    def nack(self, choice: int, count: int, delay: float | None) -> None:
        receiver, batch = self._hold(choice, count)
        began = time.monotonic()
        nacked = self._goes_back(receiver, batch, receiver.receiver.nack_messages(_of(batch), delay=delay))
        for held in nacked:
            # Without a delay it is at least the first step of the backoff.
            self.model.not_before[held.text] = began + (0.1 if delay is None else delay)

    @rule(choice=ANY, other=ANY, limit=st.integers(1, 5))
    def nack_while_another_receives(self, choice: int, other: int, limit: int) -> None:
        """A run goes back as a whole: its next receiver gets its first message first."""
        receiver, batch = self._hold(choice)
        began = time.monotonic()
        taker = self.receiver(other)
        receiving = self.loop.create_task(taker.receiver.receive_messages(limit, 0.05))
        self._goes_back(receiver, batch, receiver.receiver.nack_messages(_of(batch), delay=0.0))
        self._took(taker, self.run(receiving), began)

    @rule(choice=ANY)
    def hand_back(self, choice: int) -> None:
        receiver, batch = self._hold(choice)
        self._goes_back(receiver, batch, receiver.receiver.hand_back(batch[0].message), failed=False)
        self.done["handed back"] += 1

    def _goes_back(
        self, receiver: Receiver, batch: list[Held], settling: Coroutine[Any, Any, None], *, failed: bool = True
    ) -> list[Held]:
        """With what was handed out of its key after it; those that certainly were held until then, and so failed."""
        certain = []
        codes = self._codes(settling)
        for held in batch:
            if held not in receiver.held:
                continue  # it went back with one before it
            code = codes.get(held.message.message_id)
            if code is not None:
                may_be_gone = held.text in self.model.doubtful or held.text in self.model.gone
                assert (code, may_be_gone) == (ErrorCode.ALREADY_SETTLED, True), f"{held.text} is not held: {code}"
                receiver.held.remove(held)
                self.model.settled(held.text)
                continue
            run = receiver.held[receiver.held.index(held) :]
            later = [each for each in run[1:] if each.key == held.key is not None and each.call == held.call]
            receiver.held = [each for each in receiver.held if each not in [held, *later]]
            if held.text in self.model.doubtful and receiver.keeps:
                self.model.known(held.text)
            if failed and receiver.keeps:
                self._may_fail([held.text])
            if held.is_certain:
                certain.append(held)
                self.model.failures[held.text] += failed
                self.done["nacked"] += failed
        return certain

    def _codes(self, settling: Coroutine[Any, Any, None]) -> dict[str, ErrorCode]:
        """Return the codes of the errors of *settling*, by message id."""
        try:
            self.run(settling)
        except AcknowledgeError as error:
            return {message_id: each.code for message_id, each in error.failed.items()}
        return {}

    # Time

    @rule()
    def expire(self) -> None:
        """Wait until all that hasty receivers hold is over; settling it says so."""
        hasty = [receiver for receiver in self.receivers if receiver.is_hasty]
        for receiver in hasty:
            self._fill(receiver)
        self.run(asyncio.sleep(SHORT_LEASE if any(receiver.held for receiver in hasty) else 0))
        for receiver in hasty:
            while receiver.held:
                held = receiver.held.pop()
                codes = self._codes(receiver.receiver.acknowledge_messages([held.message]))
                expired = codes == {held.message.message_id: ErrorCode.EXPIRED}
                assert expired or held.text in self.model.doubtful, f"{held.text} has not expired: {codes}"
                self.done["expired"] += expired

    # The copy

    @rule(limit=FEW)
    def acknowledge_a_copy(self, limit: int) -> None:
        """Each message comes in its own subscription, independently of the other one."""
        began = time.monotonic()
        self._took(self.copy, self.run(self.copy.receiver.receive_messages(limit, 0.01)), began)
        self.run(self._acknowledge_all(self.copy))

    async def _acknowledge_all(self, receiver: Receiver) -> None:
        for held in receiver.held:
            code = await self._acknowledged(receiver, held)
            self.notice_lapses()
            assert code is None or not held.is_certain, f"{held.text} is gone too early"
            if code is None:
                receiver.model.settled(held.text)
                self.done["copies acknowledged"] += receiver is self.copy
        receiver.held.clear()

    # Coming and going

    @precondition(lambda self: len(self.receivers) < 4)
    @rule(hasty=st.booleans())
    def join(self, hasty: bool) -> None:
        lease = SHORT_LEASE if hasty else LONG_LEASE
        self.run(self._join(create_client(self.config(max_lease_duration=str(lease))), lease))

    @precondition(lambda self: len(self.receivers) > 1)
    @rule(choice=ANY, turns=st.none() | st.integers(0, 3))
    def leave(self, choice: int, turns: int | None) -> None:
        """Close a receiver, perhaps cancelled once, and its client."""
        receiver = self.receivers[1 + choice % (len(self.receivers) - 1)]
        self._fill(receiver)
        self.done["left holding"] += any(held.is_certain for held in receiver.held)
        self.receivers.remove(receiver)
        if turns is not None:
            self.run(self._cancelled(receiver.receiver.close(timeout=0), turns))
        self.run(receiver.receiver.close(timeout=0))
        self.run(receiver.client.close(timeout=0))

    @rule()
    def reopen(self) -> None:
        """Close every client and begin again."""
        self.done["reopened holding"] += any(receiver.held for receiver in self._steady)
        self.run(self._close())
        self._begin()

    def _begin(self) -> None:
        """One receiver that stays, one more, and a hasty one."""
        for lease in (LONG_LEASE, LONG_LEASE, SHORT_LEASE):
            client = create_client(self.config(max_lease_duration=str(lease)))
            self.run(self._join(client, lease))
        self.sender = self.receivers[0].client
        self.copy = self.run(self._joined(self.sender, "copy", LONG_LEASE, self.copied))

    async def _close(self) -> None:
        for receiver in self.receivers:
            await receiver.client.close(timeout=0)
        self.receivers.clear()

    @precondition(lambda self: len(self.receivers) > 1)
    @rule(choice=ANY)
    def kill(self, choice: int) -> None:
        """A receiver ends without a word: what it holds and buffers comes to others, later."""
        candidates = [receiver for receiver in self.receivers[1:] if self.can_die(receiver)]
        if candidates:
            receiver = candidates[choice % len(candidates)]
            self._fill(receiver)
            self.done["died holding"] += any(held.is_certain for held in receiver.held)
            self._dies(receiver)
            self.die(receiver)

    def _dies(self, receiver: Receiver) -> None:
        self.receivers.remove(receiver)
        self._may_fail(held.text for held in receiver.held if receiver.keeps)

    def can_die(self, receiver: Receiver) -> bool:
        raise NotImplementedError

    def die(self, receiver: Receiver) -> None:
        raise NotImplementedError

    # The end

    def teardown(self) -> None:
        try:
            self.run(self._drain())
        finally:
            self.run(self._close())
            self.loop.run_until_complete(self._close_forgotten())
            left = asyncio.all_tasks(self.loop)
            self.loop.close()
        assert not left

    async def _close_forgotten(self) -> None:
        for client in self.forgotten:
            await client.close(timeout=0)

    async def _drain(self) -> None:
        """All that is not acknowledged comes, in order; in the copy, all."""
        for receiver in self.receivers[1:]:
            await receiver.client.close(timeout=0)
        last = self.receivers[0]
        await last.receiver.close(timeout=0)
        self.receivers.clear()
        await self._join(last.client, LONG_LEASE)
        await asyncio.gather(self._drain_one(self.receivers[0]), self._drain_one(self.copy))

    async def _drain_one(self, receiver: Receiver) -> None:
        ends = time.monotonic() + PATIENCE
        while receiver.model.sent or time.monotonic() < self.quiet_from:
            assert time.monotonic() < ends, f"lost: {receiver.model.sent}"
            began = time.monotonic()
            self._took(receiver, await receiver.receiver.receive_messages(10, 0.05), began)
            await self._acknowledge_all(receiver)
        self._took(receiver, await receiver.receiver.receive_messages(10, 0.05), time.monotonic())


def _of(batch: Sequence[Held]) -> list[ReceivedMessage]:
    return [held.message for held in batch]


class MemoryMachine(Machine):
    """In one process, where a receiver dies by being forgotten: what it held expires."""

    done = Counter()
    buffer = 0
    topics = 0

    def new_loop(self) -> asyncio.AbstractEventLoop:
        loop = SimulatedLoop()
        self._clock = pytest.MonkeyPatch()
        self._clock.setattr(time, "monotonic", loop.time)
        return loop

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self._clock.undo()

    def config(self, **options: str) -> EventConfig:
        if not hasattr(self, "_topic"):
            MemoryMachine.topics += 1
            self._topic = f"machine-{MemoryMachine.topics}"
        return EventConfig(self._topic, options=options, backend="memory")

    def can_die(self, receiver: Receiver) -> bool:
        return receiver.is_hasty

    def die(self, receiver: Receiver) -> None:
        self.forgotten.append(receiver.client)
        self.quiet_from = time.monotonic() + SHORT_LEASE


class SQLiteMachine(Machine):
    """On one file, where a client dies by its thread's ending as it stands, or with its process: its session lapses."""

    done = Counter()
    buffer = 4
    processes = 0

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name, "events.db")
        self._known: set[int] = set()
        self._sessions: dict[Receiver, int] = {}
        super().__init__()

    def config(self, **options: str) -> EventConfig:
        own = {
            "path": str(self._path),
            "durability": "normal",
            "session_timeout": str(SESSION),
            "max_outstanding_messages": str(
                self.buffer
            ),  # so that one receiver's buffer leaves something to the others
        }
        return EventConfig("machine", options={**own, **options}, backend="sqlite")

    async def _joined(self, client: EventClient, subscription: str, lease: float, model: Model) -> Receiver:
        receiver = await super()._joined(client, subscription, lease, model)
        began = self._in_file() - self._known
        self._known |= began
        if len(began) == 1:
            (self._sessions[receiver],) = began
        else:  # another receiver lapsed and has joined again: nobody can tell which session is whose
            receiver.lapse()
        return receiver

    def _in_file(self) -> set[int]:
        """Return the ids of the sessions in the file: of those that no receiver has taken over."""
        with closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as file:
            return {session for (session,) in file.execute("SELECT id FROM sessions")}

    def notice_lapses(self) -> None:
        living = [receiver for receiver in (*self.receivers, self.copy) if receiver in self._sessions]
        if living:
            left = self._in_file()
            for receiver in living:
                if self._sessions[receiver] not in left:
                    receiver.lapse()

    def can_die(self, receiver: Receiver) -> bool:
        return True

    def die(self, receiver: Receiver) -> None:
        client: Any = receiver.client
        # As a killed process leaves it: the file closed, nothing given back, no heartbeat.
        client._home.wake(client._driver.file.store.close)
        client._unclosed.detach()  # a killed process does not warn of what it has not closed
        thread = client._home._thread
        thread.stop(PATIENCE)
        thread._thread.join(PATIENCE)
        self._lapses()

    def _lapses(self) -> None:
        self.quiet_from = time.monotonic() + SESSION

    @precondition(lambda self: self.processes < 2)  # each takes half a second
    @rule(key=KEYS, count=FEW, acknowledged=st.integers(0, 2), untold=st.integers(0, 2))
    def kill_a_process(self, key: str | None, count: int, acknowledged: int, untold: int) -> None:
        """By SIGKILL, which meets it sending and acknowledging: each of those has happened or not."""
        self.processes += 1
        self._supply()
        told, secret = ([self.message(key) for _ in range(number)] for number in (count, untold))
        began = time.monotonic()
        report = self._killed(
            send=[(message.data_as_string(), key) for message in told],
            send_untold=[(message.data_as_string(), key) for message in secret],
            limit=4,
            timeout=PATIENCE,
            acknowledge=acknowledged,
            acknowledge_untold=untold,
        )
        self._sent(told, report["ids"])
        self._may_be_sent(secret)
        received = [ReceivedMessage(each.pop("data").encode(), **each) for each in report["received"]]
        dead = Receiver(self.sender, self.copy.receiver, LONG_LEASE, self.model)
        self.receivers.append(dead)
        expired = set(report["expired"])
        if expired:
            dead.lapse()
        self._took(dead, received, began)
        settled = [held for held in dead.held[:acknowledged] if held.message.message_id not in expired]
        for held in settled:
            self.model.settled(held.text)
        for held in dead.held[acknowledged : acknowledged + untold]:
            self.model.doubt(held.text)
        dead.held = [held for held in dead.held if held not in settled]
        self._dies(dead)
        self.done["process killed holding"] += bool(dead.held)
        self._lapses()

    def _killed(self, **work: Any) -> dict[str, Any]:
        """Return the report of a process that does *work* and is killed at once."""
        config = self.config()
        described = {"topic_name": config.topic_name, "options": dict(config.options), "backend": config.backend}
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killed_client.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps({"config": described, "subscription": "s", **work}) + "\n")
            process.stdin.flush()
            report: dict[str, Any] = json.loads(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        return report

    def teardown(self) -> None:
        super().teardown()
        self._folder.cleanup()


def _settings(examples: int) -> settings:
    return settings(
        # The examples that are always the same need no shrinking: they fail again as they are, and on SQLite each try
        # of a smaller one takes a second.
        phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
        max_examples=int(EXAMPLES or examples),
        stateful_step_count=30,
        derandomize=EXAMPLES is None,
        print_blob=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


ALWAYS_DONE = (
    "acknowledged",
    "acknowledgement cancelled",
    "copies acknowledged",
    "died holding",
    "expired",
    "handed back",
    "left holding",
    "nacked",
    "receive cancelled",
    "received again",
    "reopened holding",
    "run of a key",
    "send cancelled",
)
"""The actions that each machine must have done, so that its checks had something to look at."""


@pytest.mark.parametrize(
    ("machine", "examples", "always"),
    [(MemoryMachine, 100, ALWAYS_DONE), (SQLiteMachine, 12, (*ALWAYS_DONE, "process killed holding"))],
)
def test_any_interleaving_agrees_with_the_model(machine: type[Machine], examples: int, always: Sequence[str]) -> None:
    """Any actions, in any order, keep the contract, and each kind of action has had an effect."""
    machine.done.clear()
    # Hypothesis draws from the constants of the modules that are loaded, and few examples may kill no steady receiver.
    first = machine()
    first.kill(choice=0)
    first.teardown()
    run_state_machine_as_test(machine, settings=_settings(examples))  # type: ignore[no-untyped-call]
    idle = [kind for kind in always if not machine.done[kind]]
    assert not idle, f"never done with effect: {idle}"


class PiecemealMachine(MemoryMachine):
    """On a backend that puts a nacked message behind its successors."""

    def config(self, **options: str) -> EventConfig:
        return attrs.evolve(super().config(**options), backend="broken_backends:NacksPiecemeal")


def test_a_run_that_goes_back_piecemeal_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine can fail: within the examples that are always tried it sees a key out of order."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    first_found = settings(
        _settings(24), max_examples=24, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False
    )
    with pytest.raises(AssertionError, match="came of"):
        run_state_machine_as_test(PiecemealMachine, settings=first_found)
