"""A project of Google Cloud, and the resources that these tests create in it and remove again."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import google.auth
import pytest
from google.api_core.exceptions import NotFound
from google.auth.exceptions import DefaultCredentialsError
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient

from events_core import EventConfig
from events_gcp import GcpPubSubClient

EMULATED = bool(os.environ.get("PUBSUB_EMULATOR_HOST"))


class Project:
    """The topics and subscriptions of one run.  Each is announced, and removed at the end."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name = name
        self.publisher = PublisherClient()
        self.subscriber = SubscriberClient()
        self._prefix = f"events-real-{uuid.uuid4().hex[:12]}"
        self._say = say
        self._topics: list[str] = []
        self._subscriptions: list[str] = []

    def topic(self, what: str) -> str:
        """Create a topic, and return its short name."""
        short = f"{self._prefix}-{what}"
        path = f"projects/{self.name}/topics/{short}"
        self._say(f"creating {path}")
        self._topics.append(path)
        self.publisher.create_topic(name=path)
        return short

    def subscription(self, topic: str, **settings: Any) -> str:
        """Create an ordered subscription of *topic* that expires after a day if it is left; return its short name."""
        short = f"{topic}-s{len(self._subscriptions)}"
        path = f"projects/{self.name}/subscriptions/{short}"
        self._say(f"creating {path}")
        self._subscriptions.append(path)
        expiration = {"ttl": {"seconds": 86_400}}
        wanted = {
            "name": path,
            "topic": f"projects/{self.name}/topics/{topic}",
            "expiration_policy": expiration,
            "enable_message_ordering": True,
        }
        self.subscriber.create_subscription({**wanted, **settings})
        return short

    def client(self, topic: str, **options: str) -> GcpPubSubClient:
        """Return a client that creates nothing, in the region of EVENTS_TEST_REGION."""
        region = {} if EMULATED else {"region": os.environ.get("EVENTS_TEST_REGION", "europe-west2")}
        return GcpPubSubClient(EventConfig(topic, self.name, {"create": "never", **region, **options}, "gcp"))

    def remove_all(self) -> None:
        """Remove everything that was created, and name what could not be removed."""
        subscriptions = [(self.subscriber.delete_subscription, {"subscription": each}) for each in self._subscriptions]
        topics = [(self.publisher.delete_topic, {"topic": each}) for each in self._topics]
        for remove, named in [*subscriptions, *topics]:
            (path,) = named.values()
            try:
                remove(**named)
            except NotFound:
                continue
            except Exception as error:  # the others must be removed all the same
                self._say(f"NOT REMOVED, please do so yourself: {path}: {error}")
            else:
                self._say(f"removed {path}")


@pytest.fixture(scope="session")
def project(pytestconfig: pytest.Config) -> Iterator[Project]:
    name = os.environ.get("EVENTS_TEST_PROJECT")
    if not name:
        pytest.skip("EVENTS_TEST_PROJECT names no project of Google Cloud")
    if not EMULATED:
        try:
            google.auth.default()
        except DefaultCredentialsError as error:
            pytest.skip(f"no credentials: {error}")
    capturing = pytestconfig.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capturing.global_and_fixture_disabled():
            print(f"\n{line}", flush=True)

    project = Project(name, say)
    try:
        yield project
    finally:
        project.remove_all()
