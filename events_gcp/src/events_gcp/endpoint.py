"""Where Pub/Sub is, and as whom to speak to it; without Google's packages."""

from __future__ import annotations

import os

import attrs

from events_gcp.options import GcpOptions

__all__ = ["Endpoint"]


@attrs.frozen
class Endpoint:
    """What a channel is opened to; clients for which it is equal share channels."""

    target: str
    """``host:port``."""
    is_emulator: bool
    credentials_file: str | None = None
    credentials: str | None = attrs.field(default=None, repr=False, kw_only=True)
    """JSON, in place of a file."""
    impersonate_service_account: str | None = None
    quota_project_id: str | None = None

    @classmethod
    def of(cls, options: GcpOptions) -> Endpoint:
        """The one that *options* and the environment name."""
        emulator = options.emulator_host or os.environ.get("PUBSUB_EMULATOR_HOST")
        if emulator:
            return cls(emulator, is_emulator=True)
        host = options.endpoint or (
            f"{options.region}-pubsub.googleapis.com" if options.region else "pubsub.googleapis.com"
        )
        return cls(
            host if ":" in host else f"{host}:443",
            is_emulator=False,
            credentials_file=options.credentials_file,
            credentials=options.credentials,
            impersonate_service_account=options.impersonate_service_account,
            quota_project_id=options.quota_project_id,
        )
