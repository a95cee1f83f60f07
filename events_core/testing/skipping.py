"""Tests that end without a verdict: the backend does not declare something, or nothing can show it.

For pytest, such a test is skipped.  Its state and the detail travel with the exception, so that the table of rules need
not read them out of the text that pytest prints.
"""

from __future__ import annotations

from typing import NoReturn

import pytest

__all__ = ["BY_CHANCE", "NO_WAIT", "SHORT_RUN", "finding_of", "not_applicable", "not_declared", "not_shown"]

SHORT_RUN = "a run of a key; one call returned only one message"
"""On a busy machine, messages may come late."""
NO_WAIT = "a cancellation of a call that did not wait this time"
"""A settlement that is only noted may be done before its call could wait for it."""
BY_CHANCE = (SHORT_RUN, NO_WAIT)
"""The details of *not shown* that depend on chance, so that no record has them."""


def not_declared(what: str) -> NoReturn:
    """End the test because the backend does not declare *what*."""
    _skip("not declared", what)


def not_applicable(why: str) -> NoReturn:
    """End the test because this broker cannot get into its situation, and say why."""
    _skip("not applicable", why)


def not_shown(what: str) -> NoReturn:
    """End the test because nothing here can show *what*."""
    _skip("not shown", what)


def _skip(state: str, detail: str) -> NoReturn:
    skipped = pytest.skip.Exception(f"{state}: {detail}")
    skipped.finding = state, detail  # type: ignore[attr-defined]  # for ``finding_of``
    raise skipped


def finding_of(skipped: BaseException) -> tuple[str, str] | None:
    """Return state and detail of a skip, or ``None`` if it is not one of those above."""
    return getattr(skipped, "finding", None)
