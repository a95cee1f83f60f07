"""Topics, queues and the subscriptions between them: what a client finds, creates and deletes."""

from __future__ import annotations

import attrs

__all__ = ["Queue"]


@attrs.frozen
class Queue:
    """The queue of a subscription."""

    url: str
    """The ``QueueUrl`` of all requests."""
    arn: str
    is_fifo: bool
    """True if SQS keeps the order of each message group.  All receipts of such a group are held up while one of its
    messages is in flight."""
    redrives: bool = False
    """True if SQS itself moves messages, because the redrive policy of the queue is that of the options.  The library
    then moves none, except those that the application rejects.  Never on FIFO."""
    is_ephemeral: bool = False
