"""The jars of a Kafka broker."""

from __future__ import annotations

from pathlib import Path

from .. import maven

POM = Path(__file__).with_name("pom.xml")


def version() -> str:
    """Return the version of the broker that the jars are of."""
    return maven.version(POM, "kafka_2.13")


def jars() -> Path:
    """Return the folder of the jars, which are fetched if they are not there.

    :raises maven.NotFetched: if there is no Java or no Maven, or if Maven fails.
    """
    return maven.jars(POM)
