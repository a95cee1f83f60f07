"""Servers of SQS that run on this machine: MiniStack from PyPI, and ElasticMQ from its jars."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path

from .. import maven
from ..servers.ports import reserved_ports
from ..servers.process import Process
from ..servers.server import Missing
from .server import REGION, Server

POM = Path(__file__).with_name("pom.xml")
_LAUNCHER = Path(__file__).with_name("ElasticMQ.java")


@contextmanager
def ministack(folder: Path, *, checks_access: bool = False) -> Iterator[Server]:
    """Enter with MiniStack, an emulator of many services of AWS.

    It stores messages on disk when it is stopped in an orderly way.

    :param folder: an empty folder for all that it writes.
    :param checks_access: it refuses wrong signatures, and what no policy allows.
    """
    try:
        version = version_of("ministack")
    except PackageNotFoundError as error:
        raise Missing("the distribution 'ministack' is not installed") from error
    with reserved_ports(1) as (port,):
        variables = {
            "AUTH": str(checks_access).lower(),
            "BIND_HOST": "127.0.0.1",
            # At its start it deletes the containers of another MiniStack: it must find no Docker.
            "DOCKER_HOST": f"unix://{folder}/none",
            "GATEWAY_PORT": str(port),
            "IOT_MTLS_ENABLED": "0",
            "LOG_LEVEL": "WARNING",
            "MINISTACK_REGION": REGION,
            "PERSIST_STATE": "1",
            "SFTP_ENABLED": "0",
            "STATE_DIR": str(folder / "state"),
        }
        process = _process(folder, [sys.executable, "-m", "ministack"], variables)
        yield from _running(Server(f"http://127.0.0.1:{port}", process, "MiniStack", version, keeps_messages=True))


@contextmanager
def elasticmq(folder: Path) -> Iterator[Server]:
    """Enter with ElasticMQ, an emulator of SQS without SNS.  It forgets everything when it ends.

    :param folder: an empty folder for all that it writes.
    """
    try:
        classes = f"{maven.jars(POM)}/*"
    except maven.NotFetched as reason:
        raise Missing(str(reason)) from reason
    java = [
        "java",
        "-XX:TieredStopAtLevel=1",  # starts in half of the time
        "-XX:+UseSerialGC",
        "-Xmx512m",
        "-XX:-UsePerfData",  # no file in a folder that all users share
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    ]
    with reserved_ports(1) as (port,):
        process = _process(folder, [*java, "-cp", classes, str(_LAUNCHER), str(port)], {})
        version = maven.version(POM, "elasticmq-rest-sqs_2.13")
        yield from _running(Server(f"http://127.0.0.1:{port}", process, "ElasticMQ", version))


def _process(folder: Path, command: Sequence[str], variables: Mapping[str, str]) -> Process:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    own = {"HOME": str(folder), "TMPDIR": str(folder), **variables}
    return Process(command, folder / "log", {**inherited, **own})


def _running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.kill()
