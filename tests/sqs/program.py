"""Servers of SQS that run on this machine: MiniStack from PyPI, and ElasticMQ from its jars."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path

from .. import maven
from .server import REGION, STOP_TIMEOUT, Missing, Server, await_answer, reserved_port

POM = Path(__file__).with_name("pom.xml")
_LAUNCHER = Path(__file__).with_name("ElasticMQ.java")


class Program(Server):
    """A program of this machine that serves SQS, with a folder and a port of its own.

    :param folder: an empty folder for all that it writes.
    """

    is_ours = True

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(f"http://127.0.0.1:{port}")
        self._folder = folder
        self._port = port
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """Return the command that starts it."""

    def _environment(self) -> Mapping[str, str]:
        """Return the variables that it needs."""
        return {}

    def start(self) -> None:
        if self._process is not None:
            return
        own = {"HOME": str(self._folder), "TMPDIR": str(self._folder), **self._environment()}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command(),
                    env={**inherited, **own},
                    stdin=subprocess.PIPE,  # which ends with this process, however that ends
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for pytest, which ends the server
                )
        except OSError as error:
            raise Missing(f"cannot run {self.name}: {error}") from error
        try:
            await_answer(self.url, self._process.poll)
        except Missing as reason:
            raise Missing(f"{self.name}: {reason}: {self._log.read_text(errors='replace')[-1500:]}") from None

    def stop(self) -> None:
        if self._process is not None:
            self.resume()
            self._process.terminate()
            self._end()

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):  # it ended by itself
                self._process.kill()
            self._end()

    def _end(self) -> None:
        assert self._process is not None
        self._process.wait(STOP_TIMEOUT)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # The threads of the server go on until one of them has got the signal: on a busy machine, for long enough to
        # answer a request.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restore(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._end()  # it ended by itself
        if self._process is not None:
            self.resume()
        self.start()


class MiniStack(Program):
    """MiniStack, an emulator of many services of AWS.  It stores messages on disk when it is stopped in order.

    :param checks_access: it refuses wrong signatures, and what no policy allows.
    """

    name = "MiniStack"
    keeps_messages = True

    def __init__(self, folder: Path, port: int, checks_access: bool) -> None:
        super().__init__(folder, port)
        self._checks_access = checks_access
        try:
            self.version = version_of("ministack")
        except PackageNotFoundError as error:
            raise Missing("the distribution 'ministack' is not installed") from error

    def _command(self) -> Sequence[str]:
        return [sys.executable, "-m", "ministack"]

    def _environment(self) -> Mapping[str, str]:
        return {
            "AUTH": str(self._checks_access).lower(),
            "BIND_HOST": "127.0.0.1",
            # At its start it deletes the containers of another MiniStack: it must find no Docker.
            "DOCKER_HOST": f"unix://{self._folder}/none",
            "GATEWAY_PORT": str(self._port),
            "IOT_MTLS_ENABLED": "0",
            "LOG_LEVEL": "WARNING",
            "MINISTACK_REGION": REGION,
            "PERSIST_STATE": "1",
            "SFTP_ENABLED": "0",
            "STATE_DIR": str(self._folder / "state"),
        }


class ElasticMQ(Program):
    """ElasticMQ, an emulator of SQS without SNS.  It forgets everything when it ends."""

    name = "ElasticMQ"

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(folder, port)
        self.version = maven.version(POM, "elasticmq-rest-sqs_2.13")
        try:
            self._classes = f"{maven.jars(POM)}/*"
        except maven.NotFetched as reason:
            raise Missing(str(reason)) from reason

    def _command(self) -> Sequence[str]:
        return [
            "java",
            "-XX:TieredStopAtLevel=1",  # starts in half of the time
            "-XX:+UseSerialGC",
            "-Xmx512m",
            "-XX:-UsePerfData",  # no file in a folder that all users share
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-cp",
            self._classes,
            str(_LAUNCHER),
            str(self._port),
        ]


@contextmanager
def ministack(folder: Path, *, checks_access: bool = False) -> Iterator[Server]:
    """Enter with MiniStack on this machine; see :class:`MiniStack`."""
    with reserved_port() as port, _running(MiniStack(folder, port, checks_access)) as server:
        yield server


@contextmanager
def elasticmq(folder: Path) -> Iterator[Server]:
    """Enter with ElasticMQ on this machine."""
    with reserved_port() as port, _running(ElasticMQ(folder, port)) as server:
        yield server


@contextmanager
def _running(server: Program) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.kill()
