"""The translation of AWS's errors into :class:`~events_core.engine.BrokerError`: one table.

Sources, read November 2026: "Common error types" and the errors of each operation (SQS, SNS and STS API references),
``botocore.exceptions``.  The same error has several codes: SQS adds ``AWS.SimpleQueueService.`` for programs that know
its older protocol, and SNS and KMS add ``Exception`` or not.  The table has each without that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from aiohttp import ClientError as HTTPError
from aiohttp import ClientHttpProxyError
from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from events_core import ErrorCode
from events_core.engine import BrokerError

__all__ = ["entry_error", "translated"]


class _Meaning(NamedTuple):
    code: ErrorCode
    retryable: bool = False
    advice: str = ""


_DOWN = _Meaning(ErrorCode.UNAVAILABLE, True)
_UNREACHABLE = _Meaning(ErrorCode.UNAVAILABLE, True, "check the network and the options region, endpoint_url and proxy")
_SILENT = _Meaning(ErrorCode.TIMEOUT, True)
_THROTTLED = _Meaning(ErrorCode.EXHAUSTED, True, "the account or the queue has reached its rate")
_FULL = _Meaning(ErrorCode.EXHAUSTED, advice="remove some, or ask AWS for a larger quota")
_FORBIDDEN = _Meaning(
    ErrorCode.PERMISSION_DENIED, advice="allow the action by a policy of the user, the role or the queue"
)
_UNKNOWN = _Meaning(
    ErrorCode.UNAUTHENTICATED, advice="check the credentials: profile, role_arn, access_key_id or the environment"
)
_EXPIRED_TOKEN = _Meaning(ErrorCode.UNAUTHENTICATED, advice="get new credentials")
_PROXY = _Meaning(ErrorCode.UNAUTHENTICATED, advice="check the user and the password in the option proxy")
_SKEWED = _Meaning(ErrorCode.UNAUTHENTICATED, advice="check the clock of this machine and the secret access key")
_MISSING = _Meaning(ErrorCode.NOT_FOUND, advice="create it, or set the option create")
_LOST = _Meaning(ErrorCode.EXPIRED, advice="the message comes again, unless it was deleted before")
_INVALID = _Meaning(ErrorCode.INVALID)
_TOO_LARGE = _Meaning(
    ErrorCode.INVALID, advice="send less, or raise the MaximumMessageSize of the topic and its queues"
)
_EXISTS = _Meaning(ErrorCode.INVALID, advice="it exists with other attributes; change or delete it")
_KEY = _Meaning(ErrorCode.PERMISSION_DENIED, advice="check the KMS key of the topic or queue, and its policy")
_UNSUPPORTED = _Meaning(ErrorCode.UNSUPPORTED)
_INTERNAL = _Meaning(ErrorCode.INTERNAL)

_MEANINGS: dict[str, _Meaning] = {
    # AWS fails, or has too much to do
    "InternalError": _DOWN,
    "InternalFailure": _DOWN,
    "InternalServerError": _DOWN,
    "InternalService": _DOWN,
    "ServiceUnavailable": _DOWN,
    "RequestTimeout": _SILENT,
    "BandwidthLimitExceeded": _THROTTLED,
    "KMSThrottled": _THROTTLED,
    "KMSThrottling": _THROTTLED,
    "PriorRequestNotComplete": _THROTTLED,
    "PurgeQueueInProgress": _Meaning(ErrorCode.EXHAUSTED, True, "a queue can be purged once in 60 seconds"),
    "QueueDeletedRecently": _Meaning(
        ErrorCode.UNAVAILABLE, True, "a name is free 60 seconds after its queue was deleted"
    ),
    "RequestLimitExceeded": _THROTTLED,
    "RequestThrottled": _THROTTLED,
    "SlowDown": _THROTTLED,
    "Throttled": _THROTTLED,
    "Throttling": _THROTTLED,
    "TooManyRequests": _THROTTLED,
    "OverLimit": _Meaning(ErrorCode.EXHAUSTED, True, "too many messages of the queue are in flight; settle them"),
    "FilterPolicyLimitExceeded": _FULL,
    "LimitExceeded": _FULL,
    "ReplayLimitExceeded": _FULL,
    "SubscriptionLimitExceeded": _FULL,
    "TagLimitExceeded": _FULL,
    "TopicLimitExceeded": _FULL,
    # Credentials and permissions
    "AccessDenied": _FORBIDDEN,
    "AuthorizationError": _FORBIDDEN,
    "EndpointDisabled": _FORBIDDEN,
    "InvalidSecurity": _FORBIDDEN,
    "NotAuthorized": _FORBIDDEN,
    "OptInRequired": _FORBIDDEN,
    "UnauthorizedOperation": _FORBIDDEN,
    "ExpiredToken": _EXPIRED_TOKEN,
    "TokenRefreshRequired": _EXPIRED_TOKEN,
    "IncompleteSignature": _UNKNOWN,
    "InvalidAccessKeyId": _UNKNOWN,
    "InvalidClientTokenId": _UNKNOWN,
    "InvalidIdentityToken": _UNKNOWN,
    "InvalidToken": _UNKNOWN,
    "MissingAuthenticationToken": _UNKNOWN,
    "UnrecognizedClient": _UNKNOWN,
    "InvalidSignature": _SKEWED,
    "RequestExpired": _SKEWED,
    "RequestInTheFuture": _SKEWED,
    "RequestTimeTooSkewed": _SKEWED,
    "SignatureDoesNotMatch": _SKEWED,
    "KMSAccessDenied": _KEY,
    "KMSDisabled": _KEY,
    "KMSInvalidKeyUsage": _KEY,
    "KMSInvalidState": _KEY,
    "KMSNotFound": _KEY,
    "KMSOptInRequired": _KEY,
    # Missing, or not as it was
    "InvalidAddress": _MISSING,
    "NonExistentQueue": _MISSING,
    "NotFound": _MISSING,
    "QueueDoesNotExist": _MISSING,
    "ResourceNotFound": _MISSING,
    "StaleTag": _DOWN,
    "ConcurrentAccess": _DOWN,
    "MessageNotInflight": _LOST,
    "ReceiptHandleIsInvalid": _LOST,
    "QueueAlreadyExists": _EXISTS,
    "QueueNameExists": _EXISTS,
    # Wrong requests and messages
    "BatchEntryIdsNotDistinct": _INVALID,
    "BatchRequestTooLong": _TOO_LARGE,
    "EmptyBatchRequest": _INVALID,
    "InvalidAttributeName": _INVALID,
    "InvalidAttributeValue": _INVALID,
    "InvalidBatchEntryId": _INVALID,
    "InvalidIdFormat": _INVALID,
    "InvalidMessageContents": _INVALID,
    "InvalidParameter": _INVALID,
    "InvalidParameterCombination": _INVALID,
    "InvalidParameterValue": _INVALID,
    "InvalidQueryParameter": _INVALID,
    "InvalidState": _INVALID,
    "MalformedQueryString": _INVALID,
    "MissingParameter": _INVALID,
    "MissingRequiredParameter": _INVALID,
    "ParameterValueInvalid": _INVALID,
    "TagPolicy": _INVALID,
    "TooManyEntriesInBatchRequest": _INVALID,
    "UserError": _INVALID,
    "Validation": _INVALID,
    "ValidationError": _INVALID,
    "InvalidAction": _UNSUPPORTED,
    "MissingAction": _UNSUPPORTED,
    "NotImplemented": _UNSUPPORTED,
    "RegionDisabled": _UNSUPPORTED,
    "UnknownOperation": _UNSUPPORTED,
    "UnsupportedOperation": _UNSUPPORTED,
}
"""The meaning of a code.  For any other code, :data:`_STATUSES` or the class of the status decides."""

_STATUSES = {
    401: _UNKNOWN,
    403: _FORBIDDEN,
    404: _MISSING,
    407: _PROXY,
    408: _SILENT,
    413: _TOO_LARGE,
    429: _THROTTLED,
}

_PASSWORD = re.compile(r"//\S*@")
"""The part of a URL that may have a password."""

_REGION = _Meaning(ErrorCode.INVALID, advice="set the option region, such as us-east-1")
_LOCAL: tuple[tuple[type[Exception], _Meaning], ...] = (
    (exceptions.ReadTimeoutError, _SILENT),
    (exceptions.ConnectTimeoutError, _UNREACHABLE),
    (exceptions.SSLError, _UNREACHABLE),
    (exceptions.ConnectionError, _UNREACHABLE),
    (exceptions.HTTPClientError, _UNREACHABLE),
    (exceptions.IncompleteReadError, _DOWN),
    (exceptions.MetadataRetrievalError, _Meaning(ErrorCode.UNAVAILABLE, True, "the machine gives no credentials")),
    (ResponseParserError, _DOWN),
    (exceptions.NoCredentialsError, _UNKNOWN),
    (exceptions.PartialCredentialsError, _UNKNOWN),
    (exceptions.CredentialRetrievalError, _UNKNOWN),
    (exceptions.UnknownCredentialError, _UNKNOWN),
    (exceptions.TokenRetrievalError, _UNKNOWN),
    (exceptions.NoAuthTokenError, _UNKNOWN),
    (exceptions.SSOError, _UNKNOWN),
    (exceptions.LoginError, _UNKNOWN),
    (exceptions.ProfileNotFound, _UNKNOWN),
    (exceptions.NoRegionError, _REGION),
    (exceptions.UnknownRegionError, _REGION),
    (exceptions.InvalidRegionError, _REGION),
    (exceptions.BaseEndpointResolverError, _REGION),
    (exceptions.EndpointProviderError, _REGION),
    (BotoCoreError, _INVALID),
    (HTTPError, _UNREACHABLE),
    (TimeoutError, _SILENT),
    (OSError, _UNREACHABLE),
)
"""The meaning of exceptions that the client raises without an answer of AWS; the first one that fits counts."""

_BARE = {
    "credentials are still expired": _EXPIRED_TOKEN,
    "Invalid endpoint": _Meaning(ErrorCode.INVALID, advice="check AWS_ENDPOINT_URL; its host may have no '_'"),
}
"""The meaning of texts for which botocore has no class of its own: it raises ``RuntimeError`` or ``ValueError``."""


@contextmanager
def translated(asked: str) -> Iterator[None]:
    """Turn an exception of botocore or aiohttp inside into a :class:`BrokerError` whose text begins with *asked*."""
    try:
        yield
    except ClientError as error:
        answer = error.response
        found = answer.get("Error", {})
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        # AWS may quote the request that was signed, with its session token.  A traceback would show it.
        shown = None if "\n" in found.get("Message", "") else error
        raise _error(asked, found.get("Code", ""), found.get("Message", ""), status) from shown
    except (BotoCoreError, ResponseParserError, HTTPError, OSError) as error:
        raise _local_error(asked, error) from _shown(error)
    except (RuntimeError, ValueError) as error:
        meaning = next((meaning for text, meaning in _BARE.items() if text in str(error)), None)
        if meaning is None:
            raise
        text = _PASSWORD.sub("//", str(error)).rstrip(".")
        raise BrokerError(f"{asked}: {text}; {meaning.advice}", meaning.code) from _shown(error)


def entry_error(asked: str, failed: Mapping[str, Any]) -> BrokerError:
    """Return the error for a member of ``Failed`` in the answer to a batch request."""
    status = 400 if failed.get("SenderFault", True) else 500
    return _error(asked, failed.get("Code", ""), failed.get("Message", ""), status)


def _error(asked: str, code: str, message: str, status: int) -> BrokerError:
    meaning = _meaning(code, message, status)
    # Only the first line: the others may have the request that was signed, with its session token.
    found = message.partition("\n")[0][:500].rstrip(".") or f"HTTP status {status}"
    advice = f"; {meaning.advice}" if meaning.advice else ""
    return BrokerError(f"{asked}: {found} ({code}){advice}", meaning.code, retryable=meaning.retryable)


def _meaning(code: str, message: str, status: int) -> _Meaning:
    name = code.rpartition("#")[2].removeprefix("AWS.SimpleQueueService.").removesuffix("Exception")
    name = name.replace("Kms", "KMS").replace("KMS.", "KMS")
    if name.startswith("InvalidParameter") and "receipt" in message.lower():
        return _LOST  # FIFO answers so to a handle whose visibility timeout is over
    meaning = _MEANINGS.get(name) or _STATUSES.get(status)
    if meaning is None:
        meaning = _DOWN if status >= 500 else _INTERNAL
    return meaning


def _local_error(asked: str, error: Exception) -> BrokerError:
    meaning = next(meaning for kind, meaning in _LOCAL if isinstance(error, kind))
    if isinstance(error, exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        meaning = _Meaning(ErrorCode.UNAUTHENTICATED, advice="set AWS_CA_BUNDLE to the file of its authority")
    text = str(error).partition("\n")[0][:500].rstrip(".") or type(error).__name__
    text = _PASSWORD.sub("//", text)
    if isinstance(error, (exceptions.ProxyConnectionError, exceptions.InvalidProxiesConfigError)):
        text = "cannot connect to the proxy"
        refusal = error.__context__
        if isinstance(refusal, ClientHttpProxyError) and refusal.status == 407:
            text, meaning = "the proxy refuses the credentials in its URL", _PROXY
    advice = f"; {meaning.advice}" if meaning.advice else ""
    return BrokerError(f"{asked}: {text}{advice}", meaning.code, retryable=meaning.retryable)


def _shown(error: Exception) -> Exception | None:
    """Return *error* as the cause of another; ``None`` if its traceback would show the password of the proxy."""
    behind: BaseException | None = error
    while behind is not None:
        if _PASSWORD.search(str(behind)):
            return None
        behind = behind.__cause__ or behind.__context__
    return error
