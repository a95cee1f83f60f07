"""Apache Kafka as a backend of events-core.

Importing this package does not import confluent-kafka.  Connecting does.

Where things are:

* ``client``, ``options``: the class that the registry finds, and its options.
* ``settings``, ``admin``: the settings of librdkafka that follow from the options, and its administrator as coroutines.
* ``codec``, ``errors``, ``limits``: records, failures, and Kafka's limits.
* ``driver``, ``topology``, ``groups``: the client's side, with topics and consumer groups.
* ``producing``, ``sender``: the idempotent producer of a topic, and its thread.
* ``source``, ``room``: the receiver's side, and the room between its consumer and the engine.
* ``consumer``, ``assignment``, ``claims``, ``starts``, ``commits``: the thread of a consumer, its partitions, where
  they start, and what is committed.
* ``position``: the position of one partition, as pure decisions.
"""

from events_kafka.client import KafkaClient
from events_kafka.options import KafkaOptions

__all__ = ["KafkaClient", "KafkaOptions"]
