"""A RabbitMQ server for tests: one that runs already, a container, or the program of this machine.

::

    with find_or_start(folder) as server:
        config = EventConfig("orders", options={"url": server.url}, backend="rabbitmq")
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from ..servers import server
from ..servers.container import started
from ..servers.finding import first
from ..servers.ports import reserved_ports
from ..servers.process import Process
from ..servers.server import Missing, Runner

IMAGE = os.environ.get("EVENTS_TEST_RABBITMQ_IMAGE", "rabbitmq:3")
PROGRAMS = "/usr/lib/rabbitmq/bin"
"""The folder of the programs in packages for Debian and Fedora.

The programs of the same names in ``/usr/sbin`` run as the user *rabbitmq*, who cannot write into our folder.
"""
WATERMARK = 0.4
"""The server's own default: with more of the machine's memory in use, it blocks the connections of publishers."""


class Server(server.Server):
    """A server at *url*, which may belong to somebody else."""

    def __init__(self, url: str, runner: Runner | None = None) -> None:
        parts = urlsplit(url)
        super().__init__(f"{parts.hostname}:{parts.port or 5672}", runner)
        self.url = url
        """An ``amqp://`` URL with the user, the password and the virtual host."""

    def url_for(self, *, user: str = "guest", password: str = "guest", vhost: str = "/", address: str = "") -> str:
        """Return an ``amqp://`` URL of this server, for example of another user or through a proxy at *address*."""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"amqp://{login}@{address or self.address}/{quote(vhost, safe='')}"

    def answers(self, timeout: float) -> bool:
        """Begin a connection of AMQP, and return whether the server goes on with it."""
        host, _, port = self.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout) as connection:
            connection.settimeout(timeout)
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"  # a frame with a method: Connection.Start

    def kill(self) -> None:
        """Kill the server with SIGKILL, when it has written down which queues and bindings there are.

        3.10 answers before it has written everything down, and loses the rest if it is killed (measured):

        - A quorum queue is not in a dets table for half a second (``auto_save``).  If it is lost, nobody can consume
          from it after the next start: each try fails with 541 after 65 s.
        - The queue or binding that was made last may be in the log of Mnesia without the decision to commit it, for two
          seconds (the delay of a disk log).  The next start then aborts it.
        """
        if self.runner.is_running():
            self.evaluate("[ok = dets:sync(Table) || Table <- dets:all()], ok = mnesia:sync_log()")
        super().kill()

    def restore(self) -> None:
        """Bring the server back to the state in which every test finds it: it runs, and no alarm is set."""
        super().restore()
        self.clear_alarm()

    # Administration

    def command(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` with *arguments* and return what it prints.

        :raises Missing: if the server is not ours.
        :raises RuntimeError: if the command fails, with what it printed.
        """
        return self.runner.run(["rabbitmqctl", "--quiet", *arguments])

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

    def limit_connections(self, of: str, name: str, most: int) -> None:
        """Allow *most* connections of the user or virtual host *name*; *of* is ``user`` or ``vhost``."""
        place = ("--vhost", name) if of == "vhost" else (name,)
        self.command(f"set_{of}_limits", *place, json.dumps({"max-connections": most}))

    def set_alarm(self) -> None:
        """Set the memory alarm: the server blocks connections on which a client publishes."""
        self.command("set_vm_memory_high_watermark", "0")

    def clear_alarm(self) -> None:
        """Clear the memory alarm."""
        self.command("set_vm_memory_high_watermark", str(WATERMARK))


def find_or_start(folder: Path) -> AbstractContextManager[Server]:
    """Enter with the server at ``EVENTS_TEST_RABBITMQ``, or with a container, or with the program of this machine.

    :param folder: an empty folder for the server's files.
    :raises Missing: with all the reasons.
    """
    return first(["EVENTS_TEST_RABBITMQ"], Server, _container, partial(program, folder))


@contextmanager
def _container() -> Iterator[Server]:
    with reserved_ports(1) as (port,), started(IMAGE, {5672: port}) as runner:
        server = Server(f"amqp://guest:guest@{runner.host}:{port}/%2F", runner)
        server.await_answer()
        yield server


@contextmanager
def program(folder: Path, settings: Sequence[str] = ()) -> Iterator[Server]:
    """Enter with the program ``rabbitmq-server`` of this machine, with files and ports of its own.

    It shares nothing with a service that is installed: neither the node's name, the cookie, the folder nor a port.
    Its port mapper (epmd), which every Erlang node needs, is a process of ours as well and ends with it.

    :param folder: everything that it writes is in there.
    :param settings: more lines for its file ``rabbitmq.conf``.
    :raises Missing: if there is no such program, or if it does not answer.
    """
    path = os.pathsep.join([PROGRAMS, os.environ.get("PATH", os.defpath)])
    if shutil.which("rabbitmq-server", path=path) is None:
        raise Missing("no program 'rabbitmq-server'")
    with reserved_ports(3) as (port, distribution, mapper):
        # The server must not refuse to work because the disk of this machine is nearly full.
        own = [f"listeners.tcp.1 = 127.0.0.1:{port}", "disk_free_limit.absolute = 1MB"]
        (folder / "rabbitmq.conf").write_text("\n".join([*own, *settings, ""]))
        (folder / "plugins").write_text("[].\n")
        environment = {**_environment(folder, port, distribution, mapper), "PATH": path}
        epmd = Process(["epmd", "-address", "127.0.0.1", "-port", str(mapper)], folder / "log", environment)
        runner = Process(["rabbitmq-server"], folder / "log", environment)
        server = Server(f"amqp://guest:guest@127.0.0.1:{port}/%2F", runner)
        try:
            epmd.start()
            server.start()
            yield server
        finally:
            runner.kill()
            epmd.kill()


def _environment(folder: Path, port: int, distribution: int, mapper: int) -> Mapping[str, str]:
    unwanted = ("RABBITMQ_", "ERL_", "NOTIFY_SOCKET")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(unwanted)},
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
