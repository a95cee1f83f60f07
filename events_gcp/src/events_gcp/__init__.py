"""Google Cloud Pub/Sub as a backend of events-core; importing it does not import Google's packages."""

from events_gcp.client import GcpPubSubClient
from events_gcp.options import GcpOptions

__all__ = ["GcpOptions", "GcpPubSubClient"]
