"""The options of this backend."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal
from urllib.parse import urlsplit

import attrs

from events_core.options import CommonOptions, option
from events_sqs.limits import CARRIED_ID, SNS_MESSAGE_BYTES, SQS_MESSAGE_BYTES

__all__ = ["SQSOptions"]

_TEMPLATE_PARTS = re.compile(r"{topic}|{subscription}")


_LABEL = "(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?|[0-9a-f.:]+(%.*)?")
"""The names and addresses that botocore takes (``botocore.utils.is_valid_endpoint_url``)."""


def _host_of(url: str) -> str:
    """Return the host of *url*, or ``""`` if that is no URL for HTTP."""
    if not re.fullmatch(r"https?://\S+", url):
        return ""
    try:
        parts = urlsplit(url)
        _ = parts.port  # out of range raises too
    except ValueError:
        return ""
    return parts.hostname or ""


def _template_objection(text: str) -> str:
    if "{subscription}" not in text:
        return "lacks {subscription}: all subscriptions would be one queue"
    if re.sub(r"[A-Za-z0-9_-]", "", _TEMPLATE_PARTS.sub("", text)):
        return "has characters that no queue's name may have; use letters (a to z), digits, '-' and '_'"
    return ""


@attrs.frozen(kw_only=True)
class SQSOptions(CommonOptions):
    """Options of the SQS backend."""

    # Address and account

    region: str | None = option(
        default=None, help="Region of AWS, such as us-east-1. Default: AWS_DEFAULT_REGION, or that of the profile."
    )
    endpoint_url: str | None = option(
        default=None,
        help="URL of an emulator or a private endpoint, in place of AWS's own for the region. An endpoint of AWS is "
        "for the service in its name.",
    )
    account_id: str | None = option(
        default=None,
        help="Account that owns the topic and its queues, in 12 digits. Default: that of the credentials.",
        check=lambda text: "" if re.fullmatch(r"[0-9]{12}", text) else "is not an account's number of 12 digits",
    )
    profile: str | None = option(
        default=None, help="Profile of the files ~/.aws/config and ~/.aws/credentials to take credentials from."
    )
    role_arn: str | None = option(
        default=None, help="Role to assume with the credentials: arn:aws:iam::123456789012:role/name."
    )
    access_key_id: str | None = option(
        default=None,
        secret=True,
        help="Id of an access key. Default: botocore's chain, with environment, profile and the machine's role.",
    )
    secret_access_key: str | None = option(default=None, secret=True, help="Secret of the access key.")
    session_token: str | None = option(
        default=None, secret=True, help="Token of temporary credentials, along with their access key."
    )
    proxy: str | None = option(
        default=None,
        secret=True,
        help="URL of an HTTP proxy, such as http://proxy:3128. Default: that of the environment (HTTPS_PROXY).",
    )

    # Topics

    topology: Literal["sns", "queue"] = option(
        default="sns",
        help="sns: a topic is an SNS topic, and a subscription is a queue that is subscribed to it. queue: a topic is "
        "one queue, and its only subscription has the same name.",
    )
    queue_name: str = option(
        default="{topic}-{subscription}",
        check=_template_objection,
        help="Name of a subscription's queue with topology=sns. {topic} and {subscription} stand for their names.",
    )
    retention: int | None = option(
        default=None,
        minimum=60,
        maximum=1_209_600,
        unit="seconds",
        help="Time for which a new queue keeps messages. Default: AWS's, which is 4 days.",
    )
    ephemeral_idle: float = option(
        default=3600.0,
        minimum=1,
        maximum=1_209_600,
        unit="seconds",
        help="Time after which the queue of an ephemeral subscription is removed if its process was killed.",
    )

    # Sending

    max_message_bytes: int | None = option(
        default=None,
        minimum=1024,
        maximum=SQS_MESSAGE_BYTES,
        unit="bytes",
        help="Largest message, as AWS counts it: MaximumMessageSize of the topic or queue, which a new one gets. "
        f"Default: {SNS_MESSAGE_BYTES:,} for SNS, {SQS_MESSAGE_BYTES:,} with topology=queue.",
    )

    # Receiving

    wait_time: int = option(
        default=20,
        minimum=1,
        maximum=20,
        unit="seconds",
        help="Longest time for which a request to receive waits for messages at SQS. Each empty one is paid for.",
    )
    visibility_timeout: int = option(
        default=30,
        minimum=1,
        maximum=43_200,
        unit="seconds",
        help="Time after which SQS delivers a message again if its receiver was killed. Live receivers extend it.",
    )

    def problems(self) -> Iterable[str]:
        """Yield contradictions between options."""
        yield from super().problems()
        yield from self._account_problems()
        if self.dead_letter_subscription is not None and self.topology == "queue":
            yield "option 'dead_letter_subscription' has no meaning with topology=queue; leave it out"

    def _account_problems(self) -> Iterable[str]:
        if (self.access_key_id is None) is not (self.secret_access_key is None):
            yield "options 'access_key_id' and 'secret_access_key' go together; give both or neither"
        if self.session_token is not None and self.access_key_id is None:
            yield "option 'session_token' needs 'access_key_id' and 'secret_access_key'"
        if self.access_key_id is not None and self.profile is not None:
            yield "options 'access_key_id' and 'profile' are two sources of credentials; give one of them"
        if self.proxy is not None and not _host_of(self.proxy):
            yield "option 'proxy': its value is no URL such as http://localhost:3128"
        if self.endpoint_url is not None:
            host = _host_of(self.endpoint_url)
            if not host:
                yield f"option 'endpoint_url': {self.endpoint_url!r} is no URL such as http://localhost:4566"
            elif not _HOST.fullmatch(host):
                yield (
                    f"option 'endpoint_url': botocore refuses the host of {self.endpoint_url!r}; use a name that "
                    "has only letters (a to z), digits, '-' and '.'"
                )

    @property
    def is_fifo(self) -> bool:
        """True if topics and queues keep order: their names then end with ``.fifo``."""
        return self.ordering is True

    def topic_of(self, topic: str) -> str:
        """Return the name of the SNS topic or, with ``topology=queue``, of the queue."""
        return topic + ".fifo" if self.is_fifo else topic

    def queue_of(self, topic: str, subscription: str) -> str:
        """Return the name of a subscription's queue; with ``topology=queue`` it is that of the topic."""
        if self.topology == "queue":
            return self.topic_of(topic)
        parts = {"{topic}": topic, "{subscription}": subscription}
        # In one pass: the name of a subscription may contain "{topic}".
        name = _TEMPLATE_PARTS.sub(lambda found: parts[found[0]], self.queue_name)
        return name + ".fifo" if self.is_fifo else name

    @property
    def creates_queues(self) -> bool:
        """True if a missing queue of a named subscription may be created; with ``topology=queue`` it is a topic."""
        return self.create == "all" or (self.create == "subscription" and self.topology == "sns")

    @property
    def message_bytes(self) -> int:
        """The largest message, as AWS counts it."""
        return self.max_message_bytes or self._default_bytes

    @property
    def data_bytes(self) -> int:
        """The largest text that fits in a message next to what the message itself must carry."""
        return self.message_bytes - (CARRIED_ID if self.carries_ids else 0)

    @property
    def carries_ids(self) -> bool:
        """True if a message must carry its id itself.

        FIFO has deduplication ids.  A standard queue chooses the ids and tells them.  SNS does too, but gives each of
        its queues another one.
        """
        return self.topology == "sns" and not self.is_fifo

    @property
    def request_bytes(self) -> int:
        """The largest request of several messages, as AWS counts it."""
        return max(self.message_bytes, self._default_bytes)

    @property
    def _default_bytes(self) -> int:
        return SNS_MESSAGE_BYTES if self.topology == "sns" else SQS_MESSAGE_BYTES
