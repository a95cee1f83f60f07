"""What can be configured."""

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
        help="What may be created when it is missing: nothing, the subscription, or the topics as well; "
        "unset means all on an emulator and never on the service.",
    )
    max_delivery_attempts: int | None = option(
        default=None,
        minimum=5,
        maximum=100,
        help="Failed deliveries after which a message goes to dead_letter_topic: counted and moved by Pub/Sub, or, "
        "with ordering=true, by the receiver.",
    )

    # Where, and as whom

    emulator_host: str | None = option(
        default=None,
        help="host:port of an emulator, used without encryption or credentials and before region and endpoint; "
        "unset takes the environment variable PUBSUB_EMULATOR_HOST.",
    )
    region: str | None = option(
        default=None,
        help="Region whose endpoint is used, such as europe-west2; order per key and exactly-once delivery hold "
        "within one region.",
    )
    endpoint: str | None = option(default=None, help="host or host:port of the service, in place of a region's.")
    credentials_file: str | None = option(
        default=None,
        help="Path of a credentials file; unset takes credentials, or Application Default Credentials.",
    )
    credentials: str | None = option(
        default=None, secret=True, help="The JSON that a credentials file has, in place of its path."
    )
    impersonate_service_account: str | None = option(
        default=None, help="E-mail address of the service account to act as; the credentials' owner must be allowed to."
    )
    quota_project_id: str | None = option(
        default=None, help="Project to which requests are billed; unset takes the credentials' own."
    )

    # Sending

    compression: Literal["none", "gzip"] = option(
        default="none", help="How requests to publish are compressed: gzip pays for text on a narrow line."
    )

    # Receiving

    receive_mode: Literal["stream", "pull"] = option(
        default="stream",
        help="Streaming pull, which Pub/Sub fills ahead; or a request for each batch, which hoards nothing.",
    )
    streams: int = option(
        default=1,
        minimum=1,
        maximum=20,
        help="Streams, or concurrent pulls, of one receiver; Pub/Sub sends about 10 MB/s on each.",
    )
    ack_deadline: int = option(
        default=60,
        minimum=10,
        maximum=600,
        unit="seconds",
        help="Lease of a delivery, renewed while the receiver lives: after a crash, messages come again this late.",
    )

    # What a new subscription is to be, and one that exists must be

    exactly_once: bool | None = option(
        default=None, help="Ask for exactly-once delivery, within one region; unset takes what the subscription has."
    )
    filter: str | None = option(
        default=None,
        help='Only messages whose attributes match are received, such as attributes.kind = "invoice"; at most 256 '
        "bytes.",
    )
    retry_min_backoff: float | None = option(
        default=None,
        minimum=0,
        maximum=600,
        unit="seconds",
        help="A new subscription's least delay after a nack; unset leaves the delay to the receiver.",
    )
    retry_max_backoff: float | None = option(
        default=None, minimum=0, maximum=600, unit="seconds", help="A new subscription's greatest delay after nacks."
    )
    message_retention: float | None = option(
        default=None,
        minimum=600,
        maximum=31 * 86400,
        unit="seconds",
        help="How long a new subscription keeps what nobody acknowledges; unset takes Pub/Sub's 7 days.",
    )

    def problems(self) -> Iterable[str]:
        """What contradicts itself between several options."""
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
            yield f"option 'emulator_host': {shown(self.emulator_host)!r} is no host and port, such as localhost:8085"
        if self.endpoint is not None and not is_address(self.endpoint, needs_port=False):
            yield (
                f"option 'endpoint': {shown(self.endpoint)!r} is no host, such as pubsub.private.example, or host and "
                "port; leave out https://"
            )
        if self.region is not None and not _REGION.fullmatch(self.region):
            yield f"option 'region': {self.region!r} is no region, such as europe-west2"

    def _credentials_problems(self) -> Iterable[str]:
        """Say what is wrong with the credentials, without a part of them."""
        if self.credentials is not None and self.credentials_file is not None:
            yield "options 'credentials' and 'credentials_file' exclude each other; give one"
        if self.credentials_file is not None and is_content(self.credentials_file):
            yield (
                "option 'credentials_file' has the content of a file (not shown), where a path belongs; give the "
                "content to the option 'credentials', as in credentials = { file = \"/run/secrets/key.json\" }"
            )
        if self.credentials is not None and not _is_credentials(self.credentials):
            yield "option 'credentials' is no JSON of credentials (not shown); give all that the credentials file has"


_REGION = re.compile(r"[a-z][a-z0-9-]{0,48}[a-z0-9]")  # a part of a host name
_ADDRESS = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}|\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\])(?::([0-9]{1,5}))?")


def shown(address: str) -> str:
    """Return *address* for an error, without what stands before ``@``: in a copied URL that may be a password."""
    _, at, host = address.rpartition("@")
    return f"…@{host}" if at else address


def is_address(text: str, *, needs_port: bool = True) -> bool:
    """Return whether *text* can be ``host:port``; an IPv6 address is in brackets."""
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
    # Google's packages show a type that they do not know, so anything but the name of a type is refused here.
    return isinstance(found, dict) and bool(re.fullmatch(r"[a-z_]{1,64}", str(found.get("type"))))
