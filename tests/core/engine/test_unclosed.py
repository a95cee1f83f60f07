"""Clients that were connected and never closed: a ``ResourceWarning`` names them, as Python's own resources do."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from events_core import EventConfig
from events_core.backends.memory import MemoryClient
from events_core.engine import EngineClient
from events_core.engine.home import Home
from events_core.engine.loop_thread import ThreadHome

from ..network_memory import NetworkClient, NetworkDriver

ROOT = Path(__file__).parents[3]
_topics = itertools.count()


def warned(use: Callable[[EngineClient], Awaitable[object]], kind: type[EngineClient] = MemoryClient) -> list[str]:
    """Use a client, let go of it, collect garbage; return the warnings of unclosed clients that this causes."""
    gc.collect()  # what other tests have left
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        home = _use(use, kind)
        gc.collect()
    if isinstance(home, ThreadHome) and caught:
        asyncio.run(home.stop(60))  # no client is left that could end its thread
    return [str(each.message) for each in caught if issubclass(each.category, ResourceWarning)]


def _use(use: Callable[[EngineClient], Awaitable[object]], kind: type[EngineClient]) -> Home:
    client = kind(EventConfig(f"unclosed-{next(_topics)}", backend="mine"))

    async def main() -> None:
        await use(client)

    asyncio.run(main())
    return client._home


def run(script: str) -> str:
    """Run *script* with warnings shown; return what it writes to standard error."""
    # The checkout comes last, for ``tests`` only: what was installed is what is tested.
    path = os.pathsep.join([*filter(None, sys.path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-P", "-W", "always::ResourceWarning", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("kind", [MemoryClient, NetworkClient], ids=["inline", "thread"])
def test_a_client_that_is_collected_unclosed_is_named(kind: type[EngineClient]) -> None:
    """C3: with what to do."""
    (warning,) = warned(EngineClient.ping, kind)
    assert f"unclosed client <{kind.__name__} mine 'unclosed-" in warning
    assert "async with" in warning


class _MaintainedDriver(NetworkDriver):
    maintenance_interval = 0.01


class _MaintainedClient(NetworkClient):
    api_version = 1
    driver_class = _MaintainedDriver


def test_maintenance_keeps_no_client() -> None:
    """C3: regular work at home does not hide that a client was not closed."""
    assert len(warned(EngineClient.ping, _MaintainedClient)) == 1


async def _use_and_close(client: EngineClient) -> None:
    await client.ping(60)
    await client.close()


def test_a_client_that_was_closed_is_not_named() -> None:
    """C3: however often garbage is collected."""
    assert warned(_use_and_close) == []


async def _leave_unused(client: EngineClient) -> None:
    assert not client.is_connected


def test_a_client_that_was_never_used_is_not_named() -> None:
    """C3: it has nothing that must be closed."""
    assert warned(_leave_unused, NetworkClient) == []


def test_the_warning_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """V1: the garbage collector may cause it while a log handler holds its lock."""
    caplog.set_level(logging.WARNING)
    assert len(warned(EngineClient.ping)) == 1
    assert caplog.records == []


def test_the_end_of_the_program_names_a_client_that_its_thread_keeps() -> None:
    """C3: a receiver's tasks keep its client from being collected."""
    errors = run(
        """
        import asyncio
        from events_core import EventConfig
        from tests.core.network_memory import NetworkClient

        async def main():
            client = NetworkClient(EventConfig("orders", backend="mine"))
            await client.subscribe("billing")

        asyncio.run(main())
        """
    )
    assert "unclosed client <NetworkClient mine 'orders'>" in errors


def test_a_forked_child_is_not_warned_of_its_parents_client() -> None:
    """T2: it could not close it."""
    errors = run(
        """
        import asyncio, os, sys
        from events_core import EventConfig
        from events_core.backends.memory import MemoryClient

        client = MemoryClient(EventConfig("orders", backend="mine"))
        asyncio.run(client.ping(60))
        child = os.fork()
        if child == 0:
            del client
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0
        asyncio.run(client.close())
        """
    )
    assert errors == ""
