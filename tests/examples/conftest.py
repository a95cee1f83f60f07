"""The emulator of Pub/Sub and the server of RabbitMQ, as the tests of these backends find or start them."""

from ..gcp.conftest import emulator  # noqa: F401
from ..rabbitmq.conftest import server  # noqa: F401
