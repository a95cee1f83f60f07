"""The server that the other tests start keeps its data, its port and its distance from other programs."""

from __future__ import annotations

import socket
import uuid

import pika
import pytest

from .server import Server


def connect(url: str) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(url))


def test_a_killed_server_comes_back_with_its_messages(own_server: Server) -> None:
    """After a restart, the same URL leads to the same durable queue and its messages."""
    name = uuid.uuid4().hex
    with connect(own_server.url) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum"})
        channel.basic_publish("", name, b"kept", pika.BasicProperties(delivery_mode=2), mandatory=True)
    own_server.kill()
    own_server.start()
    with connect(own_server.url) as connection:
        # A consumer, because 3.10 may leave a basic.get unanswered until the queue has a leader again.
        *_, body = next(connection.channel().consume(name, auto_ack=True, inactivity_timeout=60))
        connection.channel().queue_delete(name)
    assert body == b"kept"


def test_a_stopped_server_refuses_connections(own_server: Server) -> None:
    """After an orderly stop nobody listens; ``restore`` starts the server again."""
    own_server.stop()
    host, _, port = own_server.address.rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=10)
    own_server.restore()
    connect(own_server.url).close()


def test_a_paused_server_answers_when_it_is_resumed(own_server: Server) -> None:
    """A paused server accepts a connection, because the system does it, and says nothing on it."""
    own_server.pause()
    with pytest.raises(TimeoutError):
        own_server.answers(1)
    own_server.resume()
    assert own_server.answers(60)


def test_a_user_has_the_permissions_that_were_given(own_server: Server) -> None:
    """A virtual host, a user and permissions are there as soon as the methods return."""
    vhost, user = uuid.uuid4().hex, uuid.uuid4().hex
    own_server.add_vhost(vhost)
    own_server.add_user(user, "p:w/d")
    own_server.allow(user, vhost, configure="^$", read="^$")
    with connect(own_server.url_for(user=user, password="p:w/d", vhost=vhost)) as connection:
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
            connection.channel().queue_declare("any")
        (row,) = [row for row in own_server.listed("list_connections", "user", "vhost") if row["user"] == user]
    own_server.delete_user(user)
    own_server.delete_vhost(vhost)
    assert row == {"user": user, "vhost": vhost}


def test_an_alarm_blocks_publishers_until_it_is_cleared(own_server: Server) -> None:
    """The server tells a connection that publishes that it is blocked, and later that it is not."""
    told: list[str] = []
    parameters = pika.URLParameters(own_server.url)
    with pika.BlockingConnection(parameters) as connection:
        connection.add_on_connection_blocked_callback(lambda *_: told.append("blocked"))
        connection.add_on_connection_unblocked_callback(lambda *_: told.append("unblocked"))
        own_server.set_alarm()
        connection.channel().basic_publish("", "nowhere", b"")
        for expected in (["blocked"], ["blocked", "unblocked"]):
            for _ in range(60):
                connection.process_data_events(time_limit=1)
                if told == expected:
                    break
            assert told == expected
            own_server.clear_alarm()
