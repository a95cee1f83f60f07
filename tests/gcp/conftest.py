"""The Pub/Sub emulator, which is found or started once for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .console import Console
from .servers import Missing, container, find_or_start, program, reserved_address

IMAGE = os.environ.get("EVENTS_TEST_PUBSUB_IMAGE", "google/cloud-sdk:emulators")
COMMAND = "gcloud beta emulators pubsub start --host-port="


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield ``host:port`` of an emulator.  Without one, skip the tests, or fail if EVENTS_TEST_REQUIRE has gcp."""
    folder = tmp_path_factory.mktemp("emulator")
    starters = [lambda: container(IMAGE, f"{COMMAND}0.0.0.0:8085", 8085), lambda: _gcloud(folder)]
    try:
        with find_or_start(["EVENTS_TEST_PUBSUB", "PUBSUB_EMULATOR_HOST"], starters) as address:
            yield address
    except Missing as reason:
        if "gcp" in os.environ.get("EVENTS_TEST_REQUIRE", "").split(","):
            pytest.fail(f"no Pub/Sub emulator: {reason}")
        pytest.skip(f"no Pub/Sub emulator: {reason}")


@contextmanager
def _gcloud(folder: Path) -> Iterator[str]:
    with (
        reserved_address() as address,
        program([*f"{COMMAND}{address} --data-dir={folder}".split()], address, folder / "log"),
    ):
        yield address


@pytest.fixture
def console(emulator: str) -> Iterator[Console]:
    """Yield the emulator with a new topic."""
    console = Console(emulator)
    console.publisher.create_topic(name=console.topic)
    yield console
    console.close()
