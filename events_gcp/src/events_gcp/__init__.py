"""Google Cloud Pub/Sub as a backend of events-core.

Importing this package does not import Google's packages.  Connecting does.

Where things are:

* ``client``, ``options``: the class that the registry finds, and its options.
* ``endpoint``, ``credentials``, ``channels``: where to connect, with which account, and the shared connections.
* ``api``, ``codec``, ``errors``, ``limits``: the requests, their messages, their failures, and Pub/Sub's limits.
* ``driver``, ``admin``: the client's side, with topics and subscriptions as resources.
* ``source``: the receiver's side.  It opens with a list of its parts.
* ``ephemeral``, ``scratch``: names of ephemeral subscriptions, and cleaning up after ``events check``.
"""

from events_gcp.client import GcpPubSubClient
from events_gcp.options import GcpOptions

__all__ = ["GcpOptions", "GcpPubSubClient"]
