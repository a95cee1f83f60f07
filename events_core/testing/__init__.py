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

import pkgutil

import pytest

# Before any of them is imported: then a failed assert says what it found.
pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))

from events_core.testing.harness import Harness  # noqa: E402
from events_core.testing.proxy import TcpProxy  # noqa: E402
from events_core.testing.rules import CLAIMS, RULES, rule  # noqa: E402
from events_core.testing.stage import Stage  # noqa: E402
from events_core.testing.suite import ConformanceSuite  # noqa: E402

__all__ = ["CLAIMS", "RULES", "ConformanceSuite", "Harness", "Stage", "TcpProxy", "rule"]
