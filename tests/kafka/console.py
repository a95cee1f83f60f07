"""A Kafka cluster as its administrator and other programs see it, by bare confluent-kafka."""

from __future__ import annotations

import socket
import struct
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any, TypeVar

from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
)
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic

from events_core import EventConfig
from events_kafka import KafkaClient

from .server import Server

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds that an answer may take on a busy machine."""
PATIENT = dict.fromkeys(("send_timeout", "ack_timeout", "connect_timeout"), "300")
"""Options with which a call ends when it is done, however busy the machine is.  A server may take a minute to start."""
NOT_READY = frozenset(
    {
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError._WAIT_COORD,
    }
)
"""Answers about a group whose broker has just started, or has just got the group."""
QUIET: Mapping[str, Any] = {"log_level": 0, "error_cb": lambda error: None}
"""Settings of librdkafka, which otherwise logs each refused connection on the standard error stream."""


def client(topic: str, **options: str) -> KafkaClient:
    return KafkaClient(EventConfig(topic, options={"create": "all", **PATIENT, **options}, backend="kafka"))


def answered(futures: Mapping[Any, Future[T]]) -> T:
    """Return the answer to a request of an administrator about one thing."""
    (future,) = futures.values()
    return future.result(PATIENCE)


class Console:
    """A cluster, and the topic and the subscription of one test."""

    def __init__(self, server: Server, address: str = "") -> None:
        self.server = server
        self.address = address or server.address
        self.topic = f"t-{uuid.uuid4().hex[:12]}"
        self.subscription = "s"

    @property
    def group(self) -> str:
        """The group of the subscription."""
        return self.group_of(self.subscription)

    def group_of(self, subscription: str) -> str:
        return f"{self.topic}.{subscription}"

    def client(self, **options: str) -> KafkaClient:
        given = {"bootstrap_servers": self.address, "subscription": self.subscription, **options}
        return client(self.topic, **given)

    @cached_property
    def admin(self) -> AdminClient:
        """The administrator.  It lives as long as this object, because its requests end with it."""
        return AdminClient({"bootstrap.servers": self.address, **QUIET})

    # Topics

    def create_topic(self, partitions: int = 1, copies: int = 1, **settings: str) -> None:
        """Create the topic; ``max_message_bytes`` stands for ``max.message.bytes``."""
        config = {name.replace("_", "."): value for name, value in settings.items()}
        answered(self.admin.create_topics([NewTopic(self.topic, partitions, copies, config=config)]))
        self.until_known(lambda: self.partitions() == partitions)

    def set_topic(self, **settings: str) -> None:
        """Change settings of the topic."""
        resource = ConfigResource(
            ConfigResource.Type.TOPIC,
            self.topic,
            incremental_configs=[
                ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
                for name, value in settings.items()
            ],
        )
        answered(self.admin.incremental_alter_configs([resource]))

    def topic_settings(self) -> dict[str, str | None]:
        entries = answered(self.admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, self.topic)]))
        return {name: entry.value for name, entry in entries.items()}

    def delete_topic(self) -> None:
        before = self.topic_id()
        answered(self.admin.delete_topics([self.topic]))
        # A client may create it again at once.
        self.until_known(lambda: self.topic_id() != before)

    def topic_id(self) -> str:
        """Return the id of the topic, which no other topic of its name has; "" if there is none."""
        try:
            return str(answered(self.admin.describe_topics(TopicCollection([self.topic]))).topic_id)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
            return ""

    def add_partitions(self, total: int) -> None:
        answered(self.admin.create_partitions([NewPartitions(self.topic, total)]))
        self.until_known(lambda: self.partitions() == total)

    def partitions(self) -> int:
        """Return the number of partitions of the topic; 0 if there is none."""
        topic = self.admin.list_topics(self.topic, PATIENCE).topics[self.topic]
        return 0 if topic.error else len(topic.partitions)

    def leader(self, partition: int = 0) -> int:
        """Return the id of the broker that leads a partition; -1 if none does."""
        return self.admin.list_topics(self.topic, PATIENCE).topics[self.topic].partitions[partition].leader

    def delete_records(self, before: int, partition: int = 0) -> None:
        """Delete the records of a partition up to an offset, as retention does."""
        answered(self.admin.delete_records([Place(self.topic, partition, before)]))

    def unregister(self, broker: int) -> None:
        """Let the controller forget a broker until that starts again; meanwhile the broker tells clients of none."""
        # The request UnregisterBroker, version 0, with its header: confluent-kafka does not have it.
        request = struct.pack(">hhih x i x", 64, 0, 1, -1, broker)
        host, _, port = self.address.rpartition(":")
        with socket.create_connection((host, int(port)), PATIENCE) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.makefile("rb").read(4 + 4 + 1 + 4 + 2)
        assert struct.unpack_from(">h", answer, 13) == (0,), answer
        self.until_known(lambda: not self.admin.list_topics(timeout=PATIENCE).brokers)

    # Records

    def produce(
        self,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes | None]] | None = None,
        partition: int = -1,
        timestamp: int = 0,
        **settings: Any,
    ) -> Message:
        """Store a record as another program, and return it with its place."""
        stored: list[Message] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                raise KafkaException(error)
            stored.append(message)

        producer = Producer({"bootstrap.servers": self.address, "acks": "all", **QUIET, **settings})
        more: dict[str, Any] = {"timestamp": timestamp}  # 0 stands for now
        if headers is not None:
            more["headers"] = list(headers)
        producer.produce(self.topic, value, key, partition, on_delivery=delivered, **more)
        assert producer.flush(PATIENCE) == 0
        return stored[0]

    def records(self, number: int, partition: int = 0, topic: str = "") -> list[Message]:
        """Return the first *number* records of a partition."""
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": "unused", **QUIET})
        try:
            consumer.assign([Place(topic or self.topic, partition, 0)])
            found: list[Message] = []
            ends = time.monotonic() + PATIENCE
            while len(found) < number and time.monotonic() < ends:
                message = consumer.poll(0.5)
                if message is not None and message.error() is None:
                    found.append(message)
            assert len(found) == number, f"{len(found)} of {number} records came"
            return found
        finally:
            consumer.close()

    def end(self, partition: int = 0) -> int:
        """Return the offset that the next record of a partition gets."""
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": "unused", **QUIET})
        try:
            _, high = consumer.get_watermark_offsets(Place(self.topic, partition), timeout=PATIENCE)
            return int(high)
        finally:
            consumer.close()

    # Groups

    def position(self, partition: int = 0, group: str = "") -> Place | None:
        """Return what a group has committed for a partition, with its metadata; None if nothing."""
        # By a consumer, because the administrator's request crashes while the coordinator is not ready.
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": group or self.group, **QUIET})
        ends = time.monotonic() + PATIENCE
        try:
            while True:
                try:
                    (found,) = consumer.committed([Place(self.topic, partition)], timeout=PATIENCE)
                    if found.error is not None:
                        raise KafkaException(found.error)
                except KafkaException as error:
                    if error.args[0].code() not in NOT_READY or time.monotonic() > ends:
                        raise
                    time.sleep(0.1)
                else:
                    return None if found.offset < 0 else found
        finally:
            consumer.close()

    def committed(self, partition: int = 0) -> int | None:
        """Return the offset that the subscription has committed for a partition; None if it has none."""
        found = self.position(partition)
        return None if found is None else found.offset

    def commit(self, offset: int, partition: int = 0, metadata: str = "") -> None:
        """Set the position of the subscription, which has no members, as an administrator does."""
        place = (
            Place(self.topic, partition, offset) if metadata is None else Place(self.topic, partition, offset, metadata)
        )
        request = [ConsumerGroupTopicPartitions(self.group, [place])]
        (answer,) = answered(self.admin.alter_consumer_group_offsets(request)).topic_partitions
        if answer.error is not None:
            raise KafkaException(answer.error)

    def members(self, group: str = "") -> int:
        """Return the number of members of the group."""
        return len(answered(self.admin.describe_consumer_groups([group or self.group])).members)

    def state(self) -> ConsumerGroupState:
        """Return the state of the group."""
        return answered(self.admin.describe_consumer_groups([self.group])).state

    def has_group(self, group: str = "") -> bool:
        listing = self.admin.list_consumer_groups().result(PATIENCE)
        return any(found.group_id == (group or self.group) for found in listing.valid)

    def until_known(self, condition: Callable[[], bool]) -> None:
        """Wait until the brokers know of a change: they learn it one after the other."""
        ends = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < ends, "the brokers did not learn of the change"
            time.sleep(0.05)
