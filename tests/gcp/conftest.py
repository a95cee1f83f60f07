"""The Pub/Sub emulator, which is found or started once for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..servers.requiring import required
from .console import Console
from .emulator import find_or_start
from .waiting import close_patiently


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield ``host:port`` of an emulator.  Without one, skip the tests, or fail if EVENTS_TEST_REQUIRE has gcp."""
    with required("gcp"), find_or_start(tmp_path_factory.mktemp("emulator")) as found:
        yield found.address


@pytest.fixture
def console(emulator: str) -> Iterator[Console]:
    """Yield the emulator with a new topic."""
    console = Console(emulator)
    console.publisher.create_topic(name=console.topic)
    yield console
    console.close()


@pytest.fixture
def patient_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every close give back all messages, however busy the machine is."""
    close_patiently(monkeypatch.setattr)
