"""Options that contradict each other or that AWS would refuse are told when the client is made."""

from __future__ import annotations

import pytest

from events_core import ConfigurationError, EventConfig
from events_sqs import SQSClient, SQSOptions

REFUSED = [
    ({"account_id": "1234"}, "account_id"),
    ({"endpoint_url": "localhost:4566"}, "endpoint_url"),
    ({"endpoint_url": "http://local_stack:4566"}, "endpoint_url"),
    ({"endpoint_url": "http://[::1:4566"}, "endpoint_url"),
    ({"endpoint_url": "http://localhost:99999"}, "endpoint_url"),
    ({"endpoint_url": "http://:4566"}, "endpoint_url"),
    ({"endpoint_url": "http://local stack:4566"}, "endpoint_url"),
    ({"proxy": "me:s3cret@proxy"}, "proxy"),
    ({"access_key_id": "s3cret"}, "secret_access_key"),
    ({"secret_access_key": "s3cret"}, "access_key_id"),
    ({"session_token": "s3cret"}, "session_token"),
    ({"access_key_id": "s3cret", "secret_access_key": "s3cret", "profile": "shop"}, "profile"),
    ({"topology": "topic"}, "topology"),
    ({"queue_name": "{topic}"}, "queue_name"),
    ({"queue_name": "{topic}.{subscription}"}, "queue_name"),
    ({"retention": "59"}, "retention"),
    ({"wait_time": "21"}, "wait_time"),
    ({"visibility_timeout": "0"}, "visibility_timeout"),
    ({"visibility_timeout": "43201"}, "visibility_timeout"),
    ({"max_message_bytes": "1048577"}, "max_message_bytes"),
    ({"subscription": "two words"}, "two words"),
    ({"subscription": "s" * 75}, "1 to 80 letters"),
    ({"subscription": "s" * 70, "ordering": "true"}, "1 to 75 letters"),
    ({"dead_letter_topic": "orders", "max_delivery_attempts": "5"}, "the topic itself"),
    ({"dead_letter_topic": "a letter", "max_delivery_attempts": "5"}, "dead_letter_topic"),
]


def client(topic: str = "orders", project_id: str = "", **options: str) -> SQSClient:
    return SQSClient(EventConfig(topic, project_id=project_id, options=options, backend="sqs"))


@pytest.mark.parametrize(
    ("options", "named"), REFUSED, ids=[f"{number} {named}" for number, (_, named) in enumerate(REFUSED)]
)
def test_options_that_cannot_work_are_refused(options: dict[str, str], named: str) -> None:
    """O1: the error names the option, and shows no secret."""
    with pytest.raises(ConfigurationError, match=named) as caught:
        client(**options)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("topic", "options"),
    [
        ("two words", {}),
        ("ä", {}),
        ("t" * 257, {}),
        ("t" * 252, {"ordering": "true"}),
        ("t" * 81, {"topology": "queue"}),
        ("t" * 76, {"topology": "queue", "ordering": "true"}),
    ],
    ids=["space", "umlaut", "sns", "sns in order", "queue", "queue in order"],
)
def test_a_topic_that_aws_cannot_have_is_refused(topic: str, options: dict[str, str]) -> None:
    """O1: the error says what a name may have."""
    with pytest.raises(ConfigurationError, match=r"1 to \d+ letters"):
        client(topic, **options)


def test_the_ending_of_fifo_is_left_out() -> None:
    """O1: the error names the option that appends it."""
    with pytest.raises(ConfigurationError, match="ordering=true"):
        client("orders.fifo")


def test_a_project_is_refused() -> None:
    """O1: the error names the option for the account."""
    with pytest.raises(ConfigurationError, match="account_id"):
        client(project_id="shop")


@pytest.mark.parametrize(
    ("topic", "options"),
    [
        ("orders", {"profile": "shop", "role_arn": "arn:aws:iam::123456789012:role/shop"}),
        ("orders", {"access_key_id": "a", "secret_access_key": "b", "session_token": "c", "region": "eu-west-1"}),
        ("orders", {"queue_name": "{subscription}", "subscription": "s" * 80}),
        ("t" * 75, {"topology": "queue", "ordering": "true"}),
        ("t" * 251, {"ordering": "true"}),
        ("orders", {"dead_letter_topic": "dead", "max_delivery_attempts": "5", "dead_letter_subscription": "d"}),
        ("orders", {"proxy": "http://me:secret@proxy:3128"}),
        ("orders", {"proxy": "http://corporate_proxy"}),
        ("orders", {"endpoint_url": "http://[::1]:4566"}),
        ("orders", {"endpoint_url": "https://local-stack.shop.example.:4566/aws"}),
    ],
    ids=["role", "keys", "queue_name", "queue", "topic", "letters", "proxy", "proxy with _", "IPv6", "path"],
)
def test_options_that_work_together_are_taken(topic: str, options: dict[str, str]) -> None:
    """Options within the limits make a client, without a region and without I/O."""
    assert client(topic, **options).topic_name == topic


