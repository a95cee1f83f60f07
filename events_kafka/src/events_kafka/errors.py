"""The translation of Kafka's errors into :class:`~events_core.engine.BrokerError`: one table.

The names are those of ``confluent_kafka.KafkaError``.  Names with an underscore are librdkafka's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from confluent_kafka.cimpl import KafkaError, KafkaException

from events_core import ErrorCode
from events_core.engine import BrokerError

__all__ = ["broker_error", "making", "not_made", "translated"]

_NOT_MADE = (KafkaException, TypeError, ValueError, SystemError)
"""The exceptions of a client of confluent-kafka that cannot be made.

Before its constructor raises, it may call callbacks, and Python makes a ``SystemError`` of that (2.16, measured).
"""


class _Meaning(NamedTuple):
    code: ErrorCode
    retryable: bool = False
    advice: str = ""


_UNREACHABLE = _Meaning(ErrorCode.UNAVAILABLE, True, "check the network and the option bootstrap_servers")
_BUSY = _Meaning(ErrorCode.UNAVAILABLE, True)
_FINAL = _Meaning(ErrorCode.UNAVAILABLE)
# The engine sends no message again that has such a result of its own.  The application may.
_UNKNOWN_OUTCOME = _Meaning(ErrorCode.TIMEOUT, True, "the message may be stored or not")
_UNKNOWN_USER = _Meaning(
    ErrorCode.UNAUTHENTICATED, advice="check the options sasl_mechanism, username and password, and tls"
)
_FORBIDDEN = _Meaning(ErrorCode.PERMISSION_DENIED, advice="grant the user the operation by an access control list")
_MISSING = _Meaning(ErrorCode.NOT_FOUND, advice="create it, or set the option create")
_TOO_LARGE = _Meaning(ErrorCode.INVALID, advice="send less, or raise the topic's max.message.bytes")
_INVALID = _Meaning(ErrorCode.INVALID)
_INTERNAL = _Meaning(ErrorCode.INTERNAL)

_MEANINGS: dict[str, _Meaning] = {
    # The network, and brokers that start, stop or hand over
    "BROKER_NOT_AVAILABLE": _UNREACHABLE,
    "COORDINATOR_LOAD_IN_PROGRESS": _BUSY,
    "COORDINATOR_NOT_AVAILABLE": _BUSY,
    "ELIGIBLE_LEADERS_NOT_AVAILABLE": _BUSY,
    "FENCED_LEADER_EPOCH": _BUSY,
    "FETCH_SESSION_ID_NOT_FOUND": _BUSY,
    "INCONSISTENT_TOPIC_ID": _BUSY,
    "INVALID_FETCH_SESSION_EPOCH": _BUSY,
    "KAFKA_STORAGE_ERROR": _BUSY,
    "LEADER_NOT_AVAILABLE": _BUSY,
    "LISTENER_NOT_FOUND": _BUSY,
    "NETWORK_EXCEPTION": _UNREACHABLE,
    "NOT_CONTROLLER": _BUSY,
    "NOT_COORDINATOR": _BUSY,
    "NOT_ENOUGH_REPLICAS": _BUSY,
    "NOT_ENOUGH_REPLICAS_AFTER_APPEND": _BUSY,
    "NOT_LEADER_FOR_PARTITION": _BUSY,
    "OFFSET_NOT_AVAILABLE": _BUSY,
    "PREFERRED_LEADER_NOT_AVAILABLE": _BUSY,
    "REASSIGNMENT_IN_PROGRESS": _BUSY,
    "REBOOTSTRAP_REQUIRED": _BUSY,
    "REPLICA_NOT_AVAILABLE": _BUSY,
    "REQUEST_TIMED_OUT": _UNREACHABLE,
    "STALE_BROKER_EPOCH": _BUSY,
    "STALE_CTRL_EPOCH": _BUSY,
    "UNKNOWN_LEADER_EPOCH": _BUSY,
    "UNSTABLE_OFFSET_COMMIT": _BUSY,
    "_ALL_BROKERS_DOWN": _UNREACHABLE,
    "_DESTROY": _BUSY,
    "_DESTROY_BROKER": _BUSY,
    "_FAIL": _UNREACHABLE,
    "_INTR": _BUSY,
    "_IN_PROGRESS": _BUSY,
    "_ISR_INSUFF": _BUSY,
    "_NODE_UPDATE": _BUSY,
    # librdkafka says so if no partition has a leader.  A missing topic is found before (2.16, measured).
    "_NOENT": _BUSY,
    "_OUTDATED": _BUSY,
    "_PREV_IN_PROGRESS": _BUSY,
    "_RESOLVE": _UNREACHABLE,
    "_RETRY": _BUSY,
    "_TIMED_OUT": _UNREACHABLE,
    "_TIMED_OUT_QUEUE": _UNREACHABLE,
    "_TRANSPORT": _UNREACHABLE,
    "_UNKNOWN_BROKER": _BUSY,
    "_WAIT_CACHE": _BUSY,
    "_WAIT_COORD": _BUSY,
    # Consumer groups: the engine joins again
    "FENCED_INSTANCE_ID": _Meaning(
        ErrorCode.UNAVAILABLE, True, "another receiver uses the same static_member; give each its own name"
    ),
    "FENCED_MEMBER_EPOCH": _BUSY,
    "ILLEGAL_GENERATION": _BUSY,
    "MEMBER_ID_REQUIRED": _BUSY,
    "REBALANCE_IN_PROGRESS": _BUSY,
    "STALE_MEMBER_EPOCH": _BUSY,
    "UNKNOWN_MEMBER_ID": _BUSY,
    "UNRELEASED_INSTANCE_ID": _BUSY,
    "_ASSIGNMENT_LOST": _BUSY,
    "_MAX_POLL_EXCEEDED": _BUSY,
    "GROUP_MAX_SIZE_REACHED": _Meaning(ErrorCode.EXHAUSTED, True, "raise the broker's group.max.size"),
    "GROUP_SUBSCRIBED_TO_TOPIC": _Meaning(ErrorCode.INVALID, advice="close its receivers first"),
    "INCONSISTENT_GROUP_PROTOCOL": _Meaning(
        ErrorCode.INVALID, advice="its members use another group_protocol or partition.assignment.strategy"
    ),
    "NON_EMPTY_GROUP": _Meaning(ErrorCode.INVALID, advice="close its receivers first"),
    "UNSUPPORTED_ASSIGNOR": _Meaning(ErrorCode.INVALID, advice="check group.remote.assignor in the option librdkafka"),
    "INVALID_SESSION_TIMEOUT": _Meaning(
        ErrorCode.INVALID, advice="set session_timeout within the broker's group.min and group.max.session.timeout.ms"
    ),
    # The user and its permissions
    "DELEGATION_TOKEN_EXPIRED": _UNKNOWN_USER,
    "DELEGATION_TOKEN_NOT_FOUND": _UNKNOWN_USER,
    "ILLEGAL_SASL_STATE": _UNKNOWN_USER,
    "SASL_AUTHENTICATION_FAILED": _UNKNOWN_USER,
    "UNSUPPORTED_SASL_MECHANISM": _UNKNOWN_USER,
    "_AUTHENTICATION": _UNKNOWN_USER,
    "_SSL": _Meaning(ErrorCode.UNAUTHENTICATED, advice="check the options tls_…"),
    "CLUSTER_AUTHORIZATION_FAILED": _FORBIDDEN,
    "DELEGATION_TOKEN_AUTHORIZATION_FAILED": _FORBIDDEN,
    "GROUP_AUTHORIZATION_FAILED": _FORBIDDEN,
    "POLICY_VIOLATION": _Meaning(ErrorCode.PERMISSION_DENIED, advice="a policy of the cluster refuses it"),
    "TOPIC_AUTHORIZATION_FAILED": _FORBIDDEN,
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED": _FORBIDDEN,
    # Missing
    "GROUP_ID_NOT_FOUND": _MISSING,
    "RESOURCE_NOT_FOUND": _MISSING,
    "UNKNOWN_TOPIC_ID": _MISSING,
    "UNKNOWN_TOPIC_OR_PART": _MISSING,
    "_UNKNOWN_GROUP": _MISSING,
    "_UNKNOWN_PARTITION": _MISSING,
    "_UNKNOWN_TOPIC": _MISSING,
    # Wrong requests and messages
    "INVALID_COMMIT_OFFSET_SIZE": _INVALID,
    "INVALID_CONFIG": _INVALID,
    "INVALID_GROUP_ID": _INVALID,
    "INVALID_PARTITIONS": _INVALID,
    "INVALID_RECORD": _Meaning(ErrorCode.INVALID, advice="a compacted topic takes only messages with an ordering key"),
    "INVALID_REPLICATION_FACTOR": _Meaning(
        ErrorCode.INVALID, advice="set replication_factor to the number of brokers at most"
    ),
    "INVALID_REPLICA_ASSIGNMENT": _INVALID,
    "INVALID_TIMESTAMP": _INVALID,
    "MSG_SIZE_TOO_LARGE": _TOO_LARGE,
    "OFFSET_METADATA_TOO_LARGE": _INVALID,
    "RECORD_LIST_TOO_LARGE": _TOO_LARGE,
    "TOPIC_EXCEPTION": _INVALID,
    "_INVALID_ARG": _INVALID,
    "_INVALID_DIFFERENT_RECORD": _INVALID,
    # Beyond the means of the client, the broker or its version
    "SECURITY_DISABLED": _Meaning(ErrorCode.UNSUPPORTED),
    "THROTTLING_QUOTA_EXCEEDED": _Meaning(ErrorCode.EXHAUSTED, True),
    "TOPIC_DELETION_DISABLED": _Meaning(ErrorCode.UNSUPPORTED),
    "UNSUPPORTED_COMPRESSION_TYPE": _Meaning(ErrorCode.UNSUPPORTED, advice="set another compression"),
    "UNSUPPORTED_FOR_MESSAGE_FORMAT": _Meaning(ErrorCode.UNSUPPORTED),
    "UNSUPPORTED_VERSION": _Meaning(ErrorCode.UNSUPPORTED, advice="the broker is too old for it"),
    "_CRIT_SYS_RESOURCE": _Meaning(ErrorCode.EXHAUSTED, True),
    "_NOT_CONFIGURED": _Meaning(ErrorCode.UNSUPPORTED),
    "_NOT_IMPLEMENTED": _Meaning(ErrorCode.UNSUPPORTED),
    "_QUEUE_FULL": _Meaning(ErrorCode.EXHAUSTED, True),
    "_UNSUPPORTED_FEATURE": _Meaning(ErrorCode.UNSUPPORTED, advice="the broker is too old for it"),
    # The idempotent producer.  A retry by the engine would be another message to Kafka, so these are final.
    "DUPLICATE_SEQUENCE_NUMBER": _FINAL,
    "INVALID_PRODUCER_EPOCH": _FINAL,
    "OUT_OF_ORDER_SEQUENCE_NUMBER": _FINAL,
    "UNKNOWN_PRODUCER_ID": _FINAL,
    "_FATAL": _FINAL,
    "_FENCED": _FINAL,
    "_GAPLESS_GUARANTEE": _FINAL,
    "_MSG_TIMED_OUT": _UNKNOWN_OUTCOME,
    "_PURGE_INFLIGHT": _UNKNOWN_OUTCOME,
    "_PURGE_QUEUE": _BUSY,
}
"""The meaning of an error.  All others are bugs, of this backend or of another program, and become ``INTERNAL``."""


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
    meaning = _MEANINGS.get(error.name(), _INTERNAL)
    found = f"{error.str()} ({error.name()})"
    advice = f"; {meaning.advice}" if meaning.advice else ""
    result = BrokerError(f"{asked}: {found}{advice}", meaning.code, retryable=meaning.retryable)
    result.__cause__ = KafkaException(error)
    return result


@contextmanager
def making(secrets: Iterable[str]) -> Iterator[None]:
    """Enter to make a client of librdkafka, and turn its exceptions into a :class:`BrokerError` (:func:`not_made`)."""
    try:
        yield
    except _NOT_MADE as error:
        raise not_made(error, secrets) from None  # the cause may show a secret


def not_made(error: Exception, secrets: Iterable[str]) -> BrokerError:
    """Return the error for a client of librdkafka that cannot be made.

    :param secrets: the values of settings, which librdkafka may repeat.
    """
    reason: BaseException = error
    while isinstance(reason, SystemError) and reason.__cause__ is not None:
        reason = reason.__cause__
    found = reason.args[0] if reason.args else reason
    if isinstance(found, KafkaError) and found.code() == KafkaError.SASL_AUTHENTICATION_FAILED:
        return broker_error("get a token", found)
    text = found.str() if isinstance(found, KafkaError) else str(found)
    # librdkafka may repeat a single word of a list.
    words = {word.strip() for secret in secrets for word in (secret, *secret.split(","))} - {""}
    for word in sorted(words, key=len, reverse=True):
        text = re.sub(rf'"{re.escape(word)}"|(?<!\w){re.escape(word)}(?!\w)', "its value", text)
    return BrokerError(
        f"these settings cannot be used: {text}; check the options librdkafka, oauth_callback and tls_…",
        ErrorCode.INVALID,
    )
