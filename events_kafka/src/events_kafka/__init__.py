"""Apache Kafka as a backend of events-core.

Importing this package does not import confluent-kafka.  Connecting does.

Where things are:

* ``client``, ``options``: the class that the registry finds, and its options.
* ``settings``, ``admin``: the settings of librdkafka that follow from the options, and its administrator as coroutines.
* ``codec``, ``errors``, ``limits``: records, failures, and Kafka's limits.
* ``driver``, ``topology``, ``producing``: the client's side, with topics and consumer groups, and its producer.
* ``source``, ``consumer``, ``position``: the receiver's side, its consumer, and the position of a partition.
"""

from events_kafka.client import KafkaClient
from events_kafka.options import KafkaOptions

__all__ = ["KafkaClient", "KafkaOptions"]
