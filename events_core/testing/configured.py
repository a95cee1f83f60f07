"""The kit on the broker of a configuration, as ``events check`` runs it."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Mapping

import attrs
import pytest

from events_core import ErrorCode, EventClient, EventConfig, EventError, create_client, load_backend
from events_core.options import CommonOptions, describe_options
from events_core.testing.harness import Harness
from events_core.testing.suite import ConformanceSuite

__all__ = ["ConfiguredHarness", "TestConfigured"]

_COMMON = frozenset(field.name for field in attrs.fields(CommonOptions))


class ConfiguredHarness(Harness):
    """The broker of *config*, on topics that only this run uses.

    The backend's own options, such as the address of the broker, are those of *config*.  The tests set the options that
    every backend understands, such as ``subscription``.

    :param patience: seconds for :attr:`~Harness.patience`.  Settle time and bound are scaled with it.
    :param lease: seconds after which the broker delivers again, under the options of *config*; 0 if not known.
    """

    def __init__(self, config: EventConfig, patience: float = Harness.patience, lease: float = 0.0) -> None:
        # A broker that needs twice the patience needs twice the time for everything.
        scale = patience / Harness.patience
        self.patience = patience
        self.settle_time = Harness.settle_time * scale
        self.bound = Harness.bound * scale + 3 * lease
        self.lease = lease
        self.dead_letter_attempts = _fewest_attempts(config)
        self.prefix = f"events-check-{uuid.uuid4().hex[:8]}"
        """The beginning of every name that the tests use."""
        self.left: dict[str, Exception] = {}
        """Subscriptions that could not be deleted, and the errors."""
        self._config = config
        self._options = {name: value for name, value in config.options.items() if name not in _COMMON}
        self._numbers = itertools.count(1)
        self._topics: set[str] = set()
        self._names: set[str] = set()

    def config(self, topic_name: str, options: Mapping[str, str]) -> EventConfig:
        """Return the configuration of *topic_name*, and remember the topic."""
        self._topics.add(topic_name)
        if dead := options.get("dead_letter_topic"):
            self._topics.add(dead)
            # A receiver may create this subscription (R12).
            self._names.add(options.get("dead_letter_subscription") or f"{dead}-letters")
        options = {**self._options, "create": "all", **options}
        # Requirements are the program's; the kit also tries configurations that promise less.
        return attrs.evolve(self._config, topic_name=topic_name, options=options, origins={}, require=())

    def topic_name(self) -> str:
        """Return the name of the next topic."""
        return f"{self.prefix}-{next(self._numbers)}"

    def name(self, topic_name: str, word: str) -> str:
        """Return a name, and remember it."""
        name = super().name(topic_name, word)
        self._names.add(name)
        return name

    async def clean_up(self) -> None:
        """Delete the subscriptions that tests have created since the last time.  Put failures into :attr:`left`."""
        # Names without the prefix are no text: some tests see that the client refuses those.
        topics = {name for name in self._topics if name.startswith(self.prefix)}
        names = {name for name in self._names - self._topics if name.startswith(self.prefix)}
        for topic_name in sorted(topics):
            async with create_client(self.config(topic_name, {"create": "never"})) as client:
                # No test gives one name to subscriptions of two topics.
                names -= {name for name in sorted(names) if await self._deleted(client, name)}
        self._topics.clear()
        self._names.clear()

    async def _deleted(self, client: EventClient, subscription: str) -> bool:
        try:
            async with asyncio.timeout(self.bound):
                await client.delete_subscription(subscription)
        except Exception as error:  # a broken backend may raise anything here
            if not isinstance(error, EventError) or error.code is not ErrorCode.NOT_FOUND:
                self.left[subscription] = error
            return False
        return True


def _fewest_attempts(config: EventConfig) -> int:
    options = {info.name: info for info in describe_options(load_backend(config.backend).options_class)}
    return max(Harness.dead_letter_attempts, int(options["max_delivery_attempts"].minimum or 0))


class TestConfigured(ConformanceSuite):
    """The kit on the harness ``configured``, a fixture that the caller defines."""

    @pytest.fixture
    def harness(self, configured: Harness) -> Harness:
        """The harness of this run."""
        return configured
