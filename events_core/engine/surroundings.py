"""The parts of a client that its receivers use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import attrs

from events_core.engine.driver import Outcome
from events_core.engine.home import Home
from events_core.engine.link import Link
from events_core.errors import EventError
from events_core.message import ReceivedMessage
from events_core.observing import Operation, OperationName
from events_core.options import CommonOptions

if TYPE_CHECKING:
    from events_core.engine.receiver import EngineReceiver

__all__ = ["Observed", "Surroundings"]


class Observed(Protocol):
    """A function that makes contexts; each tells the client's observer of one operation."""

    def __call__(
        self,
        name: OperationName,
        *,
        subscription: str = "",
        messages: int = 0,
        received: Sequence[ReceivedMessage | str] = (),
        outcome: Outcome | None = None,
    ) -> AbstractContextManager[Operation | None]:
        """Return a context to enter for the time of the operation.

        :param received: the messages that it is about, or their ids.
        """


@attrs.frozen(kw_only=True, eq=False)
class Surroundings:
    """The things of one client that all its receivers share."""

    home: Home
    link: Link
    options: CommonOptions
    settle_limit: int
    """The largest number of settlements in one request."""
    settle_unit: int = 1
    """The number of settlements that share one request of the broker."""
    check_process: Callable[[], None]
    """Raises if this process is a forked child."""
    is_observed: Callable[[], bool]
    """Returns whether there is an observer.  Asking first is quicker than a context manager that does nothing."""
    observed: Observed
    located: Callable[[EventError], EventError]
    """Returns the error with the backend and the topic filled in."""
    forget: Callable[[EngineReceiver], None]
    """Tells the client that a receiver has closed."""
