"""Errors: of the operating system, and for options that are not offered."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from events_acme import AcmeClient
from events_acme.errors import translated
from events_core import ErrorCode, EventConfig, EventError
from events_core.engine import BrokerError


@pytest.mark.parametrize(
    ("number", "code", "retryable"),
    [
        (errno.ENOENT, ErrorCode.NOT_FOUND, False),
        (errno.EACCES, ErrorCode.PERMISSION_DENIED, False),
        (errno.ENAMETOOLONG, ErrorCode.INVALID, False),
        (errno.ENOSPC, ErrorCode.EXHAUSTED, True),
        (errno.EIO, ErrorCode.UNAVAILABLE, True),
    ],
)
def test_errors_are_translated(number: int, code: ErrorCode, retryable: bool) -> None:
    """The text says what was asked and found, and only what may be over soon is retried."""
    with pytest.raises(BrokerError, match=f"look: {os.strerror(number)}; ") as caught, translated("look"):
        raise OSError(number, os.strerror(number))
    assert (caught.value.code, caught.value.retryable) == (code, retryable)


def test_what_is_not_offered_is_named(tmp_path: Path) -> None:
    """The error names the option that was given, and no other."""
    config = EventConfig("orders", options={"path": str(tmp_path), "start": "earliest"}, backend="acme")

    async def ping() -> None:
        async with AcmeClient(config) as client:
            await client.ping()

    with pytest.raises(EventError, match="start=earliest") as caught:
        asyncio.run(ping())
    assert caught.value.code is ErrorCode.UNSUPPORTED
    assert "dead_letter_topic" not in str(caught.value)
