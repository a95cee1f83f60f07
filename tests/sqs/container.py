"""Servers of SQS in containers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .server import REGION, STOP_TIMEOUT, Missing, Server, await_answer, reserved_port

MINISTACK = os.environ.get("EVENTS_TEST_MINISTACK_IMAGE", "ministackorg/ministack")
ELASTICMQ = os.environ.get("EVENTS_TEST_ELASTICMQ_IMAGE", "softwaremill/elasticmq-native")


class Container(Server):
    """A server in a container, which keeps its port when it is killed and started again."""

    is_ours = True

    def __init__(self, native: Any, url: str, name: str, image: str) -> None:
        super().__init__(url)
        self.name = name
        self.version = image.partition(":")[2]
        self._native = native

    def start(self) -> None:
        self._native.start()
        await_answer(self.url)

    def stop(self) -> None:
        self._native.stop(timeout=int(STOP_TIMEOUT))

    def kill(self) -> None:
        self._native.kill()
        self._native.wait(timeout=STOP_TIMEOUT)

    def pause(self) -> None:
        self._native.pause()

    def resume(self) -> None:
        self._native.unpause()

    def restore(self) -> None:
        self._native.reload()
        if self._native.status == "paused":
            self.resume()
        elif self._native.status != "running":
            self.start()


@contextmanager
def ministack(*, checks_access: bool = False) -> Iterator[Server]:
    """Enter with MiniStack in a container.

    :raises Missing: if there is no Docker, or not the image, or if the server does not answer.
    """
    variables = {"AUTH": str(checks_access).lower(), "MINISTACK_REGION": REGION}
    with _running("MiniStack", MINISTACK, 4566, variables) as server:
        yield server


@contextmanager
def elasticmq() -> Iterator[Server]:
    """Enter with ElasticMQ in a container.

    :raises Missing: as above.
    """
    with _running("ElasticMQ", ELASTICMQ, 9324, {}) as server:
        yield server


@contextmanager
def _running(name: str, image: str, port: int, variables: Mapping[str, str]) -> Iterator[Server]:
    for question in (["info"], ["image", "inspect", image]):
        if not _succeeds(["docker", *question]):
            raise Missing(f"'docker {' '.join(question)}' fails")
    from testcontainers.core.container import DockerContainer  # needs a Docker engine to talk to

    with reserved_port() as outside:
        pass  # free again: whether Docker could listen on a port that is kept was never tried
    made = DockerContainer(image).with_bind_ports(port, outside)
    for variable, value in variables.items():
        made.with_env(variable, value)
    with made as running:
        url = f"http://127.0.0.1:{outside}"
        try:
            await_answer(url)
        except Missing as reason:  # the log goes with the container
            log = running.get_wrapped_container().logs()[-1500:].decode(errors="replace")
            raise Missing(f"{reason}: {log}") from None
        yield Container(running.get_wrapped_container(), url, name, image)


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
