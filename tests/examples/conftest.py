"""The emulator, as the tests of the Pub/Sub backend find or start it."""

from ..gcp.conftest import emulator  # noqa: F401
