"""Contract §2: a backend is found by its name, and every failure is explained.

The backends are throw-away distributions: wheels that pip installs into a directory of their own, which a fresh
interpreter then has on its path.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from pathlib import Path
from typing import Any

import pytest

from events_core import BackendLoadError, EventClient, available_backends, load_backend, register_backend

CLIENT = """
from events_core import EventClient

class Client(EventClient):
    {body}

for name in EventClient.__abstractmethods__:
    setattr(Client, name, None)
Client.__abstractmethods__ = frozenset()
"""
GOOD = CLIENT.format(body="api_version = 1")

# Distribution: version, name of the backend, target, source of its module.
DISTRIBUTIONS = {
    "acme-good": ("1.2", "good", "acme_good:Client", GOOD),
    "acme-other": ("1.0", "other", "acme_other:Client", GOOD),
    "acme-twin": ("1.0", "twin", "acme_twin:Client", GOOD),
    "rival-twin": ("2.5", "twin", "rival_twin:Client", GOOD),
    "acme-unmet": ("1.0", "unmet", "acme_unmet:Client", "import acme_sdk_that_nobody_has"),
    "acme-syntax": ("1.0", "syntax", "acme_syntax:Client", "class Client"),
    "acme-assert": ("1.0", "assert", "acme_assert:Client", "assert False, 'no luck'"),
    "acme-exit": ("1.0", "exit", "acme_exit:Client", "raise SystemExit(7)"),
    "acme-attribute": ("1.0", "attribute", "acme_attribute:Klient", GOOD),
    "acme-moved": ("1.0", "moved", "acme_moved.client:Client", GOOD),
    "acme-module": ("1.0", "module", "acme_module", GOOD),
    "acme-function": ("1.0", "function", "acme_function:connect", "def connect(config): ..."),
    "acme-stranger": ("1.0", "stranger", "acme_stranger:Client", "class Client: ..."),
    "acme-abstract": (
        "1.0",
        "abstract",
        "acme_abstract:Client",
        "from events_core import EventClient\nclass Client(EventClient):\n    api_version = 1",
    ),
    "acme-unversioned": ("1.0", "unversioned", "acme_unversioned:Client", CLIENT.format(body="pass")),
    "acme-newer": ("1.0", "newer", "acme_newer:Client", CLIENT.format(body="api_version = 2")),
    "acme-older": ("1.0", "older", "acme_older:Client", CLIENT.format(body="api_version = 0")),
    # Loads another backend while it is itself being imported, once another thread waits for its import.
    "acme-nested": (
        "1.0",
        "nested",
        "acme_nested:Client",
        GOOD + "import acme_gate\nacme_gate.wait_until_another_thread_waits()\n"
        "from events_core import load_backend\nload_backend('good')",
    ),
}

GATE = """
import sys, threading, time

def wait_until_another_thread_waits():
    deadline = time.monotonic() + 10
    while not any(map(_imports, set(sys._current_frames()) - {threading.get_ident()})):
        assert time.monotonic() < deadline, "no other thread came to import this module"
        time.sleep(0.001)

def _imports(thread):
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if "importlib" in frame.f_code.co_filename and "acme_nested" in frame.f_locals.values():
            return True
        frame = frame.f_back
    return False
"""


def build_wheel(folder: Path, name: str, version: str, entry: str, modules: dict[str, str]) -> Path:
    """Write the smallest wheel that pip accepts."""
    stem = f"{name.replace('-', '_')}-{version}"
    wheel = folder / f"{stem}-py3-none-any.whl"
    files = {f"{module}.py": source for module, source in modules.items()} | {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/entry_points.txt": f"[events_core.backends]\n{entry}\n",
    }
    record = f"{stem}.dist-info/RECORD"
    files[record] = "".join(f"{path},,\n" for path in [*files, record])
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory in which all the distributions are installed."""
    folder = tmp_path_factory.mktemp("site")
    wheels = []
    for name, (version, backend, target, source) in DISTRIBUTIONS.items():
        modules = {name.replace("-", "_"): source}
        if backend == "nested":
            modules["acme_gate"] = GATE
        wheels.append(build_wheel(tmp_path_factory.mktemp("wheel"), name, version, f"{backend} = {target}", modules))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target"]
    subprocess.run([*pip, folder, *wheels], check=True, timeout=120)
    return folder


def run(site: Path, code: str, *path: Path, **environ: str) -> Any:
    """Run *code* in a new interpreter that has *site* on its path.  Return its ``report``."""
    program = f"{textwrap.dedent(code)}\nimport json\nprint(json.dumps(report))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environ, "PYTHONPATH": os.pathsep.join(map(str, [site, *path, *_inherited()]))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def _inherited() -> list[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def load(site: Path, name: str, *path: Path) -> dict[str, Any]:
    """Load *name*, and return the class or the error, and the names of the imported modules."""
    code = f"""
        import sys
        from events_core import BackendError, load_backend
        try:
            cls = load_backend({name!r})
        except BackendError as error:
            report = dict(
                error=type(error).__name__,
                text=str(error),
                code=error.code,
                backend=error.backend,
                cause=type(error.__cause__).__name__,
            )
        else:
            report = dict(loaded=f"{{cls.__module__}}:{{cls.__qualname__}}")
        backends = ("events_gcp", "events_kafka", "events_rabbitmq", "events_sqs", "events_core.backends.")
        prefixes = ("acme_", "rival_", *backends)
        report["imported"] = sorted(module for module in sys.modules if module.startswith(prefixes))
    """
    return run(site, code, *path)


