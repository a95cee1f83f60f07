"""Tests without a server are skipped, or fail where the server is required."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .server import Missing


@contextmanager
def required(name: str) -> Iterator[None]:
    """Skip the test if there is :class:`Missing` inside; fail if EVENTS_TEST_REQUIRE names *name*."""
    try:
        yield
    except Missing as reason:
        if name in os.environ.get("EVENTS_TEST_REQUIRE", "").split(","):
            pytest.fail(f"no server ({name}): {reason}")
        pytest.skip(f"no server ({name}): {reason}")
