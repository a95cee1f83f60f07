"""The jars of servers for tests, which Maven fetches once.

``python3 tests/maven.py tests/kafka/pom.xml`` fetches them before the tests run.  It needs nothing but Python.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

FETCH_TIMEOUT = 600.0
"""Seconds that the download may take."""


class NotFetched(Exception):
    """The reason why there are no jars."""


def version(pom: Path, artifact: str) -> str:
    """Return the version of an artifact that a ``pom.xml`` names."""
    found = re.search(rf"<artifactId>{re.escape(artifact)}</artifactId>\s*<version>(.+)</version>", pom.read_text())
    assert found is not None
    return found[1]


def jars(pom: Path) -> Path:
    """Return the folder of the jars that *pom* names, which are fetched if they are not there.

    :raises NotFetched: if there is no Java or no Maven, or if Maven fails.
    """
    if shutil.which("java") is None:
        raise NotFetched("no program 'java'")
    target = pom.with_name("target")
    target.mkdir(exist_ok=True)
    folder = target / "dependency"  # where Maven's plugin puts them by default
    fetched = target / f"fetched-{hashlib.sha256(pom.read_bytes()).hexdigest()[:16]}"
    # Several test processes start at once.  One of them fetches, and the others wait.
    with (target / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not fetched.exists():
            shutil.rmtree(folder, ignore_errors=True)  # another version's jars must not stay on the class path
            _fetch(pom)
            fetched.touch()
    return folder


def _fetch(pom: Path) -> None:
    try:
        done = subprocess.run(
            ["mvn", "--quiet", "--batch-mode", "--file", pom, "dependency:copy-dependencies"],
            env={**os.environ, "TERM": "dumb"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FETCH_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotFetched(f"Maven cannot fetch the jars of {pom}: {error}") from error
    if done.returncode:
        raise NotFetched(f"Maven cannot fetch the jars of {pom}: {done.stdout[-1500:]}{done.stderr[-500:]}")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(jars(Path(name)))
