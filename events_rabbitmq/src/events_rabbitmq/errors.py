"""The translation of pika's exceptions into :class:`~events_core.engine.BrokerError`: one table."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pika import exceptions  # type: ignore[import-untyped]

from events_core import ErrorCode
from events_core.engine import BrokerError

__all__ = ["broker_error", "translated"]


class _Meaning(NamedTuple):
    code: ErrorCode
    retryable: bool = False
    advice: str = ""


_UNREACHABLE = _Meaning(ErrorCode.UNAVAILABLE, True, "check the network and the options of the address")
_BUSY = _Meaning(ErrorCode.UNAVAILABLE, True)

# Reply codes of AMQP 0-9-1 (section 1.2 of the specification), as RabbitMQ uses them.
_CODES = {
    311: _Meaning(ErrorCode.INVALID, advice="send smaller messages"),
    320: _BUSY,  # CONNECTION_FORCED: the server stops, or an operator has closed the connection
    402: _Meaning(ErrorCode.NOT_FOUND, advice="check the option virtual_host"),
    403: _Meaning(
        ErrorCode.PERMISSION_DENIED,
        advice="grant the user the permission: configure to create, write to send, read to receive",
    ),
    404: _Meaning(ErrorCode.NOT_FOUND, advice="create it, or set the option create"),
    405: _Meaning(ErrorCode.PERMISSION_DENIED, advice="another connection has the queue for itself"),
    406: _Meaning(ErrorCode.INVALID, advice="delete what exists, name another, or use it as it is with create=never"),
    501: _Meaning(ErrorCode.INVALID, advice="send smaller attributes"),  # FRAME_ERROR: a frame beyond frame_max
    504: _BUSY,  # CHANNEL_ERROR: a frame has crossed the close of its channel
    506: _Meaning(ErrorCode.EXHAUSTED, True),
    530: _Meaning(ErrorCode.PERMISSION_DENIED, advice="check the option virtual_host and the user's permissions"),
    540: _Meaning(ErrorCode.UNSUPPORTED),
    541: _BUSY,  # INTERNAL_ERROR: for example, a quorum queue has no leader for the moment
}

# RabbitMQ uses one code for several reasons.  The first text that fits decides.  It must not fit a name: texts quote
# names of queues, exchanges, virtual hosts and users, which may be any words.
_TEXTS = {
    (403, "Login was refused"): _Meaning(
        ErrorCode.UNAUTHENTICATED, advice="check the options username and password, or url"
    ),
    (403, "' in exclusive use"): _Meaning(
        ErrorCode.PERMISSION_DENIED, advice="another consumer has the queue for itself"
    ),
    (404, "is down or inaccessible"): _BUSY,  # the node of a classic queue is down
    (406, "larger than configured max"): _Meaning(
        ErrorCode.INVALID, advice="send less, or raise the server's max_message_size"
    ),
    (406, "delivery acknowledgement on channel"): _BUSY,  # consumer_timeout; the messages come again
    (530, " limit ("): _Meaning(ErrorCode.EXHAUSTED, True, "ask for a higher limit"),  # connections of a user or host
    (530, " limit of ("): _Meaning(ErrorCode.EXHAUSTED, True, "ask for a higher limit"),  # channels
    (530, " not found"): _CODES[402],
}

# The first type that fits decides.  The text is pika's own where there is none.
_KINDS = {
    exceptions.AuthenticationError: (
        _Meaning(ErrorCode.UNAUTHENTICATED, advice="add it to the server's auth_mechanisms"),
        "the server does not offer the mechanism PLAIN",
    ),
    exceptions.AMQPHeartbeatTimeout: (_UNREACHABLE, "the server gave no sign of life"),
    ssl.SSLError: (_Meaning(ErrorCode.UNAUTHENTICATED, advice="check the options tls_…"), ""),
    TimeoutError: (_UNREACHABLE, "no answer in time"),
    ConnectionRefusedError: (_UNREACHABLE, "connection refused"),
    OSError: (_UNREACHABLE, ""),
    exceptions.AMQPError: (_UNREACHABLE, ""),
}


@contextmanager
def translated(asked: str) -> Iterator[None]:
    """Turn an exception of pika or of the network inside into a :class:`BrokerError` whose text begins with *asked*."""
    try:
        yield
    except (exceptions.AMQPError, OSError, ValueError) as error:
        raise broker_error(asked, error) from error


def broker_error(asked: str, error: BaseException) -> BrokerError:
    """Return the error for a request that has failed with *error*, an exception of pika or of the network.

    :param asked: the request, for the text.
    """
    meaning, found = _meaning(error)
    advice = f"; {meaning.advice}" if meaning.advice else ""
    result = BrokerError(f"{asked}: {found}{advice}", meaning.code, retryable=meaning.retryable)
    result.__cause__ = error
    return result


def _meaning(error: BaseException) -> tuple[_Meaning, str]:
    if isinstance(error, exceptions.ConnectionClosedByBroker | exceptions.ChannelClosedByBroker):
        return _meaning_of(error.reply_code, error.reply_text)
    for kind, (meaning, text) in _KINDS.items():
        if isinstance(error, kind):
            return meaning, text or str(error) or type(error).__name__
    return _Meaning(ErrorCode.INTERNAL), repr(error)


def _meaning_of(code: int, text: str) -> tuple[_Meaning, str]:
    for (its_code, part), meaning in _TEXTS.items():
        if its_code == code and part in text:
            return meaning, text
    return _CODES.get(code, _Meaning(ErrorCode.INTERNAL)), f"{text} ({code})"
