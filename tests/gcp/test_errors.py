"""The translation of failures into the library's errors."""

from __future__ import annotations

import grpc
import pytest

from events_core import (
    ErrorCode,
)
from events_core.engine import BrokerError
from events_gcp.errors import readable, translated


@pytest.mark.parametrize("status", [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK])
def test_every_status_has_a_meaning(status: grpc.StatusCode) -> None:
    """Each status of gRPC becomes a BrokerError that names the request and the answer, and has the cause."""
    native = grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(), details="the details")
    with pytest.raises(BrokerError, match=rf"ask: the details \({status.name}\)") as caught, translated("ask"):
        raise native
    assert caught.value.__cause__ is native


def test_an_answer_that_cannot_be_read_may_be_asked_for_again() -> None:
    """A damaged answer is INTERNAL and retryable, like gRPC's own status for it."""
    with pytest.raises(BrokerError, match="ask: the answer is damaged") as caught, translated("ask"):
        readable(None)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.INTERNAL, True)


def test_what_cannot_be_foreseen_is_internal() -> None:
    """Any other exception is a defect, and it is not retried."""
    with pytest.raises(BrokerError, match="ask: ZeroDivisionError") as caught, translated("ask"):
        raise ZeroDivisionError
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.INTERNAL, False)
