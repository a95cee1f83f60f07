"""The servers that the other tests start keep their data, their ports and their distance from other programs.

The tests use bare confluent-kafka, so that they hold without the backend.
"""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from .server import PASSWORD, USER, Server

PATIENCE = 60.0
"""Seconds that an answer may take on a busy machine."""
QUIET: dict[str, Any] = {"log_level": 0, "error_cb": lambda error: None}
LOGIN = {"sasl.username": USER, "sasl.password": PASSWORD}


def created(address: str, copies: int = 1, **settings: Any) -> str:
    """Create a topic with one partition and return its name."""
    name = uuid.uuid4().hex
    admin = AdminClient({"bootstrap.servers": address, **QUIET, **settings})
    admin.create_topics([NewTopic(name, 1, copies)])[name].result(PATIENCE)
    return name


def produce(address: str, topic: str, value: bytes, **settings: Any) -> Message:
    """Send one record and return it as it was stored by all replicas in sync."""
    stored: list[Message] = []

    def delivered(error: object, message: Message) -> None:
        assert error is None
        stored.append(message)

    producer = Producer({"bootstrap.servers": address, "acks": "all", **QUIET, **settings})
    producer.produce(topic, value, on_delivery=delivered)
    assert producer.flush(PATIENCE) == 0
    return stored[0]


def consumed(address: str, topic: str, number: int = 1) -> list[bytes]:
    """Return the first *number* values of a topic."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "unused", **QUIET})
    consumer.assign([TopicPartition(topic, 0, 0)])
    values: list[bytes] = []
    ends = time.monotonic() + PATIENCE
    while len(values) < number and time.monotonic() < ends:
        message = consumer.poll(0.5)
        if message is not None and message.error() is None:
            values.append(message.value() or b"")
    consumer.close()
    return values


def test_a_killed_server_comes_back_with_its_records(own_server: Server) -> None:
    """After a restart, the same address leads to the same topic and its records."""
    topic = created(own_server.address)
    produce(own_server.address, topic, b"kept")
    own_server.kill()
    own_server.start()
    assert consumed(own_server.address, topic) == [b"kept"]


def test_a_stopped_server_refuses_connections(own_server: Server) -> None:
    """After an orderly stop nobody listens; ``restore`` starts the server again."""
    own_server.stop()
    host, _, port = own_server.address.rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=10)
    own_server.restore()
    assert own_server.answers(PATIENCE)


def test_a_paused_server_answers_when_it_is_resumed(own_server: Server) -> None:
    """A paused server accepts a connection, because the system does it, and says nothing on it."""
    own_server.pause()
    with pytest.raises(TimeoutError):
        own_server.answers(1)
    own_server.resume()
    assert own_server.answers(PATIENCE)


def test_a_client_of_the_proxy_stays_on_it(own_server: Server) -> None:
    """The broker tells a client that comes through the proxy the proxy's own address."""
    assert own_server.proxy is not None
    topic = created(own_server.proxy.address)
    before = own_server.proxy.sent
    produce(own_server.proxy.address, topic, bytes(100_000))
    assert own_server.proxy.sent > before + 100_000


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_user_logs_in(own_server: Server, mechanism: str) -> None:
    """The listener for logins takes the right password."""
    login = {"security.protocol": "sasl_plaintext", "sasl.mechanism": mechanism, **LOGIN}
    topic = created(own_server.sasl, **login)
    assert produce(own_server.sasl, topic, b"x", **login).offset() == 0


def test_a_wrong_password_is_refused(own_server: Server) -> None:
    """The listener for logins refuses a wrong password."""
    settings = {"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN", **LOGIN, "sasl.password": "wrong"}
    errors: list[str] = []
    settings["error_cb"] = lambda error: errors.append(error.name())  # type: ignore[assignment]
    admin = AdminClient({"bootstrap.servers": own_server.sasl, "log_level": 0, **settings})
    with pytest.raises(KafkaException):
        admin.list_topics(timeout=5)
    admin.poll(0)
    assert "_AUTHENTICATION" in errors


@pytest.mark.parametrize("listener", ["tls", "sasl_tls"])
def test_a_client_checks_the_certificate(own_server: Server, listener: str) -> None:
    """The listeners with TLS have a certificate of the authority in ``ca.pem``."""
    settings: dict[str, Any] = {"ssl.ca.location": f"{own_server.certificates}/ca.pem"}
    if listener == "tls":
        settings |= {"security.protocol": "ssl"}
    else:
        settings |= {"security.protocol": "sasl_ssl", "sasl.mechanism": "PLAIN", **LOGIN}
    topic = created(getattr(own_server, listener), **settings)
    assert produce(getattr(own_server, listener), topic, b"x", **settings).offset() == 0


def test_a_cluster_goes_on_without_one_broker(start_cluster: Callable[[int], list[Server]]) -> None:
    """When the leader of a topic is killed, another broker leads and has what was stored."""
    brokers = start_cluster(3)
    everywhere = ",".join(broker.address for broker in brokers)
    topic = created(everywhere, copies=3)
    produce(everywhere, topic, b"before")
    metadata = AdminClient({"bootstrap.servers": everywhere, **QUIET}).list_topics(topic, PATIENCE)
    leader = metadata.topics[topic].partitions[0].leader
    brokers[leader - 1].kill()
    produce(everywhere, topic, b"after")
    assert consumed(everywhere, topic, 2) == [b"before", b"after"]
