"""Sends that several tests share."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from events_core import ErrorCode, EventClient, EventError, EventMessage, PublishError


async def send_all_but_the_second(client: EventClient, batch: Sequence[EventMessage], *, refusal: str) -> None:
    """Send three messages, of which the second one alone is INVALID, with *refusal* in the error."""
    with pytest.raises(PublishError, match=refusal) as caught:
        await client.send_messages(batch)
    first, second, third = caught.value.results
    assert isinstance(second, EventError)
    assert second.code is ErrorCode.INVALID
    assert isinstance(first, str)
    assert isinstance(third, str)
