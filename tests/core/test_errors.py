"""Contract §5: the class says which operation failed, the code says why."""

from __future__ import annotations

import copy
import pickle

import pytest

import events_core
from events_core import (
    AcknowledgeError,
    BackendConflictError,
    BackendError,
    BackendLoadError,
    BackendNotFoundError,
    ConfigurationError,
    ErrorCode,
    EventConnectionError,
    EventError,
    EventRuntimeError,
    PublishError,
    ReceiveError,
)

CLASSES = [getattr(events_core, name) for name in events_core.__all__ if name.endswith("Error")]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_an_event_error(cls: type[EventError]) -> None:
    """One except clause catches all that the library raises."""
    assert issubclass(cls, EventError)


@pytest.mark.parametrize(
    ("cls", "also"),
    [
        (ConfigurationError, ValueError),
        (EventConnectionError, ConnectionError),
        (EventRuntimeError, RuntimeError),
        (BackendNotFoundError, BackendError),
        (BackendConflictError, BackendError),
        (BackendLoadError, BackendError),
    ],
)
def test_some_errors_are_builtin_ones_as_well(cls: type[EventError], also: type[Exception]) -> None:
    """The tree is the one of the contract."""
    assert issubclass(cls, also)


def test_operations_have_unrelated_classes() -> None:
    """No operation's error is caught as another's."""
    operations = (ConfigurationError, EventConnectionError, PublishError, ReceiveError, AcknowledgeError)
    assert not [(a, b) for a in operations for b in operations if a is not b and issubclass(a, b)]


def test_the_codes_are_those_of_the_contract() -> None:
    """A code is its own name as text, for logs and comparisons."""
    expected = (
        "INVALID NOT_FOUND PERMISSION_DENIED UNAUTHENTICATED UNAVAILABLE TIMEOUT EXHAUSTED ALREADY_SETTLED "
        "EXPIRED NOT_ATTEMPTED CLOSED WRONG_PROCESS UNSUPPORTED INTERNAL"
    )
    assert [str(code) for code in ErrorCode] == expected.split()


def test_an_error_says_why_and_where() -> None:
    """Code, retryable, backend and topic are attributes; the text is the message alone."""
    error = ReceiveError("gone", code=ErrorCode.NOT_FOUND, retryable=True, backend="gcp", topic_name="orders")
    assert str(error) == "gone"
    assert (error.code, error.retryable, error.backend, error.topic_name) == ("NOT_FOUND", True, "gcp", "orders")


def test_defaults_claim_nothing() -> None:
    """An error without particulars is internal, permanent and of no backend."""
    error = EventError("what")
    assert (error.code, error.retryable, error.backend, error.topic_name) == (ErrorCode.INTERNAL, False, "", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), ErrorCode.INVALID),
        (BackendNotFoundError("x"), ErrorCode.NOT_FOUND),
        (BackendConflictError("x"), ErrorCode.INVALID),
        (BackendLoadError("x"), ErrorCode.INTERNAL),
    ],
)
def test_some_classes_imply_their_code(error: EventError, code: ErrorCode) -> None:
    """What a class can mean only one way need not be said."""
    assert error.code is code


def test_located_fills_in_only_what_is_empty() -> None:
    """What an inner layer knew is kept."""
    error = EventError("x", backend="gcp").located("memory", "orders")
    assert (error.backend, error.topic_name) == ("gcp", "orders")


def test_a_publish_error_has_results_and_an_acknowledge_error_failures() -> None:
    """Both are empty where the call failed as a whole."""
    assert PublishError("x").results == ()
    assert AcknowledgeError("x").failed == {}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_survive_pickling(cls: type[EventError], duplicate: object) -> None:
    """A process pool hands on the class, the text and the particulars."""
    again = duplicate(cls("x", backend="gcp").located("", "orders"))  # type: ignore[operator]
    assert type(again) is cls
    assert (str(again), again.backend, again.topic_name, again.code) == ("x", "gcp", "orders", cls("x").code)


def test_particulars_survive_pickling() -> None:
    """Results and failures travel with their error."""
    publish = PublishError("x", results=["1", EventError("y", code=ErrorCode.INVALID)])
    settle = AcknowledgeError("x", failed={"7": EventError("y", code=ErrorCode.EXPIRED)})
    assert pickle.loads(pickle.dumps(publish)).results[1].code is ErrorCode.INVALID
    assert pickle.loads(pickle.dumps(settle)).failed["7"].code is ErrorCode.EXPIRED
