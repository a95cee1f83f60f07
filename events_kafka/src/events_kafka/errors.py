"""The translation of Kafka's errors into :class:`~events_core.engine.BrokerError`: one table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaError, KafkaException

from events_core.engine import BrokerError

__all__ = ["broker_error", "translated"]


@contextmanager
def translated(asked: str) -> Iterator[None]:
    """Turn an exception of confluent-kafka inside into a :class:`BrokerError` whose text begins with *asked*."""
    try:
        yield
    except KafkaException as error:
        raise broker_error(asked, error.args[0]) from error


def broker_error(asked: str, error: KafkaError) -> BrokerError:
    """Return the error for a request that has failed with *error*.

    :param asked: the request, for the text.
    """
    raise NotImplementedError