# B1: only the asked backend is imported


def test_the_asked_backend_is_imported_and_no_other(site: Path) -> None:
    """B1: no other backend is imported, good or broken."""
    assert load(site, "good") == {"loaded": "acme_good:Client", "imported": ["acme_good"]}


def test_listing_imports_nothing(site: Path) -> None:
    """B1: the list needs neither a backend nor stevedore."""
    report = run(
        site,
        """
        import sys
        from events_core import available_backends
        infos = [[info.name, info.distribution, info.version, info.target] for info in available_backends()]
        prefixes = (
            "acme_", "rival_", "events_gcp", "events_kafka", "events_rabbitmq", "events_sqs", "events_core.backends",
            "stevedore",
        )
        report = dict(infos=infos, imported=[name for name in sys.modules if name.startswith(prefixes)])
        """,
    )
    assert report["imported"] == []
    ours = [info for info in report["infos"] if info[1] in DISTRIBUTIONS]
    assert ours == sorted(
        [backend, name, version, target] for name, (version, backend, target, _) in DISTRIBUTIONS.items()
    )


def test_loading_twice_gives_one_class(site: Path) -> None:
    """B1: a loaded class is remembered."""
    code = "from events_core import load_backend\nreport = load_backend('good') is load_backend('good')"
    assert run(site, code) is True


# B2: how it is loaded


def test_no_disk_cache_is_read_or_written(site: Path, tmp_path: Path) -> None:
    """B2: stevedore's cache may be stale, so it is never read."""
    code = """
        import sys
        opened = []
        sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event in ("open", "os.mkdir") else None)
        sys.executable = "/usr/bin/python3"  # stevedore does without its cache for an interpreter below /tmp
        from events_core import load_backend
        load_backend("good")
        assert "stevedore" in sys.modules
        report = [path for path in opened if "python-entrypoints" in path]
    """
    assert run(site, code, HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache")) == []
    assert list(tmp_path.iterdir()) == []


def test_a_backend_may_load_another_while_it_is_imported(site: Path) -> None:
    """B2: no lock is held during an import, so two threads never wait for each other's locks."""
    code = """
        import threading
        from events_core import load_backend
        loaded = []
        threads = [threading.Thread(target=lambda: loaded.append(load_backend("nested")), daemon=True) for _ in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        report = [len(loaded), len(set(loaded)), any(thread.is_alive() for thread in threads)]
    """
    assert run(site, code) == [2, 1, False]


def test_threads_get_one_class(site: Path) -> None:
    """B2: loading and listing from many threads at once gives the same answers as from one."""
    code = """
        from concurrent.futures import ThreadPoolExecutor
        from threading import Barrier
        from events_core import available_backends, load_backend
        barrier = Barrier(8)
        def work(number):
            barrier.wait(10)
            return load_backend("good"), len(available_backends())
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(work, range(8)))
        report = [len(set(part)) for part in zip(*results)]
    """
    assert run(site, code) == [1, 1]


# B3: every failure is explained


@pytest.mark.parametrize("name", ["gcp", "kafka", "rabbitmq", "sqs"])
def test_a_known_backend_that_is_not_installed_comes_with_the_command(site: Path, name: str) -> None:
    """B3: the extra of events-core that installs it."""
    try:
        distribution(f"events-{name}")
    except PackageNotFoundError:
        pass
    else:
        pytest.skip(f"events-{name} is installed here")
    report = load(site, name)
    assert (report["error"], report["code"], report["backend"]) == ("BackendNotFoundError", "NOT_FOUND", name)
    assert f"install it with: pip install 'events-core[{name}]'" in report["text"]


def test_a_misspelt_name_is_answered_with_the_nearest(site: Path) -> None:
    """B3: the error also has the list, and nothing is imported."""
    report = load(site, "memroy")
    assert report["error"] == "BackendNotFoundError"
    assert report["text"].startswith("no backend named 'memroy'; did you mean 'memory'? (available: ")
    assert "good" in report["text"]
    assert report["imported"] == []


def test_a_name_near_to_nothing_is_answered_with_the_list(site: Path) -> None:
    """B3: nothing is suggested, and a name that two distributions share is listed once."""
    text = load(site, "xyzzy")["text"]
    assert "did you mean" not in text
    assert text.count("twin") == 1


def test_two_distributions_with_one_name_are_a_conflict(site: Path) -> None:
    """B3: both are named with their versions and targets, and neither is imported."""
    report = load(site, "twin")
    assert (report["error"], report["code"]) == ("BackendConflictError", "INVALID")
    assert "acme-twin 1.0 (acme_twin:Client), rival-twin 2.5 (rival_twin:Client)" in report["text"]
    assert "uninstall all but one" in report["text"]
    assert report["imported"] == []


def test_a_distribution_that_is_on_the_path_twice_is_no_conflict(site: Path, tmp_path: Path) -> None:
    """B3: an editable install and a built one are one distribution."""
    wheel = build_wheel(tmp_path, "acme-good", "1.1", "good = acme_good:Client", {"acme_good": GOOD})
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "second")
    assert load(site, "good", tmp_path / "second")["loaded"] == "acme_good:Client"


