"""The wheels and sdists of all distributions, installed in clean environments."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
CLIENTS = {"gcp": "GcpPubSubClient", "kafka": "KafkaClient", "rabbitmq": "RabbitMQClient", "sqs": "SQSClient"}
"""The client class of each backend that is a distribution of its own.  The extra has the same name."""
SOURCES = {"events_core": ROOT} | {f"events_{name}": ROOT / f"events_{name}" for name in CLIENTS}


class Built(NamedTuple):
    """One distribution: its project table and its two artefacts."""

    package: str
    project: dict[str, Any]
    wheel: Path
    sdist: Path

    @property
    def metadata(self) -> Distribution:
        """The metadata in the wheel."""
        return PathDistribution(zipfile.Path(self.wheel, f"{self.wheel.name.split('-py3')[0]}.dist-info/"))

    @property
    def wheel_files(self) -> list[str]:
        """Paths in the wheel."""
        return zipfile.ZipFile(self.wheel).namelist()

    @property
    def sdist_files(self) -> list[str]:
        """Paths in the sdist, without its top directory."""
        with tarfile.open(self.sdist) as archive:
            return [name.partition("/")[2] for name in archive.getnames()]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """Build all distributions; the wheels are built from the sdists."""
    folder = tmp_path_factory.mktemp("dist")
    for source in SOURCES.values():
        build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source]
        subprocess.run(build, check=True, timeout=600, stdout=subprocess.DEVNULL)
    return {package: _built(package, source, folder) for package, source in SOURCES.items()}


def _built(package: str, source: Path, folder: Path) -> Built:
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    stem = f"{package}-{project['version']}"
    return Built(package, project, folder / f"{stem}-py3-none-any.whl", folder / f"{stem}.tar.gz")


@pytest.fixture(params=SOURCES)
def built(request: pytest.FixtureRequest, distributions: dict[str, Built]) -> Built:
    """Return each distribution in turn."""
    return distributions[request.param]


class Environment:
    """A virtual environment that has one requirement installed and nothing else."""

    def __init__(self, folder: Path, wheels: Path, requirement: str) -> None:
        venv.create(folder, with_pip=True)
        self.folder = folder
        pip = ("-m", "pip", "install", "--quiet", "--find-links", wheels, requirement)
        done = self.run("python", *pip, timeout=900)
        assert done.returncode == 0, done.stderr

    def run(self, program: str, *arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, away from the checkout."""
        command = [self.folder / "bin" / program, *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=timeout, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, which must be JSON."""
        imports = "import json, events_core, importlib.metadata as metadata"
        done = self.run("python", "-P", "-c", f"{imports}\nprint(json.dumps({expression}))")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def install(distributions: dict[str, Built], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Environment]:
    """Install events-core from its wheel with the extras named, one environment for each set of extras."""
    wheel = distributions["events_core"].wheel
    environments: dict[str, Environment] = {}

    def install(extras: str) -> Environment:
        if extras not in environments:
            folder = tmp_path_factory.mktemp("venv")
            environments[extras] = Environment(folder, wheel.parent, f"{wheel}[{extras}]" if extras else str(wheel))
        return environments[extras]

    return install


# The artefacts


def test_name_and_version_are_those_of_the_project(built: Built) -> None:
    """The version stands in pyproject.toml alone."""
    assert built.metadata.name == built.project["name"] == built.package.replace("_", "-")
    assert built.metadata.version == built.project["version"]
    assert built.metadata.metadata["Requires-Python"] == ">=3.11"


def test_requirements_are_those_of_the_project(built: Built) -> None:
    """The wheel requires the same packages and extras, and pins none of them to one version."""
    extras = built.project.get("optional-dependencies", {})
    declared = [Requirement(text) for text in built.project["dependencies"]]
    declared += [Requirement(f"{text}; extra == '{extra}'") for extra, texts in extras.items() for text in texts]
    required = [Requirement(text) for text in built.metadata.requires or []]
    assert set(required) == set(declared)
    assert set(built.metadata.metadata.get_all("Provides-Extra") or []) == set(extras)
    assert not [one for one in required if any(part.operator == "==" for part in one.specifier)]


def test_the_core_requires_two_packages(distributions: dict[str, Built]) -> None:
    """Without extras the core needs attrs and stevedore only."""
    requires = map(Requirement, distributions["events_core"].metadata.requires or [])
    assert {one.name for one in requires if not one.marker} == {"attrs", "stevedore"}


@pytest.mark.parametrize("backend", CLIENTS)
def test_each_accepts_the_version_of_the_other_in_this_repository(
    backend: str, distributions: dict[str, Built]
) -> None:
    """A lower bound above the version in development would make both impossible to install."""
    for built, other in (("events_core", f"events_{backend}"), (f"events_{backend}", "events_core")):
        name = other.replace("_", "-")
        (needed,) = (one for one in map(Requirement, distributions[built].metadata.requires or []) if one.name == name)
        assert needed.specifier.contains(distributions[other].project["version"], prereleases=True)


def test_the_licence_travels_along(built: Built) -> None:
    """Each distribution has a copy of the same licence."""
    text = (ROOT / "LICENSE").read_text()
    assert built.metadata.metadata["License-Expression"] == "Apache-2.0"
    assert built.metadata.read_text("licenses/LICENSE") == text
    assert "LICENSE" in built.sdist_files


def test_the_description_is_the_readme(built: Built) -> None:
    """A package index shows the README of the distribution."""
    readme = (SOURCES[built.package] / "README.rst").read_text()
    assert built.metadata.metadata["Description-Content-Type"].startswith("text/x-rst")
    assert built.metadata.metadata["Description"].strip() == readme.strip()


def test_entry_points_are_those_of_the_project(built: Built) -> None:
    """The wheel has the backends and the commands of the project."""
    declared = {
        (group, name, target)
        for group, entries in built.project.get("entry-points", {}).items()
        for name, target in entries.items()
    } | {("console_scripts", name, target) for name, target in built.project.get("scripts", {}).items()}
    assert {(entry.group, entry.name, entry.value) for entry in built.metadata.entry_points} == declared


def test_the_wheel_holds_its_package_alone(built: Built) -> None:
    """It has the mark ``py.typed``, and neither tests nor code of another distribution."""
    assert f"{built.package}/py.typed" in built.wheel_files
    assert {path.partition("/")[0].partition("-")[0] for path in built.wheel_files} == {built.package}


def test_the_sdist_does_not_swallow_another_distribution(built: Built) -> None:
    """The directories are in one repository, and each is published alone."""
    prefix = "" if built.package == "events_core" else "src/"
    assert f"{prefix}{built.package}/py.typed" in built.sdist_files
    others = SOURCES.keys() - {built.package}
    assert not [path for path in built.sdist_files if others & {*Path(path).parts}]


# Installed


def test_the_core_alone_brings_two_packages(install: Callable[[str], Environment]) -> None:
    """It installs attrs and stevedore, and offers its own backends only."""
    core = install("")
    installed = core.evaluate("[dist.name for dist in metadata.distributions()]")
    assert set(installed) - {"pip", "setuptools"} == {"events-core", "attrs", "stevedore"}
    assert core.evaluate("[info.name for info in events_core.available_backends()]") == ["memory", "sqlite"]
    for name in ("memory", "sqlite"):
        assert core.evaluate(f"events_core.load_backend({name!r}).api_version") == 1


@pytest.mark.parametrize("backend", CLIENTS)
def test_the_core_alone_answers_a_request_for_a_backend_with_the_command(
    backend: str, install: Callable[[str], Environment]
) -> None:
    """B3: the error about a known backend that is not installed says how to install it."""
    code = f"import events_core\ntry: events_core.create_client(events_core.EventConfig('t', backend={backend!r}))\n"
    done = install("").run(
        "python", "-P", "-c", f"{code}except events_core.BackendNotFoundError as error: print(error)"
    )
    assert f"install it with: pip install 'events-core[{backend}]'" in done.stdout


def test_the_command_says_what_it_needs(install: Callable[[str], Environment]) -> None:
    """The command is always installed; without the extra ``cli`` it names the packages that it needs."""
    done = install("").run("events", "backends")
    assert done.returncode == 2
    assert "pip install 'events-core[cli]'" in done.stderr


def test_the_command_runs(install: Callable[[str], Environment], distributions: dict[str, Built]) -> None:
    """With the extra ``cli`` the command prints its version."""
    version = distributions["events_core"].project["version"]
    assert install("cli,testing").run("events", "--version").stdout == f"events-core {version}\n"


def test_the_kit_can_be_imported(install: Callable[[str], Environment]) -> None:
    """With the extra ``testing`` it is there, and is no pytest plug-in that every test run would load."""
    done = install("cli,testing").run("python", "-P", "-c", "import events_core.testing")
    assert (done.returncode, done.stderr) == (0, "")
    groups = install("cli,testing").evaluate(
        "[entry.group for entry in metadata.distribution('events-core').entry_points]"
    )
    assert "pytest11" not in groups


@pytest.mark.parametrize(("extra", "client"), CLIENTS.items())
def test_the_extra_brings_the_backend(
    extra: str, client: str, install: Callable[[str], Environment], distributions: dict[str, Built]
) -> None:
    """``pip install events-core[gcp]`` is enough, and installs the distribution that was built here."""
    environment = install(extra)
    listed = environment.evaluate(f"[str(info) for info in events_core.available_backends() if info.name == {extra!r}]")
    version = distributions[f"events_{extra}"].project["version"]
    assert listed == [f"events-{extra} {version} (events_{extra}:{client})"]
    assert environment.evaluate(f"events_core.load_backend({extra!r}).__name__") == client
    assert environment.run("python", "-m", "pip", "check").returncode == 0
