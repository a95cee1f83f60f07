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
    """One except clause catches every error of the library."""
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
    """The tree is that of the contract."""
    assert issubclass(cls, also)


def test_operations_have_unrelated_classes() -> None:
    """An except clause for one operation does not catch the error of another."""
    operations = (ConfigurationError, EventConnectionError, PublishError, ReceiveError, AcknowledgeError)
    assert not [(a, b) for a in operations for b in operations if a is not b and issubclass(a, b)]


def test_the_codes_are_those_of_the_contract() -> None:
    """A code is equal to its name, for logs and comparisons."""
    expected = (
        "INVALID NOT_FOUND PERMISSION_DENIED UNAUTHENTICATED UNAVAILABLE TIMEOUT EXHAUSTED ALREADY_SETTLED "
        "EXPIRED NOT_ATTEMPTED CLOSED WRONG_PROCESS UNSUPPORTED INTERNAL"
    )
    assert [str(code) for code in ErrorCode] == expected.split()


def test_an_error_says_why_and_where() -> None:
    """Code, retryable, backend and topic are attributes, and the text has only the message."""
    error = ReceiveError("gone", code=ErrorCode.NOT_FOUND, retryable=True, backend="gcp", topic_name="orders")
    assert str(error) == "gone"
    assert (error.code, error.retryable, error.backend, error.topic_name) == ("NOT_FOUND", True, "gcp", "orders")


def test_defaults_claim_nothing() -> None:
    """By default an error is internal and permanent, and names no backend."""
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
    """A class with only one possible code sets the code itself."""
    assert error.code is code


def test_located_fills_in_only_what_is_empty() -> None:
    """The name that an inner layer set stays."""
    error = EventError("x", backend="gcp").located("memory", "orders")
    assert (error.backend, error.topic_name) == ("gcp", "orders")


def test_a_publish_error_has_results_and_an_acknowledge_error_failures() -> None:
    """Both are empty if the whole call failed."""
    assert PublishError("x").results == ()
    assert AcknowledgeError("x").failed == {}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_survive_pickling(cls: type[EventError], duplicate: object) -> None:
    """A process pool passes on the class, the text and the attributes."""
    again = duplicate(cls("x", backend="gcp").located("", "orders"))  # type: ignore[operator]
    assert type(again) is cls
    assert (str(again), again.backend, again.topic_name, again.code) == ("x", "gcp", "orders", cls("x").code)


def test_particulars_survive_pickling() -> None:
    """Results and failures are pickled with their error."""
    publish = PublishError("x", results=["1", EventError("y", code=ErrorCode.INVALID)])
    settle = AcknowledgeError("x", failed={"7": EventError("y", code=ErrorCode.EXPIRED)})
    assert pickle.loads(pickle.dumps(publish)).results[1].code is ErrorCode.INVALID
    assert pickle.loads(pickle.dumps(settle)).failed["7"].code is ErrorCode.EXPIRED
