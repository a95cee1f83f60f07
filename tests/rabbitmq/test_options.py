"""Options that contradict each other or that RabbitMQ would refuse are told when the client is made."""

from __future__ import annotations

import pytest

from events_core import ConfigurationError
from events_rabbitmq.limits import behaviour

from .console import client

LONG = "n" * 256

REFUSED = [
    ({"topology": "queue", "routing_key": "a"}, "routing_key"),
    ({"topology": "queue", "binding_keys": "a", "exchange_type": "topic"}, "binding_keys"),
    ({"topology": "queue", "queue": "x-{subscription}"}, "queue"),
    ({"topology": "queue", "exchange_type": "topic"}, "exchange_type"),
    ({"binding_keys": "a"}, "binding_keys"),
    ({"url": "amqp://localhost", "host": "other"}, "host"),
    ({"url": "amqp://localhost", "username": "shop"}, "username"),
    ({"url": "amqp://localhost", "password": "s3cret"}, "password"),
    ({"url": "amqp://localhost", "virtual_host": "shop"}, "virtual_host"),
    ({"url": "amqp://localhost/?heartbeat=5"}, "query"),
    ({"host": "localhost:0"}, "host"),
    ({"exchange_type": "topic", "routing_key": LONG}, "routing_key"),
    ({"exchange_type": "topic", "binding_keys": f"a, {LONG}"}, "binding_keys"),
    ({"virtual_host": LONG}, "virtual_host"),
    ({"url": f"amqp://localhost/{LONG}"}, "virtual host"),
    ({"subscription": LONG}, "255 at most"),
    ({"dead_letter_topic": "d" * 124, "max_delivery_attempts": "5"}, "queue of dead letters"),
    ({"dead_letter_topic": "orders", "max_delivery_attempts": "5"}, "the topic itself"),
]


@pytest.mark.parametrize(
    ("options", "named"), REFUSED, ids=[f"{number} {named}" for number, (_, named) in enumerate(REFUSED)]
)
def test_options_that_cannot_work_are_refused(options: dict[str, str], named: str) -> None:
    """O1: the error names the option, and shows no secret."""
    with pytest.raises(ConfigurationError, match=named) as caught:
        client("orders", **options)
    assert "s3cret" not in str(caught.value)
    assert LONG not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"url": "amqp://shop:secret@localhost/shop amqp://other"},
        {"host": "one,two:5673", "virtual_host": "n" * 255, "username": "shop", "password": "secret"},
        {"topology": "queue", "subscription": "orders"},
        {"exchange_type": "direct", "routing_key": "n" * 255, "binding_keys": f"a, {'n' * 255}"},
        {"dead_letter_topic": "d" * 123, "max_delivery_attempts": "5"},
    ],
    ids=["url", "address", "queue", "direct", "letters"],
)
def test_options_that_work_together_are_taken(options: dict[str, str]) -> None:
    """Options within the limits make a client."""
    assert client("orders", **options).topic_name == "orders"


@pytest.mark.parametrize(
    ("version", "arguments", "counts"),
    [((3, 10), {}, True), ((4, 0), {"x-delivery-limit": -1}, True), ((4, 3), {"x-delivery-limit": -1}, False)],
)
def test_the_version_decides_in_one_place(version: tuple[int, ...], arguments: dict[str, int], counts: bool) -> None:
    """From 4.0 on a queue is told to drop nothing, and from 4.3 on a message that is handed back counts no attempt."""
    assert behaviour(version) == (arguments, counts)
