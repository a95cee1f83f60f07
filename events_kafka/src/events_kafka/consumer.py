"""The thread of one consumer of librdkafka: it polls, keeps the partitions, and commits positions.

Everything that librdkafka does for a receiver happens in this thread, including its callbacks, which :meth:`consume`
calls.  Only the constructor and the last reference may be used elsewhere.

Who calls whom::

    home                              thread
    start ─────────────────────────▶  subscribe, or assign
                    arrived ◀──────── records have come
    took ──────────────────────────▶  there is room again
    Claims.settle ────────────────▶   the position, committed every second
                    revoked ◀──────── a partition was revoked; the thread waits until home knows
                    failed ◀───────── the broker does not answer
                    recovered ◀────── it answers again
    close ─────────────────────────▶  the last commit, then leave the group

**A revocation.**  First home ends the claim, so that what is settled from then on is ``EXPIRED``.  Then the position is
committed, and only then another member of the group may get the partition.

**A full buffer.**  While home takes nothing, the thread waits for a moment.  Then it takes a record now and then,
because the callbacks of librdkafka run only while it is asked for records.  They come before records (2.16, measured).
In the end the thread pauses all partitions.  It does so late, because librdkafka then throws away what it has fetched
ahead.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

# An instrumentation of confluent-kafka replaces the class in the package, but not in this module.
from confluent_kafka.cimpl import Consumer as Native
from confluent_kafka.cimpl import KafkaError, KafkaException, Message, TopicPartition

from events_core import ErrorCode
from events_core.engine import BrokerError, Delivery, uptime
from events_kafka.assignment import Assignment
from events_kafka.claims import Claim, Claims, Start, Token
from events_kafka.codec import decode
from events_kafka.commits import Commits, Group
from events_kafka.errors import broker_error, making
from events_kafka.health import Health
from events_kafka.leaving import leave
from events_kafka.room import Room
from events_kafka.starts import committed_starts, new_starts

__all__ = ["Consumer", "Listener"]

_log = logging.getLogger("events_kafka")

_IDLE = 0.1
"""Seconds to wait for a record, or for room.  A close waits as long."""

_COMMIT_PAUSE = 1.0
"""Seconds between two commits."""

_DISCOVERY_PAUSE = 5.0
"""Seconds between two looks for new partitions, without a group.  With one, librdkafka looks for them."""

_FULL_TURN = 0.5
"""Seconds between two records that the thread takes although the buffer is full."""

_FULL_PAUSE = 10.0
"""Seconds for which the buffer is full before the thread pauses all partitions."""

_REPLACE_PAUSE = 5.0
"""Seconds between two attempts to make another consumer of librdkafka."""

_HOME_ANSWER = 5.0
"""Seconds to wait until home knows that a partition is lost.  Home never blocks, but it may be ending."""

_EXIT_ANSWER = 10.0
"""Seconds for which the end of the program waits for a thread that still commits."""

_OUT_OF_RANGE = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE})


class Listener(ABC):
    """The home's side.  All but :meth:`safe` is called at home."""

    @abstractmethod
    def arrived(self, deliveries: Sequence[Delivery]) -> None:
        """Take deliveries, and call :meth:`Room.took` when they leave the buffer."""

    @abstractmethod
    def revoked(self, claims: Collection[Claim]) -> None:
        """Drop the deliveries of *claims*, which have ended."""

    @abstractmethod
    def failed(self, error: BrokerError) -> None:
        """Note that nothing can be received."""

    @abstractmethod
    def ended(self, error: BrokerError) -> None:
        """Note that nothing will be received any more."""

    @abstractmethod
    def recovered(self) -> None:
        """Note that records come again."""

    @abstractmethod
    def safe(self, until: float) -> None:
        """Note until when no other member has the partitions, by ``uptime``.  Called in the consumer's thread."""


