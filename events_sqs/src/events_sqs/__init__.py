"""AWS SQS and SNS as a backend of events-core.

Importing this package does not import aiobotocore.  Connecting does.

Where things are:

* ``client``, ``options``: the class that the registry finds, and its options.
* ``session``: credentials, and the clients of SQS, SNS and STS that one driver uses.
* ``codec``, ``errors``, ``limits``: messages, failures, and the limits of AWS.
* ``driver``, ``topology``, ``ephemeral``: the client's side, with topics, queues and their subscriptions.
* ``sending``: requests of up to ten messages, with a result for each.
* ``source``: the receiver's side.
"""

from events_sqs.client import SQSClient
from events_sqs.options import SQSOptions

__all__ = ["SQSClient", "SQSOptions"]
