"""The metrics of a client.  They have the names of the conventions, and one more for outages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from opentelemetry.metrics import Histogram, Meter

from events_core.errors import ErrorCode, EventError, PublishError
from events_core.integrations.opentelemetry.conventions import (
    CONSUMED,
    DURATION,
    DURATION_BOUNDARIES,
    ERROR_TYPE,
    PROCESS_DURATION,
    RECONNECT_DURATION,
    SENT,
    error_type,
)

__all__ = ["Facts", "Metrics"]

Facts = Mapping[str, str | int]
"""Attributes of spans and metrics."""


class Metrics:
    """The instruments of one meter; any thread may use them at any time."""

    def __init__(self, meter: Meter) -> None:
        def histogram(name: str, description: str) -> Histogram:
            return meter.create_histogram(
                name, "s", description, explicit_bucket_boundaries_advisory=DURATION_BOUNDARIES
            )

        self._duration = histogram(
            DURATION, "Duration of messaging operation initiated by a producer or consumer client."
        )
        self._process_duration = histogram(PROCESS_DURATION, "Duration of processing operation.")
        self._reconnect_duration = histogram(RECONNECT_DURATION, "Duration of an outage, as a receiver saw it.")
        self._sent = meter.create_counter(
            SENT, "{message}", "Number of messages producer attempted to send to the broker."
        )
        self._consumed = meter.create_counter(
            CONSUMED, "{message}", "Number of messages that were delivered to the application."
        )

    def operated(self, seconds: float, facts: Facts, error: BaseException | None) -> None:
        """Record a send, a receive or a settlement."""
        self._duration.record(seconds, _with_error(facts, error))

    def processed(self, seconds: float, facts: Facts, error: BaseException | None) -> None:
        """Record a run of a handler."""
        self._process_duration.record(seconds, _with_error(facts, error))

    def reconnected(self, seconds: float, facts: Facts, error: BaseException | None) -> None:
        """Record an outage."""
        self._reconnect_duration.record(seconds, _with_error(facts, error))

    def sent(self, messages: int, facts: Facts, error: BaseException | None) -> None:
        """Count messages by their outcome.  A message that was not attempted does not count."""
        for reason, count in _outcomes(messages, error).items():
            self._sent.add(count, {**facts, ERROR_TYPE: reason} if reason else facts)

    def consumed(self, messages: int, facts: Facts) -> None:
        """Count messages that were handed out."""
        self._consumed.add(messages, facts)


def _with_error(facts: Facts, error: BaseException | None) -> Facts:
    return facts if error is None else {**facts, ERROR_TYPE: error_type(error)}


def _outcomes(messages: int, error: BaseException | None) -> Counter[str]:
    """Return the number of messages for each ``error.type``; ``""`` stands for those that were sent."""
    if error is None:
        return Counter({"": messages})
    if not isinstance(error, PublishError) or not error.results:
        return Counter({error_type(error): messages})
    failures = [result if isinstance(result, EventError) else None for result in error.results]
    return Counter(
        "" if failure is None else error_type(failure)
        for failure in failures
        if failure is None or failure.code is not ErrorCode.NOT_ATTEMPTED
    )
