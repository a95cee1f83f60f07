"""Google Cloud Pub/Sub as a backend of events-core.

Importing this package does not import Google's packages.  Connecting does.
"""

from events_gcp.client import GcpPubSubClient
from events_gcp.options import GcpOptions

__all__ = ["GcpOptions", "GcpPubSubClient"]
