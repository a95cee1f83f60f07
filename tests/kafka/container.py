"""A broker in a container, with the same settings as one that runs from its jars."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from events_core.testing import TcpProxy

from ..servers.container import started
from ..servers.ports import reserved_ports
from .broker_settings import LISTENERS, settings, write_certificates
from .jars import version
from .server import PASSWORD, USER, OwnServer, Server, new_cluster_id

IMAGE = os.environ.get("EVENTS_TEST_KAFKA_IMAGE", f"apache/kafka:{version()}")
_SCRIPT = f"""
cd /opt/kafka/bin
./kafka-storage.sh format --ignore-formatted -t "$CLUSTER" -c /tests/server.properties \
    --add-scram 'SCRAM-SHA-256=[name={USER},password={PASSWORD}]' \
    --add-scram 'SCRAM-SHA-512=[name={USER},password={PASSWORD}]'
exec ./kafka-server-start.sh /tests/server.properties
"""


@contextmanager
def container(folder: Path) -> Iterator[Server]:
    """Enter with a broker in a container.

    :param folder: a folder in which it makes one for what the container reads.
    :raises Missing: if there is no Docker, or not the image, or if the broker does not answer.
    """
    own = folder / "container"
    own.mkdir()
    write_certificates(own / "certificates")
    with reserved_ports(len(LISTENERS)) as ports:
        inside = dict(zip(LISTENERS, ports, strict=True))
        addresses = {name: f"127.0.0.1:{port}" for name, port in inside.items()}
        with TcpProxy(addresses["PROXIED"]) as proxy:
            text = settings(
                node=1,
                voters={1: addresses["CONTROLLER"]},
                bound={name: f"0.0.0.0:{port}" for name, port in inside.items()},
                advertised={**addresses, "PROXIED": proxy.address},
                data="/tmp/kafka-data",
                certificates="/tests/certificates",
            )
            (own / "server.properties").write_text(text)
            same = dict(zip(ports, ports, strict=True))
            cluster = {"CLUSTER": new_cluster_id()}
            with started(IMAGE, same, environment=cluster, script=_SCRIPT, folder=own) as runner:
                server = OwnServer(addresses, runner, IMAGE.rpartition(":")[2], proxy, own / "certificates")
                server.await_answer()
                yield server
