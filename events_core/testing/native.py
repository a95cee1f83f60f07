"""N1: the broker's own connection and messages, for what the library does not offer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from events_core import ErrorCode, EventClient, EventRuntimeError
from events_core.testing.rules import rule
from events_core.testing.stage import Stage, numbered

__all__ = ["Native"]


class _OwnError(Exception):
    """An exception of the application's own."""


async def _gives_access(client: EventClient) -> bool:
    """Return whether *client* gives access to its connection; if not, it must say so with ``UNSUPPORTED``."""

    async def look(connection: Any) -> bool:
        return connection is not None

    try:
        has_connection = await client.run_native(look)
    except EventRuntimeError as error:
        refused = error.code
    else:
        assert has_connection, "there is access, but no connection"
        return True
    assert refused is ErrorCode.UNSUPPORTED
    return False


class Native:
    """Reaching behind the library."""

    @rule("N1")
    async def test_the_result_of_native_work_comes_back(self, stage: Stage) -> None:
        """With access to the broker's connection the work's result comes back, otherwise UNSUPPORTED is raised."""
        client = stage.client()
        if not await _gives_access(client):
            return
        result = object()

        async def work(connection: Any) -> object:
            await asyncio.sleep(0)
            return result

        assert await client.run_native(work) is result

    @rule("N1")
    async def test_a_failure_of_native_work_comes_back_unchanged(self, stage: Stage) -> None:
        """It belongs to the application, so it is no error of the library, and the client stays usable."""
        client = stage.client()
        if not await _gives_access(client):
            return
        failure = _OwnError("mine")

        async def work(connection: Any) -> None:
            raise failure

        with pytest.raises(_OwnError) as caught:
            await client.run_native(work)
        assert caught.value is failure
        assert await client.send_message(*numbered(1))

    @rule("N1")
    async def test_native_work_ends_with_its_time(self, stage: Stage) -> None:
        """It is cancelled when its timeout is over, and the client stays usable."""
        client = stage.client()
        if not await _gives_access(client):
            return
        cancelled: list[bool] = []

        async def work(connection: Any) -> None:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        with pytest.raises(TimeoutError):
            await client.run_native(work, timeout=2)
        await stage.until(lambda: bool(cancelled), stage.harness.patience)
        assert cancelled == [True]
        assert await client.send_message(*numbered(1))

    @rule("N1", "C3")
    async def test_native_work_is_refused_after_a_close(self, stage: Stage) -> None:
        """The connection is gone, so nothing is called."""
        client = stage.client()
        if not await _gives_access(client):
            return
        await client.close()
        called: list[object] = []

        async def work(connection: Any) -> None:
            called.append(connection)

        with pytest.raises(EventRuntimeError) as caught:
            await client.run_native(work)
        assert caught.value.code is ErrorCode.CLOSED
        assert called == []

    @rule("N1")
    async def test_a_message_has_a_native_form_or_says_that_it_has_none(self, stage: Stage) -> None:
        """A received message gives the broker's own form of it, or UNSUPPORTED is raised."""
        client, receiver = await stage.open()
        await client.send_message(*numbered(1))
        message = await stage.receive(receiver)
        try:
            native = client.native_message(message)
        except EventRuntimeError as error:
            native = error.code
        assert native is not None
        assert not isinstance(native, ErrorCode) or native is ErrorCode.UNSUPPORTED
