"""The Pub/Sub emulator for tests: one that runs already, a container, or gcloud on this machine."""

from __future__ import annotations

import os
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from ..servers import server
from ..servers.container import started
from ..servers.finding import first
from ..servers.ports import reserved_address, reserved_ports
from ..servers.process import Process
from ..servers.server import Missing

IMAGE = os.environ.get("EVENTS_TEST_PUBSUB_IMAGE", "google/cloud-sdk:emulators")
COMMAND = ["gcloud", "beta", "emulators", "pubsub", "start"]


class Emulator(server.Server):
    """An emulator, which forgets everything when it ends."""

    def answers(self, timeout: float) -> bool:
        """Send a request over HTTP, and return True if there is an answer."""
        urllib.request.urlopen(f"http://{self.address}/", timeout=timeout).close()
        return True


def find_or_start(folder: Path) -> AbstractContextManager[Emulator]:
    """Enter with the emulator of the environment, or with a container, or with gcloud on this machine.

    :param folder: an empty folder for the emulator's files.
    :raises Missing: with all the reasons.
    """
    return first(["EVENTS_TEST_PUBSUB", "PUBSUB_EMULATOR_HOST"], Emulator, _container, partial(program, folder))


@contextmanager
def _container() -> Iterator[Emulator]:
    script = f"exec {' '.join(COMMAND)} --host-port=0.0.0.0:8085"
    with reserved_ports(1) as (port,), started(IMAGE, {8085: port}, script=script) as runner:
        emulator = Emulator(f"{runner.host}:{port}", runner)
        emulator.await_answer()
        yield emulator


@contextmanager
def program(folder: Path) -> Iterator[Emulator]:
    """Enter with gcloud on this machine.

    :param folder: an empty folder for all that it writes.
    :raises Missing: if there is no gcloud, or if the emulator does not answer.
    """
    if shutil.which(COMMAND[0]) is None:
        raise Missing(f"no program {COMMAND[0]!r}")
    with reserved_address() as address:
        process = Process([*COMMAND, f"--host-port={address}", f"--data-dir={folder}"], folder / "log")
        emulator = Emulator(address, process)
        try:
            emulator.start()
            yield emulator
        finally:
            emulator.kill()