def test_a_url_names_the_region_and_the_topic() -> None:
    """The authority has the region, and the path the topic."""
    config = EventConfig.from_url("sqs://eu-west-1/orders?subscription=billing")
    assert config.topic_name == "orders"
    assert dict(config.options) == {"region": "eu-west-1", "subscription": "billing"}


def test_credentials_in_a_url_are_refused_and_not_shown() -> None:
    """O2: Celery takes such a URL; here the key would be a part of the region, which errors show."""
    with pytest.raises(ConfigurationError, match="access_key_id") as caught:
        EventConfig.from_url("sqs://AKIA:s3cret@eu-west-1/orders")
    assert "s3cret" not in str(caught.value)


def test_a_url_without_a_region_leaves_it_to_the_environment() -> None:
    """The chain of botocore finds it."""
    config = EventConfig.from_url("sqs:///orders")
    assert (config.topic_name, dict(config.options)) == ("orders", {})


def test_a_secret_is_not_shown() -> None:
    """O2: neither the options nor the client show keys, a token or the password of a proxy."""
    options = SQSOptions(
        access_key_id="s3cret-id",
        secret_access_key="s3cret-key",
        session_token="s3cret-token",
        proxy="http://me:s3cret@proxy:3128",
    )
    made = SQSClient(EventConfig("orders", options=options, backend="sqs"))
    assert "s3cret" not in repr(options) + repr(made)


@pytest.mark.parametrize(
    ("options", "topic", "queue"),
    [
        (SQSOptions(), "orders", "orders-{topic}"),
        (SQSOptions(ordering=True), "orders.fifo", "orders-{topic}.fifo"),
        (SQSOptions(queue_name="{subscription}_of_{topic}"), "orders", "{topic}_of_orders"),
        (SQSOptions(topology="queue"), "orders", "orders"),
        (SQSOptions(topology="queue", ordering=True), "orders.fifo", "orders.fifo"),
    ],
    ids=["standard", "fifo", "template", "queue", "fifo queue"],
)
def test_names_follow_from_the_options(options: SQSOptions, topic: str, queue: str) -> None:
    """Both get .fifo with ordering, and a name with braces stays as it is."""
    assert (options.topic_of("orders"), options.queue_of("orders", "{topic}")) == (topic, queue)


def test_what_a_configuration_promises_follows_from_its_options() -> None:
    """O4: order and idempotent sends need FIFO; the largest message depends on the service and the topic."""
    standard, fifo, queue = client(), client(ordering="true"), client(topology="queue")
    assert [each.capabilities.ordering for each in (standard, fifo, queue)] == ["none", "subscription", "none"]
    assert [each.capabilities.idempotent_publish for each in (standard, fifo, queue)] == [False, True, False]
    sizes = [each.capabilities.limits.max_message_bytes for each in (standard, queue)]
    assert sizes == [262_144 - 49, 1_048_576], "a message on SNS carries its id"
    assert client(ordering="true", max_message_bytes="1000000").capabilities.limits.max_message_bytes == 1_000_000


def test_a_long_send_timeout_promises_no_single_copy() -> None:
    """P7: SQS knows a message again for 5 minutes, and a retry may come later."""
    assert not client(ordering="true", send_timeout="301").capabilities.idempotent_publish
    assert client(ordering="true", send_timeout="300").capabilities.idempotent_publish


def test_a_delay_leaves_time_for_the_lease() -> None:
    """R11: SQS hides a message for 12 hours in all, and it may be buffered and then held for the longest lease each.

    If both together would be too long, the engine gives it one such time for both.
    """
    delays = {"3600": 43_200 - 7200, "21570": 60, "21571": 43_200 - 21_571, "42000": 1200}
    for longest, delay in delays.items():
        assert client(max_lease_duration=longest).capabilities.limits.max_nack_delay == delay
    assert client().capabilities.limits.max_nack_delay == delays["3600"]


def test_a_minute_is_left_for_the_delay_of_a_message_that_was_held_for_long() -> None:
    """R11: a message goes back a minute before the 12 hours are over, so a delay of a minute is always possible."""
    for longest in ("43200", "1e9"):
        assert client(max_lease_duration=longest).capabilities.limits.max_nack_delay == 60
