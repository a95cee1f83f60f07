"""The options of this backend."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import attrs

from events_core.options import CommonOptions, option

__all__ = ["GcpOptions", "is_address", "is_content", "shown"]


@attrs.frozen(kw_only=True)
class GcpOptions(CommonOptions):
    """Options of the Pub/Sub backend."""

    create: Literal["never", "subscription", "all"] | None = option(  # type: ignore[assignment]
        default=None,
        help="What the client creates if it is missing: nothing, the subscription, or the topics as well. "
        "Default: all on an emulator, never on the service.",
    )
    max_delivery_attempts: int | None = option(
        default=None,
        minimum=5,
        maximum=100,
        help="Failed deliveries after which a message goes to dead_letter_topic. Pub/Sub counts and moves it, or, with "
        "ordering=true, the receiver.",
    )

    # Address and account

    emulator_host: str | None = option(
        default=None,
        help="host:port of an emulator, used without encryption and credentials. It overrides region and endpoint. "
        "Default: the environment variable PUBSUB_EMULATOR_HOST.",
    )
    region: str | None = option(
        default=None,
        help="Region whose endpoint is used, for example europe-west2. Order per key and exactly-once delivery hold "
        "within one region only.",
    )
    endpoint: str | None = option(default=None, help="host or host:port of the service, instead of a region.")
    credentials_file: str | None = option(
        default=None,
        help="Path of a credentials file. Default: the option credentials, or Application Default Credentials.",
    )
    credentials: str | None = option(
        default=None, secret=True, help="The JSON content of a credentials file, instead of its path."
    )
    impersonate_service_account: str | None = option(
        default=None,
        help="E-mail address of a service account to act as. The owner of the credentials needs the permission.",
    )
    quota_project_id: str | None = option(
        default=None, help="Project that pays for requests. Default: the one of the credentials."
    )

    # Sending

    compression: Literal["none", "gzip"] = option(
        default="none", help="Compression of publish requests. gzip helps with text on a slow line."
    )

    # Receiving

    receive_mode: Literal["stream", "pull"] = option(
        default="stream",
        help="stream: Pub/Sub sends ahead, up to the bounds. pull: one request for each batch; nothing waits unread.",
    )
    streams: int = option(
        default=1,
        minimum=1,
        maximum=20,
        help="Streams, or concurrent pulls, of one receiver. Pub/Sub sends about 10 MB/s on each.",
    )
    ack_deadline: int = option(
        default=60,
        minimum=10,
        maximum=600,
        unit="seconds",
        help="Lease of a delivery. The receiver renews it; after a crash, messages come again when it has run out.",
    )

    # Settings of a new subscription.  An existing one must have the same exactly_once and filter.

    exactly_once: bool | None = option(
        default=None, help="Exactly-once delivery, within one region. Default: as the subscription has it."
    )
    filter: str | None = option(
        default=None,
        help='Receive only messages whose attributes match, at most 256 bytes. Example: attributes.kind = "invoice".',
    )
    retry_min_backoff: float | None = option(
        default=None,
        minimum=0,
        maximum=600,
        unit="seconds",
        help="Shortest delay after a nack, for a new subscription. Default: the receiver delays.",
    )
    retry_max_backoff: float | None = option(
        default=None, minimum=0, maximum=600, unit="seconds", help="Longest delay after a nack, for a new subscription."
    )
    message_retention: float | None = option(
        default=None,
        minimum=600,
        maximum=31 * 86400,
        unit="seconds",
        help="Time for which a new subscription keeps unacknowledged messages. Default: 7 days.",
    )

    def problems(self) -> Iterable[str]:
        """Yield contradictions between options."""
        yield from super().problems()
        yield from self._credentials_problems()
        yield from self._address_problems()
        if self.region and self.endpoint:
            yield "options 'region' and 'endpoint' exclude each other; give one"
        least, most = self.retry_min_backoff, self.retry_max_backoff
        if (least is None) is not (most is None):
            yield "options 'retry_min_backoff' and 'retry_max_backoff' go together; give both or neither"
        elif least is not None and most is not None and least > most:
            yield f"option 'retry_min_backoff' is {least:g} seconds, more than the {most:g} of 'retry_max_backoff'"
        size = len((self.filter or "").encode())
        if size > 256:
            yield f"option 'filter' has {size} bytes; Pub/Sub takes 256 at most"

    def _address_problems(self) -> Iterable[str]:
        if self.emulator_host is not None and not is_address(self.emulator_host):
            yield (
                f"option 'emulator_host': {shown(self.emulator_host)!r} is not a host and port, for example "
                "localhost:8085"
            )
        if self.endpoint is not None and not is_address(self.endpoint, needs_port=False):
            yield (
                f"option 'endpoint': {shown(self.endpoint)!r} is not a host, for example pubsub.private.example, or "
                "host:port; leave out https://"
            )
        if self.region is not None and not _REGION.fullmatch(self.region):
            yield f"option 'region': {self.region!r} is not a region, for example europe-west2"

    def _credentials_problems(self) -> Iterable[str]:
        """Yield problems of the credentials, without showing any part of them."""
        if self.credentials is not None and self.credentials_file is not None:
            yield "options 'credentials' and 'credentials_file' exclude each other; give one"
        if self.credentials_file is not None and is_content(self.credentials_file):
            yield (
                "option 'credentials_file' must be a path, but it has the content of a file (not shown); give the "
                "content to the option 'credentials', as in credentials = { file = \"/run/secrets/key.json\" }"
            )
        if self.credentials is not None and not _is_credentials(self.credentials):
            yield "option 'credentials' is not the JSON of credentials (not shown); give the whole content of the file"


_REGION = re.compile(r"[a-z][a-z0-9-]{0,48}[a-z0-9]")  # a part of a host name
_ADDRESS = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}|\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\])(?::([0-9]{1,5}))?")


def shown(address: str) -> str:
    """Return *address* for an error, without the part before ``@``: in a copied URL, that may be a password."""
    _, at, host = address.rpartition("@")
    return f"…@{host}" if at else address


def is_address(text: str, *, needs_port: bool = True) -> bool:
    """Return whether *text* can be ``host:port``, with an IPv6 address in brackets."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        return False
    return 0 < int(found[1]) < 2**16 if found[1] else not needs_port


def is_content(path: str) -> bool:
    """Return whether *path* is the content of a credentials file: JSON, a key in PEM, or several lines."""
    return path.lstrip("\ufeff \t\r\n").startswith(("{", "-----BEGIN")) or "\n" in path


def _is_credentials(text: str) -> bool:
    import json

    try:
        found = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return False
    # Google's packages show an unknown type in their error.  So only what looks like a name may be a type: anything
    # else could be a secret.
    return isinstance(found, dict) and bool(re.fullmatch(r"[a-z_]{1,64}", str(found.get("type"))))
