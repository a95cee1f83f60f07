"""The emulator as an administrator sees it."""

from __future__ import annotations

import uuid

import grpc
from google.api_core.exceptions import DeadlineExceeded
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import PubsubMessage, Subscription

from events_core import EventConfig
from events_gcp import GcpPubSubClient

PROJECT = "events-test"
PATIENT = dict.fromkeys(("send_timeout", "ack_timeout", "connect_timeout"), "300")
"""Options with which a call ends when it is done, however busy the machine is."""
SHORT_LEASE = {"ack_deadline": "20"}
"""A lease that ends before a test loses patience.

On a busy machine, the time of a close or of a pull may be up before the emulator has answered.  The messages in that
answer come again when their leases are over.
"""


def client(topic: str = "orders", project: str = PROJECT, **options: str) -> GcpPubSubClient:
    return GcpPubSubClient(EventConfig(topic, project, {**PATIENT, **options}, "gcp"))


class Console:
    """An emulator and the topic of one test."""

    def __init__(self, emulator: str, topic_name: str = "") -> None:
        self.emulator = emulator
        self.topic_name = topic_name or f"t-{uuid.uuid4().hex}"
        self.topic = f"projects/{PROJECT}/topics/{self.topic_name}"
        self._channel = grpc.insecure_channel(emulator)
        self.publisher = PublisherClient(transport=PublisherGrpcTransport(channel=self._channel))
        self.subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channel))

    def of(self, topic_name: str) -> Console:
        """Return the console of another topic on the same emulator."""
        return Console(self.emulator, topic_name)

    def client(self, **options: str) -> GcpPubSubClient:
        return client(self.topic_name, **{"emulator_host": self.emulator, **SHORT_LEASE, **options})

    def path(self, subscription: str) -> str:
        return f"projects/{PROJECT}/subscriptions/{subscription}"

    def find(self, subscription: str) -> Subscription:
        return self.subscriber.get_subscription(subscription=self.path(subscription))

    def create(self, name: str, **settings: object) -> None:
        self.subscriber.create_subscription({"name": self.path(name), "topic": self.topic, **settings})

    def pull(self, subscription: str, limit: int = 100, seconds: float = 60) -> dict[str, PubsubMessage]:
        """Take messages away from all receivers, until the subscription's ack deadline; return them by ack id."""
        try:
            response = self.subscriber.pull(subscription=self.path(subscription), max_messages=limit, timeout=seconds)
        except DeadlineExceeded:
            return {}
        return {received.ack_id: received.message for received in response.received_messages}

    def close(self) -> None:
        self._channel.close()