@pytest.mark.parametrize(
    ("name", "cause", "reason"),
    [
        ("unmet", "ModuleNotFoundError", "ModuleNotFoundError: No module named 'acme_sdk_that_nobody_has'"),
        ("syntax", "SyntaxError", "SyntaxError: "),
        ("assert", "AssertionError", "AssertionError: no luck"),
        ("exit", "SystemExit", "SystemExit: 7"),
        ("attribute", "AttributeError", "has no attribute 'Klient'"),
        ("moved", "ModuleNotFoundError", "No module named 'acme_moved.client'"),
    ],
)
def test_a_backend_that_cannot_be_imported_is_broken(site: Path, name: str, cause: str, reason: str) -> None:
    """B3: the error does not say "not installed", and the cause is chained."""
    report = load(site, name)
    target = DISTRIBUTIONS[f"acme-{name}"][2]
    assert (report["error"], report["code"], report["cause"]) == ("BackendLoadError", "INTERNAL", cause)
    assert f"the backend {name!r} from acme-{name} 1.0 ({target}) could not be imported: " in report["text"]
    assert reason in report["text"]
    assert "reinstall or upgrade" in report["text"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("module", "not a class; point the entry point at a subclass of events_core.EventClient"),
        ("function", "not a class; point the entry point at a subclass of events_core.EventClient"),
        ("stranger", "Client is not a subclass of events_core.EventClient; point the entry point at one"),
        ("abstract", "Client does not implement __init__, capabilities, close, "),
        ("unversioned", "Client declares no api_version; this events-core speaks 1, upgrade the backend"),
        ("newer", "written for interface version 2, this events-core speaks 1; upgrade events-core"),
        ("older", "written for interface version 0, this events-core speaks 1; upgrade the backend"),
    ],
)
def test_a_backend_that_is_no_client_of_this_version_is_refused(site: Path, name: str, reason: str) -> None:
    """B3: the error says which side must change, and how."""
    report = load(site, name)
    target = DISTRIBUTIONS[f"acme-{name}"][2]
    assert (report["error"], report["code"], report["backend"]) == ("BackendLoadError", "INTERNAL", name)
    assert f"the backend {name!r} from acme-{name} 1.0 ({target}) cannot be used: " in report["text"]
    assert reason in report["text"]


# Names that no entry point has


def test_a_class_can_be_named_by_module(site: Path) -> None:
    """``module:Class`` needs no entry point, and works also if two distributions share a name."""
    assert load(site, "rival_twin:Client") == {"loaded": "rival_twin:Client", "imported": ["rival_twin"]}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("acme_gone:Client", "No module named 'acme_gone'"),
        ("acme_good:Klient", "has no attribute 'Klient'"),
        (":Client", "Empty module name"),
        ("acme_stranger:Client", "is not a subclass"),
    ],
)
def test_a_class_named_by_module_is_checked_as_well(site: Path, name: str, reason: str) -> None:
    """B3 also holds for ``module:Class``."""
    report = load(site, name)
    assert (report["error"], report["backend"]) == ("BackendLoadError", name)
    assert reason in report["text"]
    assert report["text"].count(name) == 1


def test_a_registered_class_goes_before_an_installed_one(site: Path) -> None:
    """register_backend() helps after a conflict, and in an application that is packed into one file."""
    code = """
        import sys
        from events_core import available_backends, load_backend, register_backend
        from acme_other import Client
        register_backend("twin", Client)
        listed = [str(info) for info in available_backends() if info.name == "twin"]
        report = [load_backend("twin") is Client, listed, "rival_twin" in sys.modules]
    """
    assert run(site, code) == [True, ["registered by this process (acme_other:Client)"], False]


def test_an_unusable_class_is_not_registered() -> None:
    """register_backend() refuses each class that load_backend() would refuse."""
    reason = r"'abstract', registered by this process \(.*\), cannot be used: .* does not implement"
    with pytest.raises(BackendLoadError, match=reason):
        register_backend("abstract", EventClient)
    assert "abstract" not in [info.name for info in available_backends()]


# B4: the core's own backends


def test_the_cores_own_backends_use_the_same_entry_points() -> None:
    """B4: the embedded backends are found and loaded like those of a third party."""
    installed = entry_points(group="events_core.backends")
    own = {entry.name: entry for entry in installed if entry.dist and entry.dist.name == "events-core"}
    assert set(own) == {"memory", "sqlite"}
    for name, entry in own.items():
        assert load_backend(name) is entry.load()
