"""A broker in a container, with the same settings as one that runs from its jars."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from events_core.testing import TcpProxy

from .broker_settings import LISTENERS, settings, write_certificates
from .jars import version
from .server import PASSWORD, STOP_TIMEOUT, USER, Missing, Server, await_answer, new_cluster_id, reserved_ports

IMAGE = os.environ.get("EVENTS_TEST_KAFKA_IMAGE", f"apache/kafka:{version()}")
_COMMAND = f"""
cd /opt/kafka/bin
./kafka-storage.sh format --ignore-formatted -t "$CLUSTER" -c /tests/server.properties \
    --add-scram 'SCRAM-SHA-256=[name={USER},password={PASSWORD}]' \
    --add-scram 'SCRAM-SHA-512=[name={USER},password={PASSWORD}]'
exec ./kafka-server-start.sh /tests/server.properties
"""


class Container(Server):
    """A broker in a container, which keeps its ports and its data when it is killed and started again."""

    is_ours = True

    def __init__(self, native: Any, addresses: dict[str, str], proxy: TcpProxy, certificates: Path) -> None:
        super().__init__(addresses["PLAINTEXT"])
        self.sasl, self.sasl_tls, self.tls = addresses["SASL"], addresses["SASLTLS"], addresses["TLS"]
        self.version = IMAGE.rpartition(":")[2]
        self.proxy = proxy
        self.certificates = certificates
        self._native = native

    def start(self) -> None:
        self._native.start()
        await_answer(self.address)

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
def container(folder: Path) -> Iterator[Server]:
    """Enter with a broker in a container.

    :param folder: an empty folder, which the container reads.
    :raises Missing: if there is no Docker, or not the image, or if the broker does not answer.
    """
    for question in (["info"], ["image", "inspect", IMAGE]):
        if not _succeeds(["docker", *question]):
            raise Missing(f"'docker {' '.join(question)}' fails")
    from testcontainers.core.container import DockerContainer  # needs a Docker engine to talk to

    with reserved_ports(len(LISTENERS)) as ports:
        pass  # free again: whether Docker could listen on a port that is kept was never tried
    inside = dict(zip(LISTENERS, ports, strict=True))
    addresses = {name: f"127.0.0.1:{port}" for name, port in inside.items()}
    write_certificates(folder / "certificates")
    with TcpProxy(addresses["PROXIED"]) as proxy:
        text = settings(
            node=1,
            voters={1: addresses["CONTROLLER"]},
            bound={name: f"0.0.0.0:{port}" for name, port in inside.items()},
            advertised={**addresses, "PROXIED": proxy.address},
            data="/tmp/kafka-data",
            certificates="/tests/certificates",
        )
        (folder / "server.properties").write_text(text)
        made = DockerContainer(IMAGE).with_volume_mapping(str(folder), "/tests").with_command(["sh", "-c", _COMMAND])
        made.with_env("CLUSTER", new_cluster_id())
        made.with_kwargs(entrypoint=[])
        for port in ports:
            made.with_bind_ports(port, port)
        with made as running:
            try:
                await_answer(addresses["PLAINTEXT"])
            except Missing as reason:  # the log goes with the container
                log = running.get_wrapped_container().logs()[-1500:].decode(errors="replace")
                raise Missing(f"{reason}: {log}") from None
            yield Container(running.get_wrapped_container(), addresses, proxy, folder / "certificates")


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
