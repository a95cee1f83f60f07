"""An account of AWS, and the topics and queues that these tests create in it and remove again."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from events_core import EventConfig
from events_sqs import SQSClient

EMULATED = bool(os.environ.get("AWS_ENDPOINT_URL"))
PREFIX = "events-real-"
LEFT_OVER = 3600.0
"""Seconds after which what an interrupted run has left is removed."""


class Account:
    """The topics and queues of one run.

    All names begin with :attr:`prefix`, which has the time of the run.  So whatever the tests or the backend have
    created is found by its name and removed, also after a failure.  A run that was killed leaves its things.  A later
    run removes them.
    """

    def __init__(self, region: str, say: Callable[[str], None]) -> None:
        self.region = region
        session = botocore.session.get_session()
        settings = Config(region_name=region, retries={"mode": "standard", "max_attempts": 5})
        self.sqs: Any = session.create_client("sqs", config=settings)
        self.sns: Any = session.create_client("sns", config=settings)
        self.prefix = f"{PREFIX}{int(time.time())}-{secrets.token_hex(3)}-"
        self._say = say

    # Creating

    def queue(self, what: str, attributes: Mapping[str, str] | None = None, *, fifo: bool = False) -> str:
        """Create a queue, and return its URL."""
        name = f"{self.prefix}{what}{'.fifo' if fifo else ''}"
        self._say(f"creating queue {name}")
        wanted = {**({"FifoQueue": "true"} if fifo else {}), **(attributes or {})}
        url: str = self.sqs.create_queue(QueueName=name, Attributes=wanted)["QueueUrl"]
        return url

    def topic(self, what: str, *, fifo: bool = False) -> str:
        """Create a topic of SNS, and return its ARN."""
        name = f"{self.prefix}{what}{'.fifo' if fifo else ''}"
        self._say(f"creating topic {name}")
        arn: str = self.sns.create_topic(Name=name, Attributes={"FifoTopic": "true"} if fifo else {})["TopicArn"]
        return arn

    def arn(self, queue_url: str) -> str:
        """Return the ARN of a queue."""
        told = self.sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])
        arn: str = told["Attributes"]["QueueArn"]
        return arn

    def client(self, what: str, **options: str) -> SQSClient:
        """Return a client of the backend that creates what is missing."""
        name = f"{self.prefix}{what}"
        self._say(f"letting the backend create topics and queues whose names begin with {name}")
        wanted = {"region": self.region, "create": "all", **options}
        if dead := wanted.get("dead_letter_topic"):
            wanted["dead_letter_topic"] = f"{self.prefix}{dead}"
        return SQSClient(EventConfig(name, options=wanted, backend="sqs"))

    # Removing

    def remove_all(self) -> None:
        """Remove everything of this run, and what runs have left more than an hour ago."""
        for url in self._queues():
            self._remove(url, lambda url=url: self.sqs.delete_queue(QueueUrl=url))
        for arn in self._topics():
            # This removes its subscriptions too.
            self._remove(arn, lambda arn=arn: self.sns.delete_topic(TopicArn=arn))

    def _remove(self, where: str, remove: Callable[[], object]) -> None:
        name = where.replace("/", ":").rpartition(":")[2]
        if not self._is_ours(name):
            return
        try:
            remove()
        except ClientError as error:
            # AWS lists a queue for some time after it was deleted.
            if "NonExistentQueue" not in str(error) and "QueueDoesNotExist" not in str(error):
                self._say(f"NOT REMOVED, please do so yourself: {where}: {error}")
        except Exception as error:  # the others must be removed all the same
            self._say(f"NOT REMOVED, please do so yourself: {where}: {error}")
        else:
            self._say(f"removed {name}")

    def _is_ours(self, name: str) -> bool:
        if name.startswith(self.prefix):
            return True
        began = name.removeprefix(PREFIX).partition("-")[0]
        return name.startswith(PREFIX) and began.isdigit() and int(began) < time.time() - LEFT_OVER

    def _queues(self) -> list[str]:
        pages = self.sqs.get_paginator("list_queues").paginate(QueueNamePrefix=PREFIX)
        return [url for page in pages for url in page.get("QueueUrls", [])]

    def _topics(self) -> list[str]:
        pages = self.sns.get_paginator("list_topics").paginate()
        return [topic["TopicArn"] for page in pages for topic in page["Topics"]]


@pytest.fixture(scope="session")
def account(pytestconfig: pytest.Config) -> Iterator[Account]:
    region = os.environ.get("EVENTS_TEST_AWS_REGION")
    if not region:
        pytest.skip("EVENTS_TEST_AWS_REGION names no region of AWS")
    found = None
    with suppress(Exception):  # for example a profile that does not exist
        found = botocore.session.get_session().get_credentials()
    if found is None:
        pytest.skip("no credentials: botocore finds none in the environment, in a profile or in a role")
    capturing = pytestconfig.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capturing.global_and_fixture_disabled():
            print(f"\n{line}", flush=True)

    account = Account(region, say)
    try:
        yield account
    finally:
        account.remove_all()
