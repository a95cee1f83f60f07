"""Every error of Kafka has a meaning."""

from __future__ import annotations

import re

import pytest
from confluent_kafka import KafkaError, KafkaException

from events_core import ErrorCode
from events_core.engine import BrokerError
from events_kafka.errors import broker_error, not_made, translated

CODES = {
    name: code
    for name in dir(KafkaError)
    if isinstance(code := getattr(KafkaError, name), int) and name.lstrip("_").isupper()
}

# A program of this library never causes these: transactions, shares, streams, serializers, administration of clusters.
UNFORESEEN = """
    CONCURRENT_TRANSACTIONS DELEGATION_TOKEN_AUTH_DISABLED DELEGATION_TOKEN_OWNER_MISMATCH
    DELEGATION_TOKEN_REQUEST_NOT_ALLOWED DUPLICATE_RESOURCE DUPLICATE_VOTER ELECTION_NOT_NEEDED
    FEATURE_UPDATE_FAILED FENCED_STATE_EPOCH INCONSISTENT_VOTER_SET INVALID_MSG INVALID_MSG_SIZE
    INVALID_PRINCIPAL_TYPE INVALID_PRODUCER_ID_MAPPING INVALID_RECORD_STATE INVALID_REGISTRATION
    INVALID_REGULAR_EXPRESSION INVALID_REQUEST INVALID_REQUIRED_ACKS INVALID_SHARE_SESSION_EPOCH
    INVALID_TRANSACTION_TIMEOUT INVALID_TXN_STATE INVALID_UPDATE_VERSION INVALID_VOTER_KEY LOG_DIR_NOT_FOUND
    MISMATCHED_ENDPOINT_TYPE NO_ERROR NO_REASSIGNMENT_IN_PROGRESS OFFSET_OUT_OF_RANGE OPERATION_NOT_ATTEMPTED
    PRINCIPAL_DESERIALIZATION_FAILURE PRODUCER_FENCED SHARE_SESSION_LIMIT_REACHED SHARE_SESSION_NOT_FOUND
    STREAMS_INVALID_TOPOLOGY STREAMS_INVALID_TOPOLOGY_EPOCH STREAMS_TOPOLOGY_FENCED TELEMETRY_TOO_LARGE
    TOPIC_ALREADY_EXISTS TRANSACTION_ABORTABLE TRANSACTION_COORDINATOR_FENCED UNACCEPTABLE_CREDENTIAL UNKNOWN
    UNKNOWN_CONTROLLER_ID UNKNOWN_SUBSCRIPTION_ID UNSUPPORTED_ENDPOINT_TYPE VOTER_NOT_FOUND _APPLICATION
    _ASSIGN_PARTITIONS _AUTO_OFFSET_RESET _BAD_COMPRESSION _BAD_MSG _CONFLICT _EXISTING_SUBSCRIPTION _FS
    _INCONSISTENT _INVALID_TYPE _KEY_DESERIALIZATION _KEY_SERIALIZATION _LOG_TRUNCATION _NOOP _NO_OFFSET
    _PARTIAL _PARTITION_EOF _READ_ONLY _REVOKE_PARTITIONS _STATE _UNDERFLOW _UNKNOWN_PROTOCOL
    _VALUE_DESERIALIZATION _VALUE_SERIALIZATION
"""


def test_every_error_is_in_the_table_or_unforeseen() -> None:
    """An error that a new version of confluent-kafka adds must be thought about."""
    unknown = {name for name, code in CODES.items() if broker_error("ask", KafkaError(code)).code is ErrorCode.INTERNAL}
    assert unknown == {name for name in UNFORESEEN.split() if name in CODES}


@pytest.mark.parametrize(
    ("name", "code", "retryable"),
    [
        ("_TRANSPORT", ErrorCode.UNAVAILABLE, True),
        ("_MSG_TIMED_OUT", ErrorCode.TIMEOUT, True),
        ("_PURGE_INFLIGHT", ErrorCode.TIMEOUT, True),
        ("UNKNOWN_TOPIC_OR_PART", ErrorCode.NOT_FOUND, False),
        ("TOPIC_AUTHORIZATION_FAILED", ErrorCode.PERMISSION_DENIED, False),
        ("SASL_AUTHENTICATION_FAILED", ErrorCode.UNAUTHENTICATED, False),
        ("MSG_SIZE_TOO_LARGE", ErrorCode.INVALID, False),
        ("_QUEUE_FULL", ErrorCode.EXHAUSTED, True),
        ("OUT_OF_ORDER_SEQUENCE_NUMBER", ErrorCode.UNAVAILABLE, False),
    ],
)
def test_an_error_says_what_was_asked_and_found(name: str, code: ErrorCode, retryable: bool) -> None:
    """The text has the request and Kafka's name of the error, and the cause is Kafka's own exception."""
    error = broker_error("send to topic 'orders'", KafkaError(CODES[name]))
    assert (error.code, error.retryable) == (code, retryable)
    assert str(error).startswith("send to topic 'orders': ")
    assert name in str(error)
    assert isinstance(error.__cause__, KafkaException)


def test_an_exception_is_translated() -> None:
    """Code inside the context manager raises BrokerError in place of KafkaException."""
    with pytest.raises(BrokerError, match="ask: ") as caught, translated("ask"):
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ('Invalid value "s3cret" for configuration property "debug"', 'Invalid value its value for .* "debug"'),
        ("Unsupported partition.assignment.strategy: s3cret", "Unsupported .*: its value;"),
        ("value 99999999 is outside allowed range 1..100", r"value its value is outside allowed range 1\.\.100"),
        ("s3cretary", "s3cretary"),
    ],
    ids=["quoted", "bare", "number", "other word"],
)
def test_a_client_that_cannot_be_made_shows_no_setting(found: str, told: str) -> None:
    """O2: the text has what librdkafka says, without the values that the option librdkafka has."""
    error = KafkaException(KafkaError(KafkaError._INVALID_ARG, found))
    refusal = not_made(error, ["", "roundrobin, s3cret", "99999999"])
    assert refusal.code is ErrorCode.INVALID
    assert re.search(told, str(refusal))


def test_a_client_that_fails_while_it_calls_back_is_not_made() -> None:
    """Python turns the exception of a constructor into SystemError if a callback was called meanwhile."""
    error = SystemError("note returned a result with an exception set")
    error.__cause__ = KafkaException(KafkaError(KafkaError.SASL_AUTHENTICATION_FAILED))
    assert not_made(error, []).code is ErrorCode.UNAUTHENTICATED
