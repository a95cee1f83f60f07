"""The translation of AWS's errors into :class:`~events_core.engine.BrokerError`: one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from events_core.engine import BrokerError

__all__ = ["entry_error", "translated"]


@contextmanager
def translated(asked: str) -> Iterator[None]:
    """Turn an exception of botocore or aiohttp inside into a :class:`BrokerError` whose text begins with *asked*."""
    yield


def entry_error(asked: str, failed: Mapping[str, Any]) -> BrokerError:
    """Return the error for a member of ``Failed`` in the answer to a batch request."""
    raise NotImplementedError
