"""Options that contradict each other or that Kafka would refuse are told when the client is made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import attrs
import pytest

from events_core import ConfigurationError, EventConfig
from events_kafka import KafkaClient, KafkaOptions
from events_kafka.settings import Role, settings

REFUSED = [
    ({"bootstrap_servers": "localhost:0"}, "bootstrap_servers"),
    ({"bootstrap_servers": "one:9092,two:kafka"}, "bootstrap_servers"),
    ({"tls_ca_file": "ca.pem"}, "tls_ca_file"),
    ({"tls": "true", "tls_key_file": "key.pem"}, "tls_cert_file"),
    ({"username": "shop"}, "sasl_mechanism"),
    ({"password": "s3cret"}, "sasl_mechanism"),
    ({"sasl_mechanism": "PLAIN", "username": "shop"}, "password"),
    ({"sasl_mechanism": "OAUTHBEARER", "username": "shop", "password": "s3cret"}, "username"),
    ({"sasl_mechanism": "OAUTHBEARER", "oauth_callback": "tokens"}, "oauth_callback"),
    ({"oauth_callback": "tokens:new"}, "OAUTHBEARER"),
    ({"librdkafka": "acks=s3cret"}, "may not have 'acks'"),
    ({"librdkafka": "enable.auto.commit=true"}, "enable.auto.commit"),
    ({"librdkafka": "lingr.ms=5"}, "did you mean 'linger.ms'"),
    ({"librdkafka": "linger.ms"}, "name=value"),
    ({"librdkafka": "linger.ms='5"}, "librdkafka"),
    ({"group_id": "{topic}"}, "group_id"),
    ({"start": "yesterday"}, "start"),
    ({"dead_letter_topic": "orders", "max_delivery_attempts": "5"}, "the topic itself"),
    ({"dead_letter_topic": "a letter", "max_delivery_attempts": "5"}, "dead_letter_topic"),
    ({"partitions": "0"}, "partitions"),
    ({"max_message_bytes": "2000000000"}, "max_message_bytes"),
]


def client(topic: str = "orders", **options: str) -> KafkaClient:
    return KafkaClient(EventConfig(topic, options=options, backend="kafka"))


@pytest.mark.parametrize(
    ("options", "named"), REFUSED, ids=[f"{number} {named}" for number, (_, named) in enumerate(REFUSED)]
)
def test_options_that_cannot_work_are_refused(options: dict[str, str], named: str) -> None:
    """O1: the error names the option, and shows no secret."""
    with pytest.raises(ConfigurationError, match=named) as caught:
        client(**options)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("topic", ["a b", "a/b", "ä", ".", "..", "t" * 250])
def test_a_topic_that_kafka_cannot_have_is_refused(topic: str) -> None:
    """O1: the error names the topic, and says what a name may have."""
    with pytest.raises(ConfigurationError, match="1 to 249 letters"):
        client(topic)


@pytest.mark.parametrize(
    "options",
    [
        {"bootstrap_servers": "one:9092, [::1]:9093,three"},
        {"tls": "true", "tls_cert_file": "c.pem", "tls_key_file": "k.pem", "tls_key_password": "secret"},
        {"sasl_mechanism": "SCRAM-SHA-512", "username": "shop", "password": "secret"},
        {"sasl_mechanism": "OAUTHBEARER", "oauth_callback": "shop.tokens:new"},
        {"sasl_mechanism": "OAUTHBEARER", "librdkafka": "sasl.oauthbearer.method=oidc sasl.oauthbearer.client.id=a"},
        {"group_id": "{subscription}", "group_protocol": "consumer", "static_member": "one"},
        {"start": "2026-11-26T12:00:00Z"},
    ],
    ids=["servers", "tls", "scram", "oauth", "oidc", "groups", "time"],
)
def test_options_that_work_together_are_taken(options: dict[str, str]) -> None:
    """Options within the limits make a client."""
    assert client(**options).topic_name == "orders"


def test_a_url_names_the_servers_and_the_topic() -> None:
    """The authority has the servers, and the path the topic."""
    config = EventConfig.from_url("kafka://one:9092,two:9093/orders?subscription=billing")
    assert config.topic_name == "orders"
    assert dict(config.options) == {"bootstrap_servers": "one:9092,two:9093", "subscription": "billing"}


def test_a_url_with_a_user_is_refused() -> None:
    """O2: the error names the options, and does not repeat the password."""
    with pytest.raises(ConfigurationError, match="sasl_mechanism") as caught:
        EventConfig.from_url("kafka://shop:s3cret@one:9092/orders")
    assert "s3cret" not in str(caught.value)


def test_a_secret_is_not_shown() -> None:
    """O2: neither the options nor the configuration show a password or the other settings of librdkafka."""
    options = KafkaOptions(
        sasl_mechanism="PLAIN", username="shop", password="s3cret", librdkafka="ssl.keystore.password=s3cret"
    )
    made = KafkaClient(EventConfig("orders", options=options, backend="kafka"))
    assert "s3cret" not in repr(options) + repr(made)


@pytest.mark.parametrize(
    ("template", "group"),
    [
        ("{topic}.{subscription}", "orders.{topic}"),
        ("{subscription}", "{topic}"),
        ("team-{subscription}-{topic}", "team-{topic}-orders"),
    ],
)
def test_the_group_is_named_by_its_template(template: str, group: str) -> None:
    """The names stand in the template, and a name with braces stays as it is."""
    assert KafkaOptions(group_id=template).group_of("orders", "{topic}") == group


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-26T12:00:00Z", datetime(2026, 11, 26, 12, tzinfo=UTC)),
        ("2026-11-26 12:00", datetime(2026, 11, 26, 12, tzinfo=UTC)),
        ("2026-11-26T12:00:00+02:00", datetime(2026, 11, 26, 12, tzinfo=timezone(timedelta(hours=2)))),
        ("latest", None),
    ],
)
def test_a_start_may_be_a_time(text: str, time: datetime | None) -> None:
    """Q3: the time is in ISO 8601, and in UTC if it names no zone."""
    assert KafkaOptions(start=text).start_time == time


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("producer", {"linger.ms": "5", "client.id": "shop"}),
        ("consumer", {"fetch.min.bytes": "9", "client.id": "shop"}),
        ("admin", {"client.id": "shop"}),
    ],
)
def test_other_settings_reach_the_clients_that_take_them(role: Role, expected: dict[str, str]) -> None:
    """A setting for producers is not given to a consumer, which would complain."""
    options = KafkaOptions(librdkafka="linger.ms=5 fetch.min.bytes=9 client.id=shop")
    found = settings(options, role)
    assert {name: found[name] for name in ("linger.ms", "fetch.min.bytes", "client.id") if name in found} == expected


def test_a_setting_with_spaces_is_quoted_as_in_a_shell() -> None:
    """The value keeps its spaces and its equals signs."""
    options = KafkaOptions(librdkafka="'sasl.oauthbearer.config=principal=shop scope=all'")
    assert settings(options, "admin")["sasl.oauthbearer.config"] == "principal=shop scope=all"


@pytest.mark.parametrize(
    ("options", "protocol"),
    [
        ({}, "plaintext"),
        ({"tls": True}, "ssl"),
        ({"sasl_mechanism": "OAUTHBEARER"}, "sasl_plaintext"),
        ({"sasl_mechanism": "OAUTHBEARER", "tls": True}, "sasl_ssl"),
    ],
)
def test_the_protocol_follows_from_the_options(options: dict[str, object], protocol: str) -> None:
    """TLS and the method to authenticate are two options."""
    made = attrs.evolve(KafkaOptions(), **options)  # type: ignore[arg-type]
    assert settings(made, "admin")["security.protocol"] == protocol
