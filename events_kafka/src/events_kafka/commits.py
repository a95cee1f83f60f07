"""The commits of one consumer: what is settled, on its way to the broker.  All of it runs in the consumer's thread.

At most one commit is under way, and nobody waits for it.  During a rebalance it waits for the end of the rebalance,
because a broker handles the requests of a connection in order, and then it fails because the group has a new
generation.  The next one succeeds.

A commit without membership could move the positions of
others back: librdkafka sends it as that of a program that manages its partitions alone, and an empty group takes it.
So the id of the member is compared before each.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from confluent_kafka.cimpl import Consumer as Native
from confluent_kafka.cimpl import KafkaError, KafkaException, TopicPartition

from events_core.engine import uptime
from events_kafka.claims import Claim, Claims, Commit
from events_kafka.position import MAX_METADATA

__all__ = ["Commits", "Group"]

_log = logging.getLogger("events_kafka")


class Group(ABC):
    """The group, as far as commits tell of it."""

    @abstractmethod
    def is_member(self, since: float) -> None:
        """Note that a commit succeeded that was sent at *since*, by ``uptime``."""

    @abstractmethod
    def is_troubled(self, error: KafkaError) -> None:
        """Note that a commit failed for another reason."""


class Commits:
    """The commits of one consumer.

    :param group: told what the answers mean.
    """

    def __init__(self, claims: Claims, topic: str, group: Group) -> None:
        self._claims = claims
        self._topic = topic
        self._group = group
        self._member = ""
        self._limit = MAX_METADATA
        self._asked: tuple[float, Sequence[Commit]] | None = None
        """The commit that is under way, and when it was sent."""

    @property
    def is_under_way(self) -> bool:
        """Return whether an answer is to come."""
        return self._asked is not None

    def joined(self, native: Native) -> None:
        """Note that this member was given partitions."""
        self._member = native.memberid() or ""

    def send(self, native: Native, *, unchanged: bool = False) -> bool:
        """Commit positions, without waiting, unless a commit is under way.

        :param unchanged: also positions that the broker has already.
        :returns: True if there was something to commit.
        """
        if self._asked is not None:
            return True
        commits = self._claims.commits(self._claims.all, self._limit, unchanged=unchanged)
        if not commits:
            return False
        if self._member != native.memberid():
            return True  # librdkafka is about to tell that the partitions are lost
        try:
            native.commit(offsets=self._offsets(commits), asynchronous=True)
        except KafkaException as error:
            _log.debug("committing positions of topic %r: %s", self._topic, error)
        else:
            self._asked = (uptime(), commits)
        return True

    def answered(self, error: KafkaError | None, partitions: Iterable[TopicPartition]) -> None:
        """Note the answer to :meth:`send`."""
        if self._asked is None:
            return
        (since, commits), self._asked = self._asked, None
        failures = {each.partition: each.error for each in partitions if each.error is not None}
        if error is None:
            for commit in commits:
                if commit.claim.partition not in failures:
                    commit.claim.committed = (commit.offset, commit.metadata)
        reasons = [each for each in (error, *failures.values()) if each is not None]
        if not reasons:
            self._group.is_member(since)
        elif any(map(_is_too_long, reasons)):
            self._shorten(commits)
        for reason in reasons:
            if not _is_too_long(reason):
                self._group.is_troubled(reason)

    def _shorten(self, commits: Iterable[Commit]) -> None:
        """Note that the broker is set to take less metadata than the longest of *commits* has."""
        self._limit = max(len(each.metadata) for each in commits) // 2

    def finish(self, native: Native, claims: Iterable[Claim]) -> None:
        """Commit the positions of *claims*, which have ended, and wait for the answer."""
        reasons: list[KafkaError] = []
        while commits := self._claims.commits(claims, self._limit):
            reasons = self._ask(native, commits)
            if not self._limit or not any(map(_is_too_long, reasons)):
                break
            self._shorten(commits)
        for reason in reasons:
            # Nothing is lost.  What was acknowledged since the commit before comes again.
            _log.info("the last positions of partitions that moved were not committed: %s", reason)

    def _ask(self, native: Native, commits: Iterable[Commit]) -> list[KafkaError]:
        """Commit, wait for the answer, and return the errors in it."""
        try:
            answers = native.commit(offsets=self._offsets(commits), asynchronous=False) or []
        except KafkaException as error:
            return [error.args[0]]
        return [each.error for each in answers if each.error is not None]

    def _offsets(self, commits: Iterable[Commit]) -> list[TopicPartition]:
        return [
            TopicPartition(self._topic, each.claim.partition, each.offset, metadata=each.metadata) for each in commits
        ]


def _is_too_long(error: KafkaError) -> bool:
    return error.code() == KafkaError.OFFSET_METADATA_TOO_LARGE
