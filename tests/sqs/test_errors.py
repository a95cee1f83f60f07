"""Every error of AWS, and of its client library, has a meaning."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator

import aiohttp
import botocore.session
import pytest
from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError

from events_core import ErrorCode
from events_core.engine import BrokerError
from events_sqs.errors import entry_error, translated


def answer(code: str, *, status: int = 400, message: str = "as AWS wants it") -> ClientError:
    """Return the exception for an answer of AWS."""
    error = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(error, "Operation")  # type: ignore[arg-type]  # other parts have no meaning here


def meaning(error: Exception) -> BrokerError:
    with pytest.raises(BrokerError) as caught, translated("ask"):
        raise error
    assert caught.value.__cause__ is error
    return caught.value


def described(service: str) -> Iterator[str]:
    """Yield the code of each error that the description of a service names."""
    model = botocore.session.get_session().get_service_model(service)
    for name in model.operation_names:
        for shape in model.operation_model(name).error_shapes:
            yield shape.metadata.get("error", {}).get("code", shape.name)
            yield shape.name


@pytest.mark.parametrize("service", ["sqs", "sns"])
def test_every_error_of_a_service_is_in_the_table(service: str) -> None:
    """An error that a new version of botocore describes must be thought about."""
    # Of mobile phones and of the verification of numbers, which no operation of this library concerns.
    others = {"PlatformApplicationDisabled", "OptedOut", "Verification"}
    codes = {code for code in described(service) if code.removesuffix("Exception") not in others}
    assert len(codes) > 10
    assert {code for code in codes if meaning(answer(code)).code is ErrorCode.INTERNAL} == set()


def test_every_exception_of_botocore_has_a_meaning() -> None:
    """None becomes INTERNAL, whatever version raises it."""
    kinds = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, BotoCoreError)]
    assert len(kinds) > 50
    for kind in kinds:
        error = kind.__new__(kind)  # each has arguments of its own
        Exception.__init__(error, "text")
        assert meaning(error).code is not ErrorCode.INTERNAL, kind


@pytest.mark.parametrize(
    ("code", "status", "expected", "retryable"),
    [
        ("AWS.SimpleQueueService.NonExistentQueue", 400, ErrorCode.NOT_FOUND, False),
        ("QueueDoesNotExist", 400, ErrorCode.NOT_FOUND, False),
        ("com.amazonaws.sqs#QueueDoesNotExist", 400, ErrorCode.NOT_FOUND, False),
        ("NotFoundException", 404, ErrorCode.NOT_FOUND, False),
        ("AccessDenied", 403, ErrorCode.PERMISSION_DENIED, False),
        ("AuthorizationError", 403, ErrorCode.PERMISSION_DENIED, False),
        ("KMS.AccessDeniedException", 400, ErrorCode.PERMISSION_DENIED, False),
        ("KmsThrottled", 400, ErrorCode.EXHAUSTED, True),
        ("KMSThrottlingException", 400, ErrorCode.EXHAUSTED, True),
        ("ThrottlingException", 400, ErrorCode.EXHAUSTED, True),
        ("RequestThrottled", 403, ErrorCode.EXHAUSTED, True),
        ("OverLimit", 403, ErrorCode.EXHAUSTED, True),
        ("InvalidClientTokenId", 403, ErrorCode.UNAUTHENTICATED, False),
        ("ExpiredTokenException", 403, ErrorCode.UNAUTHENTICATED, False),
        ("SignatureDoesNotMatch", 403, ErrorCode.UNAUTHENTICATED, False),
        ("BatchRequestTooLong", 400, ErrorCode.INVALID, False),
        ("InvalidMessageContents", 400, ErrorCode.INVALID, False),
        ("QueueDeletedRecently", 400, ErrorCode.UNAVAILABLE, True),
        ("ReceiptHandleIsInvalid", 400, ErrorCode.EXPIRED, False),
        ("InternalFailure", 500, ErrorCode.UNAVAILABLE, True),
        ("RequestTimeout", 400, ErrorCode.TIMEOUT, True),
        ("", 503, ErrorCode.UNAVAILABLE, True),
        ("Novel", 500, ErrorCode.UNAVAILABLE, True),
        ("Novel", 429, ErrorCode.EXHAUSTED, True),
        ("Novel", 403, ErrorCode.PERMISSION_DENIED, False),
        ("Novel", 400, ErrorCode.INTERNAL, False),
    ],
)
def test_a_code_decides_or_the_status(code: str, status: int, expected: ErrorCode, retryable: bool) -> None:
    """The text has the request and the answer of AWS."""
    error = meaning(answer(code, status=status))
    assert (error.code, error.retryable) == (expected, retryable)
    assert str(error).startswith(f"ask: as AWS wants it ({code})")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Value AQEB for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.",
            ErrorCode.EXPIRED,
        ),
        ("Total VisibilityTimeout for the message is beyond the limit [43200 seconds]", ErrorCode.INVALID),
    ],
)
def test_an_old_receipt_handle_is_expired(text: str, expected: ErrorCode) -> None:
    """S3: FIFO says so with the same code as for any wrong parameter."""
    assert meaning(answer("InvalidParameterValue", message=text)).code is expected


def test_what_was_signed_is_not_shown() -> None:
    """O2: AWS quotes the request whose signature is wrong, and its headers have the session token."""
    text = "The signature we calculated does not match.\n\nThe Canonical String was\nx-amz-security-token:s3cret"
    with pytest.raises(BrokerError, match="does not match") as caught, translated("ask"):
        raise answer("SignatureDoesNotMatch", status=403, message=text)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("error", "expected", "retryable"),
    [
        (exceptions.EndpointConnectionError(endpoint_url="http://aws"), ErrorCode.UNAVAILABLE, True),
        (exceptions.ConnectionClosedError(endpoint_url="http://aws"), ErrorCode.UNAVAILABLE, True),
        (exceptions.ReadTimeoutError(endpoint_url="http://aws"), ErrorCode.TIMEOUT, True),
        (exceptions.ConnectTimeoutError(endpoint_url="http://aws"), ErrorCode.UNAVAILABLE, True),
        (exceptions.SSLError(endpoint_url="http://aws", error="EOF occurred"), ErrorCode.UNAVAILABLE, True),
        (
            exceptions.SSLError(endpoint_url="http://aws", error="[SSL: CERTIFICATE_VERIFY_FAILED] unknown"),
            ErrorCode.UNAUTHENTICATED,
            False,
        ),
        (exceptions.NoCredentialsError(), ErrorCode.UNAUTHENTICATED, False),
        (exceptions.ProfileNotFound(profile="shop"), ErrorCode.UNAUTHENTICATED, False),
        (exceptions.NoRegionError(), ErrorCode.INVALID, False),
        (aiohttp.ClientPayloadError("half an answer"), ErrorCode.UNAVAILABLE, True),
        (TimeoutError(), ErrorCode.TIMEOUT, True),
        (ConnectionResetError("reset"), ErrorCode.UNAVAILABLE, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_fails_on_the_way_has_a_meaning(error: Exception, expected: ErrorCode, retryable: bool) -> None:
    """F1: the network and the credentials, in the words of the client library."""
    found = meaning(error)
    assert (found.code, found.retryable) == (expected, retryable)


def test_the_password_of_a_proxy_is_not_shown() -> None:
    """O2: the exception has the URL of the proxy, so it is no cause that a traceback would show."""
    with pytest.raises(BrokerError, match="proxy") as caught, translated("ask"):
        raise exceptions.ProxyConnectionError(proxy_url="http://me:s3cret@proxy")
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("failed", "expected", "retryable"),
    [
        ({"Code": "InvalidMessageContents", "Message": "bad", "SenderFault": True}, ErrorCode.INVALID, False),
        ({"Code": "InternalError", "Message": "sorry", "SenderFault": False}, ErrorCode.UNAVAILABLE, True),
        ({"Code": "KmsThrottled", "SenderFault": True}, ErrorCode.EXHAUSTED, True),
        ({"Code": "Novel", "SenderFault": False}, ErrorCode.UNAVAILABLE, True),
        ({"Code": "Novel", "SenderFault": True}, ErrorCode.INTERNAL, False),
    ],
)
def test_a_failed_entry_has_a_meaning(failed: dict[str, object], expected: ErrorCode, retryable: bool) -> None:
    """P3: by the same table; what is not in it depends on whose fault it is."""
    error = entry_error("ask", failed)
    assert (error.code, error.retryable) == (expected, retryable)
