"""From gRPC's and Google's exceptions to the engine's: one table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import GoogleAuthError, TransportError
from grpc import RpcError, StatusCode  # type: ignore[import-untyped]

from events_core import ErrorCode
from events_core.engine import BrokerError

__all__ = ["translated"]


class _Meaning(NamedTuple):
    code: ErrorCode
    retryable: bool = False
    advice: str = ""


_UNREACHABLE = _Meaning(ErrorCode.UNAVAILABLE, True, "check the network, and the endpoint or emulator_host")
_UNKNOWN_CALLER = _Meaning(
    ErrorCode.UNAUTHENTICATED,
    advice="set credentials_file or emulator_host, or run 'gcloud auth application-default login'",
)
_INVALID = _Meaning(ErrorCode.INVALID)

# Retryable is what Google's own publisher retries (publisher/transports/base.py in google-cloud-pubsub 2.44.0).
_MEANINGS = {
    StatusCode.UNAVAILABLE: _UNREACHABLE,
    StatusCode.DEADLINE_EXCEEDED: _Meaning(ErrorCode.TIMEOUT, True),
    StatusCode.ABORTED: _Meaning(ErrorCode.UNAVAILABLE, True),
    StatusCode.CANCELLED: _Meaning(ErrorCode.UNAVAILABLE, True),
    StatusCode.INTERNAL: _Meaning(ErrorCode.INTERNAL, True),
    StatusCode.UNKNOWN: _Meaning(ErrorCode.INTERNAL, True),
    StatusCode.RESOURCE_EXHAUSTED: _Meaning(ErrorCode.EXHAUSTED, True, "ask for less, or for more quota"),
    StatusCode.NOT_FOUND: _Meaning(ErrorCode.NOT_FOUND, advice="create it, or let the option create do so"),
    StatusCode.PERMISSION_DENIED: _Meaning(
        ErrorCode.PERMISSION_DENIED,
        advice="grant the account roles/pubsub.publisher to send, roles/pubsub.subscriber and roles/pubsub.viewer to "
        "receive, roles/pubsub.editor to create",
    ),
    StatusCode.UNAUTHENTICATED: _UNKNOWN_CALLER,
    StatusCode.INVALID_ARGUMENT: _INVALID,
    StatusCode.OUT_OF_RANGE: _INVALID,
    StatusCode.FAILED_PRECONDITION: _INVALID,
    StatusCode.ALREADY_EXISTS: _INVALID,
    StatusCode.UNIMPLEMENTED: _Meaning(ErrorCode.UNSUPPORTED),
}


@contextmanager
def translated(asked: str) -> Iterator[None]:
    """Raise whatever goes wrong inside as a :class:`BrokerError` that says what was *asked*."""
    try:
        yield
    except BrokerError:
        raise
    except Exception as error:
        meaning, found = _meaning(error)
        advice = f"; {meaning.advice}" if meaning.advice else ""
        raise BrokerError(f"{asked}: {found}{advice}", meaning.code, retryable=meaning.retryable) from error


def _meaning(error: Exception) -> tuple[_Meaning, str]:
    match error:
        case GoogleAPICallError():
            status, details = error.grpc_status_code, error.message
        case RpcError():  # in truth a grpc.aio.AioRpcError
            status, details = error.code(), error.details()
        case TransportError():
            return _UNREACHABLE, str(error)
        case TimeoutError():
            return _UNREACHABLE, "no answer"
        case GoogleAuthError():
            return _UNKNOWN_CALLER, str(error)
        case _:
            return _Meaning(ErrorCode.INTERNAL), repr(error)
    return _MEANINGS.get(status, _Meaning(ErrorCode.INTERNAL)), f"{details} ({status.name if status else 'no status'})"
