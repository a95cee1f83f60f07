"""B1, B3: finding and importing the backend."""

from __future__ import annotations

import json

from events_core import available_backends, load_backend
from events_core.interface import API_VERSION
from events_core.testing.rules import rule
from events_core.testing.stage import Stage

__all__ = ["Loading"]

_IMPORT = """
import importlib, importlib.util, json, sys
module, *sdk = sys.argv[1:]
importlib.import_module(module)
imported = [name for name in sdk if name in sys.modules]
missing = [name for name in sdk if importlib.util.find_spec(name) is None]
print(json.dumps({"imported": imported, "missing": missing}))
"""


class Loading:
    """The backend as the registry sees it."""

    @rule("B1")
    def test_importing_the_backend_does_not_import_its_sdk(self, stage: Stage) -> None:
        """The package and the client's module import no module of the SDK, and all its modules are installed."""
        sdk = stage.harness.sdk_modules
        if not sdk:
            stage.lacks("sdk_modules", "the modules of its SDK")
        module = type(stage.client()).__module__
        # In a new interpreter: in this one, other tests may have imported the SDK.
        found = json.loads(stage.python(["-c", _IMPORT, module, *sdk]))
        assert found == {"imported": [], "missing": []}

    @rule("B3")
    def test_the_backend_loads_by_its_name(self, stage: Stage) -> None:
        """The name in the configuration gives the client's class; a registered name is listed once."""
        name = stage.config().backend
        assert load_backend(name) is type(stage.client())
        if ":" not in name:
            assert [info.name for info in available_backends()].count(name) == 1

    @rule("B3")
    def test_the_class_states_its_interface_version(self, stage: Stage) -> None:
        """``api_version`` is the number of this core's interface."""
        assert type(stage.client()).api_version == API_VERSION
