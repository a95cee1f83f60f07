"""Brokers that run on this machine from their jars, alone or several as a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from events_core.testing import TcpProxy

from ..maven import NotFetched
from ..servers.ports import reserved_ports
from ..servers.process import Process, run
from ..servers.server import Missing
from .broker_settings import LISTENERS, settings, write_certificates
from .jars import jars, version
from .server import PASSWORD, USER, OwnServer, Server, new_cluster_id

_JAVA = [
    "java",
    "-XX:TieredStopAtLevel=1",  # starts in half of the time
    "-XX:+UseSerialGC",
    "-Xmx512m",
    "-XX:-UsePerfData",  # no file in a folder that all users share
]
_LOGGING = """
rootLogger.level=warn
rootLogger.appenderRef.stdout.ref=STDOUT
appender.console.type=Console
appender.console.name=STDOUT
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=[%d] %p %m (%c)%n
"""


@contextmanager
def program(folder: Path, extra: Sequence[str] = ()) -> Iterator[Server]:
    """Enter with a broker that runs alone.

    :param folder: a folder in which it makes one for the broker.
    :param extra: more lines for its ``server.properties``.
    """
    with cluster(folder, 1, extra) as (single,):
        yield single


@contextmanager
def cluster(folder: Path, size: int, extra: Sequence[str] = ()) -> Iterator[list[Server]]:
    """Enter with *size* brokers that form a cluster.

    :param folder: a folder in which it makes one for each broker.
    :param extra: more lines for the ``server.properties`` of each.
    """
    with ExitStack() as stack:
        ports = [stack.enter_context(reserved_ports(len(LISTENERS))) for _ in range(size)]
        voters = {node: f"127.0.0.1:{those[-1]}" for node, those in enumerate(ports, 1)}
        identity = new_cluster_id()
        brokers: list[Server] = []
        for node, those in enumerate(ports, 1):
            own = folder / f"node-{node}"
            own.mkdir()
            addresses = {name: f"127.0.0.1:{port}" for name, port in zip(LISTENERS, those, strict=True)}
            proxy = stack.enter_context(TcpProxy(addresses["PROXIED"]))
            _configure(own, node, voters, addresses, proxy.address, extra)
            _format(own, identity)
            process = Process(_java(own, "kafka.Kafka", str(own / "server.properties")), own / "log")
            stack.callback(process.kill)
            process.start()  # none of them is ready before most of them run
            brokers.append(OwnServer(addresses, process, version(), proxy, own / "certificates"))
        for broker in brokers:
            broker.await_answer()
        yield brokers


def _configure(
    folder: Path, node: int, voters: Mapping[int, str], addresses: Mapping[str, str], proxy: str, extra: Sequence[str]
) -> None:
    """Write the files that a broker in combined mode (KRaft) reads.

    :param voters: the ``host:port`` of the listener CONTROLLER of each node of the cluster, this one included.
    """
    write_certificates(folder / "certificates")
    (folder / "log4j2.properties").write_text(_LOGGING)
    text = settings(
        node=node,
        voters=voters,
        bound=addresses,
        advertised={"PROXIED": proxy},
        data=str(folder / "data"),
        certificates=str(folder / "certificates"),
    )
    (folder / "server.properties").write_text("\n".join([text, *extra, ""]))


def _format(folder: Path, cluster: str) -> None:
    users = [
        argument
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        for argument in ("--add-scram", f"{mechanism}=[name={USER},password={PASSWORD}]")
    ]
    tool = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(folder / "server.properties"), *users]
    try:
        run(_java(folder, *tool))
    except (OSError, RuntimeError) as error:
        raise Missing(f"the storage of the broker cannot be formatted: {error}") from error


def _java(folder: Path, *arguments: str) -> list[str]:
    try:
        return [*_JAVA, f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}", "-cp", f"{jars()}/*", *arguments]
    except NotFetched as reason:
        raise Missing(str(reason)) from reason
