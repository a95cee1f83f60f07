"""Folders as a backend of events-core."""

from events_acme.client import AcmeClient
from events_acme.options import AcmeOptions

__all__ = ["AcmeClient", "AcmeOptions"]
