"""The facts that the kit needs about a backend and its broker."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from events_core import EventConfig, EventMessage

__all__ = ["Harness"]


class Harness(ABC):
    """A description of the broker and how to reach it; everything except :meth:`config` has a default."""

    settle_time: float = 0.3
    """Seconds within which a returned message comes again.  The kit waits that long before it believes that no message
    comes."""
    patience: float = 10.0
    """Seconds within which every message that must come does come."""
    bound: float = 30.0
    """Seconds that one test may take, not counting waits for leases to end."""
    lease: float = 0.0
    """Seconds after which the broker delivers a message again if its receiver does not renew the lease, under
    :attr:`lease_options`.  0 if there is no such time."""
    lease_options: Mapping[str, str] = {}
    """Options that make the broker's lease as short as it can be."""
    dead_letter_attempts: int = 2
    """Smallest ``max_delivery_attempts`` that the broker accepts, at least 2."""
    refused_message: EventMessage | None = None
    """A message that the broker refuses for good although the limits permit it; ``None`` if you know none."""
    sdk_modules: Collection[str] = ()
    """Modules that must not be imported before a connection opens (rule B1: lazy imports), for example
    ``"google.cloud.pubsub"``."""
    give_up_after: float = 60.0
    """Seconds that failing tests may take together.  After that the kit leaves out the rest, because nearly every test
    waits in vain if no messages come."""
    not_applicable: Mapping[str, str] = {}
    """Situations that this broker cannot get into, by the name of the member of this class that would cause them, with
    the reason: ``{"outage": "the topics are in the memory of the process"}``.  Tests that need one are then *not
    applicable*, and not only *not shown*."""
    proof: Path | None = None
    """File with the record of what a run of the kit proved; ``None`` keeps no record.

    A run of the whole suite fails if it shows something other than the file says.  With pytest's option
    ``--events-proof`` it writes the file."""
    exceptions: Mapping[str, str] = {}
    """Faults of the environment, for example of an emulator: the name of a rule or of a test, and the reason.

    Such tests run all the same.  If they fail, the table of rules gives the reason."""

    @abstractmethod
    def config(self, topic_name: str, options: Mapping[str, str]) -> EventConfig:
        """Return a configuration of *topic_name*: the options that reaching the broker takes, and *options*.

        It names the backend, and always the same broker.  Missing topics and subscriptions are created, unless
        *options* say otherwise: add ``create="all"`` if that is not the backend's default.
        """

    def versions(self) -> Mapping[str, str]:
        """Return the versions of the server and of the client library by their names, for the record of :attr:`proof`.

        The kit adds the versions of events-core and of the backend's distribution.  It calls this once in a process.
        """
        return {}

    def topic_name(self) -> str:
        """Return a new name for a topic."""
        return f"kit-{uuid.uuid4().hex[:16]}"

    def name(self, topic_name: str, word: str) -> str:
        """Return a name for a subscription or another topic, for the test whose topic is *topic_name*."""
        return f"{topic_name}-{word}"

    def outage(self) -> AbstractContextManager[None] | None:
        """Return a context in which the broker cannot be reached, or ``None`` if the harness cannot do that.

        The kit calls it before the test makes its clients, and enters it later:
        :meth:`TcpProxy.cut() <events_core.testing.TcpProxy.cut>` is such a context.
        """
        return None

    def lost_answers(self) -> AbstractContextManager[None] | None:
        """Return a context in which requests reach the broker and its answers are lost, or ``None`` as above.

        Without it the kit cannot prove ``idempotent_publish``.
        :meth:`TcpProxy.lose_answers() <events_core.testing.TcpProxy.lose_answers>` is such a context.
        """
        return None

    def restart(self) -> bool:
        """Kill the process of the broker, start it again on what it has stored, and return True.

        Return False, as here, if the harness cannot do that; then the kit cannot prove ``durable``.  A broker without a
        separate process, for example a file, is restarted when its last client has died: there is nothing to do, so
        return True.  The kit calls this in a thread, while clients may be connected.
        """
        return False
