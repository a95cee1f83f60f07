"""Brokers that run on this machine from their jars, alone or several as a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from events_core.testing import TcpProxy

from ..maven import NotFetched
from .broker_settings import LISTENERS, settings, write_certificates
from .jars import jars, version
from .server import PASSWORD, STOP_TIMEOUT, USER, Missing, Server, await_answer, new_cluster_id, reserved_ports

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


class Program(Server):
    """A broker of this machine, in combined mode (KRaft), with a folder and ports of its own.

    :param folder: an empty folder for all that it writes.
    :param ports: the ports of :data:`LISTENERS`.
    :param voters: the ``host:port`` of the listener CONTROLLER of each node of the cluster, this one included.
    :param cluster: the id of the cluster.
    :param extra: more lines for its ``server.properties``.
    """

    is_ours = True

    def __init__(
        self,
        folder: Path,
        ports: Sequence[int],
        *,
        node: int,
        voters: Mapping[int, str],
        cluster: str,
        extra: Sequence[str] = (),
    ) -> None:
        bound = {name: f"127.0.0.1:{port}" for name, port in zip(LISTENERS, ports, strict=True)}
        super().__init__(bound["PLAINTEXT"])
        self.node = node
        self.version = version()
        self.sasl, self.sasl_tls, self.tls = bound["SASL"], bound["SASLTLS"], bound["TLS"]
        self.certificates = folder / "certificates"
        self._classes = _class_path()
        self._log = folder / "log"
        self._settings = folder / "server.properties"
        self._logging = folder / "log4j2.properties"
        self._logging.write_text(_LOGGING)
        self._process: subprocess.Popen[bytes] | None = None
        write_certificates(self.certificates)
        self.proxy = TcpProxy(bound["PROXIED"])
        try:
            text = settings(
                node=node,
                voters=voters,
                bound=bound,
                advertised={"PROXIED": self.proxy.address},
                data=str(folder / "data"),
                certificates=str(self.certificates),
            )
            self._settings.write_text("\n".join([text, *extra, ""]))
            self._format(cluster)
        except BaseException:
            self.close()
            raise

    def _format(self, cluster: str) -> None:
        users = [
            argument
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for argument in ("--add-scram", f"{mechanism}=[name={USER},password={PASSWORD}]")
        ]
        process = self._run("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._settings), *users)
        if process.wait(STOP_TIMEOUT):
            raise Missing(f"the storage of the broker cannot be formatted: {self._logged()}")

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        try:
            with self._log.open("ab") as log:
                return subprocess.Popen(
                    [*_JAVA, f"-Dlog4j2.configurationFile={self._logging}", "-cp", self._classes, program, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for pytest, which ends the broker
                )
        except OSError as error:
            raise Missing(f"cannot run java: {error}") from error

    def _logged(self) -> str:
        return self._log.read_text(errors="replace")[-1500:]

    def launch(self) -> None:
        """Start the process, unless it runs, and do not wait for it."""
        if self._process is None:
            self._process = self._run("kafka.Kafka", str(self._settings))

    def await_ready(self) -> None:
        """Wait until the launched broker answers."""
        assert self._process is not None
        try:
            await_answer(self.address, self._process.poll)
        except Missing as reason:
            raise Missing(f"Kafka: {reason}: {self._logged()}") from None

    def start(self) -> None:
        self.launch()
        self.await_ready()

    def stop(self) -> None:
        if self._process is not None:
            self.resume()
            self._process.terminate()
            self._process.wait(STOP_TIMEOUT)
            self._process = None

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):  # it ended by itself
                self._process.kill()
            self._process.wait(STOP_TIMEOUT)
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # The threads of the broker go on until one of them has got the signal: on a busy machine, for long enough to
        # answer a request.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restore(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._process = None  # it ended by itself
        if self._process is not None:
            self.resume()
        self.start()

    def close(self) -> None:
        """Kill the broker and its proxy."""
        self.kill()
        if self.proxy is not None:
            self.proxy.close()


def _class_path() -> str:
    try:
        return f"{jars()}/*"
    except NotFetched as reason:
        raise Missing(str(reason)) from reason


@contextmanager
def program(folder: Path, extra: Sequence[str] = ()) -> Iterator[Program]:
    """Enter with a broker that runs alone; see :class:`Program`."""
    with cluster(folder, 1, extra) as (single,):
        yield single


@contextmanager
def cluster(folder: Path, size: int, extra: Sequence[str] = ()) -> Iterator[list[Program]]:
    """Enter with *size* brokers that form a cluster.

    :param folder: an empty folder.
    :param extra: more lines for the ``server.properties`` of each.
    """
    with ExitStack() as stack:
        ports = [stack.enter_context(reserved_ports(len(LISTENERS))) for _ in range(size)]
        voters = {node: f"127.0.0.1:{those[-1]}" for node, those in enumerate(ports, 1)}
        identity = new_cluster_id()
        brokers: list[Program] = []
        for node, those in enumerate(ports, 1):
            own = folder / f"node-{node}"
            own.mkdir()
            broker = Program(own, those, node=node, voters=voters, cluster=identity, extra=extra)
            stack.callback(broker.close)
            broker.launch()  # none of them is ready before most of them run
            brokers.append(broker)
        for broker in brokers:
            broker.await_ready()
        yield brokers
