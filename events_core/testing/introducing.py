"""The facts about a backend under test, with which the record of its proof begins.

The process that runs a test knows them.  With pytest-xdist, another process writes the record.  So the facts travel as
a user property of a test, and consist of types that JSON has.
"""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import TYPE_CHECKING

import attrs

from events_core import available_backends

if TYPE_CHECKING:
    from events_core.testing.stage import Stage

__all__ = ["introduced"]


def introduced(suite: type, stage: Stage) -> dict[str, object]:
    """Return the facts about the backend that *suite* tests with the harness of *stage*."""
    client, harness = stage.client(), stage.harness
    backend = stage.config().backend
    return {
        "file": str(harness.proof),
        "tests": sum(hasattr(getattr(suite, name), "rules") for name in dir(suite) if name.startswith("test")),
        "exceptions": dict(harness.exceptions),
        "facts": {
            "backend": backend,
            "suite": (inspect.getdoc(suite) or suite.__name__).partition("\n")[0],
            "versions": {**_distributions(backend), **harness.versions()},
            "capabilities": attrs.asdict(client.capabilities),
            "full_capabilities": attrs.asdict(type(client).full_capabilities),
        },
    }


def _distributions(backend: str) -> dict[str, str]:
    found = {info.distribution: info.version for info in available_backends() if info.name == backend}
    return {"events-core": version("events-core"), **found}
