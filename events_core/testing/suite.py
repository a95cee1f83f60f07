"""The whole kit as one class."""

from __future__ import annotations

import pytest

from events_core.testing.arguments import Arguments
from events_core.testing.cancelling import Cancelling
from events_core.testing.closing import Closing
from events_core.testing.configuring import Configuring
from events_core.testing.deciding import Deciding
from events_core.testing.failing import Failing
from events_core.testing.harness import Harness
from events_core.testing.lapsing import Lapsing
from events_core.testing.loading import Loading
from events_core.testing.native import Native
from events_core.testing.observing import Observing
from events_core.testing.ordering import Ordering
from events_core.testing.outages import Outages
from events_core.testing.processing import Processing
from events_core.testing.publishing import Publishing
from events_core.testing.receiving import Receiving
from events_core.testing.redelivering import Redelivering
from events_core.testing.settling import Settling
from events_core.testing.subscribing import Subscribing
from events_core.testing.threads import Threads
from events_core.testing.values import Values

__all__ = ["ConformanceSuite"]


# Pytest runs the tests of the last base first.  So the tests of what every other test relies on run first, and the slow
# ones last.
class ConformanceSuite(
    Cancelling,
    Threads,
    Observing,
    Native,
    Failing,
    Deciding,
    Processing,
    Arguments,
    Redelivering,
    Ordering,
    Settling,
    Receiving,
    Outages,
    Lapsing,
    Subscribing,
    Publishing,
    Values,
    Closing,
    Loading,
    Configuring,
):
    """Every test of the kit: subclass it, call the class ``Test…``, and give it a harness."""

    @pytest.fixture
    def harness(self) -> Harness:
        """The harness of the backend under test."""
        raise NotImplementedError(f"{type(self).__name__} must define a fixture 'harness' that returns a Harness")
