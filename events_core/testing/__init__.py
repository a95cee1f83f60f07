"""For authors of backends and their tests: the conformance kit.

::

    import pytest
    from events_core import EventConfig
    from events_core.testing import ConformanceSuite, Harness

    class AcmeHarness(Harness):
        def config(self, topic_name, options):
            return EventConfig(topic_name, options=options, backend="acme")

    class TestAcme(ConformanceSuite):
        @pytest.fixture
        def harness(self):
            return AcmeHarness()

Add ``pytest_plugins = ["events_core.testing.plugin"]`` to the topmost ``conftest.py`` for a table of the rules at the
end of the run.  The kit needs pytest and runs its own event loops.
"""

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{module}"
        for module in (
            "stage",
            "values",
            "configuring",
            "loading",
            "publishing",
            "subscribing",
            "receiving",
            "ordering",
            "redelivering",
            "settling",
            "processing",
            "deciding",
            "closing",
            "interruption",
            "cancelling",
            "lapsing",
            "outages",
            "threads",
            "failing",
            "observing",
        )
    )
)

from events_core.testing.harness import Harness  # noqa: E402
from events_core.testing.proxy import TcpProxy  # noqa: E402
from events_core.testing.rules import CLAIMS, RULES, rule  # noqa: E402
from events_core.testing.stage import Stage  # noqa: E402
from events_core.testing.suite import ConformanceSuite  # noqa: E402

__all__ = ["CLAIMS", "RULES", "ConformanceSuite", "Harness", "Stage", "TcpProxy", "rule"]
