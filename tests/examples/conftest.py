"""The emulators of Pub/Sub and SQS, and the servers of Kafka and RabbitMQ, as the tests of these backends find them."""

from ..gcp.conftest import emulator  # noqa: F401
from ..kafka.conftest import server as kafka_server  # noqa: F401
from ..rabbitmq.conftest import server  # noqa: F401
from ..sqs.conftest import server as sqs_server  # noqa: F401
