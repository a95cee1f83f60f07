"""The translation of gRPC's and Google's exceptions into :class:`~events_core.engine.BrokerError`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from google.api_core.exceptions import from_grpc_error
from google.auth.exceptions import GoogleAuthError, TransportError
from google.protobuf.message import DecodeError
from grpc import RpcError, StatusCode  # type: ignore[import-untyped]

from events_core import ErrorCode
from events_core.engine import BrokerError

__all__ = ["readable", "refused_ack_ids", "translated"]


class _Meaning(NamedTuple):
    code: ErrorCode
    retryable: bool = False
    advice: str = ""


_UNREACHABLE = _Meaning(ErrorCode.UNAVAILABLE, True, "check the network, and the endpoint or emulator_host")
_UNKNOWN_CALLER = _Meaning(
    ErrorCode.UNAUTHENTICATED,
    advice="set credentials_file, credentials or emulator_host, or run 'gcloud auth application-default login'",
)
_INVALID = _Meaning(ErrorCode.INVALID)

# Google's own publisher retries the same codes (publisher/transports/base.py in google-cloud-pubsub 2.44.0).
_MEANINGS = {
    StatusCode.UNAVAILABLE: _UNREACHABLE,
    StatusCode.DEADLINE_EXCEEDED: _Meaning(ErrorCode.TIMEOUT, True),
    StatusCode.ABORTED: _Meaning(ErrorCode.UNAVAILABLE, True),
    StatusCode.CANCELLED: _Meaning(ErrorCode.UNAVAILABLE, True),
    StatusCode.INTERNAL: _Meaning(ErrorCode.INTERNAL, True),
    StatusCode.UNKNOWN: _Meaning(ErrorCode.INTERNAL, True),
    StatusCode.RESOURCE_EXHAUSTED: _Meaning(ErrorCode.EXHAUSTED, True, "send less, or ask for a higher quota"),
    StatusCode.NOT_FOUND: _Meaning(ErrorCode.NOT_FOUND, advice="create it, or set the option create"),
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
    """Turn every exception inside into a :class:`BrokerError` whose text begins with *asked*."""
    try:
        yield
    except BrokerError:
        raise
    except Exception as error:
        meaning, found = _meaning(error)
        advice = f"; {meaning.advice}" if meaning.advice else ""
        raise BrokerError(f"{asked}: {found}{advice}", meaning.code, retryable=meaning.retryable) from error


def readable(answer: Any) -> Any:
    """Return *answer* unless it is ``None``, which ``grpc.aio`` returns for an answer that it could not decode.

    :raises DecodeError: for ``None``.  gRPC's synchronous calls raise the status INTERNAL instead.
    """
    if answer is None:
        raise DecodeError("the answer is damaged and cannot be decoded")
    return answer


def refused_ack_ids(error: BrokerError) -> Mapping[str, BrokerError]:
    """Return the error of each delivery that a subscription with exactly-once delivery refused to settle.

    The result is empty if *error* concerns the request as a whole.
    """
    native = error.__cause__
    if not isinstance(native, RpcError):
        return {}
    try:
        info = from_grpc_error(native).metadata or {}  # type: ignore[no-untyped-call]
    except ValueError:  # the details contradict the status
        return {}
    refused = {}
    for ack_id, reason in info.items():
        # cloud.google.com/pubsub/docs/exactly-once-delivery: PERMANENT_FAILURE_… and TRANSIENT_FAILURE_…
        if reason.startswith("PERMANENT_FAILURE"):
            refused[ack_id] = BrokerError(
                f"Pub/Sub has ended this delivery, and its message usually comes again ({reason}); settle it sooner, "
                "or raise ack_deadline",
                ErrorCode.EXPIRED,
            )
        elif reason.startswith("TRANSIENT_FAILURE"):
            refused[ack_id] = BrokerError(f"not confirmed ({reason})", ErrorCode.UNAVAILABLE, retryable=True)
    return refused


# gRPC's text when it could not get a token, and words by which an authority refuses one.  Without these words, the
# authority could not be reached, and a retry may succeed.
_NO_TOKEN = "Getting metadata from plugin failed"
_REFUSED = re.compile(r"invalid_|unauthorized|[Rr]eauth|denied|not found")


def _meaning(error: Exception) -> tuple[_Meaning, str]:
    match error:
        case RpcError():  # in fact a grpc.aio.AioRpcError, which alone has these methods
            return _meaning_of(error.code(), error.details() or "")
        case TransportError():
            return _UNREACHABLE, str(error)
        case DecodeError():
            return _MEANINGS[StatusCode.INTERNAL], str(error)
        case TimeoutError():
            return _UNREACHABLE, "no answer"
        case GoogleAuthError() | OSError():  # for example, the credentials file cannot be read
            return _UNKNOWN_CALLER, str(error)
        case _:
            return _Meaning(ErrorCode.INTERNAL), repr(error)


def _meaning_of(status: StatusCode, details: str) -> tuple[_Meaning, str]:
    found = f"{details} ({status.name})"
    # gRPC reports a missing token as UNAVAILABLE, whatever the reason is.
    if _NO_TOKEN in details and _REFUSED.search(details):
        return _UNKNOWN_CALLER, found
    return _MEANINGS.get(status, _Meaning(ErrorCode.INTERNAL)), found
