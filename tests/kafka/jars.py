"""The jars of a Kafka broker, which Maven fetches once.

``python3 tests/kafka/jars.py`` fetches them before the tests run.  It needs nothing but Python.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

POM = Path(__file__).with_name("pom.xml")
FOLDER = POM.with_name("target") / "dependency"
"""The folder in which Maven's plugin puts the jars by default."""
FETCH_TIMEOUT = 600.0
"""Seconds that the download may take."""


class NotFetched(Exception):
    """The reason why there are no jars."""


def version() -> str:
    """Return the version of the broker that the jars are of."""
    found = re.search(r"<artifactId>kafka_2.13</artifactId>\s*<version>(.+)</version>", POM.read_text())
    assert found is not None
    return found[1]


def jars() -> Path:
    """Return the folder of the jars, which are fetched if they are not there.

    :raises NotFetched: if there is no Java or no Maven, or if Maven fails.
    """
    if shutil.which("java") is None:
        raise NotFetched("no program 'java'")
    FOLDER.parent.mkdir(exist_ok=True)
    fetched = FOLDER.parent / f"fetched-{hashlib.sha256(POM.read_bytes()).hexdigest()[:16]}"
    # Several test processes start at once.  One of them fetches, and the others wait.
    with (FOLDER.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not fetched.exists():
            shutil.rmtree(FOLDER, ignore_errors=True)  # another version's jars must not stay on the class path
            _fetch()
            fetched.touch()
    return FOLDER


def _fetch() -> None:
    try:
        done = subprocess.run(
            ["mvn", "--quiet", "--batch-mode", "--file", POM, "dependency:copy-dependencies"],
            env={**os.environ, "TERM": "dumb"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FETCH_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotFetched(f"Maven cannot fetch the jars of Kafka: {error}") from error
    if done.returncode:
        raise NotFetched(f"Maven cannot fetch the jars of Kafka: {done.stdout[-1500:]}{done.stderr[-500:]}")


if __name__ == "__main__":
    print(jars())
