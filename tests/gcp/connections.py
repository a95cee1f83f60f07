"""Measure the outcomes of faults of connections and credentials, on a channel like the one to the service.

This is a separate program: ``python -m tests.gcp.connections`` prints the outcomes as JSON; an argument chooses cases.
gRPC reads trusted certificates once in a process, and here it trusts one that was made for this run.  So requests
travel as they do to the service: with TLS, with tokens from an authority, and over a connection that is pinged.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import google.oauth2.credentials
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from events_core import EventConfig, EventConnectionError, EventError, EventMessage, EventReceiver
from events_core.testing import TcpProxy
from events_gcp import GcpPubSubClient

from .broker import Broker
from .calls import told
from .console import PROJECT
from .faults import serving
from .waiting import PATIENCE, until

NAME = "orders"
FOREVER = float("inf")
KEEPALIVE = 1_000
"""Milliseconds after which a silent connection is pinged, and for the answer, where a test needs that.

Elsewhere a late answer on a busy machine would break the connection, and a request would be sent once more.
"""

# What serves


class Authority:
    """A server that issues tokens over HTTP, and fails as a test tells it to."""

    def __init__(self) -> None:
        self.lifetime = 3600
        self.issued = 0
        self.does = "issue"
        self._released = threading.Event()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        if self.does == "hang":
            self._released.wait(120)
        self.issued += 1
        token = {"access_token": f"token-{self.issued}", "expires_in": self.lifetime, "token_type": "Bearer"}
        status, body = {
            "refuse": (400, {"error": "invalid_grant", "error_description": "revoked"}),
            "fail": (503, {"error": "try later"}),
        }.get(self.does, (200, token))
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.end_headers()
        request.wfile.write(json.dumps(body).encode())

    def recover(self) -> None:
        """Issue tokens again, also to waiting requests."""
        self.does = "issue"
        self._released.set()


class HalfOpen:
    """A forwarder to *address* that can leave its connections without another end."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = host, int(port)
        self._generation = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""

    async def start(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def strand(self) -> None:
        """Throw away the data of all connections so far; new ones work."""
        self._generation += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, server = await asyncio.open_connection(*self._target)
        for source, sink in ((reader, server), (upstream, writer)):
            task = asyncio.ensure_future(self._forward(source, sink, self._generation))
            self._tasks.add(task)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, generation: int) -> None:
        while data := await source.read(65536):
            if generation == self._generation:
                sink.write(data)
        sink.close()


class World:
    """A broker behind TLS, an authority, and clients that trust both."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.authority = _known[broker.address] = Authority()
        self.subscription = broker.subscription(NAME, NAME)

    def client(self, address: str = "", **options: str) -> GcpPubSubClient:
        user = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": self.broker.address}
        settings = {
            "endpoint": address or self.broker.address,
            "credentials": json.dumps(user),
            "ack_deadline": "10",
            "create": "never",
        }
        timeouts = dict.fromkeys(("send_timeout", "ack_timeout", "connect_timeout"), "60")
        return GcpPubSubClient(EventConfig(NAME, PROJECT, {**settings, **timeouts, **options}, "gcp"))

    def stored(self) -> list[bytes]:
        """Return the published data, in order."""
        return [message.data for message in self.broker.topics[f"projects/{PROJECT}/topics/{NAME}"]]


# Connections


async def _goaway(world: World) -> str:
    return await _flow(world, world.broker.address, lambda: _connected_anew(world))


async def _connected_anew(world: World) -> None:
    await until(lambda: len(world.broker.peers) >= 3)


async def _refused(world: World) -> str:
    with TcpProxy(world.broker.address) as proxy:
        return await _flow(world, proxy.address, lambda: _during(proxy.cut))


async def _silent(world: World) -> str:
    with TcpProxy(world.broker.address) as proxy:
        _pinged.add(proxy.address)
        return await _flow(world, proxy.address, lambda: _during(proxy.silence))


async def _during(fault: Callable[[], Any]) -> None:
    with fault():
        await asyncio.sleep(2)


async def _half_open(world: World) -> str:
    forwarder = HalfOpen(world.broker.address)
    await forwarder.start()
    _pinged.add(forwarder.address)
    return await _flow(world, forwarder.address, lambda: _stranded(forwarder))


async def _stranded(forwarder: HalfOpen) -> None:
    forwarder.strand()


async def _flow(world: World, address: str, disturb: Callable[[], Awaitable[None]]) -> str:
    """Send messages one after the other and acknowledge each, while *disturb* runs; return their outcome."""
    async with world.client(address) as both, await _subscribed(both) as receiver:
        received: set[bytes] = set()
        receiving = asyncio.create_task(_collect(receiver, received))
        sent = [await _sent(both, number) for number in range(3)]
        disturbing = asyncio.create_task(_awaited(disturb))
        while not disturbing.done() or len(sent) < 20:
            sent.append(await _sent(both, len(sent)))
        await until(lambda: received >= {b"%d" % number for number in range(len(sent))})
        receiving.cancel()
    failed = sorted({each for each in sent if each})
    confirmed = f"some sends raise {', '.join(failed)}" if failed else "every send is confirmed"
    return f"{confirmed}, and every message comes"


async def _subscribed(client: GcpPubSubClient) -> EventReceiver:
    """Subscribe.  A connection that the server ends may end this request too, which the client does not repeat."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(EventConnectionError):
                return await client.subscribe(NAME)


