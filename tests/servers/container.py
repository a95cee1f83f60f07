"""Servers that run in containers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .server import STOP_TIMEOUT, Missing, Runner


class Container(Runner):
    """A container, which keeps its ports and its data when it is killed and started again.

    :param native: the container as the client of Docker knows it.
    :param host: the host where its ports are.
    """

    def __init__(self, native: Any, host: str) -> None:
        self.host = host
        self._native = native

    def start(self) -> None:
        self._native.start()

    def stop(self) -> None:
        self.resume()
        self._native.stop(timeout=int(STOP_TIMEOUT))

    def kill(self) -> None:
        if self.exit_code() is None:
            self._native.kill()
            self._native.wait(timeout=STOP_TIMEOUT)

    def pause(self) -> None:
        self._native.pause()

    def resume(self) -> None:
        if self._status() == "paused":
            self._native.unpause()

    def is_running(self) -> bool:
        return self._status() == "running"

    def exit_code(self) -> int | None:
        self._native.reload()
        state = self._native.attrs["State"]
        return None if state["Running"] else int(state["ExitCode"])  # a paused container counts as running

    def _status(self) -> str:
        self._native.reload()
        return str(self._native.status)

    def log(self) -> str:
        return bytes(self._native.logs())[-1500:].decode(errors="replace")

    def run(self, command: Sequence[str]) -> str:
        done = self._native.exec_run(list(command), demux=True)
        output, errors = ((part or b"").decode() for part in done.output)
        if done.exit_code:
            raise RuntimeError(f"{' '.join(command)}: {output}{errors}")
        return output


@contextmanager
def started(
    image: str,
    ports: Mapping[int, int],
    *,
    environment: Mapping[str, str] | None = None,
    script: str = "",
    folder: Path | None = None,
) -> Iterator[Container]:
    """Enter with a container, which has been started and is removed at the end.

    :param image: an image that is on this machine already.
    :param ports: the ports inside the container, and for each one the port of this machine.
    :param script: commands for the shell that run in place of the image's own program.
    :param folder: a folder that the container sees as ``/tests``.
    :raises Missing: if there is no Docker, or not the image, or if the container cannot be started.
    """
    for question in (["info"], ["image", "inspect", image]):
        if not _succeeds(["docker", *question]):
            raise Missing(f"'docker {' '.join(question)}' fails")
    from testcontainers.core.container import DockerContainer  # needs a Docker engine to talk to

    made = DockerContainer(image)
    for inside, outside in ports.items():
        made.with_bind_ports(inside, outside)  # Docker would choose another one after each start
    for name, value in (environment or {}).items():
        made.with_env(name, value)
    if script:
        made.with_command(["sh", "-c", script]).with_kwargs(entrypoint=[])
    if folder is not None:
        made.with_volume_mapping(str(folder), "/tests")
    with ExitStack() as stack:
        try:
            running = stack.enter_context(made)
        except Exception as reason:  # those of docker, requests and testcontainers have no class in common
            raise Missing(f"container of {image!r}: {reason}") from reason
        yield Container(running.get_wrapped_container(), running.get_container_host_ip())


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
