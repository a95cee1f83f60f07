"""The emulator of Pub/Sub, the broker of Kafka and the server of RabbitMQ, as the tests of these backends find them."""

from ..gcp.conftest import emulator  # noqa: F401
from ..kafka.conftest import server as kafka_server  # noqa: F401
from ..rabbitmq.conftest import server  # noqa: F401
