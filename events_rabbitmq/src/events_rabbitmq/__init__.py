"""RabbitMQ as a backend of events-core.

Importing this package does not import pika.  Connecting does.

Where things are:

* ``client``, ``options``: the class that the registry finds, and its options.
* ``address``, ``links``, ``connection``: where to connect, the connections of a client, and pika as coroutines.
* ``wire``, ``codec``, ``errors``, ``limits``: frames, messages, failures, and RabbitMQ's limits.
* ``driver``, ``topology``, ``publishing``: the client's side, with topics and subscriptions as exchanges and queues.
* ``source``, ``consuming``: the receiver's side.
"""

from events_rabbitmq.client import RabbitMQClient
from events_rabbitmq.options import RabbitMQOptions

__all__ = ["RabbitMQClient", "RabbitMQOptions"]
