"""RabbitMQ servers for tests: one that runs already, a container, or the program of this machine.

::

    with find_or_start(folder) as server:
        config = EventConfig("orders", options={"url": server.url}, backend="rabbitmq")

A server that this module has started is *ours*: a test may stop it, kill it, pause it and administer it.
The methods for that raise :class:`Missing` for a server that ran already, because other programs may use it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

START_TIMEOUT = 120.0
"""Seconds that a server may take to answer.  It takes 5 on a quiet machine."""
STOP_TIMEOUT = 120.0
"""Seconds that an orderly stop may take."""
COMMAND_TIMEOUT = 120.0
"""Seconds that a command of the administrator may take.  It takes less than one on a quiet machine."""
IMAGE = os.environ.get("EVENTS_TEST_RABBITMQ_IMAGE", "rabbitmq:3")
PROGRAMS = Path("/usr/lib/rabbitmq/bin")
"""The folder of the programs in packages for Debian and Fedora.

The programs of the same names in ``/usr/sbin`` run as the user *rabbitmq*, who cannot write into our folder.
"""
WATERMARK = 0.4
"""The server's own default: with more of the machine's memory in use, it blocks the connections of publishers."""


class Missing(Exception):
    """The reason why there is no server, or why it cannot do what a test needs."""


class Server:
    """A server at *url*, which may belong to somebody else."""

    is_ours = False

    def __init__(self, url: str) -> None:
        self.url = url
        """An ``amqp://`` URL with the user, the password and the virtual host."""
        parts = urlsplit(url)
        self.address = f"{parts.hostname}:{parts.port or 5672}"
        """The ``host:port`` of AMQP, for example for a proxy."""

    def url_for(self, *, user: str = "guest", password: str = "guest", vhost: str = "/", address: str = "") -> str:
        """Return an ``amqp://`` URL of this server, for example of another user or through a proxy at *address*."""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"amqp://{login}@{address or self.address}/{quote(vhost, safe='')}"

    # The process

    def start(self) -> None:
        """Start the server on the same port with the data that it has stored, and wait until it answers."""
        raise self._not_ours()

    def stop(self) -> None:
        """Stop the server in an orderly way: it closes its connections with an AMQP error."""
        raise self._not_ours()

    def kill(self) -> None:
        """Kill the server with SIGKILL, when it has written down which queues there are.

        3.10 does that half a second after a quorum queue was declared (``auto_save`` of a dets table).  If it is killed
        before, nobody can consume from the queue after the next start: each try fails with 541 after 65 s (measured).
        """
        raise self._not_ours()

    def pause(self) -> None:
        """Stop the server from running.  Connections stay open and nobody answers on them."""
        raise self._not_ours()

    def resume(self) -> None:
        """Let a paused server run again."""
        raise self._not_ours()

    def restart(self) -> bool:
        """Kill the server and start it again; return False if it is not ours."""
        if not self.is_ours:
            return False
        self.kill()
        self.start()
        return True

    def restore(self) -> None:
        """Bring the server back to the state in which every test finds it: it runs, and no alarm is set."""
        raise self._not_ours()

    # Administration

    def command(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` with *arguments* and return what it prints.

        :raises Missing: if the server is not ours.
        :raises RuntimeError: if the command fails, with what it printed.
        """
        raise self._not_ours()

    def listed(self, what: str, *columns: str, vhost: str = "/") -> list[dict[str, Any]]:
        """Return the rows of a command like ``list_queues``, each with *columns*."""
        place = () if what == "list_connections" else ("--vhost", vhost)
        rows = json.loads(self.command(what, "--formatter", "json", *place, *columns))
        assert isinstance(rows, list)
        return rows

    def evaluate(self, expression: str) -> str:
        """Return the value of an Erlang expression in the server, as Erlang prints it."""
        return self.command("eval", expression if expression.endswith(".") else f"{expression}.").strip()

    def add_vhost(self, name: str) -> str:
        """Create a virtual host in which *guest* may do everything, and return its URL."""
        self.command("add_vhost", name)
        self.allow("guest", name)
        return self.url_for(vhost=name)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with its queues and exchanges."""
        self.command("delete_vhost", name)

    def add_user(self, name: str, password: str) -> None:
        """Create a user without any permission."""
        self.command("add_user", name, password)

    def delete_user(self, name: str) -> None:
        """Delete a user."""
        self.command("delete_user", name)

    def allow(self, user: str, vhost: str, configure: str = ".*", write: str = ".*", read: str = ".*") -> None:
        """Set the permissions of a user in a virtual host, each as a regular expression for names."""
        self.command("set_permissions", "--vhost", vhost, user, configure, write, read)

    def set_alarm(self) -> None:
        """Set the memory alarm: the server blocks connections on which a client publishes."""
        self.command("set_vm_memory_high_watermark", "0")

    def clear_alarm(self) -> None:
        """Clear the memory alarm."""
        self.command("set_vm_memory_high_watermark", str(WATERMARK))

    def _save_directory(self) -> None:
        self.evaluate("[ok = dets:sync(Table) || Table <- dets:all()]")

    def _not_ours(self) -> Missing:
        return Missing(f"the server at {self.address} was not started by the tests, so they leave it alone")


class Program(Server):
    """The program ``rabbitmq-server`` of this machine, with files and ports of its own.

    It shares nothing with a service that is installed: neither the node's name, the cookie, the folder nor a port.
    Its port mapper (epmd), which every Erlang node needs, is a child of this process as well and ends with it.

    :param folder: everything that it writes is in there.
    :param settings: more lines for its file ``rabbitmq.conf``.
    """

    is_ours = True

    def __init__(self, folder: Path, settings: Sequence[str] = ()) -> None:
        self._programs = _programs()
        self._keeping = ExitStack()
        port, distribution, mapper = self._keeping.enter_context(reserved_ports(3))
        super().__init__(f"amqp://guest:guest@127.0.0.1:{port}/%2F")
        self._log = folder / "log"
        # The server must not refuse to work because the disk of this machine is nearly full.
        own = [f"listeners.tcp.1 = 127.0.0.1:{port}", "disk_free_limit.absolute = 1MB"]
        (folder / "rabbitmq.conf").write_text("\n".join([*own, *settings, ""]))
        (folder / "plugins").write_text("[].\n")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))},
            "HOME": str(folder),  # Erlang creates the cookie there
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(mapper),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",  # that of an installed service names its port
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CTL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_NODENAME": f"events-{port}@localhost",
            # No busy waiting: an idle server would take the time of tests that have work to do.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} "
            "+sbwt none +sbwtdcpu none +sbwtdio none",
            # The script then replaces itself by the server, so that our signals go to the server.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        self._environment.pop("NOTIFY_SOCKET", None)
        self._mapper = self._run("epmd", "-address", "127.0.0.1", "-port", str(mapper))
        self._process: subprocess.Popen[bytes] | None = None
        self._is_paused = False
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        try:
            with self._log.open("ab") as log:
                return subprocess.Popen(
                    command,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for pytest, which ends the server
                )
        except OSError as error:
            raise Missing(f"cannot run {command[0]!r}: {error}") from error

    def start(self) -> None:
        if self._process is not None:
            return
        process = self._process = self._run(str(self._programs / "rabbitmq-server"))
        try:
            await_answer(self.address, process.poll)
        except Missing as reason:
            log = self._log.read_text(errors="replace")[-1500:]
            raise Missing(f"rabbitmq-server: {reason}: {log}") from None

    def stop(self) -> None:
        if self._process is not None:
            self.resume()
            self._process.terminate()
            self._process.wait(STOP_TIMEOUT)
            self._process = None

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None and not self._is_paused:
            self._save_directory()
        self._end()

    def _end(self) -> None:
        self._is_paused = False
        if self._process is not None:
            with suppress(ProcessLookupError):  # it ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(STOP_TIMEOUT)
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        self._is_paused = True
        self._process.send_signal(signal.SIGSTOP)
        # The threads of the server go on until one of them has got the signal: on a busy machine, for long enough to
        # answer a request.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        assert self._process is not None
        self._is_paused = False
        self._process.send_signal(signal.SIGCONT)

    def restore(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._process = None  # it ended by itself
        if self._process is None:
            self.start()
        self.resume()
        self.clear_alarm()

    def close(self) -> None:
        """Kill the server and its port mapper."""
        try:
            self._end()
        finally:
            self._keeping.close()
            self._mapper.kill()
            self._mapper.wait(STOP_TIMEOUT)

    def command(self, *arguments: str) -> str:
        done = subprocess.run(
            [self._programs / "rabbitmqctl", "--quiet", *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout


class Container(Server):
    """A server in a container, which keeps its port and its data when it is killed and started again."""

    is_ours = True

    def __init__(self, native: Any, address: str) -> None:
        super().__init__(f"amqp://guest:guest@{address}/%2F")
        self._native = native

    def start(self) -> None:
        self._native.start()
        await_answer(self.address)

    def stop(self) -> None:
        self._native.stop(timeout=int(STOP_TIMEOUT))

    def kill(self) -> None:
        self._save_directory()
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
        self.clear_alarm()

    def command(self, *arguments: str) -> str:
        done = self._native.exec_run(["rabbitmqctl", "--quiet", *arguments], demux=True)
        output, errors = ((part or b"").decode() for part in done.output)
        if done.exit_code:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {output}{errors}")
        return output


@contextmanager
def find_or_start(folder: Path) -> Iterator[Server]:
    """Enter with the server at ``EVENTS_TEST_RABBITMQ``, or with a container, or with the program of this machine.

    :param folder: an empty folder for the server's files.
    :raises Missing: with all the reasons.
    """
    if url := os.environ.get("EVENTS_TEST_RABBITMQ"):
        yield Server(url)
        return
    reasons = ["EVENTS_TEST_RABBITMQ is not set"]
    with ExitStack() as stack:
        for start in (_container, program):
            try:
                server = stack.enter_context(start(folder))
            except Missing as reason:
                reasons.append(str(reason))
            else:
                yield server
                return
    raise Missing("; ".join(reasons))


@contextmanager
def program(folder: Path, settings: Sequence[str] = ()) -> Iterator[Program]:
    """Enter with the program of this machine; see :class:`Program`."""
    running = Program(folder, settings)
    try:
        yield running
    finally:
        running.close()


@contextmanager
def _container(folder: Path) -> Iterator[Server]:
    for question in (["info"], ["image", "inspect", IMAGE]):
        if not _succeeds(["docker", *question]):
            raise Missing(f"'docker {' '.join(question)}' fails")
    # Its class for RabbitMQ warns that it uses what is deprecated (4.15).
    from testcontainers.core.container import DockerContainer  # needs a Docker engine to talk to

    with reserved_ports(1) as (port,):  # Docker would choose another one after each start
        pass  # free again: whether Docker could listen on a port that is kept was never tried
    with DockerContainer(IMAGE).with_bind_ports(5672, port) as container:
        address = f"{container.get_container_host_ip()}:{port}"
        try:
            await_answer(address)
        except Missing as reason:  # the log goes with the container
            log = container.get_wrapped_container().logs()[-1500:].decode(errors="replace")
            raise Missing(f"{reason}: {log}") from None
        yield Container(container.get_wrapped_container(), address)


def _programs() -> Path:
    """Return the folder of ``rabbitmq-server`` and ``rabbitmqctl``."""
    if (PROGRAMS / "rabbitmq-server").exists():
        return PROGRAMS
    found = shutil.which("rabbitmq-server")
    if found is None:
        raise Missing("no program 'rabbitmq-server'")
    return Path(found).parent


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@contextmanager
def reserved_ports(number: int) -> Iterator[list[int]]:
    """Yield ports of 127.0.0.1 on which servers may listen, now or later, and which nothing else gets meanwhile.

    While a server is down, a client that tries to reconnect could get the server's own port for its end.  On loopback
    it would then connect to itself, and the server could not listen there any more.

    The ports are below those that the system gives to outgoing connections.  rabbitmqctl adds 10,000 to one of them.
    """
    with ExitStack() as keeping:
        found: list[int] = []
        for port in random.sample(range(10_000, 32_768), 1000):
            if len(found) == number:
                break
            keeper = keeping.enter_context(socket.socket())
            with suppress(OSError):
                keeper.bind(("127.0.0.1", port))
                # Only now: with this option, a port that another program keeps in this way would count as free.
                keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                found.append(port)
        else:
            raise Missing(f"no {number} unused ports of 127.0.0.1 between 10000 and 32767")
        yield found


def await_answer(address: str, died: Callable[[], int | None] = lambda: None) -> None:
    """Wait until the server at *address* answers in AMQP.

    :param died: returns the exit code of the server, or None while it runs.
    :raises Missing: if the server does not answer, or has ended.
    """
    host, _, port = address.rpartition(":")
    ends = time.monotonic() + START_TIMEOUT
    while time.monotonic() < ends:
        if died() is not None:
            raise Missing(f"ended with exit code {died()}")
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1) as connection:
            connection.settimeout(5)
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            if connection.recv(1) == b"\x01":  # a frame with a method: Connection.Start
                return
        time.sleep(0.05)
    raise Missing(f"no answer at {address} within {START_TIMEOUT:g} s")