async def _awaited(disturb: Callable[[], Awaitable[None]]) -> None:
    await disturb()


async def _collect(receiver: EventReceiver, received: set[bytes]) -> None:
    async for message in receiver:
        received.add(message.data)
        await receiver.acknowledge(message)


async def _sent(sender: GcpPubSubClient, number: int) -> str:
    try:
        await sender.send_message(EventMessage(b"%d" % number))
    except EventError as error:
        return told(error)
    await asyncio.sleep(0.02)
    return ""


async def _publish_unanswered(world: World) -> str:
    with TcpProxy(world.broker.address) as proxy:
        async with world.client(proxy.address) as sender:
            await sender.ping(PATIENCE)
            with proxy.lose_answers():
                sending = asyncio.create_task(sender.send_message(EventMessage(b"x")))
                await until(lambda: world.broker.requests["Publish", NAME] > 0)
                proxy.drop()
            await sending
            assert len(world.stored()) == 2
            return "the send is confirmed after a retry, and the message is stored twice"


async def _acknowledge_unanswered(world: World) -> str:
    with TcpProxy(world.broker.address) as proxy:
        async with world.client(proxy.address) as both, await both.subscribe(NAME) as receiver:
            await both.send_message(EventMessage(b"x"))
            message = await receiver.receive_message(PATIENCE)
            assert message is not None
            with proxy.lose_answers():
                settling = asyncio.create_task(receiver.acknowledge(message))
                await until(lambda: world.broker.requests["Acknowledge", NAME] > 0)
                proxy.drop()
            await settling
            assert world.broker.requests["Acknowledge", NAME] > 1
            assert await receiver.receive_message(0.2) is None
            return "the acknowledgement succeeds after a retry, and the message does not come again"


async def _truncated(world: World) -> str:
    with TcpProxy(world.broker.address) as proxy:
        async with world.client(proxy.address) as both, await both.subscribe(NAME) as receiver:
            await until(lambda: world.broker.requests["StreamingPull", NAME] > 0)
            with proxy.limit(1_000_000):
                world.subscription.add(world.broker.message(bytes(4_000_000)))
                before = proxy.received
                await until(lambda: proxy.received > before + 500_000)
                proxy.drop()
            message = await receiver.receive_message(PATIENCE)
            assert message is not None
            assert len(world.broker.expired) == 1
            return "the stream is opened again, and the message comes when its lease is over"


# Answers that cannot be read

_CUT_SHORT = b"\x0a\x05ab"
"""A field of five bytes, of which two came."""


async def _publish_garbled(world: World) -> str:
    world.broker.fail("Publish", NAME, answer=_CUT_SHORT)
    async with world.client() as sender:
        outcome = await _attempt(sender.send_message(EventMessage(b"x")))
        assert len(world.stored()) == 2
        return f"the send {outcome} after a retry, and the message is stored twice"


async def _stream_garbled(world: World) -> str:
    world.broker.fail("StreamingPull", NAME, answer=_CUT_SHORT)
    async with world.client() as both, await both.subscribe(NAME) as receiver:
        world.subscription.add(world.broker.message(b"x"))
        outcome = await _attempt(receiver.receive_message(PATIENCE))
        assert world.broker.requests["StreamingPull", NAME] > 1
        return f"the stream is opened again, and receiving {outcome}"


async def _acknowledge_garbled(world: World) -> str:
    async with world.client() as both, await both.subscribe(NAME) as receiver:
        world.subscription.add(world.broker.message(b"x"))
        message = await receiver.receive_message(PATIENCE)
        assert message is not None
        world.broker.fail("Acknowledge", NAME, answer=_CUT_SHORT)
        outcome = await _attempt(receiver.acknowledge(message))
        assert world.broker.requests["Acknowledge", NAME] == 2
        return f"the acknowledgement {outcome} after a retry"


async def _attempt(call: Awaitable[object]) -> str:
    try:
        await call
        return "succeeds"
    except EventError as error:
        return told(error)


