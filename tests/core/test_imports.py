"""B1: the modules that an import loads, as ``python -X importtime`` shows them."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest


def imported_by(statement: str) -> set[str]:
    """Return the names of the modules that *statement* imports in a new interpreter."""
    command = [sys.executable, "-X", "importtime", "-c", statement]
    trace = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stderr
    return {line.rpartition("|")[2].strip() for line in trace.splitlines() if line.startswith("import time:")}


def below(modules: set[str], *packages: str) -> set[str]:
    """Return those of *modules* that belong to one of *packages*."""
    return {name for name in modules if any(name == package or name.startswith(f"{package}.") for package in packages)}


def test_importing_the_core_is_light() -> None:
    """The import loads no plug-in machinery, no database, no package of the command line and no backend."""
    modules = imported_by("import events_core")
    assert "events_core.registry" in modules
    heavy = ("stevedore", "importlib.metadata", "sqlite3", "click", "rich", "pytest")
    ours = (
        "events_core.backends",
        "events_core.cli",
        "events_core.testing",
        "events_gcp",
        "events_kafka",
        "events_rabbitmq",
        "events_sqs",
    )
    assert not below(modules, *heavy, *ours)


def test_importing_the_core_leaves_the_rest_of_the_standard_library_alone() -> None:
    """The modules for files, URLs, JSON and suggestions are imported when they are first needed."""
    modules = imported_by("import events_core")
    assert not below(modules, "tomllib", "pathlib", "urllib", "ipaddress", "json", "difflib")


def test_importing_the_doors_for_authors_imports_no_backend() -> None:
    """The engine knows drivers, not backends."""
    modules = imported_by("import events_core.engine")
    assert not below(modules, "stevedore", "importlib.metadata", "sqlite3", "events_core.backends")


@pytest.mark.parametrize(
    ("package", "sdk"),
    [
        ("events_gcp", ("google", "grpc")),
        ("events_kafka", ("confluent_kafka",)),
        ("events_rabbitmq", ("pika",)),
        ("events_sqs", ("aiobotocore", "botocore", "aiohttp")),
    ],
)
def test_importing_a_backend_does_not_import_its_sdk(package: str, sdk: tuple[str, ...]) -> None:
    """An SDK takes up to half a second and is imported when a connection opens."""
    name = package.replace("_", "-")
    try:
        distribution(name)  # a checkout on the path would make an empty package of its directory
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    modules = imported_by(f"import {package}")
    assert package in modules
    assert not below(modules, *sdk)
