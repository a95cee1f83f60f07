"""What the kit must be told about a backend and the broker it is tried on."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager

from events_core import EventConfig, EventMessage

__all__ = ["Harness"]


class Harness(ABC):
    """Says how to reach the broker; everything but :meth:`config` has a default."""

    settle_time: float = 0.3
    """Seconds within which what goes back comes again.  The kit listens that long before it believes that nothing
    comes."""
    patience: float = 10.0
    """Seconds within which whatever must come does come."""
    bound: float = 30.0
    """Seconds that one test may take, beside waiting for leases to be over."""
    lease: float = 0.0
    """Seconds after which the broker delivers again what no receiver keeps alive, under :attr:`lease_options`; 0 where
    there is no such time."""
    lease_options: Mapping[str, str] = {}
    """Options that make the broker's lease as short as it can be."""
    dead_letter_attempts: int = 2
    """Smallest ``max_delivery_attempts`` that the broker accepts, at least 2."""
    refused_message: EventMessage | None = None
    """A message that the broker refuses for good although the limits allow it; ``None`` where none is known."""
    sdk_modules: Collection[str] = ()
    """Modules that must not be imported before a connection opens (B1), such as ``"google.cloud.pubsub"``."""
    give_up_after: float = 60.0
    """Seconds that failing tests may take together.  The kit then leaves out the rest: what keeps messages from coming
    makes nearly every test wait in vain."""
    exceptions: Mapping[str, str] = {}
    """What the *environment* does wrong, an emulator for one: a rule or a test's name, to the reason.

    Such tests run all the same; where they fail, the table of rules says why."""

    @abstractmethod
    def config(self, topic_name: str, options: Mapping[str, str]) -> EventConfig:
        """A configuration of *topic_name* with *options* added to those that reaching the broker takes.

        Always the same broker.  It names the backend.  Topics and subscriptions are created when missing, unless
        *options* say otherwise: give ``create="all"`` where that is not the backend's default.
        """

    def topic_name(self) -> str:
        """A new name for a topic."""
        return f"kit-{uuid.uuid4().hex[:16]}"

    def name(self, topic_name: str, word: str) -> str:
        """A name for a subscription or another topic, for the test whose topic is *topic_name*."""
        return f"{topic_name}-{word}"

    def outage(self) -> AbstractContextManager[None] | None:
        """Return a context in which the broker cannot be reached, or ``None`` where the harness cannot do that.

        The kit calls it before the test makes its clients, and enters it later:
        :meth:`TcpProxy.cut() <events_core.testing.TcpProxy.cut>` is such a context.
        """
        return None

    def lost_answers(self) -> AbstractContextManager[None] | None:
        """Return a context in which requests reach the broker and its answers are lost, or ``None`` likewise.

        Otherwise the kit cannot prove ``idempotent_publish``.
        :meth:`TcpProxy.lose_answers() <events_core.testing.TcpProxy.lose_answers>` is such a context.
        """
        return None

    def restart(self) -> bool:
        """Kill the process of the broker, start it again on what it has stored, and return True.

        Return False, as here, where the harness cannot do that.  Otherwise the kit cannot prove ``durable``.  A broker
        without a process of its own, such as a file, is restarted when its last client has died: there is nothing to
        do, so return True.  The kit calls this in a thread, while clients may be connected.
        """
        return False