class Consumer(Group):
    """One consumer, and its thread.

    :param settings: those of librdkafka, with those that this module depends on.
    :param begin: the offsets from which to read partitions, without a group; ``None`` to join the group of *settings*.
    :param session: the time after which the group gives the partitions of a silent member to others.
    :param safe_time: the time for which the group certainly keeps this member after a turn of the thread.
    :param max_gap: the most settled records after an unsettled one, for each partition.
    :param secrets: the values of settings that no error may show.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        topic: str,
        begin: Mapping[int, int] | None,
        listener: Listener,
        *,
        room: Room,
        session: float,
        safe_time: float,
        max_gap: int,
        secrets: Collection[str],
    ) -> None:
        self.claims = Claims(topic)
        self._topic = topic
        self._begin = None if begin is None else [Start(partition, offset) for partition, offset in begin.items()]
        self._listener = listener
        self._room = room
        self._session = session
        self._safe_time = safe_time
        self._max_gap = max_gap
        self._secrets = secrets
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._closing = threading.Event()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name=f"events Kafka {topic}", daemon=True)

        # From here on: the thread's.
        self._health = Health(
            topic,
            lambda error: self._post(listener.failed, error),
            lambda: self._post(listener.recovered),
        )
        self._native: Native
        self._assignment: Assignment
        self._commits: Commits
        self._next_commit = 0.0
        self._safe_until = 0.0
        self._next_discovery = 0.0
        self._next_replacement = 0.0
        self._full_since: float | None = None
        self._full_turn = 0.0

    # At home

    async def start(self) -> None:
        """Start the thread.

        :raises BrokerError: if librdkafka refuses the settings.
        """
        started: asyncio.Future[None] = self._loop.create_future()
        self._started = started
        self._thread.start()
        await started

    async def close(self, within: float) -> None:
        """Commit, leave the group and end the thread.  If that takes longer than *within* seconds, it ends later."""
        self._closing.set()
        self._room.wake()
        if self._thread.ident is None:
            return
        try:
            async with asyncio.timeout(within):
                await asyncio.shield(self._done)
        except (TimeoutError, asyncio.CancelledError) as reason:
            # Usually a rebalance is under way.  A program that ends now gives the thread some more time.
            atexit.register(self._thread.join, _EXIT_ANSWER)
            _log.info("leaving the group of topic %r waits for the broker; the thread %r goes on with it", *self._names)
            if isinstance(reason, asyncio.CancelledError):
                raise
            return
        # A thread cannot announce its own end.
        while self._thread.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    @property
    def _names(self) -> tuple[str, str]:
        return self._topic, self._thread.name

    # In the thread

    def _run(self) -> None:
        try:
            self._make()
        except BrokerError as error:
            self._post(_fail, self._started, error)
            self._post(_finish, self._done)
            return
        self._post(_finish, self._started)
        try:
            self._open()
            while not self._closing.is_set():
                if self._is_lost and time.monotonic() >= self._next_replacement:
                    self._replace()
                self._turn()
        # confluent-kafka also raises KafkaError, which is no class of exceptions (2.16, measured).
        except:  # noqa: E722
            self._break(sys.exc_info()[1])
            self._closing.wait()
        self._end()

    def _make(self) -> None:
        """Make the consumer of librdkafka, in place of the one before, which ends.

        :raises BrokerError: if that failed.
        """
        is_made = False

        def note(error: KafkaError) -> None:
            # An error of a consumer that is being made says nothing about the one that it is to replace.
            if is_made:
                self._health.note(error)

        commits = Commits(self.claims, self._topic, self)
        with making(self._secrets):
            native = Native({**self._settings, "error_cb": note, "on_commit": commits.answered})
        is_made = True
        strategy = str(self._settings.get("partition.assignment.strategy", "cooperative"))
        assignment = Assignment(
            native,
            self.claims,
            self._topic,
            self._lose,
            is_eager=self._begin is None and not strategy.startswith("cooperative"),
            max_gap=self._max_gap,
        )
        self._native, self._assignment, self._commits = native, assignment, commits

    @property
    def _is_lost(self) -> bool:
        """Return whether the broker is silent for so long that others have the partitions, or nothing is fetched."""
        return self._health.silence > self._session or self._assignment.ignores

    def _replace(self) -> None:
        """Go on with another consumer of librdkafka, or with this one until another one can be made.

        librdkafka may lose all brokers for good.  A broker that its controller does not admit, for example because it
        hung for some seconds, tells clients of no brokers, and they forget those that they had (2.16, #5301).
        """
        try:
            self._make()
        except BrokerError as error:
            # For example, an outage of the network leaves the process without a token too.
            _log.info(
                "receiving from topic %r needs another consumer, which cannot be made yet: %s", self._topic, error
            )
            self._next_replacement = time.monotonic() + _REPLACE_PAUSE
            return
        _log.info("no broker has answered in time; another consumer reads topic %r", self._topic)
        ended = self.claims.all
        self._lose(ended)
        if self._begin is not None:
            self._begin = [Start(each.partition, each.position.offset, each.position.metadata()) for each in ended]
        self._open()
        self._health.forgive()

    def _break(self, error: object) -> None:
        """Tell home that this consumer receives nothing more."""
        reason = error.args[0] if isinstance(error, KafkaException) else error
        if isinstance(reason, KafkaError):
            failure = broker_error(f"receive from topic {self._topic!r}", reason)
        else:
            _log.exception("receiving from topic %r failed", self._topic)
            failure = BrokerError(f"the receiver has failed: {error!r}; open another one", ErrorCode.INTERNAL)
        self._post(self._listener.ended, BrokerError(str(failure), failure.code))

    def _post(self, call: Callable[..., object], *arguments: object) -> None:
        """Call at home, soon."""
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(call, *arguments)

    def _open(self) -> None:
        if self._begin is None:
            self._native.subscribe(
                [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
        else:
            self._assignment.place(self.claims.add(self._begin))

    def _turn(self) -> None:
        """Wait for records, and do what is due."""
        now = time.monotonic()
        self._renew()
        self._health.check(self._native)
        if self._assignment.is_astray and not self._health.is_down:
            self._correct()
        if self._begin is not None and now >= self._next_discovery:
            self._discover()
        self._receive(now)
        if self._begin is None and now >= self._next_commit:
            self._next_commit = now + _COMMIT_PAUSE
            if not self._health.is_down:
                self._commits.send(self._native)

    def _correct(self) -> None:
        try:
            self._assignment.correct()
        except KafkaException as error:
            self._health.suspect(error.args[0])

    # Records

    def _receive(self, now: float) -> None:
        if self._assignment.is_paused:
            self._take(1, _IDLE)  # for the callbacks
            if self._room.is_half_empty():
                self._full_since = None
                self._assignment.resume()
            return
        room = self._room.wait(_IDLE)
        if room > 0:
            self._full_since = None
            self._take(room, _IDLE)
            return
        if self._full_since is None:
            self._full_since = self._full_turn = now
        if now >= self._full_since + _FULL_PAUSE:
            self._assignment.pause()
        elif now >= self._full_turn + _FULL_TURN:
            self._full_turn = now
            self._take(1, 0)

    def _take(self, count: int, seconds: float) -> None:
        """Wait for a record, and deliver at most *count* of those that are there."""
        newest = self.claims.newest
        # The first call waits for one record; the second one takes what has come with it.  With a larger number, the
        # first one would wait for so many.
        came = self._native.consume(1, seconds)
        if came and count > 1:
            came += self._native.consume(count - 1, 0)
        if came:
            records = [record for record in came if record.error() is None]
            if records:
                self._health.heard()
            if len(records) < len(came):
                for record in came:
                    if record.error() is not None:
                        self._on_bad_record(record)
            seen = self.claims.see(records, newest)
            if seen.fresh:
                deliveries = [decode(token) for token in seen.fresh]
                if seen.renamed:
                    _rename(deliveries, seen.renamed)
                self._room.fill(deliveries)
                self._post(self._listener.arrived, deliveries)
            for claim in seen.stale:
                # The call above has run callbacks, and may have had the records before.
                self._assignment.place([claim], again=True)
        self._assignment.bound_gaps()

    def _on_bad_record(self, record: Message) -> None:
        error = record.error()
        assert error is not None
        partition = record.partition()
        if error.code() in _OUT_OF_RANGE and partition is not None:
            self._assignment.went_astray(partition)
        else:
            self._health.note(error)

    # Partitions

    def _discover(self) -> None:
        """Read partitions that were added, from their beginning; without a group."""
        self._next_discovery = time.monotonic() + _DISCOVERY_PAUSE
        if self._health.is_down:
            return
        try:
            starts = new_starts(self._native, self._topic, [claim.partition for claim in self.claims.all])
        except KafkaException as error:
            _log.debug("looking for partitions of topic %r: %s", self._topic, error)
            return
        if starts:
            self._assignment.place(self.claims.add(starts))

    def _on_assign(self, native: Native, partitions: Sequence[TopicPartition]) -> None:
        self._commits.joined(native)
        starts = self._starts([each.partition for each in partitions])
        if partitions and not starts:
            self._assignment.ignore(partitions)  # this consumer ends
        else:
            self._assignment.place(self.claims.add(starts))

    def _on_revoke(self, native: Native, partitions: Sequence[TopicPartition]) -> None:
        ended = self._assignment.claims_of(partitions)
        self._lose(ended)
        self._commits.finish(native, ended)
        self._assignment.remove(partitions)

    def _on_lost(self, native: Native, partitions: Sequence[TopicPartition]) -> None:
        self._lose(self._assignment.claims_of(partitions))
        self._assignment.remove(partitions)

    def _lose(self, claims: Sequence[Claim]) -> None:
        """End *claims*, and return when home knows it."""
        if not claims:
            return
        known = threading.Event()
        self._post(self._lose_at_home, claims, known)
        if not self._closing.is_set():
            known.wait(_HOME_ANSWER)
        self.claims.end(claims)

    def _lose_at_home(self, claims: Sequence[Claim], known: threading.Event) -> None:
        self.claims.end(claims)
        try:
            self._listener.revoked(frozenset(claims))
        finally:
            known.set()

    def _starts(self, partitions: Sequence[int]) -> Sequence[Start]:
        """Return the positions that the group has committed; wait for them.

        A partition without a position begins with its oldest record: it was added later, or the position has expired.
        """
        while partitions and not self._closing.is_set() and not self._is_lost:
            try:
                return committed_starts(self._native, self._topic, partitions)
            except KafkaException as error:
                self._health.fail(error.args[0])
                self._closing.wait(_IDLE)
        return []

    # The group, as commits tell of it

    def is_member(self, since: float) -> None:
        self._health.heard()
        if since >= self._safe_until:
            self._extend()

    def is_troubled(self, error: KafkaError) -> None:
        self._health.note(error)

    # The session

    def _renew(self) -> None:
        """Say until when the partitions are safe.

        If this turn comes late, the process was stopped, and others may have the partitions.  So ask first.
        """
        if self._begin is not None or self._health.is_down:
            return
        if uptime() < self._safe_until or not len(self.claims):
            self._extend()
        else:
            self._commits.send(self._native, unchanged=True)

    def _extend(self) -> None:
        self._safe_until = uptime() + self._safe_time
        self._listener.safe(self._safe_until)

    # The end

    def _end(self) -> None:
        try:
            if self._begin is not None or leave(
                self._native, self._assignment, self._commits, self._health, announces=self._announces
            ):
                self._native.close()
        except:  # noqa: E722
            _log.warning("leaving the group of topic %r failed: %r", self._topic, sys.exc_info()[1])
        finally:
            # If the broker does not answer, nothing is left to tell it, and close() would wait for it.  Without the
            # last reference librdkafka ends.  It waits only for a commit that is under way.
            del self._native, self._assignment
            self._post(_finish, self._done)

    @property
    def _announces(self) -> bool:
        """Return whether the id of the member tells that it has left."""
        return self._settings.get("group.protocol") == "classic" and "group.instance.id" not in self._settings


def _rename(deliveries: Iterable[Delivery], tokens: Collection[Token]) -> None:
    """Give the deliveries of *tokens* another id, because the application may hold a message that has theirs.

    Otherwise the engine would take them for copies of it (R7), and they would be acknowledged with it.
    """
    for delivery in deliveries:
        if delivery.token in tokens:
            delivery.message_id += f"#{delivery.token.claim.number}"


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: BrokerError) -> None:
    if not future.done():
        future.set_exception(error)