# Credentials


async def _expiring(world: World) -> str:
    world.authority.lifetime = 1
    async with world.client() as sender:
        for number in range(3):
            await sender.send_message(EventMessage(b"%d" % number))
    assert world.authority.issued > 1
    return "every send is confirmed, with new tokens"


async def _revoked(world: World) -> str:
    async with world.client() as sender:
        await sender.send_message(EventMessage(b"0"))
        world.broker.revoked.add("token-1")
        return f"the send {await _attempt(sender.send_message(EventMessage(b'1')))}, with a new token"


async def _denied(world: World) -> str:
    return await _without_token(world, "refuse")


async def _failing(world: World) -> str:
    return await _without_token(world, "fail")


async def _hanging(world: World) -> str:
    return await _without_token(world, "hang")


async def _without_token(world: World, does: str) -> str:
    """Send while the authority gives no token, and again when it does."""
    world.authority.does = does
    async with world.client(send_timeout="15") as sender:  # the next send has no more either
        outcome = await _attempt(sender.send_message(EventMessage(b"x")))
        world.authority.recover()
        again = await _attempt(sender.send_message(EventMessage(b"y")))
        return f"{outcome}; when there is a token, the next send {again}"


CASES: Mapping[str, Callable[[World], Awaitable[str]]] = {
    "The server ends its connections in good order, again and again (``GOAWAY``)": _goaway,
    "Connections break, and are refused for 2 s": _refused,
    "The network is silent for 2 s": _silent,
    "A connection is half open: its other end has gone": _half_open,
    "The answer to a send is lost": _publish_unanswered,
    "The answer to an acknowledgement is lost": _acknowledge_unanswered,
    "The connection breaks in the middle of a message": _truncated,
    "The answer to a send cannot be read": _publish_garbled,
    "A response of a stream cannot be read": _stream_garbled,
    "The answer to an acknowledgement cannot be read": _acknowledge_garbled,
    "The token expires": _expiring,
    "The service refuses a token before it expires": _revoked,
    "The authority refuses a token": _denied,
    "The authority fails": _failing,
    "The authority does not answer": _hanging,
}
"""For each fault, the function that tries it."""

# The program


async def measure(identity: Any, wanted: str = "") -> Mapping[str, str]:
    """Try all cases whose names contain *wanted*, at the same time."""
    chosen = {name: case for name, case in CASES.items() if wanted in name}
    outcomes = await asyncio.gather(*(_measured(each, identity) for each in chosen.values()), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            logging.error("no outcome", exc_info=outcome)
    return {case: str(outcome) for case, outcome in zip(chosen, outcomes, strict=True)}


async def _measured(case: Callable[[World], Awaitable[str]], identity: Any) -> str:
    options = [("grpc.http2.min_ping_interval_without_data_ms", 100), ("grpc.http2.max_ping_strikes", 0)]
    if case is _goaway:
        options += [("grpc.max_connection_age_ms", 500), ("grpc.max_connection_age_grace_ms", 500)]
    async with serving(Broker(), identity, options) as broker:
        async with asyncio.timeout(240):
            return await case(World(broker))


def _secure(folder: Path) -> Any:
    """Make a certificate for this machine, let gRPC trust it, and return a server's credentials with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    shown = certificate.public_bytes(serialization.Encoding.PEM)
    file = folder / "certificate.pem"
    file.write_bytes(shown)
    os.environ["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"] = str(file)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return grpc.ssl_server_credentials([(secret, shown)])


@contextmanager
def _authorities() -> Iterator[None]:
    """Serve the authority of each world in place of Google's.  The refresh token names the world."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            _known[form["refresh_token"][0]].answer(self)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT = f"http://127.0.0.1:{server.server_address[1]}/token"
    try:
        yield
    finally:
        server.shutdown()


_known: dict[str, Authority] = {}
_pinged: set[str] = set()
"""The addresses to which connections are pinged soon."""

_secure_channel = grpc.aio.secure_channel


def _pinging_channel(target: str, credentials: Any, options: Sequence[tuple[str, int]]) -> Any:
    if target in _pinged:
        shorter = dict.fromkeys(("grpc.keepalive_time_ms", "grpc.http2.ping_timeout_ms"), KEEPALIVE)
        options = [(name, shorter.get(name, value)) for name, value in options]
    return _secure_channel(target, credentials, options=options)


def _main() -> None:
    grpc.aio.secure_channel = _pinging_channel
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    with tempfile.TemporaryDirectory() as folder, _authorities():
        print(json.dumps(asyncio.run(measure(_secure(Path(folder)), wanted)), indent=1))


if __name__ == "__main__":
    _main()
