"""The broker as one consumer finds it: whether it answers, and has the topic.

librdkafka tries again by itself after nearly every error, and does not say when it succeeds.  So after an error that
may be an outage, the consumer's thread asks the broker until it answers.

All of it runs in the consumer's thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from confluent_kafka.cimpl import Consumer as Native
from confluent_kafka.cimpl import KafkaError, KafkaException

from events_core.engine import BrokerError
from events_kafka.errors import broker_error

__all__ = ["Health"]

_log = logging.getLogger("events_kafka")

_ANSWER = 1.0
"""Seconds to wait for an answer of a broker that did not answer.  A close waits as long."""

_PAUSE = 0.5
"""Seconds between two questions to a broker that did not answer."""

_QUIET = 10.0
"""Seconds without records and answers after which the broker is asked too.  librdkafka may have lost it in silence."""

_OUTAGE = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)
"""Errors after which the thread asks whether the broker answers, and has the topic."""

_DENIED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.INCONSISTENT_GROUP_PROTOCOL,
        KafkaError.INVALID_SESSION_TIMEOUT,
        KafkaError.GROUP_MAX_SIZE_REACHED,
        KafkaError.UNSUPPORTED_VERSION,
    }
)
"""Errors that librdkafka repeats in vain, until somebody changes something."""


class Health:
    """What is known of the broker.

    :param failed: called with the reason why nothing can be received.
    :param recovered: called when the broker answers again.
    """

    def __init__(self, topic: str, failed: Callable[[BrokerError], None], recovered: Callable[[], None]) -> None:
        self._topic = topic
        self._failed = failed
        self._recovered = recovered
        self.is_down = False
        """True once the broker did not answer, until it does."""
        self._suspicion: KafkaError | None = None
        """The error because of which the broker is asked whether it answers."""
        self._next_question = 0.0
        self._heard = time.monotonic()
        """When the broker last gave a sign of life."""
        self._silent_since: float | None = None
        """When it first gave no answer to a question; ``None`` if it answers."""

    def heard(self) -> None:
        """Note that the broker has answered, or sent records."""
        self._heard = time.monotonic()
        self._silent_since = None

    @property
    def silence(self) -> float:
        """Seconds for which the broker has answered no question."""
        return 0.0 if self._silent_since is None else time.monotonic() - self._silent_since

    def forgive(self) -> None:
        """Begin to count the :attr:`silence` again."""
        if self._silent_since is not None:
            self._silent_since = time.monotonic()

    def note(self, error: KafkaError) -> None:
        """Note an error of librdkafka, which tries again by itself.

        :raises KafkaException: if it does not, because the error is fatal.
        """
        if error.fatal():
            raise KafkaException(error)
        if error.code() in _DENIED:
            self._report(error)
        elif error.code() in _OUTAGE:
            self.suspect(error)
        else:
            _log.debug("receiving from topic %r: %s", self._topic, error)

    def suspect(self, error: KafkaError) -> None:
        """Let :meth:`check` ask whether the broker answers."""
        self._suspicion = error

    def fail(self, error: KafkaError) -> None:
        """Note that the broker did not answer."""
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        self._go_down(error)

    def _go_down(self, error: KafkaError) -> None:
        self.is_down = True
        self._suspicion = error
        self._report(error)

    def _report(self, error: KafkaError) -> None:
        self._failed(broker_error(f"receive from topic {self._topic!r}", error))

    def check(self, native: Native, *, at_once: bool = False) -> None:
        """Find out whether the broker answers, if that is in doubt, or if nothing was heard for a while.

        :param at_once: do not wait a while between two questions.
        """
        now = time.monotonic()
        is_due = self._suspicion is not None or now > self._heard + _QUIET
        if not is_due or (now < self._next_question and not at_once):
            return
        self._next_question = now + _PAUSE
        try:
            error = native.list_topics(self._topic, timeout=_ANSWER).topics[self._topic].error
        except KafkaException as failure:
            self.fail(self._refusal or failure.args[0])
            return
        self.heard()
        if error is not None:
            self._go_down(error)
            return
        self._suspicion = None
        if self.is_down:
            self.is_down = False
            self._recovered()

    @property
    def _refusal(self) -> KafkaError | None:
        """The reason why the broker does not answer, if it refuses the user."""
        is_refused = self._suspicion is not None and self._suspicion.code() in (
            KafkaError._AUTHENTICATION,
            KafkaError._SSL,
        )
        return self._suspicion if is_refused else None
